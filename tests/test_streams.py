"""Stream transports: what asyncio.Transport promises, over TCP, Unix sockets, socket pairs and accepted sockets.

One end of each connection is the transport under test, the other mostly a plain socket.
"""

import array
import asyncio
import contextlib
import contextvars
import gc
import hashlib
import re
import socket
import sys
import time
import warnings
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import (
    BufferedRecorder,
    Echo,
    Keeper,
    Recorder,
    fill,
    is_connection_error,
    pattern,
    put_away,
    read_exactly,
    read_to_end,
    reset,
    send_all,
    turns,
    until,
)

KINDS = ("tcp", "tcp6", "tcp_served", "tcp_accepted", "unix", "unix_served", "socketpair")


@pytest.mark.parametrize("cls", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("urgent", [False, True], ids=["descriptors beside the bytes", "urgent data"])
def test_what_is_behind_a_border_is_delivered(run, loop, socket_pair, tcp_pair, cls, urgent):
    # A read ends there, and no event comes for what is behind it.
    async def main():
        sock, peer = tcp_pair() if urgent else socket_pair()
        transport, protocol = await loop.create_connection(cls, sock=sock)
        await turns()
        for number in range(5):
            if urgent:
                peer.send(b"%d" % number, socket.MSG_OOB if number == 2 else 0)
            else:
                socket.send_fds(peer, [b"%d" % number], [peer.fileno()])
        expected = b"0134" if urgent else b"01234"
        await until(lambda: len(protocol.data) == len(expected))
        assert protocol.data == expected
        put_away(transport)
        await turns()

    run(main())


@pytest.fixture
def connect(loop, owned, tmp_path, tcp_pair, socket_pair, listener):
    """`await connect(kind, factory, small=False)` -> transport, its protocol, the plain non-blocking socket opposite.

    The kind says how the transport came to be. `small` shrinks the kernel's buffers.
    """
    transports = []

    async def served(create_server, address, family, factory):
        made = []

        def remember():
            made.append(factory())
            return made[0]

        server = await create_server(remember)
        peer = owned(socket.socket(family))
        peer.setblocking(False)
        peer.connect_ex(address if address else server.sockets[0].getsockname())
        await until(lambda: made and made[0].transport)
        server.close()
        return made[0].transport, made[0], peer

    async def unix(factory):
        path = str(tmp_path / "unix")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(1)
            transport, protocol = await loop.create_unix_connection(factory, path)
            peer = owned(server.accept()[0])
        peer.setblocking(False)
        return transport, protocol, peer

    async def tcp(factory, family):
        server = listener(family)
        transport, protocol = await loop.create_connection(factory, *server.getsockname()[:2])
        peer = owned(server.accept()[0])
        peer.setblocking(False)
        server.close()
        return transport, protocol, peer

    async def connect(kind="socketpair", factory=Recorder, small=False):
        if kind == "tcp":
            result = await tcp(factory, socket.AF_INET)
        elif kind == "tcp6":
            result = await tcp(factory, socket.AF_INET6)
        elif kind == "tcp_served":
            result = await served(lambda f: loop.create_server(f, "127.0.0.1", 0), None, socket.AF_INET, factory)
        elif kind == "tcp_accepted":
            peer, sock = tcp_pair()
            result = (*await loop.connect_accepted_socket(factory, sock), peer)
        elif kind == "unix":
            result = await unix(factory)
        elif kind == "unix_served":
            path = str(tmp_path / "served")
            result = await served(lambda f: loop.create_unix_server(f, path), path, socket.AF_UNIX, factory)
        else:
            sock, peer = socket_pair()
            result = (*await loop.create_connection(factory, sock=sock), peer)
        transports.append(weakref.ref(result[0]))
        if small:
            size = 8192 if result[2].family == socket.AF_UNIX else 65536  # a segment on loopback has 64 KiB
            result[0].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            result[2].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        return result

    yield connect

    async def close():
        for ref in transports:
            if (transport := ref()) is not None:
                put_away(transport)
        await turns(2)

    if not loop.is_closed():
        loop.run_until_complete(close())


kinds = pytest.mark.parametrize("kind", KINDS)
both_protocols = pytest.mark.parametrize("factory", [Recorder, BufferedRecorder], ids=["Protocol", "BufferedProtocol"])


# --- what a transport is ----------------------------------------------------------------------------------------------


@kinds
@both_protocols
def test_bytes_arrive_both_ways(run, connect, kind, factory):
    async def main():
        transport, protocol, peer = await connect(kind, factory)
        transport.write(b"to the peer")
        assert await read_exactly(peer, 11) == b"to the peer"
        await send_all(peer, b"from the peer")
        await until(lambda: len(protocol.data) == 13)
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: protocol.lost)
        assert protocol.data == b"from the peer"
        assert protocol.calls == ["connection_made", "data", "eof_received", "connection_lost"]
        assert protocol.lost_with is None
        assert await read_to_end(peer) == b""

    run(main())


@pytest.mark.parametrize("size", [1, 479, 480, 1024, 4096, 4097, 20_000])
def test_messages_of_one_size_are_each_their_own(run, loop, socket_pair, size):
    keeper = Keeper()

    class Taker(asyncio.Protocol):
        got = 0

        def data_received(self, data):
            keeper.take(data)
            assert set(data) == {self.got // size}
            self.got += len(data)

    async def main():
        ends = [socket_pair() for _ in range(2)]
        made = [await loop.create_connection(Taker, sock=near) for near, _ in ends]
        for i in range(80):
            for (_, taker), (_, far) in zip(made, ends, strict=True):
                await send_all(far, bytes([i]) * size)
                await until(lambda taker=taker, i=i: taker.got == (i + 1) * size)
        keeper.check()
        for transport, _ in made:
            put_away(transport)
        await turns()

    run(main())


@kinds
def test_a_transport_is_an_asyncio_transport(run, connect, kind):
    async def main():
        transport, _, _ = await connect(kind)
        for base in (asyncio.Transport, asyncio.ReadTransport, asyncio.WriteTransport, asyncio.BaseTransport):
            assert isinstance(transport, base)
        assert not isinstance(transport, asyncio.DatagramTransport)

    run(main())


def test_a_transport_takes_weak_references_attributes_and_a_place_in_a_dict(run, connect):
    async def main():
        transport, _, _ = await connect()
        assert weakref.ref(transport)() is transport
        transport.application_state = "mine"
        assert transport.application_state == "mine"
        assert {transport: 1}[transport] == 1
        assert transport == transport

    run(main())


def test_connection_made_comes_before_create_connection_returns(run, connect):
    async def main():
        transport, protocol, _ = await connect("tcp")
        assert protocol.calls == ["connection_made"]
        assert protocol.transport is transport
        assert transport.get_protocol() is protocol
        assert transport.is_reading()
        assert not transport.is_closing()
        assert transport.can_write_eof() is True

    run(main())


@kinds
def test_extra_info_names_socket_and_addresses_also_after_close(run, connect, kind):
    async def main():
        transport, protocol, peer = await connect(kind)
        sock = transport.get_extra_info("socket")
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        assert sock.family == peer.family
        assert sock.fileno() >= 0
        sockname, peername = sock.getsockname(), sock.getpeername()
        assert peer.getpeername() == sockname
        transport.close()
        await until(lambda: protocol.lost)
        await turns(1)
        assert transport.get_extra_info("sockname") == sockname
        assert transport.get_extra_info("peername") == peername
        assert transport.get_extra_info("socket") is sock
        assert sock.fileno() == -1

    run(main())


def test_extra_info_answers_the_default_for_unknown_names(run, connect):
    async def main():
        transport, _, _ = await connect()
        assert transport.get_extra_info("no such name") is None
        assert transport.get_extra_info("no such name", 5) == 5
        assert transport.get_extra_info("sslcontext") is None

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "tcp_served", "tcp_accepted"])
def test_tcp_transports_do_not_delay_small_writes(run, connect, kind):
    async def main():
        transport, _, _ = await connect(kind)
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main())


def test_the_descriptor_of_a_transport_is_refused_to_add_reader(run, loop, connect):
    async def main():
        transport, _, _ = await connect()
        fd = transport.get_extra_info("socket").fileno()
        for method in (loop.add_reader, loop.add_writer):
            with pytest.raises(RuntimeError, match=f"File descriptor {fd} is used by transport"):
                method(fd, print)
        for method in (loop.remove_reader, loop.remove_writer):
            with pytest.raises(RuntimeError, match=f"File descriptor {fd} is used by transport"):
                method(fd)

    run(main())


