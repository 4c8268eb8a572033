"""Datagram endpoints: UDP and Unix datagrams, addresses, errors that arrive later, the write buffer."""

import asyncio
import re
import socket
import sys

import pytest
from peers import Keeper, put_away, turns, until


class Recorder(asyncio.DatagramProtocol):
    def __init__(self):
        self.calls, self.datagrams, self.errors = [], [], []
        self.transport = self.lost_with = None

    @property
    def lost(self):
        return "connection_lost" in self.calls

    def connection_made(self, transport):
        self.transport = transport
        self.calls.append("connection_made")

    def datagram_received(self, data, addr):
        self.datagrams.append((data, addr))

    def error_received(self, exc):
        self.errors.append(exc)

    def pause_writing(self):
        self.calls.append("pause_writing")

    def resume_writing(self):
        self.calls.append("resume_writing")

    def connection_lost(self, exc):
        self.lost_with = exc
        self.calls.append("connection_lost")


@pytest.fixture
def endpoint(loop):
    """`await endpoint(factory=Recorder, **options)` as `loop.create_datagram_endpoint`; closed at the end."""
    transports = []

    async def endpoint(factory=Recorder, **options):
        transport, protocol = await loop.create_datagram_endpoint(factory, **options)
        transports.append(transport)
        return transport, protocol

    yield endpoint

    async def close():
        for transport in transports:
            put_away(transport)
        await turns(2)

    loop.run_until_complete(close())


@pytest.fixture
def udp(owned):
    """Factory of plain UDP sockets on loopback."""

    def udp(family=socket.AF_INET):
        sock = owned(socket.socket(family, socket.SOCK_DGRAM))
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        sock.settimeout(10)
        return sock

    return udp


LOCAL = ("127.0.0.1", 0)


def test_datagrams_go_both_ways_with_their_addresses(run, endpoint, udp):
    async def main():
        peer = udp()
        transport, protocol = await endpoint(local_addr=LOCAL)
        assert protocol.calls == ["connection_made"]
        here = transport.get_extra_info("sockname")
        transport.sendto(b"question", peer.getsockname())
        assert peer.recvfrom(100) == (b"question", here)
        peer.sendto(b"answer", here)
        await until(lambda: protocol.datagrams)
        assert protocol.datagrams == [(b"answer", peer.getsockname())]
        assert type(protocol.datagrams[0][0]) is bytes

    run(main())


