"""What a review of the whole project found broken, each as a statement about what must hold.

A defect of the project's own has no public reference; the tests' names say what went wrong. What could end or hang
the process runs in a child program, which has a time limit.
"""

import array
import asyncio
import contextlib
import gc
import importlib.util
import select
import signal
import socket
import threading
import time
import warnings
import weakref

import pytest
from peers import BufferedRecorder, Recorder, pattern, put_away, read, read_to_end, reset, turns, until

INTERRUPTED = "interrupted"


@pytest.fixture
def attach(loop):
    """`await attach(factory, sock)` -> a stream transport over the connected socket and its protocol."""
    transports = []

    async def attach(factory, sock):
        transport, protocol = await loop.create_connection(factory, sock=sock)
        transports.append(weakref.ref(transport))
        return transport, protocol

    yield attach

    async def close():
        for ref in transports:
            if (transport := ref()) is not None:
                put_away(transport)
        await turns(2)

    if not loop.is_closed():
        loop.run_until_complete(close())


@pytest.fixture
def datagrams(loop):
    """`await datagrams(factory, **options)` -> a datagram transport and its protocol."""
    transports = []

    async def endpoint(factory, **options):
        transport, protocol = await loop.create_datagram_endpoint(factory, **options)
        transports.append(transport)
        return transport, protocol

    yield endpoint

    async def close():
        for transport in transports:
            transport.abort()
        await turns(2)

    if not loop.is_closed():
        loop.run_until_complete(close())


def drain(sock, quiet=0.0):
    """The number of bytes that the socket has until none came for `quiet` seconds; the loop doesn't run meanwhile."""
    count = 0
    while select.select([sock], [], [], quiet)[0]:
        piece = sock.recv(1 << 20)
        if not piece:
            break
        count += len(piece)
    return count