def test_repr_tells_descriptor_polling_and_buffer(run, connect):
    async def main():
        transport, protocol, _ = await connect(small=True)
        fd = transport.get_extra_info("socket").fileno()
        assert re.fullmatch(rf"<\w+ fd={fd} read=polling write=<idle, bufsize=0>>", repr(transport))
        transport.pause_reading()
        assert re.fullmatch(rf"<\w+ fd={fd} read=idle write=<idle, bufsize=0>>", repr(transport))
        await fill(transport)
        size = transport.get_write_buffer_size()
        assert re.fullmatch(rf"<\w+ fd={fd} read=idle write=<polling, bufsize={size}>>", repr(transport))
        transport.close()
        assert re.match(rf"<\w+ closing fd={fd} ", repr(transport))
        transport.abort()
        await until(lambda: protocol.lost)
        await turns(1)
        assert re.fullmatch(r"<\w+ closed fd=-?\d+.*>", repr(transport))

    run(main())


# --- write ------------------------------------------------------------------------------------------------------------


def _shapes():
    data = bytes(range(64))
    yield "bytes", data
    yield "bytearray", bytearray(data)
    yield "memoryview", memoryview(data)
    yield "memoryview_of_bytearray", memoryview(bytearray(data))
    yield "slice", memoryview(b"no" + data + b"no")[2:-2]
    yield "words", memoryview(array.array("I", data))
    yield "two_dimensional", memoryview(data).cast("B", (8, 8))
    yield "three_dimensional_words", memoryview(data).cast("I", (2, 4, 2))


shapes = pytest.mark.parametrize("data", [pytest.param(value, id=name) for name, value in _shapes()])


@shapes
def test_write_takes_every_kind_of_buffer(run, connect, data):
    async def main():
        transport, _, peer = await connect()
        transport.write(data)
        assert await read_exactly(peer, 64) == bytes(range(64))

    run(main())


@shapes
def test_writelines_takes_every_kind_of_buffer(run, connect, data):
    async def main():
        transport, _, peer = await connect()
        transport.writelines([b"<", data, b">"])
        assert await read_exactly(peer, 66) == b"<" + bytes(range(64)) + b">"

    run(main())


@pytest.mark.not_on_oracle("3.12 and later count a queued memoryview in items instead of bytes")
@shapes
def test_queued_buffers_of_every_kind_are_counted_in_bytes_and_sent_whole(run, connect, data):
    async def main():
        transport, _, peer = await connect(small=True)
        written = await fill(transport)
        before = transport.get_write_buffer_size()
        transport.write(data)
        assert transport.get_write_buffer_size() == before + 64
        transport.writelines([data, data])
        assert transport.get_write_buffer_size() == before + 192
        assert (await read_exactly(peer, written + 192))[written:] == bytes(range(64)) * 3

    run(main())


def test_a_large_buffer_of_words_is_sent_whole(run, connect):
    async def main():
        transport, _, peer = await connect()
        data = pattern(1 << 20)
        transport.write(memoryview(data).cast("Q").cast("B"))
        assert await read_exactly(peer, len(data)) == data

    run(main())


@pytest.mark.not_on_oracle("stock slices the rest of a partly sent view by items instead of bytes")
@pytest.mark.parametrize("shape", [("Q", None), ("B", (1024, 1024)), ("Q", (128, 1024))], ids=str)
def test_a_partly_sent_view_of_any_shape_is_sent_whole(run, connect, shape):
    async def main():
        transport, _, peer = await connect()
        data = pattern(1 << 20)
        view = memoryview(data)
        transport.write(view.cast(*shape) if shape[1] else view.cast(shape[0]))
        transport.close()
        assert await read_to_end(peer) == data

    run(main())


def test_empty_writes_send_nothing(run, connect):
    async def main():
        transport, _, peer = await connect()
        for empty in (b"", bytearray(), memoryview(b"")):
            transport.write(empty)
        transport.writelines([])
        transport.writelines([b"", b"x"])
        assert transport.get_write_buffer_size() == 0
        assert await read_exactly(peer, 1) == b"x"
        transport.write(b"y")
        assert await read_exactly(peer, 1) == b"y"

    run(main())


@pytest.mark.not_on_oracle("3.12 and later keep a last empty buffer for ever and poll for it without end")
def test_empty_pieces_after_the_data_are_done_with_it(run, connect):
    async def main():
        transport, protocol, peer = await connect()
        transport.writelines([b"x", b"", b""])
        transport.close()
        assert await read_to_end(peer) == b"x"
        await until(lambda: protocol.lost)

    run(main())


@pytest.mark.not_on_oracle("3.12 and 3.13 fail an assertion when all buffers of writelines() are empty")
def test_writelines_of_only_empty_buffers_sends_nothing(run, connect):
    async def main():
        transport, _, peer = await connect()
        transport.writelines([b"", b""])
        transport.writelines(iter([]))
        assert transport.get_write_buffer_size() == 0
        transport.write(b"y")
        assert await read_exactly(peer, 1) == b"y"

    run(main())


def _changed_after_write(run, connect, size):
    async def main():
        transport, _, peer = await connect()
        data = bytearray(pattern(size))
        sent = bytes(data)
        transport.write(data)
        data[:] = b"\xff" * size
        assert await read_exactly(peer, size) == sent

    run(main())


def test_a_buffer_changed_after_write_changes_nothing_that_is_sent(run, connect):
    _changed_after_write(run, connect, 100)


@pytest.mark.not_on_oracle("3.12 and later keep the unsent rest of a bytearray by reference")
def test_a_buffer_changed_after_a_partial_write_changes_nothing_that_is_sent(run, connect):
    _changed_after_write(run, connect, 1 << 20)


@pytest.mark.not_on_oracle("3.12 and later keep a queued bytearray by reference")
@pytest.mark.parametrize("wrap", [bytearray, lambda b: memoryview(bytearray(b))], ids=["bytearray", "memoryview"])
@pytest.mark.parametrize("how", ["write", "writelines"])
def test_a_queued_buffer_may_be_changed_and_resized(run, connect, wrap, how):
    async def main():
        transport, _, peer = await connect(small=True)
        written = await fill(transport)
        data = wrap(b"a" * 1000)
        if how == "write":
            transport.write(data)
        else:
            transport.writelines([data, data])
        data[:] = b"b" * 1000
        if isinstance(data, bytearray):
            data.clear()  # a transport that exports it would make this a BufferError
        count = 1000 if how == "write" else 2000
        assert (await read_exactly(peer, written + count))[written:] == b"a" * count

    run(main())


@pytest.mark.parametrize("data", ["text", None, 5, [b"list"], array.array("B", b"x"), object()], ids=repr)
def test_write_refuses_what_is_not_bytes_like(run, connect, data):
    async def main():
        transport, _, _ = await connect()
        expected = "(a bytes-like|a bytes, bytearray, or memoryview) object"  # the second from 3.14 on
        with pytest.raises(TypeError, match=f"data argument must be {expected}, not {type(data).__name__!r}"):
            transport.write(data)
        assert not transport.is_closing()

    run(main())


def test_writelines_refuses_what_is_not_bytes_like_and_sends_none_of_it(run, connect):
    async def main():
        transport, _, peer = await connect()
        for lines in (["text"], [b"ok", "text"], [b"ok", 5], 5):
            with pytest.raises(TypeError):
                transport.writelines(lines)
        transport.write(b"after")
        assert await read_exactly(peer, 5) == b"after"

    run(main())


def test_writelines_takes_any_iterable(run, connect):
    async def main():
        transport, _, peer = await connect()
        transport.writelines((b"ab", b"cd"))
        transport.writelines(bytes([c]) for c in b"efgh")
        assert await read_exactly(peer, 8) == b"abcdefgh"

    run(main())


