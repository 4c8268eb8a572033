"""Echo servers, one for each of asyncio's ways to do network I/O."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from benchmarks.servers import BACKLOG

CHUNK = 65536


class _Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class _BufferedEcho(asyncio.BufferedProtocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = bytearray(CHUNK)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        # A copy: a transport may keep what it is given (asyncio does from 3.12 on), and the buffer is reused.
        self.transport.write(bytes(memoryview(self.buffer)[:nbytes]))


@asynccontextmanager
async def _serve(factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(factory, host, port, backlog=BACKLOG)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def protocol(host: str, port: int) -> AsyncIterator[int]:
    """``asyncio.Protocol``."""
    async with _serve(_Echo, host, port) as bound:
        yield bound


@asynccontextmanager
async def buffered(host: str, port: int) -> AsyncIterator[int]:
    """``asyncio.BufferedProtocol``."""
    async with _serve(_BufferedEcho, host, port) as bound:
        yield bound


async def _echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the client left in the middle
    finally:
        writer.close()


@asynccontextmanager
async def streams(host: str, port: int) -> AsyncIterator[int]:
    """``asyncio.start_server``: StreamReader and StreamWriter."""
    server = await asyncio.start_server(_echo_stream, host, port, backlog=BACKLOG)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _echo_sock(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with connection:
        try:
            while data := await loop.sock_recv(connection, CHUNK):
                await loop.sock_sendall(connection, data)
        except ConnectionError:
            pass  # the client left in the middle


async def _accept(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    clients: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as asyncio's transports have it
        task = loop.create_task(_echo_sock(connection))
        clients.add(task)
        task.add_done_callback(clients.discard)


@asynccontextmanager
async def sock(host: str, port: int) -> AsyncIterator[int]:
    """``loop.sock_accept``, ``sock_recv`` and ``sock_sendall``."""
    with socket.create_server((host, port), backlog=BACKLOG) as listener:
        listener.setblocking(False)
        accepting = asyncio.create_task(_accept(listener))
        try:
            yield listener.getsockname()[1]
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])


class _DatagramEcho(asyncio.DatagramProtocol):
    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


@asynccontextmanager
async def datagrams(host: str, port: int) -> AsyncIterator[int]:
    """``asyncio.DatagramProtocol``."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_DatagramEcho, local_addr=(host, port))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
