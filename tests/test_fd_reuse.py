"""Closing under fire: a descriptor's number is used again at once, and nothing of its former life reaches the new one.

The worst bug of this kind of software is uvloop issue 645: a response, on a number used again, that reached another
client. uvloop issue 61 is its relative: a descriptor left in epoll makes the loop spin.
"""

import asyncio
import contextlib
import errno
import gc
import os
import random
import socket
import threading
import time

import pytest
from conftest import SWITCHING, wait_in_a_callback
from peers import Recorder, fill, pattern, put_away, read, read_exactly, read_to_end, reset, send_all, turns, until

import netpoll_loop

HEADER = 4


class Verifying(asyncio.Protocol):
    """One side of a connection. Sends its number and its pattern, checks the other's, and leaves at a random moment.

    The server's side learns its number from the client's header.
    """

    def __init__(self, stress, number=None):
        self.stress, self.number = stress, number
        self.received = bytearray()
        self.random = random.Random(stress.seed if number is None else number)
        self.transport = None

    def connection_made(self, transport):
        self.stress.open += 1
        self.transport = transport
        if self.number is not None:
            self.begin()

    def begin(self):
        side = 0 if self.stress.is_client(self) else 1
        self.random = random.Random(self.number * 2 + side)
        self.expected = self.stress.message(self.number, 1 - side)
        message = self.stress.message(self.number, side)
        message = message[: self.random.choice([HEADER, 10, 1000, len(message)])]
        cut = self.random.randrange(len(message) + 1) if side else HEADER
        self.transport.write(message[:cut])
        self.transport.write(message[cut:])
        ending = self.random.choice(["close", "abort", "later", "write_eof", "peer", "peer"])
        if ending == "later":
            delay = self.random.random() * 0.01
            self.transport.get_extra_info("socket")
            asyncio.get_running_loop().call_later(delay, self.random.choice([self.transport.close, self.abort]))
        elif ending != "peer":
            if ending == "abort":
                self.abort()
            else:
                getattr(self.transport, ending)()
        asyncio.get_running_loop().call_later(0.05, self.abort)

    def abort(self):
        put_away(self.transport)

    def data_received(self, data):
        self.received += data
        if self.number is None:
            if len(self.received) < HEADER:
                return
            self.number = int.from_bytes(self.received[:HEADER], "big")
            self.begin()
        self.check()

    def check(self):
        if not self.expected.startswith(self.received):
            self.stress.wrong.append((self.number, bytes(self.received[:50])))
        self.stress.bytes += len(self.received)

    def connection_lost(self, exc):
        self.stress.open -= 1
        if self.number is None and self.received:
            self.stress.partial += 1


class Stress:
    def __init__(self, seed):
        self.seed = seed
        self.clients = set()
        self.wrong, self.bytes, self.open, self.partial = [], 0, 0, 0

    def is_client(self, protocol):
        return protocol in self.clients

    def message(self, number, side):
        """What that side of that connection sends: header, then bytes that only this connection has."""
        length = (100, 5000, 300000)[number % 3]
        return number.to_bytes(HEADER, "big") + pattern(length, number * 2 + side + 1)

    def client(self, number):
        protocol = Verifying(self, number)
        self.clients.add(protocol)
        return protocol


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.timeout(90)
def test_no_byte_reaches_another_connection_under_constant_reuse(run, loop, exceptions, tmp_path, family):
    stress = Stress(645)

    async def main():
        if family == "tcp":
            server = await loop.create_server(lambda: Verifying(stress), "127.0.0.1", 0, backlog=200)
            address = server.sockets[0].getsockname()

            def connect(number):
                return loop.create_connection(lambda: stress.client(number), *address)
        else:
            path = str(tmp_path / "server")
            server = await loop.create_unix_server(lambda: Verifying(stress), path, backlog=200)

            def connect(number):
                return loop.create_unix_connection(lambda: stress.client(number), path)

        async def worker(numbers):
            for number in numbers:
                with contextlib.suppress(ConnectionError):
                    await connect(number)
                if number % 7 == 0:
                    await asyncio.sleep(0.002)

        await asyncio.gather(*(worker(range(start, 1500, 20)) for start in range(20)))
        await until(lambda: stress.open == 0)
        server.close()
        await server.wait_closed()

    run(main(), timeout=60)
    assert not stress.wrong
    assert stress.bytes > 1000000
    assert not exceptions