def test_more_pieces_than_one_system_call_takes_arrive_in_order(run, connect):
    async def main():
        transport, _, peer = await connect(small=True)
        pieces = [b"%06d;" % i for i in range(5000)]
        transport.writelines(pieces[:2500])
        for piece in pieces[2500:]:
            transport.write(piece)
        assert await read_exactly(peer, 35000) == b"".join(pieces)

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "socketpair"])
def test_thousands_of_small_messages_arrive_in_order(run, loop, connect, kind):
    async def main():
        transport, protocol, peer = await connect(kind)
        messages = [b"%d," % i for i in range(10000)]
        expected = b"".join(messages)
        reading = asyncio.ensure_future(read_exactly(peer, len(expected)))
        for i, message in enumerate(messages):
            transport.write(message)
            if i % 100 == 0:
                await asyncio.sleep(0)
        assert await reading == expected
        for i in range(0, len(messages), 7):
            await send_all(peer, b"".join(messages[i : i + 7]))
        await until(lambda: len(protocol.data) >= len(expected))
        assert protocol.data == expected

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@both_protocols
def test_64_mebibytes_cross_both_ways_at_once_intact(run, loop, connect, kind, factory):
    size, piece = 64 << 20, pattern(1 << 20)
    if kind == "unix":
        size >>= 2
    expected = hashlib.blake2b()
    for _ in range(size // len(piece)):
        expected.update(piece)

    class Side(factory):
        def __init__(self):
            super().__init__()
            self.digest, self.count = hashlib.blake2b(), 0
            self.todo = size // len(piece)
            self.paused = False

        def _received(self, data):
            self.digest.update(data)
            self.count += len(data)

        def pump(self):
            while self.todo and not self.paused:
                self.todo -= 1
                self.transport.write(piece)
            if not self.todo and self.transport.can_write_eof():
                self.transport.write_eof()

        def pause_writing(self):
            self.paused = True

        def resume_writing(self):
            self.paused = False
            self.pump()

        def eof_received(self):
            self.calls.append("eof_received")
            return True

    async def main():
        _, one, peer = await connect(kind, Side)
        _, other = await loop.create_connection(Side, sock=peer.dup())
        one.pump()
        other.pump()
        await until(lambda: "eof_received" in one.calls and "eof_received" in other.calls)
        assert one.count == other.count == size
        assert one.digest.digest() == other.digest.digest() == expected.digest()
        other.transport.close()
        one.transport.close()
        await until(lambda: one.lost and other.lost)

    run(main(), timeout=50)


# --- write buffer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, limits",
    [
        ({}, (16384, 65536)),
        ({"high": 100}, (25, 100)),
        ({"low": 10}, (10, 40)),
        ({"high": 0}, (0, 0)),
        ({"low": 0}, (0, 0)),
        ({"high": 7, "low": 7}, (7, 7)),
        ({"high": 1 << 40, "low": 1}, (1, 1 << 40)),
        ({"high": None, "low": None}, (16384, 65536)),
    ],
    ids=str,
)
def test_write_buffer_limits_default_to_each_other(run, connect, arguments, limits):
    async def main():
        transport, _, _ = await connect()
        assert transport.get_write_buffer_limits() == (16384, 65536)
        transport.set_write_buffer_limits(**arguments)
        assert transport.get_write_buffer_limits() == limits

    run(main())


@pytest.mark.parametrize("high, low", [(1, 2), (-1, None), (None, -1), (5, -5), (0, 1)])
def test_impossible_write_buffer_limits_are_a_value_error_and_change_nothing(run, connect, high, low):
    async def main():
        transport, _, _ = await connect()
        real_high = 4 * low if high is None else high
        real_low = high // 4 if low is None else low
        expected = f"high ({real_high}) must be >= low ({real_low}) must be >= 0"
        with pytest.raises(ValueError, match=re.escape(expected)):
            transport.set_write_buffer_limits(high=high, low=low)
        assert transport.get_write_buffer_limits() == (16384, 65536)

    run(main())


def test_pause_writing_comes_at_the_first_byte_above_the_high_limit(run, connect):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.set_write_buffer_limits(high=1 << 30)
        written = await fill(transport)
        base = transport.get_write_buffer_size()
        transport.set_write_buffer_limits(high=base + 1000, low=500)
        assert protocol.calls == ["connection_made"]
        transport.write(b"x" * 1000)
        assert transport.get_write_buffer_size() == base + 1000
        assert protocol.calls == ["connection_made"]
        transport.write(b"x")
        assert protocol.calls == ["connection_made", "pause_writing"]
        transport.write(b"x" * 5000)
        await turns(2)
        assert protocol.calls == ["connection_made", "pause_writing"]
        total = written + 6001
        assert len(await read_exactly(peer, total)) == total
        await until(lambda: "resume_writing" in protocol.calls)
        assert transport.get_write_buffer_size() == 0
        await turns(2)
        assert protocol.calls == ["connection_made", "pause_writing", "resume_writing"]

    run(main())


def test_resume_writing_comes_only_at_or_below_the_low_limit(run, connect):
    sizes = []

    class Sizes(Recorder):
        def resume_writing(self):
            super().resume_writing()
            sizes.append(self.transport.get_write_buffer_size())

    async def main():
        transport, protocol, peer = await connect(factory=Sizes, small=True)
        for low in (0, 1, 3000, 20000):
            transport.set_write_buffer_limits(high=30000, low=low)
            written = await fill(transport)
            transport.write(b"x" * 40000)
            assert protocol.calls[-1] == "pause_writing"
            await read_exactly(peer, written + 40000)
            await until(lambda: protocol.calls[-1] == "resume_writing")
            assert sizes.pop() <= low
            assert not sizes

    run(main())


def test_lowering_the_limits_below_the_buffer_pauses_at_once(run, connect):
    async def main():
        transport, protocol, _ = await connect(small=True)
        await fill(transport)
        assert protocol.calls == ["connection_made"]
        transport.set_write_buffer_limits(high=transport.get_write_buffer_size())
        assert protocol.calls == ["connection_made"]
        transport.set_write_buffer_limits(high=transport.get_write_buffer_size() - 1)
        assert protocol.calls == ["connection_made", "pause_writing"]
        transport.set_write_buffer_limits(high=0)
        assert protocol.calls == ["connection_made", "pause_writing"]

    run(main())


