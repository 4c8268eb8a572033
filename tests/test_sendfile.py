"""loop.sendfile: files through the kernel into a transport, in order with what was written around them."""

import asyncio
import io
import os
import re
import socket
import sys

import pytest
from peers import Recorder, pattern, put_away, read_exactly, read_to_end, reset, turns, until

SIZE = 3 << 20


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(pattern(SIZE))
    with open(tmp_path / "file", "rb") as file:
        yield file


@pytest.fixture
def connected(loop, tcp_pair):
    """`await connected()` -> transport, protocol, plain peer; over TCP."""
    transports = []

    async def connected():
        sock, peer = tcp_pair()
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        transports.append(transport)
        return transport, protocol, peer

    yield connected

    async def close():
        for transport in transports:
            put_away(transport)
        await turns(2)

    loop.run_until_complete(close())


@pytest.mark.parametrize("fallback", [True, False])
def test_a_whole_file_is_sent(run, loop, connected, file, fallback):
    async def main():
        transport, _, peer = await connected()
        reading = asyncio.ensure_future(read_exactly(peer, SIZE))
        assert await loop.sendfile(transport, file, fallback=fallback) == SIZE
        assert file.tell() == SIZE
        assert await reading == pattern(SIZE)
        transport.write(b"after")
        assert await read_exactly(peer, 5) == b"after"

    run(main())


@pytest.mark.parametrize(
    "offset, count", [(0, 1), (1000, None), (1000, 5000), (SIZE - 10, 100), (SIZE, None), (SIZE + 5, 5), (0, SIZE)]
)
def test_offset_and_count_choose_a_part(run, loop, connected, file, offset, count):
    async def main():
        transport, _, peer = await connected()
        expected = pattern(SIZE)[offset:][:count]
        reading = asyncio.ensure_future(read_exactly(peer, len(expected)))
        assert await loop.sendfile(transport, file, offset, count) == len(expected)
        assert await reading == expected
        if expected:
            assert file.tell() == offset + len(expected)

    run(main())


def test_what_was_queued_before_comes_before(run, loop, connected, file):
    async def main():
        transport, _, peer = await connected()
        before = pattern(8 << 20, 5)
        transport.write(before)
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await turns(1)
        assert not sending.done()
        assert await read_exactly(peer, len(before) + SIZE) == before + pattern(SIZE)
        assert await sending == SIZE

    run(main())


def test_several_files_and_writes_keep_their_order(run, loop, connected, file):
    async def main():
        transport, _, peer = await connected()

        async def send():
            for i in range(5):
                transport.write(b"<%d>" % i)
                await loop.sendfile(transport, file, i * 1000, 1000)
                transport.writelines([b"</", b"%d>" % i])
            transport.close()

        sending = asyncio.ensure_future(send())
        expected = b"".join(b"<%d>%b</%d>" % (i, pattern(SIZE)[i * 1000 :][:1000], i) for i in range(5))
        assert await read_to_end(peer) == expected
        await sending

    run(main())


def test_writing_while_a_file_is_sent_is_an_error(run, loop, connected, file):
    async def main():
        transport, _, peer = await connected()
        transport.write(bytes(8 << 20))
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await turns(1)
        with pytest.raises(RuntimeError, match="unable to write; sendfile is in progress"):
            transport.write(b"x")
        with pytest.raises(RuntimeError, match="unable to write(lines)?; sendfile is in progress"):
            transport.writelines([b"x"])
        await read_exactly(peer, (8 << 20) + SIZE)
        assert await sending == SIZE

    run(main())


def test_reading_is_paused_while_a_file_is_sent_and_goes_on_afterwards(run, loop, connected, file):
    async def main():
        transport, protocol, peer = await connected()
        transport.write(bytes(8 << 20))
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await turns(1)
        peer.send(b"meanwhile")
        await turns(2)
        assert not transport.is_reading()
        assert not protocol.data
        await read_exactly(peer, (8 << 20) + SIZE)
        await sending
        assert transport.is_reading()
        await until(lambda: protocol.data == b"meanwhile")

    run(main())


def test_a_reading_pause_of_the_user_survives_sendfile(run, loop, connected, file):
    async def main():
        transport, _, _ = await connected()
        transport.pause_reading()
        await loop.sendfile(transport, file, 0, 100)
        assert not transport.is_reading()

    run(main())


