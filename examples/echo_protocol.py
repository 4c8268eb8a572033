"""An echo server and its client with asyncio's protocols, the fastest of asyncio's ways.

python examples/echo_protocol.py --port 8888
nc 127.0.0.1 8888
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from typing import cast

import netpoll_loop


class Echo(asyncio.Protocol):
    """One connection of the server."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    # A client that sends and doesn't read what it gets back fills the transport's write buffer:
    # then stop reading from it until the buffer has drained.

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Client(asyncio.Protocol):
    """Sends one message, and closes when all of it is back."""

    def __init__(self, message: bytes, answer: asyncio.Future[bytes]) -> None:
        self.message = message
        self.answer = answer
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) >= len(self.message):
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            if error is None:
                self.answer.set_result(self.received)
            else:
                self.answer.set_exception(error)


async def serve(host: str, port: int, *, once: bool = False) -> None:
    """Serve until cancelled, or ``once``: one exchange, made from here."""
    loop = asyncio.get_running_loop()
    async with await loop.create_server(Echo, host, port) as server:
        bound = server.sockets[0].getsockname()[1]
        print(f"listening on {host}:{bound}", flush=True)
        if once:
            answer: asyncio.Future[bytes] = loop.create_future()
            await loop.create_connection(lambda: Client(b"hello", answer), host, bound)
            print((await answer).decode())
        else:
            await server.serve_forever()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="An echo server with asyncio's protocols.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--once", action="store_true", help="one exchange with a client of its own, and end")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        netpoll_loop.run(serve(arguments.host, arguments.port, once=arguments.once))


if __name__ == "__main__":
    main()