def test_with_a_high_limit_of_zero_only_what_is_left_over_pauses(run, connect):
    async def main():
        transport, protocol, peer = await connect(small=True)
        transport.set_write_buffer_limits(high=0)
        written = await fill(transport)
        assert protocol.calls[-1] == "pause_writing"
        await read_exactly(peer, written)
        await until(lambda: protocol.calls[-1] == "resume_writing")
        assert transport.get_write_buffer_size() == 0
        pauses = [call for call in protocol.calls if call != "connection_made"]
        assert pauses == ["pause_writing", "resume_writing"] * (len(pauses) // 2)

    run(main())


@pytest.mark.not_on_oracle("stock before 3.12.9 and 3.13.2: CVE-2024-12254")
def test_writelines_pauses_the_protocol_cve_2024_12254(run, connect):
    async def main():
        transport, protocol, _ = await connect(small=True)
        transport.writelines([b"x" * 100000] * 10)
        await until(lambda: "pause_writing" in protocol.calls)
        assert transport.get_write_buffer_size() > 65536

    run(main())


def test_the_protocol_may_write_in_resume_writing(run, connect):
    class Refill(Recorder):
        rounds = 5

        def resume_writing(self):
            super().resume_writing()
            if self.rounds:
                self.rounds -= 1
                self.transport.write(b"r" * 100000)

    async def main():
        transport, protocol, peer = await connect(factory=Refill, small=True)
        transport.write(b"r" * 100000)
        assert await read_exactly(peer, 600000) == b"r" * 600000
        await until(lambda: protocol.calls.count("resume_writing") == 6)
        assert protocol.calls[1:] == ["pause_writing", "resume_writing"] * 6

    run(main())


@pytest.mark.parametrize("name", ["pause_writing", "resume_writing"])
def test_an_error_in_flow_control_is_reported_and_the_connection_goes_on(run, connect, exceptions, name):
    class Failing(Recorder):
        pass

    def fail(self):
        raise ZeroDivisionError(name)

    setattr(Failing, name, fail)

    async def main():
        transport, protocol, peer = await connect(factory=Failing, small=True)
        transport.write(b"x" * 200000)
        assert await read_exactly(peer, 200000) == b"x" * 200000
        await until(lambda: exceptions)
        (context,) = exceptions
        assert context["message"] == f"protocol.{name}() failed"
        assert isinstance(context["exception"], ZeroDivisionError)
        assert context["transport"] is transport
        assert context["protocol"] is protocol
        assert not transport.is_closing()

    run(main())


# --- reading ----------------------------------------------------------------------------------------------------------


@kinds
@both_protocols
def test_nothing_is_received_while_reading_is_paused_and_nothing_is_lost(run, connect, kind, factory):
    async def main():
        transport, protocol, peer = await connect(kind, factory)
        transport.pause_reading()
        assert not transport.is_reading()
        await send_all(peer, pattern(10000))
        await turns()
        assert not protocol.data
        transport.resume_reading()
        assert transport.is_reading()
        assert not protocol.data, "resume_reading() called the protocol"
        await until(lambda: len(protocol.data) == 10000)
        assert protocol.data == pattern(10000)

    run(main())


def test_pause_and_resume_are_idempotent(run, connect):
    async def main():
        transport, protocol, peer = await connect()
        transport.resume_reading()
        transport.pause_reading()
        transport.pause_reading()
        await send_all(peer, b"x")
        await turns()
        assert not protocol.data
        transport.resume_reading()
        transport.resume_reading()
        await until(lambda: protocol.data)
        transport.pause_reading()
        transport.resume_reading()
        transport.pause_reading()
        await send_all(peer, b"y")
        await turns()
        assert protocol.data == b"x"
        transport.resume_reading()
        await until(lambda: protocol.data == b"xy")

    run(main())


def test_resume_reading_never_calls_the_protocol_synchronously_from_data_received(run, connect):
    depth = 0

    class Nested(Recorder):
        def data_received(self, data):
            nonlocal depth
            depth += 1
            assert depth == 1
            self.transport.pause_reading()
            super().data_received(data)
            self.transport.resume_reading()
            depth -= 1

    async def main():
        _, protocol, peer = await connect(factory=Nested)
        data = pattern(600000)
        await send_all(peer, data)
        await until(lambda: len(protocol.data) == len(data))
        assert protocol.data == data

    run(main())


@both_protocols
def test_every_byte_arrives_when_each_piece_pauses(run, loop, connect, factory):
    class Stop(factory):
        def _received(self, data):
            assert self.transport.is_reading(), "received while paused"
            super()._received(data)
            self.transport.pause_reading()
            loop.call_later(0.0001, self.transport.resume_reading)

    async def main():
        _, protocol, peer = await connect("tcp", Stop)
        data = pattern(400000)
        for start in range(0, len(data), 4000):
            await send_all(peer, data[start : start + 4000])
        await until(lambda: len(protocol.data) == len(data))
        assert protocol.data == data

    run(main())


def test_reading_paused_in_connection_made_holds_back_data_that_is_there_already(run, loop, socket_pair):
    class Paused(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async def main():
        sock, peer = socket_pair()
        peer.send(b"early")
        transport, protocol = await loop.create_connection(Paused, sock=sock)
        await turns()
        assert protocol.calls == ["connection_made"]
        transport.resume_reading()
        await until(lambda: protocol.data == b"early")
        transport.close()
        await until(lambda: protocol.lost)

    run(main())


@both_protocols
def test_data_that_was_there_before_the_transport_is_received_after_connection_made(run, loop, socket_pair, factory):
    async def main():
        sock, peer = socket_pair()
        peer.send(b"early")
        peer.close()
        transport, protocol = await loop.create_connection(factory, sock=sock)
        await until(lambda: protocol.lost)
        assert protocol.calls == ["connection_made", "data", "eof_received", "connection_lost"]
        assert protocol.data == b"early"

    run(main())


def test_the_end_and_a_reset_are_held_back_while_reading_is_paused(run, connect):
    async def main():
        for kind, end in (("socketpair", socket.socket.close), ("tcp", socket.socket.close), ("tcp", reset)):
            transport, protocol, peer = await connect(kind)
            transport.pause_reading()
            if end is not reset:
                await send_all(peer, b"last words")
            end(peer)
            await turns()
            assert protocol.calls == ["connection_made"]
            transport.resume_reading()
            assert protocol.calls == ["connection_made"]
            await until(lambda protocol=protocol: protocol.lost)
            if end is reset:
                assert isinstance(protocol.lost_with, ConnectionResetError)
            else:
                assert protocol.calls == ["connection_made", "data", "eof_received", "connection_lost"]
                assert protocol.data == b"last words"

    run(main())


@pytest.mark.parametrize("end", ["close", "abort"])
@both_protocols
def test_nothing_is_received_after_close_or_abort_in_a_callback(run, connect, factory, end):
    class Closing(factory):
        def _received(self, data):
            assert not self.transport.is_closing()
            super()._received(data)
            if len(self.data) >= 1000:
                getattr(self.transport, end)()
                assert not self.transport.is_reading()

    async def main():
        _, protocol, peer = await connect("tcp", Closing)
        with contextlib.suppress(OSError):
            for _ in range(200):
                await send_all(peer, b"x" * 500)
        await until(lambda: protocol.lost)
        assert protocol.calls == ["connection_made", "data", "connection_lost"]
        assert protocol.lost_with is None

    run(main())


def test_pause_and_resume_after_close_do_nothing(run, connect):
    async def main():
        transport, protocol, _ = await connect()
        transport.close()
        transport.pause_reading()
        transport.resume_reading()
        assert not transport.is_reading()
        await until(lambda: protocol.lost)
        transport.pause_reading()
        transport.resume_reading()
        assert protocol.calls == ["connection_made", "connection_lost"]

    run(main())


# --- buffered protocols -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 1000, 1 << 18])
def test_a_buffer_of_any_size_receives_every_byte(run, connect, size):
    async def main():
        _, protocol, peer = await connect(factory=lambda: BufferedRecorder(size))
        data = pattern(2000 if size < 10 else 600000)
        await send_all(peer, data)
        peer.close()
        await until(lambda: protocol.lost)
        assert protocol.data == data
        assert protocol.calls == ["connection_made", "data", "eof_received", "connection_lost"]

    run(main())


def test_a_view_into_a_larger_buffer_is_filled_where_it_says(run, connect):
    class Message(BufferedRecorder):
        """Collects exactly 1000 bytes in place."""

        def __init__(self):
            super().__init__(1000)
            self.position = 0

        def get_buffer(self, sizehint):
            assert sizehint == -1
            return memoryview(self.buffer)[self.position :]

        def buffer_updated(self, nbytes):
            self.position += nbytes
            if self.position == 1000:
                self._received(self.buffer)
                self.position = 0

    async def main():
        _, protocol, peer = await connect(factory=Message)
        data = pattern(100000)
        for start in range(0, len(data), 777):
            await send_all(peer, data[start : start + 777])
        await until(lambda: len(protocol.data) == len(data))
        assert protocol.data == data

    run(main())


@pytest.mark.parametrize(
    "buffer, error",
    [
        (b"", RuntimeError),
        (bytearray(), RuntimeError),
        (None, TypeError),
        (ZeroDivisionError("mine"), ZeroDivisionError),
    ],
    ids=repr,
)
def test_a_failing_get_buffer_is_a_fatal_error(run, connect, exceptions, buffer, error):
    class Bad(BufferedRecorder):
        def get_buffer(self, sizehint):
            if isinstance(buffer, Exception):
                raise buffer
            return buffer

    async def main():
        transport, protocol, peer = await connect(factory=Bad)
        await send_all(peer, b"x")
        await until(lambda: protocol.lost)
        (context,) = exceptions
        assert context["message"] == "Fatal error: protocol.get_buffer() call failed."
        assert isinstance(context["exception"], error)
        if error is RuntimeError:
            assert str(context["exception"]) == "get_buffer() returned an empty buffer"
        assert context["transport"] is transport
        assert context["protocol"] is protocol
        assert protocol.lost_with is context["exception"]
        assert await read_to_end(peer) == b""

    run(main())


def test_a_read_only_buffer_is_a_fatal_error(run, connect, exceptions):
    class ReadOnly(BufferedRecorder):
        def get_buffer(self, sizehint):
            return bytes(100)

    async def main():
        _, protocol, peer = await connect(factory=ReadOnly)
        await send_all(peer, b"x")
        await until(lambda: protocol.lost)
        (context,) = exceptions
        assert context["message"] == "Fatal read error on socket transport"
        assert isinstance(protocol.lost_with, (TypeError, BufferError))

    run(main())


# --- protocols that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("name", ["data_received", "buffer_updated", "eof_received"])
def test_an_error_in_a_read_callback_is_fatal_and_reported(run, connect, exceptions, name, error):
    class Failing(BufferedRecorder if name == "buffer_updated" else Recorder):
        pass

    def fail(self, *args):
        raise error

    setattr(Failing, name, fail)

    async def main():
        transport, protocol, peer = await connect(factory=Failing)
        if name == "eof_received":
            peer.shutdown(socket.SHUT_WR)
        else:
            await send_all(peer, b"x")
        await until(lambda: protocol.lost)
        (context,) = exceptions
        assert context["message"] == f"Fatal error: protocol.{name}() call failed."
        assert context["exception"] is error
        assert context["transport"] is transport
        assert context["protocol"] is protocol
        assert protocol.calls == ["connection_made", "connection_lost"]
        assert protocol.lost_with is error
        assert await read_to_end(peer) == b""

    run(main())


def test_an_os_error_in_a_read_callback_closes_without_a_report(run, connect, exceptions):
    error = OSError("mine")

    class Failing(Recorder):
        def data_received(self, data):
            raise error

    async def main():
        _, protocol, peer = await connect(factory=Failing)
        await send_all(peer, b"x")
        await until(lambda: protocol.lost)
        assert protocol.lost_with is error
        assert not exceptions

    run(main())


@pytest.mark.parametrize("name", ["connection_made", "connection_lost"])
def test_an_error_in_connection_made_or_lost_is_reported_as_of_a_callback(run, loop, exceptions, socket_pair, name):
    class Failing(Recorder):
        pass

    def fail(self, *args):
        getattr(Recorder, name)(self, *args)
        raise ZeroDivisionError(name)

    setattr(Failing, name, fail)

    async def main():
        sock, peer = socket_pair()
        transport, protocol = await loop.create_connection(Failing, sock=sock)
        await send_all(peer, b"x")
        await until(lambda: protocol.data)
        transport.close()
        await until(lambda: protocol.lost and exceptions)
        await turns(1)
        (context,) = exceptions
        assert context["message"].startswith("Exception in callback ")
        assert isinstance(context["exception"], ZeroDivisionError)
        assert sock.fileno() == -1
        assert await read_to_end(peer) == b""

    run(main())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("factory", [Recorder, BufferedRecorder], ids=["Protocol", "BufferedProtocol"])
def test_exit_and_interrupt_in_a_read_callback_leave_run_forever(loop, run, connect, factory, error):
    class Leaving(factory):
        def _received(self, data):
            super()._received(data)
            if data == b"leave":
                raise error

    transport, protocol, peer = run(connect(factory=Leaving))
    peer.send(b"leave")
    limit = loop.call_later(10, loop.stop)
    with pytest.raises(error):
        loop.run_forever()
    limit.cancel()

    async def main():
        await send_all(peer, b" and stay")
        await until(lambda: len(protocol.data) == len(b"leave and stay"))

    run(main())


# --- ends -------------------------------------------------------------------------------------------------------------


@kinds
def test_after_write_eof_the_peer_reads_the_end_and_can_still_answer(run, connect, kind):
    async def main():
        transport, protocol, peer = await connect(kind)
        transport.write(b"question")
        transport.write_eof()
        transport.write_eof()
        assert not transport.is_closing()
        assert await read_to_end(peer) == b"question"
        await send_all(peer, b"answer")
        await until(lambda: protocol.data == b"answer")
        peer.close()
        await until(lambda: protocol.lost)
        assert protocol.calls == ["connection_made", "data", "eof_received", "connection_lost"]

    run(main())


def test_write_eof_comes_after_the_queued_data(run, connect):
    async def main():
        transport, _, peer = await connect(small=True)
        data = pattern(500000)
        transport.write(data)
        transport.write_eof()
        assert await read_to_end(peer) == data
        assert not transport.is_closing()

    run(main())


def test_write_after_write_eof_is_an_error(run, connect):
    async def main():
        transport, _, _ = await connect()
        transport.write_eof()
        with pytest.raises(RuntimeError, match=re.escape("Cannot call write() after write_eof()")):
            transport.write(b"x")
        with pytest.raises(RuntimeError, match=r"Cannot call write(lines)?\(\) after write_eof\(\)"):
            transport.writelines([b"x"])
        with pytest.raises(RuntimeError):
            transport.write(b"")
        with pytest.raises(TypeError):
            transport.write("x")
        assert not transport.is_closing()

    run(main())


def test_write_eof_after_close_does_nothing(run, connect):
    async def main():
        transport, protocol, _ = await connect()
        transport.close()
        transport.write_eof()
        await until(lambda: protocol.lost)
        transport.write_eof()
        assert protocol.calls == ["connection_made", "connection_lost"]

    run(main())


@kinds
@both_protocols
def test_a_true_eof_received_keeps_the_connection_open_for_writing(run, connect, kind, factory):
    async def main():
        transport, protocol, peer = await connect(kind, lambda: factory(keep_open=True))
        await send_all(peer, b"all of it")
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: "eof_received" in protocol.calls)
        await turns(2)
        assert not transport.is_closing()
        transport.write(b"answer")
        assert await read_exactly(peer, 6) == b"answer"
        data = pattern(300000)
        transport.write(data)
        assert await read_exactly(peer, len(data)) == data
        transport.close()
        await until(lambda: protocol.lost)
        assert [c for c in protocol.calls if "writing" not in c] == [
            "connection_made",
            "data",
            "eof_received",
            "connection_lost",
        ]
        assert protocol.data == b"all of it"

    run(main())


@pytest.mark.parametrize("answer", [None, False, 0, ""], ids=repr)
def test_a_false_eof_received_closes(run, connect, answer):
    async def main():
        transport, protocol, peer = await connect(factory=lambda: Recorder(keep_open=answer))
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: protocol.lost)
        assert transport.is_closing()
        assert protocol.calls == ["connection_made", "eof_received", "connection_lost"]
        assert protocol.lost_with is None
        assert await read_to_end(peer) == b""

    run(main())


