"""Writes that "auto" hands to the netpoller thread: when it does, and that nobody can tell but by the clock.

The transports' own tests run a second time on loops that switch in every turn (conftest.py, SWITCHING).
"""

import asyncio
import contextlib
import gc
import os
import pathlib
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from conftest import SWITCHING, make_loop, wait_in_a_callback
from peers import Echo, Recorder, put_away, read_exactly, read_to_end, send_all, turns, until

import netpoll_loop


def cpus():
    """By affinity and by the quota of the control group, as the engine counts them."""
    count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, int(quota) // int(period))
    return count


pytestmark = [
    pytest.mark.netpoll_only("about who sends"),
    pytest.mark.skipif(cpus() < 2, reason="with one CPU nothing is handed over"),
]


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Busy(Recorder):
    """Works a while for each piece of data, then answers."""

    work = 100e-6

    def data_received(self, data):
        super().data_received(data)
        spin(self.work)
        self.transport.write(b"answer")


def waited_for_a_cpu():
    """Seconds that this thread has been ready and had no CPU (proc(5), schedstat)."""
    return int(pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1]) * 1e-9


async def flood(loop, socket_pair, enough, seconds=5):
    """Several connections ask at once, so that the loop never waits; until it is enough, or the time is over."""
    peers = []
    for _ in range(4):
        sock, peer = socket_pair()
        await loop.create_connection(Busy, sock=sock)
        peers.append(peer)
    deadline = loop.time() + seconds
    while loop.time() < deadline and not enough():
        for peer in peers:
            peer.setblocking(False)
            try:
                peer.send(b"?")
                peer.recv(65536)
            except BlockingIOError:
                pass
        await asyncio.sleep(0)


def skip_if_crowded(waited):
    if waited_for_a_cpu() - waited > 0.25:
        pytest.skip("other processes want the CPUs, for which auto stands back")


@pytest.mark.parametrize("netpoller", ["auto", "inline"])
def test_a_busy_loop_hands_its_writes_over_and_an_idle_one_does_not(socket_pair, netpoller):
    loop = make_loop(netpoller)
    offloading = set()
    waited = waited_for_a_cpu()

    def enough():
        offloading.add(netpoll_loop.stats(loop).offloading)
        return netpoll_loop.stats(loop).netpoller_syscalls

    async def main():
        await flood(loop, socket_pair, enough, 5 if netpoller == "auto" else 1)
        for _ in range(100):
            await asyncio.sleep(0.02)
            if not netpoll_loop.stats(loop).offloading:
                return
        pytest.fail("still handing over, though idle")

    try:
        loop.run_until_complete(main())
        if netpoller == "auto" and not (True in offloading and netpoll_loop.stats(loop).netpoller_syscalls):
            skip_if_crowded(waited)
        assert (True in offloading) is (netpoller == "auto")
        if netpoller == "inline":
            assert netpoll_loop.stats(loop).netpoller_syscalls == 0
        else:
            assert netpoll_loop.stats(loop).netpoller_syscalls > 0
    finally:
        loop.close()


@pytest.mark.parametrize("allowed", ["0", "1"])
def test_the_netpoller_uses_io_uring_unless_it_is_told_not_to(monkeypatch, socket_pair, allowed):
    monkeypatch.setenv("NETPOLL_LOOP_IO_URING", allowed)
    loop = make_loop("auto")
    waited = waited_for_a_cpu()
    uses = set()

    def enough():
        uses.add("[io_uring]" in pathlib.Path("/proc/self/maps").read_text())
        return True in uses or netpoll_loop.stats(loop).netpoller_syscalls > 50

    try:
        loop.run_until_complete(flood(loop, socket_pair, enough))
        if not netpoll_loop.stats(loop).netpoller_syscalls:
            skip_if_crowded(waited)
        assert netpoll_loop.stats(loop).netpoller_syscalls > 0
        if allowed == "1" and True not in uses:
            pytest.skip("this kernel has no io_uring for us")
        assert (True in uses) is (allowed == "1")
    finally:
        loop.close()
    assert "[io_uring]" not in pathlib.Path("/proc/self/maps").read_text()


def test_what_was_written_is_sent_when_the_loop_stops(loop, socket_pair):
    async def main():
        for i in range(50):
            sock, peer = socket_pair()
            transport, _ = await loop.create_connection(Recorder, sock=sock)
            for _ in range(1 + i % 2):
                # The last write of the run is one that was handed over, or not.
                await asyncio.sleep(0)
            transport.write(b"the ")
            transport.write(b"end")
            pairs.append((transport, peer))

    pairs = []
    loop.run_until_complete(main())
    for transport, peer in pairs:
        assert transport.get_write_buffer_size() == 0
        peer.setblocking(False)
        assert peer.recv(100) == b"the end"
        put_away(transport)
    loop.run_until_complete(turns())