class Interrupted(Recorder):
    """The first call of the named method raises KeyboardInterrupt once its work is done."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def _interrupt(self, method):
        if self.method == method:
            self.method = None
            raise KeyboardInterrupt(INTERRUPTED)

    def data_received(self, data):
        super().data_received(data)
        self._interrupt("data_received")

    def eof_received(self):
        super().eof_received()
        self._interrupt("eof_received")

    def resume_writing(self):
        super().resume_writing()
        self._interrupt("resume_writing")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_paused_transport_may_be_collected_by_another_thread_while_the_loop_is_parked(run_child):
    """The event for the transport is already taken from the kernel when the transport goes."""
    done = run_child(
        """
        import gc, socket, threading, time, warnings
        warnings.simplefilter("ignore")
        gc.disable()
        here, there = socket.socketpair()
        if os.fork() == 0:
            # The peers, in a process of their own: they send while the collecting thread below keeps the GIL.
            here.close()
            address = ("127.0.0.1", int(there.recv(10)))
            peers = [socket.create_connection(address) for _ in range(20)]
            time.sleep(0.6)
            peers[10].send(b"x")
            there.recv(1)
            os._exit(0)
        there.close()
        sys.setswitchinterval(1000)

        class Paused(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
                transport.pause_reading()

        def collect():
            time.sleep(0.1)
            end = time.monotonic() + 0.8
            while time.monotonic() < end:
                pass
            gc.collect()

        async def main():
            server = await asyncio.get_running_loop().create_server(Paused, "127.0.0.1", 0)
            here.send(b"%d" % server.sockets[0].getsockname()[1])
            await asyncio.sleep(0.3)
            thread = threading.Thread(target=collect)
            thread.start()
            while thread.is_alive():
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.1)
            server.close()

        run_main(main())
        here.close()
        os.wait()
        print("survived")
        """,
        env={"PYTHONMALLOC": "debug"},
    )
    assert done.stdout == "survived\n"


def test_a_finalizer_may_call_call_soon_while_the_ready_queue_grows(run_child):
    """Whatever the allocation at which the collector runs: each threshold makes it another one."""
    done = run_child(
        """
        import gc

        class Cycle:
            def __init__(self, ran, loop):
                self.itself, self.ran, self.loop = self, ran, loop

            def __del__(self):
                self.loop.call_soon(self.ran.append, "finalizer")

        def once(threshold):
            loop, ran = new_event_loop(), []

            def fill():
                for number in range(240):
                    loop.call_soon(ran.append, number)
                keep = [[] for _ in range(200)]
                gc.disable()
                Cycle(ran, loop)
                gc.enable()
                gc.set_threshold(threshold + gc.get_count()[0])
                for number in range(240, 300):
                    loop.call_soon(ran.append, number)
                gc.set_threshold(700)
                loop.call_soon(loop.stop)

            gc.collect()
            loop.call_soon(fill)
            loop.call_later(5, loop.stop)
            loop.run_forever()
            loop.close()
            assert [what for what in ran if what != "finalizer"] == list(range(300)), threshold

        for threshold in range(1, 60):
            once(threshold)
        print("complete")
        """
    )
    assert done.stdout == "complete\n"


@pytest.mark.skipif(importlib.util.find_spec("_testcapi") is None, reason="_testcapi is not installed")
def test_memory_running_out_while_receiving_never_loses_bytes_silently(run_child):
    """Either the protocol gets them later or the connection is lost and says why."""
    done = run_child(
        """
        import _testcapi, socket
        if not hasattr(_testcapi, "set_nomemory"):
            print("no set_nomemory", flush=True)
            os._exit(0)

        class Receiver(asyncio.Protocol):
            count, lost, lost_with = 0, False, None
            def connection_made(self, transport):
                self.transport = transport
            def data_received(self, data):
                self.count += len(data)
            def connection_lost(self, exc):
                self.lost, self.lost_with = True, exc

        loop = new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)
        for which in range(1, 10):
            sock, peer = socket.socketpair()
            sock.setblocking(False)
            transport, protocol = loop.run_until_complete(loop.create_connection(Receiver, sock=sock))
            loop.run_until_complete(asyncio.sleep(0.01))
            sent = peer.send(b"a" * 50_000)
            # Removed before the run's end: that is not to fail. Of each two, for the failure may cost one.
            timers = [loop.call_later(delay, _testcapi.remove_mem_hooks) for delay in (0.02, 0.1)]
            timers += [loop.call_later(delay, loop.stop) for delay in (0.2, 1)]
            loop.call_soon(_testcapi.set_nomemory, which, which + 1)
            try:
                loop.run_forever()
            except MemoryError:
                pass
            _testcapi.remove_mem_hooks()
            for timer in timers:
                timer.cancel()
            for _ in range(1000):
                if protocol.lost or protocol.count == sent:
                    break
                loop.run_until_complete(asyncio.sleep(0.001))
            if protocol.lost:
                assert isinstance(protocol.lost_with, MemoryError), (which, protocol.lost_with)
            else:
                assert protocol.count == sent, (which, protocol.count)
            transport.abort()
            peer.close()
        print("ok", flush=True)
        os._exit(0)  # an allocation that failed elsewhere may have left anything
        """
    )
    if done.stdout.startswith("no set_nomemory"):
        pytest.skip("_testcapi has no set_nomemory")
    assert done.stdout == "ok\n"


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_small_buffer_gets_all_bytes_although_a_write_completes_meanwhile(run, tcp_pair, attach):
    total = 100 * 1024

    async def main():
        sock, peer = tcp_pair()
        written = 0

        class Slow(BufferedRecorder):
            pieces = 0

            def buffer_updated(self, nbytes):
                nonlocal written
                super().buffer_updated(nbytes)
                self.pieces += 1
                if self.pieces == 10:  # the write goes on, and may end, while this callback runs
                    written += drain(peer, quiet=0.1)

        transport, protocol = await attach(lambda: Slow(512), sock)
        await turns()
        transport.write(bytes(6_000_000))
        await turns()
        data = pattern(total)
        assert peer.send(data) == total
        while len(protocol.data) < total or written < 6_000_000:
            written += drain(peer)
            await asyncio.sleep(0.001)
        assert protocol.data == data

    run(main())


def test_a_reset_while_paused_from_connection_made_reports_no_error(run, tcp_pair, attach, exceptions):
    class Paused(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async def main():
        sock, peer = tcp_pair()
        transport, protocol = await attach(Paused, sock)
        await turns()
        reset(peer)
        await turns()
        assert exceptions == []
        transport.abort()
        await until(lambda: protocol.lost)
        assert protocol.lost_with is None
        assert exceptions == []

    run(main())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_abandoned_half_open_transport_is_collected_and_its_peer_sees_the_end(run, loop, socket_pair):
    async def main():
        sock, peer = socket_pair()
        _, protocol = await loop.create_connection(lambda: Recorder(keep_open=True), sock=sock)
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: "eof_received" in protocol.calls)
        await turns()
        ref = weakref.ref(protocol)
        del sock, protocol, _
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
            await turns()
            gc.collect()
        assert ref() is None
        assert await read(peer) == b""

    run(main())


def test_an_abandoned_accepted_transport_is_closed_even_if_resource_warnings_are_errors(run_child):
    done = run_child(
        """
        import gc, socket, weakref
        refs = []
        class Paused(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
                transport.pause_reading()
                refs.append(weakref.ref(self))

        async def main():
            loop = asyncio.get_running_loop()
            server = await loop.create_server(Paused, "127.0.0.1", 0)
            peer = socket.create_connection(server.sockets[0].getsockname(), timeout=5)
            while not refs:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            before = len(os.listdir("/proc/self/fd"))
            gc.collect()
            await asyncio.sleep(0.05)
            print(refs[0]() is None, len(os.listdir("/proc/self/fd")) - before, peer.recv(1))
            peer.close()
            server.close()
            await asyncio.wait_for(server.wait_closed(), 5)

        run_main(main())
        """,
        flags=["-W", "error::ResourceWarning"],
    )
    assert done.stdout == "True -1 b''\n"


# --- interruptions ----------------------------------------------------------------------------------------------------


def interrupted(run):
    """Runs the loop until the protocol's KeyboardInterrupt comes out of it."""
    with pytest.raises(KeyboardInterrupt, match=INTERRUPTED):
        run(asyncio.sleep(5))


@pytest.mark.parametrize("method", ["data_received", "eof_received"])
def test_an_interrupt_while_receiving_loses_neither_data_nor_the_end(run, socket_pair, attach, method):
    sock, peer = socket_pair()
    _, protocol = run(attach(lambda: Interrupted(method), sock))
    run(turns())
    data, sent = pattern(1 << 20), 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(data):
            sent += peer.send(data[sent : sent + 65536])
    peer.shutdown(socket.SHUT_WR)
    interrupted(run)
    run(until(lambda: protocol.lost))
    assert protocol.data == data[:sent]
    assert "eof_received" in protocol.calls
    assert protocol.lost_with is None


def test_an_interrupt_out_of_data_received_does_not_lose_the_end_of_a_closed_peer(run, tcp_pair, attach):
    sock, peer = tcp_pair()
    _, protocol = run(attach(lambda: Interrupted("data_received"), sock))
    run(turns())
    peer.send(b"x")
    peer.close()
    interrupted(run)
    run(until(lambda: protocol.lost))
    assert protocol.data == b"x"


def test_an_interrupt_out_of_data_received_does_not_lose_the_write_that_is_under_way(run, tcp_pair, attach):
    total = 8_000_000
    sock, peer = tcp_pair()
    transport, _ = run(attach(lambda: Interrupted("data_received"), sock))
    transport.write(bytes(total))
    run(turns())
    peer.send(b"x")
    arrived = drain(peer, quiet=0.05)
    interrupted(run)

    async def rest():
        nonlocal arrived
        while arrived < total:
            arrived += drain(peer)
            await asyncio.sleep(0.001)
        await until(lambda: not transport.get_write_buffer_size())

    run(rest())
    assert arrived == total


@pytest.mark.not_on_oracle("stock's writer stays registered with an empty buffer and fails an assertion for ever")
def test_an_interrupt_out_of_resume_writing_loses_no_write(run, tcp_pair, attach, exceptions):
    total = 8_000_000
    sock, peer = tcp_pair()
    transport, protocol = run(attach(lambda: Interrupted("resume_writing"), sock))
    transport.write(bytes(total))
    arrived = 0

    async def read_all():
        nonlocal arrived
        while arrived < total or transport.get_write_buffer_size():
            arrived += drain(peer)
            await asyncio.sleep(0.001)

    with pytest.raises(KeyboardInterrupt, match=INTERRUPTED):
        run(read_all())
        run(asyncio.sleep(5))
    run(read_all())
    transport.write(b"more")
    transport.close()
    assert run(read_to_end(peer)) == b"more"
    run(until(lambda: protocol.lost))
    assert protocol.calls.count("resume_writing") == 1
    assert exceptions == []


def test_an_interrupt_out_of_datagram_received_loses_no_datagram(run, owned, datagrams):
    received = []

    class Interrupting(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr):
            received.append(data)
            if len(received) == 1:
                raise KeyboardInterrupt(INTERRUPTED)

    transport, _ = run(datagrams(Interrupting, local_addr=("127.0.0.1", 0)))
    run(turns())
    peer = owned(socket.socket(type=socket.SOCK_DGRAM))
    sent = [b"%d" % i for i in range(4)]
    for data in sent:
        peer.sendto(data, transport.get_extra_info("sockname"))
    interrupted(run)
    run(until(lambda: len(received) >= len(sent)))
    assert received == sent


# --- datagrams --------------------------------------------------------------------------------------------------------


def test_a_datagram_endpoint_goes_on_after_datagram_received_raised(run, owned, datagrams, exceptions):
    received = []

    class Raising(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr):
            received.append(data)
            raise ValueError(data)

    async def main():
        transport, _ = await datagrams(Raising, local_addr=("127.0.0.1", 0))
        await turns()
        peer = owned(socket.socket(type=socket.SOCK_DGRAM))
        sent = [b"%d" % i for i in range(10)]
        for data in sent:
            peer.sendto(data, transport.get_extra_info("sockname"))
        await until(lambda: len(received) == len(sent))
        assert received == sent
        await until(lambda: len(exceptions) == len(sent))
        assert all(isinstance(context["exception"], ValueError) for context in exceptions)

    run(main())


def test_a_datagram_endpoint_goes_on_after_error_received_raised(run, owned, datagrams, exceptions):
    received, errors = [], []

    class Raising(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr):
            received.append(data)

        def error_received(self, exc):
            errors.append(exc)
            raise ValueError("error_received")

    async def main():
        peer = owned(socket.socket(type=socket.SOCK_DGRAM))
        peer.bind(("127.0.0.1", 0))
        address = peer.getsockname()
        transport, _ = await datagrams(Raising, remote_addr=address)
        await turns()
        peer.close()
        transport.sendto(b"to nobody")
        await until(lambda: errors)
        assert isinstance(errors[0], ConnectionRefusedError)
        again = owned(socket.socket(type=socket.SOCK_DGRAM))
        again.bind(address)
        again.sendto(b"after", transport.get_extra_info("sockname"))
        await until(lambda: received)
        assert received == [b"after"]
        assert [type(context["exception"]) for context in exceptions] == [ValueError]

    run(main())


@pytest.mark.not_on_oracle("stock counts items, then bytes: its buffer size becomes negative")
def test_a_datagram_of_wide_items_counts_its_bytes(run, owned, datagrams, tmp_path):
    async def main():
        path = str(tmp_path / "peer")
        peer = owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        peer.bind(path)
        peer.setblocking(False)
        transport, _ = await datagrams(asyncio.DatagramProtocol, family=socket.AF_UNIX, remote_addr=path)
        data = memoryview(array.array("I", range(2000)))
        for _ in range(2000):
            if transport.get_write_buffer_size():
                break
            transport.sendto(data)
        before = transport.get_write_buffer_size()
        assert before >= data.nbytes
        transport.sendto(data)
        assert transport.get_write_buffer_size() - before >= data.nbytes
        while transport.get_write_buffer_size() > 0:
            with contextlib.suppress(BlockingIOError):
                assert peer.recv(65536) == bytes(data)
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() == 0

    run(main())


# --- socket functions -------------------------------------------------------------------------------------------------


@pytest.mark.not_on_oracle("stock says connected at once, and the socket is not")
def test_sock_connect_to_a_full_unix_listener_succeeds_once_there_is_room(run, loop, owned, tmp_path):
    async def main():
        listener = owned(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "listener"))
        listener.listen(0)
        first, second = (owned(socket.socket(socket.AF_UNIX)) for _ in range(2))
        for sock in (first, second):
            sock.setblocking(False)
        await loop.sock_connect(first, listener.getsockname())
        waiting = asyncio.ensure_future(loop.sock_connect(second, listener.getsockname()))
        await turns()
        assert not waiting.done()
        owned(listener.accept()[0])
        await waiting
        accepted = owned(listener.accept()[0])
        accepted.setblocking(False)
        second.send(b"x")
        assert await read(accepted) == b"x"

    run(main())