def test_at_the_end_of_the_peer_queued_data_is_still_flushed(run, connect):
    async def main():
        transport, protocol, peer = await connect(small=True)
        data = pattern(300000)
        transport.write(data)
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: transport.is_closing())
        await turns(1)
        assert not protocol.lost
        assert await read_to_end(peer) == data
        await until(lambda: protocol.lost)
        assert protocol.lost_with is None

    run(main())


def test_both_sides_half_close_one_after_the_other(run, loop, connect):
    class Answer(Recorder):
        def eof_received(self):
            super().eof_received()
            self.transport.write(b"you said " + bytes(self.data))
            self.transport.write_eof()
            return True

    async def main():
        transport, protocol, peer = await connect("tcp", Answer)
        await send_all(peer, b"hello")
        peer.shutdown(socket.SHUT_WR)
        assert await read_to_end(peer) == b"you said hello"
        assert not transport.is_closing()
        transport.close()
        await until(lambda: protocol.lost)

    run(main())


@kinds
def test_close_sends_what_is_queued_first(run, connect, kind):
    async def main():
        transport, protocol, peer = await connect(kind, small=True)
        data = pattern(1500000)
        transport.write(data)
        transport.close()
        transport.close()
        assert transport.is_closing()
        assert not transport.is_reading()
        await turns(1)
        assert not protocol.lost
        assert await read_to_end(peer) == data
        await until(lambda: protocol.lost)
        await turns(1)
        assert [c for c in protocol.calls if "writing" not in c] == ["connection_made", "connection_lost"]
        assert protocol.lost_with is None

    run(main())


def test_connection_lost_is_never_called_by_close_or_abort_itself(run, connect):
    async def main():
        for end in ("close", "abort"):
            transport, protocol, peer = await connect()
            getattr(transport, end)()
            getattr(transport, end)()
            assert not protocol.lost
            await until(lambda protocol=protocol: protocol.lost)
            getattr(transport, end)()
            await turns(1)
            assert protocol.calls == ["connection_made", "connection_lost"]
            assert protocol.lost_with is None
            assert await read_to_end(peer) == b""

    run(main())


def test_what_the_peer_sends_after_close_is_not_received(run, connect):
    async def main():
        transport, protocol, peer = await connect(small=True)
        await fill(transport)
        transport.close()
        await send_all(peer, b"too late")
        await turns()
        assert not protocol.lost
        transport.abort()
        await until(lambda: protocol.lost)
        assert protocol.calls == ["connection_made", "connection_lost"]

    run(main())


def test_data_written_after_close_but_before_the_flush_is_sent(run, connect):
    async def main():
        transport, _, peer = await connect(small=True)
        written = await fill(transport)
        transport.close()
        transport.write(b"postscript")
        assert (await read_to_end(peer))[written:] == b"postscript"

    run(main())


@kinds
def test_abort_sends_nothing_more(run, connect, kind):
    async def main():
        transport, protocol, peer = await connect(kind, small=True)
        written = await fill(transport)
        transport.write(b"!" * 1000)
        left = transport.get_write_buffer_size()
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        assert transport.is_closing()
        await until(lambda: protocol.lost)
        assert protocol.lost_with is None
        assert await read_to_end(peer) == b"." * (written + 1000 - left)

    run(main())


def test_abort_after_close_gives_up_the_flush(run, connect):
    async def main():
        transport, protocol, peer = await connect(small=True)
        written = await fill(transport)
        left = transport.get_write_buffer_size()
        transport.close()
        await turns(1)
        assert not protocol.lost
        transport.abort()
        await until(lambda: protocol.lost)
        assert len(await read_to_end(peer)) == written - left

    run(main())


@pytest.mark.not_on_oracle("stock fails with an AttributeError")
def test_close_and_abort_after_the_flush_do_nothing(run, connect):
    async def main():
        transport, protocol, peer = await connect(small=True)
        data = pattern(100000)
        transport.write(data)
        transport.close()
        assert await read_to_end(peer) == data
        await until(lambda: protocol.lost)
        transport.close()
        transport.abort()
        transport.write(b"dropped")
        assert protocol.calls.count("connection_lost") == 1

    run(main())


WARNING = "socket.send() raised exception."