def test_an_answer_to_a_peer_that_has_gone_ends_the_connection_with_the_error(run, loop, socket_pair, exceptions):
    async def main():
        errors = []
        for _ in range(20):
            sock, peer = socket_pair()
            transport, protocol = await loop.create_connection(Recorder, sock=sock)
            transport.pause_reading()
            peer.close()
            for _ in range(20):
                transport.write(b"x" * 100)
                await asyncio.sleep(0)
                if protocol.lost:
                    break
            await until(lambda protocol=protocol: protocol.lost)
            errors.append(type(protocol.lost_with))
        assert set(errors) <= {BrokenPipeError, ConnectionResetError}
        assert not exceptions

    run(main())


def test_small_writes_beyond_the_limit_pause_the_protocol_and_all_arrives(run, loop, socket_pair):
    async def main():
        sock, peer = socket_pair()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        transport.set_write_buffer_limits(high=10_000, low=2_000)
        written = bytearray()
        while "pause_writing" not in protocol.calls:
            piece = bytes([len(written) % 251]) * 97
            transport.write(piece)
            written += piece
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() > 10_000
        assert bytes(await read_exactly(peer, len(written))) == bytes(written)
        await until(lambda: "resume_writing" in protocol.calls)
        assert protocol.calls.count("pause_writing") == protocol.calls.count("resume_writing") == 1
        put_away(transport)
        await turns()

    run(main())


def test_changed_buffers_and_dropped_references_change_nothing_that_is_sent(run, loop, socket_pair):
    async def main():
        sock, peer = socket_pair()
        transport, _ = await loop.create_connection(Recorder, sock=sock)
        expected = bytearray()
        for i in range(200):
            data = bytearray(b"%05d" % i)
            expected += data
            transport.write(data)
            data[:] = b"xxxxx"
            transport.write(memoryview(b"%05d" % i))
            expected += b"%05d" % i
            transport.writelines([b"<", bytearray(b"%d" % i), b"", memoryview(b">")])
            expected += b"<%d>" % i
            del data
            if i % 40 == 0:
                gc.collect()
            if i % 10 == 0:
                await asyncio.sleep(0)
        assert bytes(await read_exactly(peer, len(expected))) == bytes(expected)
        put_away(transport)
        await turns()

    run(main())


def test_a_paused_transport_that_nobody_keeps_has_sent_its_last_words(run, loop, socket_pair):
    async def main():
        for _ in range(10):
            sock, peer = socket_pair()
            transport, protocol = await loop.create_connection(Recorder, sock=sock)
            transport.pause_reading()
            await asyncio.sleep(0)
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                transport.write(b"last words")
                protocol.transport = None
                del transport, protocol
                gc.collect()
                await turns()
            assert bytes(await read_exactly(peer, 10)) == b"last words"

    run(main())