@pytest.mark.parametrize("count", [None, 100])
def test_what_the_kernel_cannot_send_is_read_and_written(run, loop, connected, count):
    async def main():
        transport, _, peer = await connected()
        source = io.BytesIO(pattern(200000))
        assert await loop.sendfile(transport, source, 7, count) == (count or 199993)
        transport.close()
        assert await read_to_end(peer) == pattern(200000)[7:][:count]

    run(main())


def test_without_fallback_what_the_kernel_cannot_send_is_an_error(run, loop, connected):
    async def main():
        transport, _, _ = await connected()
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await loop.sendfile(transport, io.BytesIO(b"data"), fallback=False)
        assert not transport.is_closing()

    run(main())


@pytest.mark.not_on_oracle("3.12 and later may send what was read later", sys.version_info >= (3, 12))
def test_a_fallback_waits_for_a_slow_reader(run, loop, connected):
    async def main():
        transport, protocol, peer = await connected()
        data = pattern(12 << 20)
        sending = asyncio.ensure_future(loop.sendfile(transport, io.BytesIO(data)))
        await turns(3)
        assert not sending.done()
        assert transport.get_write_buffer_size() < len(data)
        assert await read_exactly(peer, len(data)) == data
        assert await sending == len(data)
        assert transport.get_protocol() is protocol

    run(main(), timeout=20)


def test_a_closing_transport_is_refused(run, loop, connected, file):
    async def main():
        transport, protocol, _ = await connected()
        transport.close()
        with pytest.raises(RuntimeError, match="Transport is closing"):
            await loop.sendfile(transport, file)
        await until(lambda: protocol.lost)
        with pytest.raises(RuntimeError, match="Transport is closing"):
            await loop.sendfile(transport, file)

    run(main())


def test_a_transport_that_cannot_is_refused(run, loop, file):
    async def main():
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
        with pytest.raises(RuntimeError, match="sendfile is not supported for transport"):
            await loop.sendfile(transport, file)
        transport.close()
        await turns(1)

    run(main())


@pytest.mark.parametrize(
    "offset, count, error, text",
    [
        (-1, None, ValueError, "offset must be a non-negative integer (got -1)"),
        ("0", None, TypeError, "offset must be a non-negative integer (got '0')"),
        (0, 0, ValueError, "count must be a positive integer (got 0)"),
        (0, -1, ValueError, "count must be a positive integer (got -1)"),
        (0, 1.5, TypeError, "count must be a positive integer (got 1.5)"),
    ],
)
def test_wrong_offsets_and_counts_are_refused_as_by_asyncio(run, loop, connected, file, offset, count, error, text):
    async def main():
        transport, _, peer = await connected()
        with pytest.raises(error, match=re.escape(text)):
            await loop.sendfile(transport, file, offset, count)
        transport.write(b"still fine")
        assert await read_exactly(peer, 10) == b"still fine"

    run(main())


def test_a_text_file_is_refused(run, loop, connected, tmp_path):
    async def main():
        transport, _, _ = await connected()
        (tmp_path / "text").touch()
        with open(tmp_path / "text") as text, pytest.raises(ValueError, match="file should be opened in binary mode"):
            await loop.sendfile(transport, text)

    run(main())


def test_a_peer_that_is_gone_is_a_connection_error(run, loop, connected, file):
    async def main():
        transport, _, peer = await connected()
        transport.write(bytes(8 << 20))
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await turns(1)
        reset(peer)
        with pytest.raises(ConnectionError):
            await sending

    run(main())


def test_a_file_that_ends_early_sends_what_there_is(run, loop, connected, tmp_path):
    async def main():
        transport, _, peer = await connected()
        (tmp_path / "short").write_bytes(pattern(100))
        with open(tmp_path / "short", "rb") as short:
            assert await loop.sendfile(transport, short, 0, SIZE) == 100
        transport.close()
        assert await read_to_end(peer) == pattern(100)

    run(main())


def test_over_unix_sockets(run, loop, socket_pair, file):
    async def main():
        sock, peer = socket_pair()
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        reading = asyncio.ensure_future(read_exactly(peer, SIZE))
        assert await loop.sendfile(transport, file) == SIZE
        assert await reading == pattern(SIZE)
        transport.close()
        await until(lambda: protocol.lost)

    run(main())


def test_a_cancelled_sendfile_leaves_a_usable_transport(run, loop, connected, file):
    async def main():
        transport, _, peer = await connected()
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await turns(1)
        assert not sending.done() or os.fstat(file.fileno()).st_size < (4 << 20)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        transport.write(b"after")
        transport.close()
        received = await read_to_end(peer)
        assert received.endswith(b"after")
        assert pattern(SIZE).startswith(received[:-5])

    run(main())
