"""An echo server on plain sockets: ``loop.sock_accept``, ``sock_recv`` and ``sock_sendall``.

This is the style that reads like Go's net package: each await looks like a blocking call, and parks its task on the
socket when there is nothing to do. netpoll_loop registers a socket once, not for every operation.

    python examples/sock_echo.py --port 8888
    nc 127.0.0.1 8888
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket

import netpoll_loop


async def echo(connection: socket.socket) -> None:
    """One client: send back what comes until it closes."""
    loop = asyncio.get_running_loop()
    with connection, contextlib.suppress(ConnectionError):
        while data := await loop.sock_recv(connection, 65536):
            await loop.sock_sendall(connection, data)


async def accept(listener: socket.socket) -> None:
    """Every client, until cancelled."""
    loop = asyncio.get_running_loop()
    clients: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await loop.sock_accept(listener)  # accepted sockets are non-blocking already
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(echo(connection))
        clients.add(task)  # the loop itself keeps only a weak reference to a task
        task.add_done_callback(clients.discard)


async def exchange(address: tuple[str, int], message: bytes) -> bytes:
    """A client: send a message, return what comes back."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, message)
        answer = b""
        while len(answer) < len(message):
            part = await loop.sock_recv(client, 65536)
            if not part:
                raise ConnectionError("the server closed the connection")
            answer += part
        return answer


async def serve(host: str, port: int, *, once: bool = False) -> None:
    """Serve until cancelled, or ``once``: one exchange, made from here."""
    with socket.create_server((host, port)) as listener:
        listener.setblocking(False)
        address: tuple[str, int] = listener.getsockname()
        print(f"listening on {address[0]}:{address[1]}", flush=True)
        accepting = asyncio.create_task(accept(listener))
        try:
            if once:
                answer = await exchange(address, b"hello")
                print(answer.decode())
            else:
                await accepting
        finally:
            accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await accepting


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="An echo server on plain sockets.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--once", action="store_true", help="one exchange with a client of its own, and end")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        netpoll_loop.run(serve(arguments.host, arguments.port, once=arguments.once))


if __name__ == "__main__":
    main()
