"""The two ends of a connection in a test: protocols that record what happened, and plain sockets read by polling.

The plain end never goes through the loop's own descriptor functions, so that a test of transports depends on
transports only. Nothing here has a time limit of its own: `run` has one.
"""

import asyncio
import errno
import socket
import struct

POLL = 0.001  # seconds


async def until(condition):
    """Waits until the condition holds; returns its value."""
    while not (value := condition()):
        await asyncio.sleep(POLL)
    return value


async def turns(count=5):
    """Lets the loop run that many turns, and another thread of it a moment: for 'nothing happens' assertions."""
    for _ in range(count):
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)


class _Recording:
    """`calls`: the names of the protocol's calls in order, repeated data once. `data`: all bytes received."""

    def __init__(self, keep_open=False):
        self.keep_open = keep_open
        self.calls = []
        self.data = bytearray()
        self.transport = None
        self.lost_with = None

    @property
    def lost(self):
        return "connection_lost" in self.calls

    def connection_made(self, transport):
        self.transport = transport
        self.calls.append("connection_made")

    def _received(self, data):
        self.data += data
        if self.calls[-1:] != ["data"]:
            self.calls.append("data")

    def eof_received(self):
        self.calls.append("eof_received")
        return self.keep_open

    def pause_writing(self):
        self.calls.append("pause_writing")

    def resume_writing(self):
        self.calls.append("resume_writing")

    def connection_lost(self, exc):
        self.lost_with = exc
        self.calls.append("connection_lost")


class Recorder(_Recording, asyncio.Protocol):
    def data_received(self, data):
        assert type(data) is bytes and data
        self._received(data)


class BufferedRecorder(_Recording, asyncio.BufferedProtocol):
    """With a buffer of `size` bytes."""

    def __init__(self, size=65536, **options):
        super().__init__(**options)
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        assert 0 < nbytes <= len(self.buffer)
        self._received(self.buffer[:nbytes])


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def read(sock, limit=65536):
    """What the socket has, at least one byte; b"" at its end."""
    while True:
        try:
            return sock.recv(limit)
        except BlockingIOError:
            await asyncio.sleep(POLL)


async def read_exactly(sock, count):
    data = bytearray()
    while len(data) < count:
        piece = await read(sock, count - len(data))
        assert piece, f"end after {len(data)} of {count} bytes"
        data += piece
    return bytes(data)


async def read_to_end(sock):
    """Everything up to the end of the stream, a reset included."""
    data = bytearray()
    while True:
        try:
            piece = await read(sock)
        except ConnectionResetError:
            return bytes(data)
        if not piece:
            return bytes(data)
        data += piece


class Keeper:
    """Keeps of each message all, a view, a hash or nothing, and knows whether any of that has changed since.

    What is received may be in the memory of a message that nobody has any more.
    """

    def __init__(self):
        self.count = 0
        self.kept = []

    def take(self, data):
        assert type(data) is bytes
        expected = bytes(bytearray(data))
        assert hash(data) == hash(expected)
        how = self.count % 5
        self.count += 1
        if how == 0:
            self.kept.append((data, expected))
        elif how == 1:
            self.kept.append((memoryview(data)[3:], expected[3:]))
        elif how == 2:
            self.kept.append(({data: 1}, {expected: 1}))

    def check(self):
        for kept, expected in self.kept:
            assert kept == expected


async def send_all(sock, data):
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await asyncio.sleep(POLL)


def reset(sock):
    """Closes it so that the peer sees ECONNRESET."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


_PATTERN = bytes((i * 131 + (i >> 8) * 17 + (i >> 16)) & 0xFF for i in range(1 << 16))


def pattern(count, seed=0):
    """`count` bytes that differ by position and by seed."""
    start = seed * 7919 % len(_PATTERN)
    return ((_PATTERN[start:] + _PATTERN[:start]) * (count // len(_PATTERN) + 1))[:count]


async def fill(transport, byte=b"."):
    """Writes until the kernel takes no more and the transport's own buffer has begun; returns the bytes written.

    The peer must not read meanwhile.
    """
    written = 0
    while True:
        while not transport.get_write_buffer_size():
            transport.write(byte * 65536)
            written += 65536
        before = transport.get_write_buffer_size()
        await asyncio.sleep(0.01)
        if transport.get_write_buffer_size() == before:
            return written


def put_away(transport):
    """Aborts it unless its socket is closed: stock asyncio can't abort a transport that flushed and closed."""
    if transport.get_extra_info("socket").fileno() != -1:
        transport.abort()


def is_connection_error(exc):
    return isinstance(exc, OSError) and exc.errno in (errno.ECONNRESET, errno.EPIPE)