@pytest.mark.not_on_oracle("stock blocks the process until there is data")
def test_sock_recv_on_a_blocking_socket_does_not_block_the_process(run, loop, socket_pair):
    async def main():
        sock, peer = socket_pair(blocking=True)
        rescue = threading.Timer(5, peer.send, [b"late"])  # ends the test if the process is blocked
        rescue.start()
        try:
            receiving = asyncio.ensure_future(loop.sock_recv(sock, 10))
            await turns()
            assert not receiving.done()
            peer.send(b"x")
            assert await receiving == b"x"
            assert sock.getblocking()
        finally:
            rescue.cancel()
            rescue.join()

    run(main())


# --- the loop itself --------------------------------------------------------------------------------------------------


def test_a_delay_of_nan_runs_and_holds_up_no_other_timer(run_child):
    done = run_child(
        """
        async def main():
            ran = []
            asyncio.get_running_loop().call_later(float("nan"), ran.append, "nan")
            await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            print(*ran)

        run_main(main())
        """,
        timeout=15,
    )
    assert done.stdout == "nan\n"


@pytest.mark.netpoll_only("stock sets no wake-up descriptor without a signal handler of its own")
def test_a_wakeup_fd_closed_during_the_run_does_not_leave_the_loops_own(new_loop, socket_pair):
    loop = new_loop()
    read_end, write_end = socket_pair()
    former = signal.set_wakeup_fd(write_end.fileno())
    try:

        async def main():
            write_end.close()

        loop.run_until_complete(main())
    finally:
        left = signal.set_wakeup_fd(former)
    assert left == -1