def test_writes_after_close_are_dropped_and_warned_about_from_the_fifth_on(run, connect, caplog):
    async def main():
        transport, protocol, peer = await connect()
        transport.close()
        for _ in range(4):
            transport.write(b"dropped")
        assert WARNING not in caplog.messages
        transport.write(b"dropped")
        assert caplog.messages == [WARNING]
        await until(lambda: protocol.lost)
        transport.write(b"dropped")
        assert caplog.messages == [WARNING] * 2
        assert caplog.records[0].name == "asyncio"
        assert transport.get_write_buffer_size() == 0
        assert await read_to_end(peer) == b""

    run(main())


@pytest.mark.not_on_oracle("fails with a TypeError on some stock versions: python/cpython issue 136234")
def test_writelines_after_close_is_dropped_and_warned_about_from_the_fifth_on(run, connect, caplog):
    async def main():
        transport, protocol, peer = await connect()
        transport.close()
        for _ in range(4):
            transport.writelines([b"dropped"])
        assert not caplog.messages
        transport.writelines([b"dropped"])
        assert caplog.messages == [WARNING]
        await until(lambda: protocol.lost)
        transport.writelines([b"dropped"])
        assert await read_to_end(peer) == b""

    run(main())


@pytest.mark.parametrize("kind", ["tcp", "tcp_served", "tcp_accepted", "socketpair"])
@pytest.mark.parametrize("paused", [False, True])
@both_protocols
def test_a_reset_that_comes_with_data_is_no_clean_end(run, connect, exceptions, factory, kind, paused):
    async def main():
        transport, protocol, peer = await connect(kind, factory)
        if kind == "socketpair":
            transport.write(b"never read")
            await turns()
        if paused:
            transport.pause_reading()
        peer.send(b"half a mess")
        if kind == "socketpair":
            peer.close()  # with what it has not read
        else:
            reset(peer)
        if paused:
            await turns()
            transport.resume_reading()
        await until(lambda: protocol.lost)
        assert "eof_received" not in protocol.calls
        assert protocol.calls[-1] == "connection_lost"
        assert isinstance(protocol.lost_with, ConnectionResetError)
        # Whoever reads after the reset may find it before the data.
        assert protocol.data in (b"half a mess", b"")
        assert not exceptions

    run(main())


@both_protocols
def test_a_reset_by_the_peer_is_connection_lost_with_the_error_and_no_report(run, connect, exceptions, factory):
    async def main():
        for kind in ("tcp", "tcp_served", "tcp_accepted"):
            transport, protocol, peer = await connect(kind, factory)
            reset(peer)
            await until(lambda protocol=protocol: protocol.lost)
            assert protocol.calls == ["connection_made", "connection_lost"]
            assert isinstance(protocol.lost_with, ConnectionResetError)
            assert transport.is_closing()
        assert not exceptions

    run(main())


def test_writing_to_a_peer_that_is_gone_is_connection_lost_with_the_error(run, connect, exceptions):
    async def main():
        for kind in ("tcp", "socketpair"):
            transport, protocol, peer = await connect(kind, lambda: Recorder(keep_open=True))
            transport.pause_reading()
            peer.close()

            def write(transport=transport, protocol=protocol):
                transport.write(b"x")
                return protocol.lost

            await until(write)
            assert is_connection_error(protocol.lost_with)
        assert not exceptions

    run(main())


def test_queued_data_for_a_peer_that_resets_is_given_up(run, connect, exceptions):
    async def main():
        transport, protocol, peer = await connect("tcp", small=True)
        transport.write(b"x" * 1000000)
        reset(peer)
        await until(lambda: protocol.lost)
        assert is_connection_error(protocol.lost_with)
        assert transport.get_write_buffer_size() == 0
        assert not exceptions

    run(main())


@pytest.mark.parametrize("stalled", [False, True])
@pytest.mark.parametrize("end", [reset, socket.socket.close], ids=["reset", "close"])
@both_protocols
def test_the_answer_of_a_peer_that_takes_no_more_is_delivered(run, connect, exceptions, factory, end, stalled):
    """As that of a server which refuses an upload: it answers, and closes with what it hasn't read."""

    async def main():
        transport, protocol, peer = await connect("tcp", factory)
        transport.write(b"u" * (8 << 20))
        await turns()
        peer.send(b"413 too large")
        end(peer)
        if stalled:
            time.sleep(0.05)  # the netpoller takes over
        await until(lambda: protocol.lost)
        assert protocol.data == b"413 too large"
        assert is_connection_error(protocol.lost_with)
        assert not exceptions

    run(main())


def test_all_that_was_read_ahead_is_delivered_before_the_error_of_a_write(run, connect, exceptions):
    class Slow(BufferedRecorder):
        """Takes little at a time."""

        def __init__(self):
            super().__init__(size=1000)

    async def main():
        transport, protocol, peer = await connect("tcp", Slow)
        transport.write(b"u" * (8 << 20))
        await turns()
        await send_all(peer, pattern(50_000))
        await turns()
        peer.close()
        time.sleep(0.05)
        await until(lambda: protocol.lost)
        assert is_connection_error(protocol.lost_with)
        if protocol.data != pattern(50_000):
            # What the kernel had still, the error has cut off, as with asyncio.
            assert len(protocol.data) >= 1000
            assert protocol.data == pattern(50_000)[: len(protocol.data)]

    run(main())


# --- set_protocol -----------------------------------------------------------------------------------------------------

switches = pytest.mark.parametrize(
    "first, second",
    [
        (Recorder, BufferedRecorder),
        (BufferedRecorder, Recorder),
        (Recorder, Recorder),
        (BufferedRecorder, BufferedRecorder),
    ],
    ids=lambda f: "Protocol" if f is Recorder else "BufferedProtocol",
)


@switches
def test_after_set_protocol_the_new_protocol_gets_everything(run, connect, first, second):
    async def main():
        transport, old, peer = await connect(factory=first)
        await send_all(peer, b"one")
        await until(lambda: old.data == b"one")
        new = second()
        transport.set_protocol(new)
        assert transport.get_protocol() is new
        await send_all(peer, b"two")
        await until(lambda: new.data == b"two")
        transport.write(b"x" * 1000000)
        await read_exactly(peer, 1000000)
        await until(lambda: "resume_writing" in new.calls)
        peer.close()
        await until(lambda: new.lost)
        assert old.calls == ["connection_made", "data"]
        assert new.calls == ["data", "pause_writing", "resume_writing", "eof_received", "connection_lost"]

    run(main())


@switches
def test_data_that_waited_while_paused_goes_to_the_new_protocol(run, connect, first, second):
    async def main():
        transport, old, peer = await connect("tcp", first)
        await turns(1)
        transport.pause_reading()
        await send_all(peer, pattern(30000))
        peer.shutdown(socket.SHUT_WR)
        await turns(2)
        new = second()
        transport.set_protocol(new)
        transport.resume_reading()
        await until(lambda: new.lost)
        assert old.calls == ["connection_made"]
        assert new.data == pattern(30000)

    run(main())


@switches
def test_set_protocol_inside_a_read_callback_takes_effect_with_the_next_piece(run, connect, first, second):
    new = second()

    class Switching(first):
        def _received(self, data):
            super()._received(data)
            self.transport.set_protocol(new)

    async def main():
        _, old, peer = await connect("tcp", Switching)
        data = pattern(2 << 20)
        for start in range(0, len(data), 10000):
            await send_all(peer, data[start : start + 10000])
        await until(lambda: len(old.data) + len(new.data) == len(data))
        assert old.calls == ["connection_made", "data"]
        assert bytes(old.data + new.data) == data
        assert new.calls == ["data"]

    run(main())


# --- object lifetime --------------------------------------------------------------------------------------------------


def test_an_abandoned_paused_transport_is_collected_with_a_warning_and_closes_its_socket(run, connect):
    async def main():
        transport, protocol, peer = await connect()
        transport.pause_reading()
        await turns(1)
        protocol.transport = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del transport, protocol
            gc.collect()
        assert any(
            issubclass(w.category, ResourceWarning) and str(w.message).startswith("unclosed transport <")
            for w in caught
        )
        assert await read_to_end(peer) == b""

    run(main())


def test_a_reading_transport_needs_no_reference_to_live(run, loop, connect):
    async def main():
        transport, protocol, peer = await connect(factory=Echo)
        protocol.transport.application_state = 1
        del transport, protocol
        gc.collect()
        await send_all(peer, b"still there?")
        assert await read_exactly(peer, 12) == b"still there?"

    run(main())


def test_a_transport_left_open_by_its_loop_warns(run, loop, new_loop, socket_pair):
    sock, peer = socket_pair()
    own = new_loop()

    async def main():
        return await own.create_connection(Recorder, sock=sock)

    transport, protocol = run(main(), on=own)
    own.close()
    repr(transport)
    transport.get_extra_info("sockname")
    del sock
    protocol.transport = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del transport, protocol
        gc.collect()
    assert any("unclosed transport" in str(w.message) for w in caught)