@pytest.mark.parametrize("end", ["close", "abort", "reset_by_peer"])
def test_queued_data_of_a_connection_never_reaches_the_next_on_its_number(run, loop, socket_pair, end):
    """uvloop issue 645, step by step."""

    async def main():
        reused = 0
        for number in range(100):
            sock, peer = socket_pair()
            fd = sock.fileno()
            transport, old = await loop.create_connection(Recorder, sock=sock)
            transport.write(b"secret" * 100000)
            if end == "close":
                transport.close()
                received = await read_to_end(peer)
                assert received == b"secret" * 100000
            elif end == "abort":
                transport.abort()
            else:
                peer.close()
            await until(lambda old=old: old.lost)
            new_sock, new_peer = socket_pair()
            if new_sock.fileno() != fd:
                new_sock, new_peer = new_peer, new_sock
            reused += new_sock.fileno() == fd
            transport, new = await loop.create_connection(Recorder, sock=new_sock)
            transport.write(b"public %d" % number)
            transport.close()
            assert await read_to_end(new_peer) == b"public %d" % number
            await until(lambda new=new: new.lost)
            assert new.data == b""
            peer.close()
            new_peer.close()
        assert reused

    run(main(), timeout=30)


def test_an_event_for_a_closed_descriptor_does_not_reach_the_next_one(run, loop, socket_pair):
    """Both become ready in one turn; the callback of the first closes the second, whose number is used again."""

    class Closer(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if self.victim is not None:
                self.victim.transport.abort()
                self.victim = None

    async def main():
        for _ in range(30):
            pairs = [socket_pair() for _ in range(2)]
            protocols = []
            for sock, _ in pairs:
                _, protocol = await loop.create_connection(Closer, sock=sock)
                protocol.victim = None
                protocols.append(protocol)
            protocols[0].victim, protocols[1].victim = protocols[1], protocols[0]
            for _, peer in pairs:
                peer.send(b"for the old one")
            await until(lambda protocols=protocols: any(p.lost for p in protocols))
            await asyncio.sleep(0)
            sock, peer = socket_pair()
            transport, fresh = await loop.create_connection(Recorder, sock=sock)
            await turns(1)
            assert fresh.calls == ["connection_made"]
            peer.send(b"for the new one")
            await until(lambda fresh=fresh: fresh.data == b"for the new one")
            transport.abort()
            for protocol in protocols:
                put_away(protocol.transport)
            await until(lambda fresh=fresh, protocols=protocols: all(p.lost for p in [fresh, *protocols]))

    run(main(), timeout=30)


# --- behind the back of the transport ---------------------------------------------------------------------------------


@pytest.mark.not_on_oracle("stock removes the new connection's descriptor when it closes the old transport")
@pytest.mark.parametrize("queued", [False, True])
def test_the_user_closes_the_socket_that_was_passed_as_sock(run, loop, socket_pair, queued):
    async def main():
        for _ in range(20):
            sock, peer = socket_pair()
            transport, old = await loop.create_connection(Recorder, sock=sock)
            await turns(1)
            written = await fill(transport) if queued else 0
            sock.close()
            new_sock, new_peer = socket_pair()
            new_transport, new = await loop.create_connection(Recorder, sock=new_sock)
            transport.write(b"secret")
            peer_sent = contextlib.suppress(OSError)
            with peer_sent:
                peer.send(b"for the old one")
            new_transport.write(b"public")
            assert await read_exactly(new_peer, 6) == b"public"
            new_peer.send(b"for the new one")
            await until(lambda new=new: new.data == b"for the new one")
            put_away(transport)
            transport.abort()
            await until(lambda old=old: old.lost)
            received = await read_to_end(peer)
            assert received.replace(b"secret", b"") == b"." * (len(received) - received.count(b"secret") * 6)
            assert len(received) <= written + 6
            new_transport.write(b"still here")
            assert await read_exactly(new_peer, 10) == b"still here"
            new_transport.close()
            assert await read_to_end(new_peer) == b""
            await until(lambda new=new: new.lost)
            assert new.data == b"for the new one"
            peer.close()
            new_peer.close()

    run(main(), timeout=40)


def test_a_write_to_a_transport_whose_socket_the_user_closed_goes_nowhere_else(run, loop, socket_pair):
    async def main():
        sock, peer = socket_pair()
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        fd = sock.fileno()
        sock.close()
        others = [socket_pair() for _ in range(3)]
        transport.write(b"secret")
        await turns(1)
        for pair in others:
            for other in pair:
                with pytest.raises(BlockingIOError):
                    other.recv(100)
        if not any(end.fileno() == fd for pair in others for end in pair):
            # the number was not given away: the socket lived on for the transport
            assert await read(peer, 6) == b"secret"
        transport.abort()
        await until(lambda: protocol.lost)

    run(main())


def test_the_collector_closes_a_transport_on_another_thread(run, loop, socket_pair):
    async def main():
        for number in range(20):
            sock, peer = socket_pair()
            transport, protocol = await loop.create_connection(Recorder, sock=sock)
            await turns(1)
            transport.pause_reading()
            transport.mine = transport  # only the collector can free it
            protocol.transport = None
            del transport, protocol, sock
            await asyncio.sleep(0)
            thread = threading.Thread(target=gc.collect)
            thread.start()
            new = []
            for i in range(5):
                new_sock, new_peer = socket_pair()
                new_transport, new_protocol = await loop.create_connection(Recorder, sock=new_sock)
                new_transport.write(b"%d %d" % (number, i))
                new.append((new_transport, new_protocol, new_peer))
            await until(lambda thread=thread: not thread.is_alive())
            thread.join()
            for i, (new_transport, new_protocol, new_peer) in enumerate(new):
                new_peer.send(b"answer %d" % i)
                await until(lambda p=new_protocol, i=i: p.data == b"answer %d" % i)
                new_transport.close()
                assert await read_to_end(new_peer) == b"%d %d" % (number, i)
                new_peer.close()
            peer.close()

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        run(main(), timeout=40)
        gc.collect()


def test_a_duplicate_that_stays_alive_brings_no_events_to_the_next_descriptor(run, loop, socket_pair, owned):
    """epoll knows open files, not numbers: a dup keeps a closed descriptor's registration alive."""

    async def main():
        for _ in range(10):
            sock, peer = socket_pair()
            duplicate = owned(os.dup(sock.fileno()))
            transport, old = await loop.create_connection(Recorder, sock=sock)
            await turns(1)
            transport.close()
            await until(lambda old=old: old.lost)
            await asyncio.sleep(0)
            new_sock, new_peer = socket_pair()
            transport, new = await loop.create_connection(Recorder, sock=new_sock)
            peer.send(b"for the duplicate")
            await turns(1)
            assert new.calls == ["connection_made"]
            assert os.read(duplicate, 100) == b"for the duplicate"
            await send_all(new_peer, b"for the new one")
            await until(lambda new=new: new.data == b"for the new one")
            transport.close()
            await until(lambda new=new: new.lost)
            os.close(duplicate)
            peer.close()
            new_peer.close()

    run(main())


# --- closed without being removed -------------------------------------------------------------------------------------


def take_away(number, socket_pair):
    """Closes the number without the loop's knowledge; it is the file of somebody else then, whose peer is returned."""
    taken, peer = socket_pair()
    os.dup2(taken.fileno(), number)
    return peer


async def expect_untouched(loop, number, peer, calls):
    before = len(calls)
    peer.send(b"not for the loop")
    await turns()
    assert len(calls) == before
    assert os.read(number, 100) == b"not for the loop"


@pytest.mark.parametrize("stalled", [False, True])
@pytest.mark.parametrize("direction", ["reader", "writer"])
def test_a_callback_that_closes_its_number_is_not_called_for_the_next_file(
    run, loop, socket_pair, mode, direction, stalled
):
    """The callback has run: whoever had muted the descriptor arms it again."""

    async def main():
        transport, _ = await loop.create_connection(Recorder, sock=socket_pair()[0])  # auto starts its thread
        sock, peer = socket_pair()
        number = sock.fileno()
        calls, peers = [], []

        def on_ready():
            calls.append(direction)
            if not peers:
                peers.append(take_away(number, socket_pair))

        if direction == "writer":
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(bytes(65536))
        getattr(loop, f"add_{direction}")(number, on_ready)
        await turns(1)
        assert calls == []
        takes_over = stalled and mode in ("auto", SWITCHING)
        if takes_over:
            stalls, handoffs = netpoll_loop.stats(loop).stalls, netpoll_loop.stats(loop).handoffs
            wait_in_a_callback(loop, lambda seen: seen.stalls > stalls)
        if direction == "writer":
            with contextlib.suppress(BlockingIOError):
                while True:
                    peer.recv(1 << 20)
        else:
            peer.send(b"x")
        if takes_over:
            wait_in_a_callback(loop, lambda seen: seen.handoffs > handoffs)
        await until(lambda: peers)
        await expect_untouched(loop, number, peers[0], calls)
        assert calls == [direction]
        assert getattr(loop, f"remove_{direction}")(number) is True
        transport.abort()

    run(main())


def fork_once():
    """What runs beside the loop is stopped and started again."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


async def force_a_rebuild(loop, socket_pair, owned):
    """Events of a registration that nobody can remove, until the engine makes a new epoll instance."""
    sock, peer = socket_pair()
    number = sock.detach()
    owned(os.dup(number))
    loop.add_reader(number, print)
    os.close(number)
    loop.remove_reader(number)
    peer.send(b"never read")
    await turns(100)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("all_anew", ["fork", "rebuild"])
def test_a_number_that_was_closed_but_not_removed_is_not_registered_with_all_the_others(
    run, loop, socket_pair, owned, all_anew
):
    async def main():
        sock, _ = socket_pair()
        number = sock.fileno()
        calls = []
        loop.add_reader(number, calls.append, "former")
        await turns(1)
        peer = take_away(number, socket_pair)
        if all_anew == "fork":
            fork_once()
        else:
            await force_a_rebuild(loop, socket_pair, owned)
        await expect_untouched(loop, number, peer, calls)
        assert loop.remove_reader(number) is True

    run(main())


@pytest.mark.not_on_oracle("stock raises FileNotFoundError, or OSError for a closed number, and forgets the number")
@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("removed", ["reader", "writer"])
def test_removing_one_callback_of_a_closed_number_forgets_the_other_one(run, loop, socket_pair, removed, reused):
    """Nobody can want the other one back, and a clean-up that removes both should get through."""
    other = {"reader": "writer", "writer": "reader"}[removed]

    async def main():
        sock, _ = socket_pair()
        number = sock.detach()
        calls = []
        loop.add_reader(number, calls.append, "reader")
        loop.add_writer(number, calls.append, "writer")
        await turns(1)
        if reused:
            take_away(number, socket_pair).send(b"not for the loop")
        else:
            os.close(number)
        calls.clear()
        assert getattr(loop, f"remove_{removed}")(number) is True
        await turns()
        assert calls == []
        assert getattr(loop, f"remove_{other}")(number) is False
        if reused:
            getattr(loop, f"add_{other}")(number, calls.append, "new")
            await until(lambda: calls)
            assert set(calls) == {"new"}
            assert getattr(loop, f"remove_{other}")(number) is True
            os.close(number)

    run(main())


@pytest.mark.not_on_oracle("stock raises FileNotFoundError, and forgets the number")
@pytest.mark.parametrize("added", ["reader", "writer"])
@pytest.mark.parametrize("by", ["number", "socket"])
def test_adding_a_callback_for_a_reused_number_does_not_bring_the_former_one_back(run, loop, socket_pair, added, by):
    former = {"reader": "writer", "writer": "reader"}[added]

    async def main():
        sock, _ = socket_pair()
        number = sock.fileno()
        calls = []
        getattr(loop, f"add_{former}")(number, calls.append, "former")
        await turns(1)
        take_away(number, socket_pair).send(b"for the new one")
        calls.clear()
        getattr(loop, f"add_{added}")(number if by == "number" else sock, calls.append, "new")
        await until(lambda: calls)
        await turns()
        assert set(calls) == {"new"}
        assert getattr(loop, f"remove_{former}")(number) is False
        assert getattr(loop, f"remove_{added}")(number) is True

    run(main())


@pytest.mark.not_on_oracle("stock raises FileNotFoundError, or lets them wait for ever")
@pytest.mark.parametrize("then", ["add", "remove"])
def test_who_waits_for_a_socket_whose_number_is_reused_fails_when_the_number_is_used(run, loop, socket_pair, then):
    async def main():
        sock, _ = socket_pair()
        number = sock.fileno()
        calls = []
        if then == "remove":
            loop.add_writer(number, calls.append, "former")
        waiting = asyncio.ensure_future(loop.sock_recv(sock, 100))
        await turns(1)
        take_away(number, socket_pair).send(b"for the new one")
        if then == "remove":
            assert loop.remove_writer(number) is True
        else:
            loop.add_reader(number, calls.append, "new")
            await until(lambda: calls)
            assert loop.remove_reader(number) is True
        with pytest.raises(OSError) as caught:
            await waiting
        assert caught.value.errno == errno.EBADF
        assert os.read(number, 100) == b"for the new one"

    run(main())


@pytest.mark.not_on_oracle("stock raises FileNotFoundError")
def test_a_socket_whose_number_has_a_former_reader_is_waited_for(run, loop, socket_pair):
    async def main():
        former, _ = socket_pair()
        number = former.detach()
        calls = []
        loop.add_reader(number, calls.append, "former")
        await turns(1)
        peer = take_away(number, socket_pair)
        with socket.socket(fileno=number) as sock:
            waiting = asyncio.ensure_future(loop.sock_recv(sock, 100))
            await turns(1)
            peer.send(b"for the new one")
            assert await waiting == b"for the new one"
        assert calls == []

    run(main())


# --- no spinning ------------------------------------------------------------------------------------------------------


async def _assert_no_spin():
    """At rest it may use a quarter of the time as processor time; a spinning loop uses all."""
    await asyncio.sleep(0.05)
    before = time.process_time()
    await asyncio.sleep(0.2)
    assert time.process_time() - before < 0.05, "the loop spins"


@pytest.mark.parametrize("ready", ["readable", "hung_up"])
def test_a_descriptor_without_readers_does_not_make_the_loop_spin_uvloop_issue_61(run, loop, socket_pair, ready):
    async def main():
        sock, peer = socket_pair()
        called = asyncio.Event()

        def reader():
            loop.remove_reader(sock)
            called.set()

        loop.add_reader(sock, reader)
        peer.send(b"never read") if ready == "readable" else peer.close()
        await called.wait()
        await _assert_no_spin()

    run(main())


def test_a_registered_socket_closed_behind_our_back_does_not_make_the_loop_spin(run, loop, socket_pair):
    async def main():
        sock, peer = socket_pair()
        duplicate = sock.dup()
        loop.add_reader(sock, print)
        loop.remove_reader(sock)
        sock.close()
        peer.send(b"x")
        await _assert_no_spin()
        duplicate.close()

    run(main())


@pytest.mark.parametrize("state", ["paused", "half_closed", "flushing"])
@pytest.mark.parametrize("end", ["close", "reset", "shutdown"])
def test_a_transport_whose_peer_is_gone_does_not_make_the_loop_spin(run, loop, tcp_pair, state, end):
    async def main():
        sock, peer = tcp_pair()
        transport, protocol = await loop.create_connection(lambda: Recorder(keep_open=True), sock=sock)
        await turns(1)
        if state == "paused":
            transport.pause_reading()
            peer.send(b"unread")
        elif state == "flushing":
            transport.write(bytes(16 << 20))
            await turns(1)
            transport.close()
        if end == "close":
            peer.close()
        elif end == "reset":
            reset(peer)
        else:
            peer.shutdown(socket.SHUT_WR)
        await _assert_no_spin()
        put_away(transport)
        await until(lambda: protocol.lost)

    run(main())


def test_a_thousand_connections_opened_and_closed_leave_no_descriptor(run, loop, socket_pair):
    async def main():
        before = len(os.listdir("/proc/self/fd"))
        for start in range(0, 1000, 50):
            protocols = []
            for i in range(50):
                sock, peer = socket.socketpair()
                transport, protocol = await loop.create_connection(Recorder, sock=sock)
                protocols.append(protocol)
                if i % 2:
                    transport.write(bytes(500000))
                [transport.close, transport.abort, peer.close, lambda: None][(start + i) % 4]()
                peer.close()
                transport.abort() if not protocol.lost else None
            await until(lambda protocols=protocols: all(p.lost for p in protocols))
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before

    run(main(), timeout=30)