def test_the_selectors_map_lists_its_readers_while_there_are_transports(run, loop, socket_pair, attach):
    async def main():
        sock, _ = socket_pair()
        plain, _ = socket_pair()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        await attach(Recorder, sock)
        loop.add_reader(plain, print)
        await turns()
        keys = dict(loop._selector.get_map())
        assert keys[plain.fileno()].fd == plain.fileno()
        assert all(fd == key.fd for fd, key in keys.items())
        loop.remove_reader(plain)
        assert plain.fileno() not in dict(loop._selector.get_map())
        server.close()

    run(main())


def test_debug_mode_reports_a_slow_callback_that_raises(run, loop, exceptions, caplog):
    loop.set_debug(True)
    loop.slow_callback_duration = 0.01

    def slow_and_wrong():
        time.sleep(0.05)
        raise ValueError("slow")

    loop.call_soon(slow_and_wrong)
    with caplog.at_level("WARNING", "asyncio"):
        run(turns())
    assert [str(context["exception"]) for context in exceptions] == ["slow"]
    texts = [record.getMessage() for record in caplog.records]
    # A report from while it was stuck may be there as well.
    slow = [text for text in texts if text.startswith("Executing") and "slow_and_wrong" in text]
    assert len(slow) == 1
    assert slow[0].startswith("Executing <Handle") and " took " in slow[0]