@pytest.mark.not_on_oracle("3.11 keeps a reference cycle", sys.version_info < (3, 12))
def test_a_closed_transport_and_its_protocol_are_freed_without_the_collector(run, connect):
    async def main():
        transport, protocol, peer = await connect()
        refs = weakref.ref(transport), weakref.ref(protocol)
        gc.collect()
        gc.disable()
        try:
            await send_all(peer, b"x")
            await until(lambda: protocol.data)
            protocol.transport = None
            transport.close()
            await until(lambda: protocol.lost)
            del transport, protocol
            await turns(2)
            assert [ref() for ref in refs] == [None, None]
        finally:
            gc.enable()

    run(main())


@pytest.mark.not_on_oracle("asyncio calls some of them in the context of whoever caused them")
def test_callbacks_run_in_the_context_in_which_the_connection_was_made(run, loop, socket_pair):
    var = contextvars.ContextVar("var", default="unset")
    seen = []

    class Context(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            seen.append(("made", var.get()))

        def data_received(self, data):
            super().data_received(data)
            seen.append((data.decode(), var.get()))
            var.set("set by data_received")

        def pause_writing(self):
            super().pause_writing()
            seen.append(("pause", var.get()))

        def resume_writing(self):
            super().resume_writing()
            seen.append(("resume", var.get()))

        def connection_lost(self, exc):
            super().connection_lost(exc)
            seen.append(("lost", var.get()))

    async def main():
        sock, peer = socket_pair()
        var.set("at connect")
        transport, protocol = await loop.create_connection(Context, sock=sock)
        var.set("later")
        for i in range(3):
            await send_all(peer, b"%d" % i)
            await until(lambda i=i: len(protocol.data) == i + 1)
        assert var.get() == "later"
        transport.pause_reading()
        transport.resume_reading()
        transport.set_write_buffer_limits(high=0)
        transport.write(b"x" * 2**24)
        await read_exactly(peer, 2**24)
        await until(lambda: not transport.get_write_buffer_size())
        transport.close()
        await until(lambda: protocol.lost)
        assert seen == [
            ("made", "at connect"),
            ("0", "at connect"),
            ("1", "set by data_received"),
            ("2", "set by data_received"),
            ("pause", "set by data_received"),
            ("resume", "set by data_received"),
            ("lost", "set by data_received"),
        ]

    run(main())


# --- asyncio.StreamReader, asyncio.StreamWriter -----------------------------------------------------------------------


@pytest.fixture
def open_streams(loop, socket_pair):
    """`await open_streams(**options)` -> reader, writer, plain peer socket."""
    writers = []

    async def open_streams(**options):
        sock, peer = socket_pair()
        reader, writer = await asyncio.open_connection(sock=sock, **options)
        writers.append(writer)
        return reader, writer, peer

    yield open_streams

    async def close():
        for writer in writers:
            put_away(writer.transport)
        await turns(2)

    loop.run_until_complete(close())


def test_streams_read_lines_separators_and_exact_counts(run, open_streams):
    async def main():
        reader, _, peer = await open_streams()
        await send_all(peer, b"line one\nline two\r\n\nup to here;;12345rest")
        peer.shutdown(socket.SHUT_WR)
        assert await reader.readline() == b"line one\n"
        assert await reader.readline() == b"line two\r\n"
        assert await reader.readline() == b"\n"
        assert await reader.readuntil(b";;") == b"up to here;;"
        assert await reader.readexactly(5) == b"12345"
        assert await reader.readexactly(0) == b""
        assert not reader.at_eof()
        assert await reader.read(2) == b"re"
        assert await reader.read() == b"st"
        assert await reader.read(10) == b""
        assert await reader.readline() == b""
        assert reader.at_eof()

    run(main())


def test_streams_wait_for_the_rest_of_a_line(run, open_streams):
    async def main():
        reader, _, peer = await open_streams()
        for reading, answer in (
            (reader.readline(), b"abc\n"),
            (reader.readuntil(b"--"), b"ab--"),
            (reader.readexactly(4), b"abcd"),
        ):
            task = asyncio.ensure_future(reading)
            for byte in answer:
                await turns(1)
                assert not task.done()
                await send_all(peer, bytes([byte]))
            assert await task == answer

    run(main())


def test_streams_report_an_early_end(run, open_streams):
    async def main():
        reader, _, peer = await open_streams()
        await send_all(peer, b"half")
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(asyncio.IncompleteReadError) as info:
            await reader.readexactly(10)
        assert info.value.partial == b"half"
        assert info.value.expected == 10
        with pytest.raises(asyncio.IncompleteReadError) as info:
            await reader.readuntil(b"\n")
        assert info.value.partial == b""

    run(main())


def test_streams_raise_above_the_limit(run, open_streams):
    async def main():
        reader, _, peer = await open_streams(limit=100)
        await send_all(peer, b"x" * 150 + b"\n")
        await turns(2)
        with pytest.raises(asyncio.LimitOverrunError):
            await reader.readuntil(b"\n")
        with pytest.raises(ValueError):
            await reader.readline()
        await send_all(peer, b"short\n")
        assert await reader.readline() == b"short\n"

    run(main())


def test_streams_stop_reading_at_twice_the_limit_and_go_on_when_read(run, open_streams):
    async def main():
        reader, writer, peer = await open_streams(limit=1000)
        data = pattern(4 << 20)
        sending = asyncio.ensure_future(send_all(peer, data))
        await until(lambda: not writer.transport.is_reading())
        await turns(2)
        assert not sending.done()
        received = bytearray()
        while len(received) < len(data):
            received += await reader.read(100000)
        assert received == data
        await sending
        assert writer.transport.is_reading()

    run(main())


def test_reading_64_kibibytes_exactly_many_times_is_exact(run, open_streams):
    async def main():
        reader, _, peer = await open_streams()
        data = pattern(3 << 20)
        sending = asyncio.ensure_future(send_all(peer, data))
        received = []
        for size in (1, 65536, 100, 200000, 7) * 8:
            received.append(await reader.readexactly(size))
            assert len(received[-1]) == size
        rest = await reader.readexactly(len(data) - sum(map(len, received)))
        assert b"".join(received) + rest == data
        await sending

    run(main())


def test_drain_waits_while_the_peer_does_not_read(run, open_streams):
    async def main():
        _, writer, peer = await open_streams()
        await asyncio.wait_for(writer.drain(), 5)
        data = pattern(2 << 20)
        writer.write(data)
        draining = asyncio.ensure_future(writer.drain())
        await turns(2)
        assert not draining.done()
        assert await read_exactly(peer, len(data)) == data
        await draining

    run(main())


def test_drain_raises_when_the_connection_is_lost(run, loop, tcp_pair):
    async def main():
        sock, peer = tcp_pair()
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"x" * (16 << 20))
        draining = asyncio.ensure_future(writer.drain())
        await turns(1)
        reset(peer)
        with pytest.raises(ConnectionError):
            await draining
        with pytest.raises(ConnectionError):
            await reader.read()
        writer.close()
        with pytest.raises(ConnectionError):
            await writer.wait_closed()

    run(main())


def test_wait_closed_returns_after_the_flush(run, open_streams):
    async def main():
        _, writer, peer = await open_streams()
        data = pattern(2 << 20)
        writer.writelines([data[: 1 << 20], data[1 << 20 :]])
        writer.close()
        assert writer.is_closing()
        waiting = asyncio.ensure_future(writer.wait_closed())
        await turns(1)
        assert not waiting.done()
        assert await read_to_end(peer) == data
        await waiting

    run(main())


def test_a_stream_server_serves_many_clients_at_once(run, loop):
    async def serve(reader, writer):
        while line := await reader.readline():
            writer.write(line[::-1].strip() + b"\n")
            await writer.drain()
        writer.write_eof()
        writer.close()
        await writer.wait_closed()

    async def client(port, number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in range(20):
            writer.write(b"%d %d\n" % (number, i))
            assert await reader.readline() == (b"%d %d" % (number, i))[::-1] + b"\n"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            await asyncio.gather(*(client(port, i) for i in range(50)))

    run(main())


def test_streams_over_unix_sockets_serve_and_connect(run, tmp_path):
    path = tmp_path / "socket"

    async def serve(reader, writer):
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_unix_server(serve, path)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"hello")
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


def test_a_cancelled_read_loses_no_data(run, open_streams):
    async def main():
        reader, _, peer = await open_streams()
        for _ in range(20):
            task = asyncio.ensure_future(reader.readexactly(4))
            await asyncio.sleep(0)
            await send_all(peer, b"ab")
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await send_all(peer, b"cd")
            assert await reader.readexactly(4) == b"abcd"

    run(main())