@pytest.mark.parametrize("size", [1, 479, 480, 1024, 4096, 4097, 9000])
def test_datagrams_of_one_size_are_each_their_own(run, endpoint, udp, size):
    keeper = Keeper()

    class Taker(Recorder):
        def datagram_received(self, data, addr):
            keeper.take(data)
            received.append(data[:1] + data[-1:])

    received = []

    async def main():
        transport, _ = await endpoint(Taker, local_addr=LOCAL)
        sock = udp()
        sent = []
        for i in range(60):
            data = bytes([i]) * (size if i % 20 else size // 2 + 1)
            sock.sendto(data, transport.get_extra_info("sockname"))
            sent.append(bytes([i, i]))
            if i % 7 == 0:
                await until(lambda: len(received) == len(sent))
        await until(lambda: len(received) == len(sent))
        assert received == sent
        keeper.check()

    run(main())


def test_ipv6_datagrams_carry_four_part_addresses(run, endpoint, udp):
    async def main():
        peer = udp(socket.AF_INET6)
        transport, protocol = await endpoint(local_addr=("::1", 0))
        transport.sendto(b"x", peer.getsockname())
        data, here = peer.recvfrom(10)
        assert here == transport.get_extra_info("sockname")
        peer.sendto(b"y", here)
        await until(lambda: protocol.datagrams)
        assert protocol.datagrams == [(b"y", peer.getsockname())]
        assert len(protocol.datagrams[0][1]) == 4

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio's is one from 3.12 on")
def test_a_transport_is_an_asyncio_datagram_transport(run, endpoint):
    async def main():
        transport, protocol = await endpoint(local_addr=LOCAL)
        assert isinstance(transport, asyncio.DatagramTransport)
        assert isinstance(transport, asyncio.BaseTransport)
        assert isinstance(transport.get_extra_info("socket"), asyncio.trsock.TransportSocket)
        assert transport.get_extra_info("peername") is None
        assert transport.get_protocol() is protocol
        assert transport.get_write_buffer_size() == 0
        assert transport.get_write_buffer_limits() == (16384, 65536)
        assert re.match(r"<\w+ fd=\d+ read=polling write=<idle, bufsize=0>>", repr(transport))
        transport.mine = 1

    run(main())


def test_a_connected_endpoint_sends_without_an_address(run, endpoint, udp):
    async def main():
        peer = udp()
        transport, protocol = await endpoint(remote_addr=peer.getsockname())
        assert transport.get_extra_info("peername") == peer.getsockname()
        transport.sendto(b"no address")
        transport.sendto(b"none", None)
        transport.sendto(b"its own", peer.getsockname())
        assert [peer.recv(100) for _ in range(3)] == [b"no address", b"none", b"its own"]
        stranger = udp()
        expected = f"Invalid address: must be None or {peer.getsockname()}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            transport.sendto(b"x", stranger.getsockname())
        stranger.sendto(b"from a stranger", transport.get_extra_info("sockname"))
        peer.sendto(b"from the peer", transport.get_extra_info("sockname"))
        await until(lambda: protocol.datagrams)
        assert protocol.datagrams == [(b"from the peer", peer.getsockname())]

    run(main())


@pytest.mark.parametrize("data", [bytearray(b"data"), memoryview(b"data"), memoryview(bytearray(b"data"))], ids=repr)
def test_sendto_takes_any_bytes(run, endpoint, udp, data):
    async def main():
        peer = udp()
        transport, _ = await endpoint(local_addr=LOCAL)
        transport.sendto(data, peer.getsockname())
        assert peer.recv(100) == b"data"

    run(main())


@pytest.mark.parametrize("data", ["text", None, 1, [b"x"]], ids=repr)
def test_sendto_refuses_what_is_not_bytes_like(run, endpoint, udp, data):
    async def main():
        transport, _ = await endpoint(local_addr=LOCAL)
        expected = f"data argument must be a bytes-like object, not {type(data).__name__!r}"
        with pytest.raises(TypeError, match=re.escape(expected)):
            transport.sendto(data, udp().getsockname())
        assert not transport.is_closing()

    run(main())


def test_an_empty_datagram_is_received(run, endpoint, udp):
    async def main():
        peer = udp()
        transport, protocol = await endpoint(local_addr=LOCAL)
        peer.sendto(b"", transport.get_extra_info("sockname"))
        peer.sendto(b"next", transport.get_extra_info("sockname"))
        await until(lambda: len(protocol.datagrams) == 2)
        assert [data for data, _ in protocol.datagrams] == [b"", b"next"]
        assert not transport.is_closing()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio sends empty datagrams from 3.13 on")
def test_an_empty_datagram_is_sent(run, endpoint, udp):
    async def main():
        peer = udp()
        transport, _ = await endpoint(local_addr=LOCAL)
        transport.sendto(b"", peer.getsockname())
        assert peer.recv(10) == b""

    run(main())


def test_the_largest_datagram_goes_through_and_a_larger_one_is_an_error(run, endpoint):
    async def main():
        receiver, received = await endpoint(local_addr=LOCAL)
        sender, protocol = await endpoint(remote_addr=receiver.get_extra_info("sockname"))
        sender.sendto(b"x" * 65507)
        await until(lambda: received.datagrams)
        assert len(received.datagrams[0][0]) == 65507
        sender.sendto(b"x" * 65508)
        await until(lambda: protocol.errors)
        assert isinstance(protocol.errors[0], OSError)
        assert not sender.is_closing()

    run(main())


def test_a_refused_datagram_is_an_error_received_and_the_endpoint_lives_on(run, endpoint, udp):
    async def main():
        gone = udp()
        address = gone.getsockname()
        gone.close()
        transport, protocol = await endpoint(remote_addr=address)
        transport.sendto(b"x")
        await until(lambda: protocol.errors)
        assert isinstance(protocol.errors[0], ConnectionRefusedError)
        assert not transport.is_closing()
        back = socket.socket(type=socket.SOCK_DGRAM)
        with back:
            back.bind(address)
            back.settimeout(10)
            transport.sendto(b"again")
            assert back.recv(10) == b"again"

    run(main())


def test_a_burst_arrives_complete_and_in_order(run, endpoint, udp):
    async def main():
        transport, protocol = await endpoint(local_addr=LOCAL)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        peer = udp()
        for start in range(0, 2000, 100):
            for i in range(start, start + 100):
                peer.sendto(b"%d" % i, transport.get_extra_info("sockname"))
            await until(lambda start=start: len(protocol.datagrams) == start + 100)
        assert [int(data) for data, _ in protocol.datagrams] == list(range(2000))

    run(main())


def test_a_burst_is_sent_complete_and_in_order(run, endpoint, udp):
    async def main():
        peer = udp()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        peer.setblocking(False)
        transport, _ = await endpoint(local_addr=LOCAL)
        received = []
        for start in range(0, 2000, 100):
            for i in range(start, start + 100):
                transport.sendto(b"%d" % i, peer.getsockname())
            while len(received) < start + 100:
                try:
                    received.append(int(peer.recv(100)))
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        assert received == list(range(2000))

    run(main())


def test_nothing_is_received_after_close_in_a_callback(run, endpoint, udp):
    class Closing(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.close()

    async def main():
        transport, protocol = await endpoint(Closing, local_addr=LOCAL)
        peer = udp()
        for _ in range(50):
            peer.sendto(b"x", transport.get_extra_info("sockname"))
        await until(lambda: protocol.lost)
        assert len(protocol.datagrams) == 1

    run(main())


@pytest.mark.parametrize("end", ["close", "abort"])
def test_close_and_abort_end_the_endpoint_once(run, endpoint, end):
    async def main():
        transport, protocol = await endpoint(local_addr=LOCAL)
        getattr(transport, end)()
        getattr(transport, end)()
        assert transport.is_closing()
        assert not protocol.lost
        await until(lambda: protocol.lost)
        await turns(1)
        assert protocol.calls == ["connection_made", "connection_lost"]
        assert protocol.lost_with is None
        assert transport.get_extra_info("socket").fileno() == -1

    run(main())


def test_sendto_after_close_on_a_connected_endpoint_is_dropped_and_warned_about(run, endpoint, udp, caplog):
    async def main():
        peer = udp()
        transport, protocol = await endpoint(remote_addr=peer.getsockname())
        transport.close()
        for _ in range(4):
            transport.sendto(b"dropped")
        assert not caplog.messages
        transport.sendto(b"dropped")
        assert caplog.messages == ["socket.send() raised exception."]
        await until(lambda: protocol.lost)
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(10)

    run(main())


def test_an_error_in_datagram_received_is_reported_and_the_endpoint_lives_on(run, endpoint, exceptions, udp):
    class Failing(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if data == b"fail":
                raise ZeroDivisionError

    async def main():
        transport, protocol = await endpoint(Failing, local_addr=LOCAL)
        peer = udp()
        peer.sendto(b"fail", transport.get_extra_info("sockname"))
        peer.sendto(b"fine", transport.get_extra_info("sockname"))
        await until(lambda: len(protocol.datagrams) == 2 and exceptions)
        assert isinstance(exceptions[0]["exception"], ZeroDivisionError)
        assert exceptions[0]["message"].startswith("Exception in callback ")
        assert len(exceptions) == 1
        assert not transport.is_closing()

    run(main())


# --- backpressure: a Unix datagram socket whose reader does not read --------------------------------------------------


@pytest.fixture
def stuck(endpoint, owned, tmp_path):
    """`await stuck()` -> transport, protocol, plain peer, number of b"fill" sent, the last one in our buffer."""

    async def stuck():
        path = str(tmp_path / "peer")
        peer = owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        peer.bind(path)
        peer.setblocking(False)
        transport, protocol = await endpoint(remote_addr=path, family=socket.AF_UNIX)
        count = 0
        while not transport.get_write_buffer_size():
            transport.sendto(b"fill")
            count += 1
            if transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
        return transport, protocol, peer, count

    return stuck


async def _receive(peer, count):
    datagrams = []
    while len(datagrams) < count:
        try:
            datagrams.append(peer.recv(100000))
        except BlockingIOError:
            await asyncio.sleep(0.001)
    return datagrams


def test_datagrams_wait_for_room_keep_their_borders_and_resume_writing(run, stuck):
    async def main():
        transport, protocol, peer, count = await stuck()
        before = transport.get_write_buffer_size()
        data = bytearray(b"changed")
        transport.sendto(data)
        data[:] = b"CHANGED"
        assert transport.get_write_buffer_size() - before in (7, 15)  # stock counts a header from 3.13 on
        sizes = [7000 + i for i in range(10)]
        assert protocol.calls == ["connection_made"]
        for size in sizes:
            transport.sendto(b"x" * size)
        assert protocol.calls == ["connection_made", "pause_writing"]
        received = await _receive(peer, count + 11)
        assert received[:count] == [b"fill"] * count
        assert received[count] == b"changed"
        assert [len(datagram) for datagram in received[count + 1 :]] == sizes
        await until(lambda: protocol.calls[-1] == "resume_writing")
        assert protocol.calls == ["connection_made", "pause_writing", "resume_writing"]

    run(main())


def test_close_sends_the_waiting_datagrams_first(run, stuck):
    async def main():
        transport, protocol, peer, count = await stuck()
        transport.sendto(b"last")
        transport.close()
        await turns(1)
        assert not protocol.lost
        assert (await _receive(peer, count + 1))[-1] == b"last"
        await until(lambda: protocol.lost)
        assert protocol.lost_with is None

    run(main())


def test_abort_drops_the_waiting_datagrams(run, stuck):
    async def main():
        transport, protocol, peer, count = await stuck()
        transport.sendto(b"last")
        transport.abort()
        await until(lambda: protocol.lost)
        assert await _receive(peer, count - 1) == [b"fill"] * (count - 1)
        with pytest.raises((BlockingIOError, ConnectionResetError)):
            peer.recv(10)

    run(main())


# --- making endpoints -------------------------------------------------------------------------------------------------


def test_unix_datagrams_have_paths_for_addresses(run, endpoint, owned, tmp_path):
    async def main():
        mine, theirs = str(tmp_path / "mine"), str(tmp_path / "theirs")
        peer = owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        peer.bind(theirs)
        peer.settimeout(10)
        stale = owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        stale.bind(mine)
        stale.close()
        transport, protocol = await endpoint(local_addr=mine, family=socket.AF_UNIX)
        transport.sendto(b"question", theirs)
        assert peer.recvfrom(100) == (b"question", mine)
        peer.sendto(b"answer", mine)
        await until(lambda: protocol.datagrams)
        assert protocol.datagrams == [(b"answer", theirs)]
        connected, _ = await endpoint(remote_addr=theirs, family=socket.AF_UNIX)
        connected.sendto(b"connected")
        assert peer.recv(100) == b"connected"
        peer.close()
        transport.sendto(b"x", theirs)
        await until(lambda: protocol.errors)
        assert isinstance(protocol.errors[0], ConnectionRefusedError)

    run(main())


def test_reuse_port_and_broadcast_are_set_on_the_socket(run, endpoint):
    async def main():
        transport, _ = await endpoint(local_addr=LOCAL, reuse_port=True, allow_broadcast=True)
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
        await endpoint(local_addr=sock.getsockname(), reuse_port=True)
        with pytest.raises(OSError):
            await endpoint(local_addr=sock.getsockname())

    run(main())


def test_a_broadcasting_endpoint_is_not_connected_and_may_answer_anyone_at_its_address(run, endpoint, udp):
    async def main():
        peer, stranger = udp(), udp()
        transport, protocol = await endpoint(remote_addr=peer.getsockname(), allow_broadcast=True)
        assert transport.get_extra_info("peername") is None
        transport.sendto(b"x")
        _, here = peer.recvfrom(10)
        stranger.sendto(b"from a stranger", ("127.0.0.1", here[1]))
        await until(lambda: protocol.datagrams)
        assert protocol.datagrams == [(b"from a stranger", stranger.getsockname())]

    run(main())


def test_a_given_socket_is_used_as_it_is(run, endpoint, udp):
    async def main():
        sock = udp()
        transport, protocol = await endpoint(sock=sock)
        assert transport.get_extra_info("sockname") == sock.getsockname()
        assert sock.gettimeout() == 0
        transport.sendto(b"to myself", sock.getsockname())
        await until(lambda: protocol.datagrams)
        connected = udp()
        connected.connect(sock.getsockname())
        transport, _ = await endpoint(sock=connected)
        transport.sendto(b"connected")
        await until(lambda: len(protocol.datagrams) == 2)

    run(main())


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({}, ValueError, "unexpected address family"),
        ({"local_addr": "127.0.0.1"}, TypeError, "2-tuple is expected"),
        ({"local_addr": ("127.0.0.1", 0, 0)}, TypeError, "2-tuple is expected"),
        ({"local_addr": LOCAL, "remote_addr": ("::1", 1)}, ValueError, "can not get address information"),
        ({"local_addr": LOCAL, "family": socket.AF_UNIX}, TypeError, "string is expected"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_as_by_asyncio(run, endpoint, options, error, text):
    with pytest.raises(error, match=re.escape(text)):
        run(endpoint(**options))


def test_a_given_socket_must_be_a_datagram_socket_and_come_alone(run, endpoint, owned, udp):
    with pytest.raises(ValueError, match="A (datagram|UDP) [sS]ocket was expected, got <socket"):
        run(endpoint(sock=owned(socket.socket())))
    expected = "socket modifier keyword arguments can not be used when sock is specified. (reuse_port=True)"
    with pytest.raises(ValueError, match=re.escape(expected)):
        run(endpoint(sock=udp(), reuse_port=True))


def test_an_address_in_use_is_an_error_and_leaves_nothing_behind(run, endpoint, udp):
    with pytest.raises(OSError, match="Address already in use"):
        run(endpoint(local_addr=udp().getsockname()))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_answers_go_to_the_address_that_is_given_whoever_wrote_last(run, loop, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Keeper(asyncio.DatagramProtocol):
        def __init__(self):
            self.seen = []

        def datagram_received(self, data, addr):
            self.seen.append((data, addr))

    async def main():
        transport, keeper = await loop.create_datagram_endpoint(Keeper, local_addr=(host, 0))
        target = transport.get_extra_info("sockname")
        clients = []
        for _ in range(3):
            client = socket.socket(family, socket.SOCK_DGRAM)
            client.settimeout(5)
            client.bind((host, 0))
            clients.append(client)
        for number in (0, 1, 2, 2, 0):
            clients[number].sendto(b"from %d" % number, target)
            await until(lambda: keeper.seen and keeper.seen[-1][0] == b"from %d" % number)  # noqa: B023
            await turns()
        assert [addr for _, addr in keeper.seen] == [clients[n].getsockname() for n in (0, 1, 2, 2, 0)]
        for number, (_, addr) in enumerate(keeper.seen):
            transport.sendto(b"answer %d" % number, addr)
        transport.sendto(bytearray(b"equal"), (*keeper.seen[-1][1],))
        transport.sendto(memoryview(b"view"), keeper.seen[-1][1])
        transport.sendto(b"x" * 60_000, keeper.seen[-1][1])
        assert [clients[1].recv(100)] == [b"answer 1"]
        assert [clients[2].recv(100) for _ in range(2)] == [b"answer 2", b"answer 3"]
        assert [clients[0].recv(70_000) for _ in range(5)] == [
            b"answer 0", b"answer 4", b"equal", b"view", b"x" * 60_000
        ]  # fmt: skip
        for client in clients:
            client.close()
        transport.close()
        await turns()

    run(main())