# --- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_netpoller_thread_exists_at_a_fork_although_a_slow_hook_lets_others_run(run_child):
    """Hooks registered before netpoll_loop's run after its own."""
    done = run_child(
        """
        import pathlib, socket, threading, time, warnings
        warnings.simplefilter("ignore")

        def thread_names():
            for task in pathlib.Path("/proc/self/task").iterdir():
                try:
                    yield (task / "comm").read_text().strip()
                except OSError:
                    pass

        seen = 0
        def slow_hook():
            global seen
            time.sleep(0.001)
            seen += "netpoller" in thread_names()
        os.register_at_fork(before=slow_hook)

        stopping, turns = False, 0
        async def churn():
            global turns
            loop = asyncio.get_running_loop()
            while not stopping:
                sock, peer = socket.socketpair()
                sock.setblocking(False)
                transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
                transport.abort()
                peer.close()
                await asyncio.sleep(0)
                turns += 1

        thread = threading.Thread(target=lambda: run_main(churn()))
        thread.start()
        while not turns:
            time.sleep(0.001)
        for _ in range(100):
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
        before = turns
        while turns == before:  # and the loop goes on after a fork
            time.sleep(0.001)
        stopping = True
        thread.join()
        print(seen)
        """
    )
    assert done.stdout == "0\n"