# --- any order of operations ------------------------------------------------------------------------------------------

_sizes = st.one_of(st.integers(0, 10), st.sampled_from([100, 4096, 70000, 300000]))
_operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _sizes),
        st.tuples(st.just("writelines"), st.lists(_sizes.filter(bool), max_size=4)),
        st.tuples(st.just("peer_send"), _sizes),
        st.tuples(st.just("peer_read"), _sizes),
        st.tuples(st.just("limits"), st.integers(0, 100000)),
        st.tuples(st.just("set_protocol"), st.booleans()),
        st.tuples(st.sampled_from(["pause_reading", "resume_reading", "turn", "settle"])),
        st.tuples(st.sampled_from(["pause_reading", "resume_reading", "turn", "settle"])),
        st.tuples(st.sampled_from(["write_eof", "peer_eof", "close", "abort"])),
    ),
    max_size=25,
)


class _Model:
    """What must be true of one connection whatever is done to it: checked at each call of the protocol."""

    def __init__(self, keep_open):
        self.keep_open = keep_open
        self.received = bytearray()
        self.calls = []
        self.transport = None
        self.writing_paused = False
        self.exc = None

    def call(self, name):
        assert "connection_lost" not in self.calls, f"{name} after connection_lost"
        self.calls.append(name)

    def on_made(self, transport):
        self.call("connection_made")
        self.transport = transport

    def on_data(self, data):
        self.call("data")
        assert self.transport.is_reading()
        assert "eof_received" not in self.calls
        self.received += data

    def on_eof(self):
        assert self.transport.is_reading()
        assert "eof_received" not in self.calls
        self.call("eof_received")
        return self.keep_open

    def on_pause(self):
        assert not self.writing_paused
        self.writing_paused = True
        assert self.transport.get_write_buffer_size() > self.transport.get_write_buffer_limits()[1]
        self.call("pause_writing")

    def on_resume(self):
        assert self.writing_paused
        self.writing_paused = False
        assert self.transport.get_write_buffer_size() <= self.transport.get_write_buffer_limits()[0]
        self.call("resume_writing")

    def on_lost(self, exc):
        self.call("connection_lost")
        self.exc = exc


class _ModelProtocol(asyncio.Protocol):
    def __init__(self, model):
        self.connection_made, self.data_received, self.eof_received = model.on_made, model.on_data, model.on_eof
        self.pause_writing, self.resume_writing = model.on_pause, model.on_resume
        self.connection_lost = model.on_lost


class _ModelBufferedProtocol(asyncio.BufferedProtocol):
    def __init__(self, model):
        self.connection_made, self.eof_received = model.on_made, model.on_eof
        self.pause_writing, self.resume_writing = model.on_pause, model.on_resume
        self.connection_lost = model.on_lost
        self.buffer = bytearray(5000)
        self.get_buffer = lambda sizehint: self.buffer
        self.buffer_updated = lambda nbytes: model.on_data(self.buffer[:nbytes])


async def _perform(loop, model, operations, buffered):
    """Does the operations; returns (written, peer_sent, peer_received) when everything has come to rest."""
    sock, peer = socket.socketpair()
    sock.setblocking(False)
    peer.setblocking(False)
    kinds = (_ModelProtocol, _ModelBufferedProtocol)
    transport, _ = await loop.create_connection(lambda: kinds[buffered](model), sock=sock)
    written, sent, got = bytearray(), bytearray(), bytearray()
    eof = aborted = peer_eof = False
    try:
        for name, *arguments in operations:
            argument = arguments[0] if arguments else None
            if name in ("write", "writelines"):
                sizes = argument if name == "writelines" else [argument]
                if transport.is_closing() or (name == "writelines" and not any(sizes)):
                    continue
                lines = [pattern(size, len(written) + i) for i, size in enumerate(sizes)]
                try:
                    if name == "write":
                        transport.write(lines[0])
                    else:
                        transport.writelines(lines)
                    assert not eof
                    written += b"".join(lines)
                except RuntimeError:
                    assert eof
            elif name == "peer_send":
                with contextlib.suppress(BlockingIOError, BrokenPipeError):
                    data = pattern(argument, len(sent))
                    sent += data[: peer.send(data)]
            elif name == "peer_read":
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    got += peer.recv(argument)
            elif name == "peer_eof":
                peer.shutdown(socket.SHUT_WR)
                peer_eof = True
            elif name == "limits":
                transport.set_write_buffer_limits(argument)
            elif name == "set_protocol":
                transport.set_protocol(kinds[argument](model))
            elif name == "turn":
                await asyncio.sleep(0)
            elif name == "settle":
                await asyncio.sleep(0.002)
            elif name == "write_eof":
                eof = eof or not transport.is_closing()
                transport.write_eof()
            else:
                aborted = aborted or name == "abort"
                getattr(transport, name)()
        closed_by_us = transport.is_closing()
        if not peer_eof:
            peer.shutdown(socket.SHUT_WR)
        transport.resume_reading()
        await until(lambda: "eof_received" in model.calls or transport.is_closing())
        transport.close()
        got += await read_to_end(peer)
        await until(lambda: "connection_lost" in model.calls)
        await asyncio.sleep(0)
        return bytes(written), bytes(sent), bytes(got), aborted, closed_by_us
    finally:
        peer.close()
        put_away(transport)


@given(operations=_operations, keep_open=st.booleans(), buffered=st.booleans())
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
def test_any_order_of_operations_keeps_every_byte_and_the_order_of_calls(run, loop, operations, keep_open, buffered):
    model = _Model(keep_open)
    written, sent, got, aborted, closed = run(_perform(loop, model, operations, buffered))
    assert model.exc is None
    assert model.calls[0] == "connection_made"
    assert model.calls.count("connection_lost") == 1
    assert written.startswith(got)
    if not aborted:
        assert got == written
    assert sent.startswith(model.received)
    if not closed:
        assert model.received == sent
        assert model.calls.count("eof_received") == 1


class _Notes(list):
    def method(self, name):
        def noting(this, data):
            self.append((name, bytes(data)))

        return noting


@pytest.mark.parametrize("where", ["protocol class", "protocol", "reader class", "reader", "subclass"])
def test_who_replaces_a_part_of_the_streams_gets_called(run, open_streams, monkeypatch, where):
    notes = _Notes()
    if where == "protocol class":
        monkeypatch.setattr(asyncio.StreamReaderProtocol, "data_received", notes.method(where))
    if where == "reader class":
        monkeypatch.setattr(asyncio.StreamReader, "feed_data", notes.method(where))

    async def main():
        reader, writer, peer = await open_streams()
        protocol = writer.transport.get_protocol()
        if where == "protocol":
            protocol.data_received = lambda data: notes.append((where, data))
        if where == "reader":
            reader.feed_data = lambda data: notes.append((where, data))
        if where == "subclass":

            class Reader(asyncio.StreamReader):
                feed_data = notes.method(where)

            reader.__class__ = Reader
        await send_all(peer, b"data")
        await until(lambda: notes)
        assert notes == [(where, b"data")]

    run(main())


def test_a_view_of_the_readers_buffer_ends_the_connection_with_an_error(run, open_streams, exceptions):
    async def main():
        reader, writer, peer = await open_streams()
        await send_all(peer, b"first")
        await until(lambda: len(reader._buffer) == 5)
        view = memoryview(reader._buffer)
        await send_all(peer, b"x" * 100_000)
        await until(lambda: reader.exception() is not None)
        assert isinstance(reader.exception(), BufferError)
        view.release()

    run(main())
    assert exceptions[0]["message"] == "Fatal error: protocol.data_received() call failed."


def test_data_for_a_reader_that_was_collected_is_dropped(run, loop, socket_pair):
    async def main():
        sock, peer = socket_pair()
        reader = asyncio.StreamReader()
        transport, protocol = await loop.create_connection(lambda: asyncio.StreamReaderProtocol(reader), sock=sock)
        del reader
        gc.collect()
        await send_all(peer, b"nobody reads it")
        await turns()
        assert not transport.is_closing()
        put_away(transport)
        await turns()

    run(main())


def test_a_reader_beyond_its_limit_pauses_and_a_cancelled_wait_loses_nothing(run, open_streams):
    async def main():
        reader, writer, peer = await open_streams(limit=1000)
        waiting = asyncio.ensure_future(reader.readexactly(5000))
        await turns()
        waiting.cancel()
        await send_all(peer, b"a" * 1500)
        await until(lambda: len(reader._buffer) == 1500)
        assert writer.transport.is_reading()
        await send_all(peer, b"b" * 1500)
        await until(lambda: not writer.transport.is_reading())
        assert await reader.readexactly(3000) == b"a" * 1500 + b"b" * 1500
        assert writer.transport.is_reading()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(main())