def test_a_process_that_ends_right_after_its_run_has_sent_everything():
    code = textwrap.dedent("""
        import asyncio, os, socket, netpoll_loop

        async def main(sock):
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
            for i in range(7):
                await asyncio.sleep(0)
            for i in range(100):
                transport.write(b"%03d" % i)

        near, far = socket.socketpair()
        loop = netpoll_loop.new_event_loop()
        loop.run_until_complete(main(near))
        assert far.recv(1000) == b"".join(b"%03d" % i for i in range(100))
        print("all of it", flush=True)
        os._exit(0)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NETPOLL_LOOP_CHAOS": "1", "NETPOLL_LOOP_NETPOLLER": "auto"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "all of it\n", done.stderr


def test_a_thread_that_computes_starves_neither_the_loop_nor_itself(run, loop, socket_pair):
    ended = threading.Event()
    turns_of_thread = [0]

    def compute():
        while not ended.is_set():
            sum(i * i for i in range(1000))
            turns_of_thread[0] += 1

    async def main():
        pairs = []
        for _ in range(4):
            sock, peer = socket_pair()
            transport, _ = await loop.create_connection(Echo, sock=sock)
            pairs.append((transport, peer))
        woken = []
        loop.call_later(0.05, woken.append, "timer")
        threading.Timer(0.05, loop.call_soon_threadsafe, (woken.append, "thread")).start()
        for i in range(100):
            for _, peer in pairs:
                await send_all(peer, b"%03d" % i)
            for _, peer in pairs:
                assert bytes(await read_exactly(peer, 3)) == b"%03d" % i
        await until(lambda: sorted(woken) == ["thread", "timer"])
        assert turns_of_thread[0] > 0
        for transport, _ in pairs:
            put_away(transport)
        await turns()

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        run(main())
    finally:
        ended.set()
        thread.join()


def test_a_header_before_a_large_body_pauses_nobody_while_the_socket_takes_both(run, loop, socket_pair):
    async def main():
        sock, peer = socket_pair()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        for number in range(20):
            transport.write(b"h" * 200)
            transport.write(b"%d" % (number % 10) * 100_000)
            assert await read_exactly(peer, 100_200) == b"h" * 200 + b"%d" % (number % 10) * 100_000
        transport.writelines([b"h" * 200])
        transport.writelines([b"a" * 50_000, b"b" * 50_000])
        assert await read_exactly(peer, 100_200) == b"h" * 200 + b"a" * 50_000 + b"b" * 50_000
        assert protocol.calls == ["connection_made"]
        put_away(transport)
        await turns()

    run(main())


def test_new_limits_are_for_what_the_socket_has_not_taken(run, loop, socket_pair):
    async def main():
        sock, _ = socket_pair()
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        for _ in range(20):
            transport.set_write_buffer_limits()
            # What the netpoller has in hand isn't in the socket yet.
            await until(lambda: transport.get_write_buffer_size() == 0)
            transport.write(b"small")
            if not netpoll_loop.stats(loop).offloading:
                transport.set_write_buffer_limits(high=0)
        assert protocol.calls == ["connection_made"]
        put_away(transport)
        await turns()

    run(main())


@pytest.mark.parametrize("interval", [1e-6, 0.005, 0.05])
def test_a_loop_that_never_rests_leaves_a_thread_its_share_of_the_gil(run, loop, socket_pair, interval):
    before = sys.getswitchinterval()
    done = loop.create_future()

    def compute():
        for _ in range(2000):
            sum(i * i for i in range(1000))
        loop.call_soon_threadsafe(done.set_result, True)

    async def main():
        sock, peer = socket_pair()
        transport, _ = await loop.create_connection(Echo, sock=sock)
        threading.Thread(target=compute).start()
        # A pause in the traffic: after it the loop waits for the GIL, and knows that there is such a thread.
        await asyncio.sleep(0.02)
        while not done.done():
            await loop.sock_sendall(peer, b"ping")
            assert await loop.sock_recv(peer, 5) == b"ping"
        put_away(transport)
        await turns()

    sys.setswitchinterval(interval)
    try:
        run(main())
    finally:
        sys.setswitchinterval(before)


class Bulk(asyncio.Protocol):
    """Writes all of its pieces as the transport lets it, and half-closes behind the last one, wherever that happens."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.paused = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.resume_writing()

    def pause_writing(self):
        self.paused = True

    def resume_writing(self):
        self.paused = False
        while self.pieces and not self.paused:
            self.pieces -= 1
            self.transport.write(bytes(65536))
        if not self.pieces:
            self.pieces = 0
            self.transport.write_eof()

    def connection_lost(self, exc):
        self.lost.set_result(exc)


@pytest.mark.parametrize("switching", [False, True], ids=["saturated", "in every turn"])
def test_bulk_that_is_paused_and_half_closed_by_itself_always_ends(tcp_pair, switching):
    """What the netpoller was just finishing when more was queued told nobody: the sender waited for ever."""
    loop = make_loop(SWITCHING if switching else "auto")
    pieces, runs = 800, 12

    def receive(sock, counts):
        count = 0
        while piece := sock.recv(1 << 20):
            count += len(piece)
        counts.append(count)
        sock.close()

    async def main():
        for _ in range(runs):
            counts = []
            ours, theirs = tcp_pair()
            theirs.setblocking(True)
            reader = threading.Thread(target=receive, args=(theirs, counts))
            reader.start()
            _, protocol = await loop.create_connection(lambda: Bulk(pieces), sock=ours)
            try:
                assert await asyncio.wait_for(protocol.lost, 20) is None
            finally:
                put_away(protocol.transport)
                await asyncio.to_thread(reader.join, 10)
            assert counts == [pieces * 65536]

    try:
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


@pytest.mark.parametrize("then", ["nothing", "close", "write_eof", "abort", "get_write_buffer_size"])
def test_the_error_of_a_write_comes_before_the_end_of_what_is_read(run, loop, socket_pair, then):
    async def main():
        for _ in range(6):
            # In each state of a loop that changes its mind in every turn.
            await asyncio.sleep(0)
            sock, peer = socket_pair()
            transport, protocol = await loop.create_connection(Recorder, sock=sock)
            transport.write(b"first")
            peer.close()
            transport.write(b"second")
            if then != "nothing":
                getattr(transport, then)()
            await turns()
            assert isinstance(protocol.lost_with, (BrokenPipeError, ConnectionResetError))

    run(main())


def test_what_is_written_before_abort_has_been_sent(run, loop, socket_pair):
    async def main():
        for _ in range(6):
            await asyncio.sleep(0)
            sock, peer = socket_pair()
            transport, protocol = await loop.create_connection(Recorder, sock=sock)
            transport.write(b"to ")
            transport.write(b"the end")
            transport.abort()
            await turns()
            assert protocol.lost
            assert peer.recv(100) == b"to the end"

    run(main())


def test_what_is_written_before_the_protocol_fails_has_been_sent(run, loop, tcp_pair, exceptions):
    class Fails(Recorder):
        def data_received(self, data):
            self.transport.write(b"last ")
            self.transport.write(b"words")
            raise ZeroDivisionError

    async def main():
        for _ in range(30):
            await asyncio.sleep(0)
            sock, peer = tcp_pair()
            _, protocol = await loop.create_connection(Fails, sock=sock)
            await turns()
            peer.send(b"!")
            await until(lambda protocol=protocol: protocol.lost)
            assert isinstance(protocol.lost_with, ZeroDivisionError)
            assert await read_to_end(peer) == b"last words"
        assert len(exceptions) == 30
        exceptions.clear()

    run(main())


def test_a_protocol_that_writes_more_than_its_limit_in_a_turn_is_paused_and_resumed(run, loop, socket_pair):
    async def main():
        for size in (40_000, 70_000, 300_000):
            await asyncio.sleep(0)
            sock, peer = socket_pair()
            peer.setblocking(False)
            transport, protocol = await loop.create_connection(Recorder, sock=sock)
            expected = b""
            while "pause_writing" not in protocol.calls:
                for i in range(3):
                    piece = bytes([i]) * size
                    expected += piece
                    transport.write(piece)
                await asyncio.sleep(0.001)
                assert len(expected) < 5_000_000
            assert transport.get_write_buffer_size() > 64 * 1024
            got = bytearray()
            while len(got) < len(expected):
                got += await loop.sock_recv(peer, 1 << 20)
            await asyncio.sleep(0.01)
            assert bytes(got) == expected
            assert protocol.calls.count("pause_writing") == protocol.calls.count("resume_writing") == 1
            put_away(transport)

    run(main())


#: docs/semantics.md, "Reads".
AHEAD = 256 * 1024


@pytest.mark.parametrize("size", [1000, AHEAD + 1, 3_000_000])
@pytest.mark.parametrize("ends", [False, True])
def test_a_stalled_loops_connections_are_read_up_to_the_bound(tcp_pair, size, ends):
    loop = make_loop("auto")
    sock, peer = tcp_pair()
    data = os.urandom(size)
    received = []

    def send():
        peer.setblocking(True)
        peer.sendall(data)
        if ends:
            peer.shutdown(socket.SHUT_WR)

    async def main():
        _, protocol = await loop.create_connection(Recorder, sock=sock)
        await turns(3)
        before = netpoll_loop.stats(loop).netpoller_syscalls
        sender = threading.Thread(target=send)
        sender.start()
        wait_in_a_callback(loop, lambda seen: seen.bytes_received >= min(size, AHEAD))
        assert netpoll_loop.stats(loop).netpoller_syscalls > before
        time.sleep(0.02)
        assert netpoll_loop.stats(loop).bytes_received == min(size, AHEAD)
        assert not protocol.data
        await until(lambda: len(protocol.data) == size and (not ends or "eof_received" in protocol.calls))
        received.append(bytes(protocol.data))
        sender.join(10)
        protocol.transport.abort()
        await until(lambda: protocol.lost)

    try:
        loop.run_until_complete(asyncio.wait_for(main(), 20))
    finally:
        loop.close()
    assert received == [data]


@pytest.mark.parametrize("paused", ["before the stall", "in the stall"])
def test_a_paused_connection_is_not_read_in_a_stall(tcp_pair, paused):
    """Whoever pauses it may give its socket away."""
    loop = make_loop("auto")
    sock, peer = tcp_pair()

    async def main():
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        await turns(3)
        if paused == "before the stall":
            transport.pause_reading()
        stalls = netpoll_loop.stats(loop).stalls
        wait_in_a_callback(loop, lambda seen: seen.stalls > stalls)
        if paused == "in the stall":
            transport.pause_reading()
        peer.sendall(b"for somebody else")
        time.sleep(0.03)
        assert netpoll_loop.stats(loop).bytes_received == 0
        assert sock.recv(100, socket.MSG_PEEK) == b"for somebody else"
        transport.resume_reading()
        await until(lambda: protocol.data == b"for somebody else")
        transport.abort()
        await until(lambda: protocol.lost)

    try:
        loop.run_until_complete(asyncio.wait_for(main(), 20))
    finally:
        loop.close()