def test_closing_every_descriptor_behind_the_loop_ends_the_run_with_an_error(run_child, mode):
    if mode == "dedicated":
        pytest.skip("the loop's thread itself has no descriptor to wait on")
    done = run_child(
        """
        import socket
        loop = new_event_loop()
        async def connect():
            sock, peer = socket.socketpair()
            sock.setblocking(False)
            return *await loop.create_connection(asyncio.Protocol, sock=sock), peer
        kept = loop.run_until_complete(connect())
        loop.call_later(0.01, os.closerange, 3, 1024)
        loop.call_later(3600, print)
        try:
            loop.run_forever()
        except OSError as exc:
            print(type(exc).__name__, flush=True)
        os._exit(0)
        """,
        timeout=15,
    )
    assert done.stdout == "OSError\n"


# ---- a protocol that writes in resume_writing() ----------------------------------------------------


class WritesWhenResumed(asyncio.Protocol):
    """Writes one piece whenever it may, and then waits until the transport has sent it."""

    def __init__(self, pieces, size):
        self.left = pieces
        self.piece = bytes(size)
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(high=0)
        self.paused = False
        self.write()

    def write(self):
        while self.left and not self.paused:
            self.left -= 1
            self.transport.write(self.piece)
        # In the modes with a netpoller it is sent beside this callback.
        end = time.monotonic() + 0.05
        while self.transport.get_write_buffer_size() and time.monotonic() < end:
            time.sleep(0.001)
        if not self.left and not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self):
        self.paused = True

    def resume_writing(self):
        self.paused = False
        self.write()

    def connection_lost(self, exc):
        self.lost.set_result(exc)


def test_a_protocol_paused_while_it_is_resumed_is_resumed_again(run, attach, socket_pair):
    """The netpoller had sent all of it before resume_writing() returned: nobody resumed the protocol any more."""
    ours, theirs = socket_pair()
    theirs.setblocking(True)
    received = 0

    def receive():
        nonlocal received
        while piece := theirs.recv(1 << 20):
            received += len(piece)

    async def main():
        _, protocol = await attach(lambda: WritesWhenResumed(20, 1 << 20), ours)
        assert await asyncio.wait_for(protocol.lost, 20) is None

    reader = threading.Thread(target=receive)
    reader.start()
    run(main())
    reader.join(10)
    assert received == 20 << 20


# ---- lifetimes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subclass", [False, True])
@pytest.mark.parametrize("closes", [True, False])
def test_a_send_that_is_dropped_while_it_waits_lets_go_of_its_buffer(run_child, subclass, closes):
    code = f"""
        import asyncio, gc, socket
        loop = new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)
        ours, theirs = socket.socketpair()
        if {subclass}:
            class Sock(socket.socket):
                pass
            ours = Sock(fileno=ours.detach())
        ours.setblocking(False)
        data = bytearray(8 << 20)
        async def main():
            loop.create_task(loop.sock_sendall(ours, data))
            await asyncio.sleep(0.02)
        loop.run_until_complete(main())
        if {closes}:
            loop.close()
            del main
            gc.collect()
            data.append(1)
        print("done", flush=True)
    """
    assert run_child(code).stdout == "done\n"


def test_a_protocol_that_replaces_itself_in_data_received_lives_until_that_returns(run_child):
    """list.index is a method in C: nothing else keeps the list meanwhile."""
    code = """
        import asyncio, gc, socket
        loop = new_event_loop()
        errors = []
        loop.set_exception_handler(lambda loop, context: errors.append(context["exception"]))
        class Replacing:
            def __eq__(self, other):
                Items.transport.set_protocol(asyncio.Protocol())
                gc.collect()
                self.junk = [[None] * 3000 for _ in range(50)]
                return False
        class Items(list):
            def connection_made(self, transport):
                Items.transport = transport
            data_received = list.index
            def connection_lost(self, exc):
                pass
        def factory():
            return Items([Replacing()] + [0] * 2999)
        async def main():
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            await loop.connect_accepted_socket(factory, ours)
            theirs.send(b"x")
            while not errors:
                await asyncio.sleep(0.001)
            assert isinstance(errors[0], ValueError), errors
        loop.run_until_complete(asyncio.wait_for(main(), 20))
        loop.close()
        print("done")
    """
    assert run_child(code).stdout == "done\n"


def test_a_finalizer_that_runs_while_the_loop_closes_can_open_nothing(new_loop, socket_pair):
    loop = new_loop()
    (ours, _), (other, _), (third, _) = socket_pair(), socket_pair(), socket_pair()
    seen = []

    class Last:
        def __init__(self, opens):
            self.opens = opens

        def __call__(self):
            pass

        def __del__(self):
            try:
                seen.append(self.opens())
            except RuntimeError as exc:
                seen.append(str(exc))

    loop.add_reader(ours, Last(lambda: loop.add_reader(other, int)))
    loop.call_soon(Last(lambda: loop._make_socket_transport(third, asyncio.Protocol())))
    loop.close()
    gc.collect()
    assert seen == ["Event loop is closed"] * 2


@pytest.mark.parametrize("closing", [False, True])
def test_what_error_received_raises_keeps_no_datagram_transport_paused_or_open(
    run, loop, datagrams, exceptions, tmp_path, closing
):
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "receiver"))
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(str(tmp_path / "receiver"))
    sender.setblocking(False)
    calls = []

    class Protocol(asyncio.DatagramProtocol):
        def pause_writing(self):
            calls.append("pause")

        def resume_writing(self):
            calls.append("resume")

        def error_received(self, exc):
            calls.append("error")
            raise ValueError("of the protocol")

        def connection_lost(self, exc):
            calls.append("lost")

    async def main():
        transport, _ = await datagrams(Protocol, sock=sender)
        transport.set_write_buffer_limits(high=0)
        while not transport.get_write_buffer_size():
            transport.sendto(b"x" * 100)
        if closing:
            transport.close()
        receiver.close()
        await until(lambda: "resume" in calls)
        transport.close()
        await until(lambda: "lost" in calls)
        assert calls == ["pause", "error", "resume", "lost"]

    run(main())
    assert [str(context["exception"]) for context in exceptions] == ["of the protocol"]
    exceptions.clear()


def test_the_socket_of_a_closed_transport_takes_no_descriptor_that_is_not_there(run_child):
    code = """
        import asyncio, os, resource, socket
        loop = new_event_loop()
        async def main():
            lost = loop.create_future()
            class Protocol(asyncio.Protocol):
                def connection_lost(self, exc):
                    lost.set_result(None)
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            transport, _ = await loop.create_connection(Protocol, sock=ours)
            theirs.close()
            await asyncio.wait_for(lost, 20)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            taken = []
            try:
                while True:
                    taken.append(os.dup(0))
            except OSError:
                pass
            sock = transport.get_extra_info("socket")
            for fd in taken:
                os.close(fd)
            assert sock.fileno() == -1
            repr(sock), sock.family, sock.type, sock.proto
        loop.run_until_complete(main())
        loop.close()
        print("done")
    """
    assert run_child(code).stdout == "done\n"
