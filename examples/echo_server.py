"""An echo server with asyncio's streams.

python examples/echo_server.py --port 8888
nc 127.0.0.1 8888
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib

import netpoll_loop


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One client: send back what comes until it closes."""
    with contextlib.suppress(ConnectionError), contextlib.closing(writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def exchange(host: str, port: int, message: bytes) -> bytes:
    """A client: send a message, return what comes back."""
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.closing(writer):
        writer.write(message)
        writer.write_eof()
        return await reader.read()


async def serve(host: str, port: int, *, once: bool = False) -> None:
    """Serve until cancelled, or ``once``: one exchange, made from here."""
    async with await asyncio.start_server(echo, host, port) as server:
        bound = server.sockets[0].getsockname()[1]
        print(f"listening on {host}:{bound}", flush=True)
        if once:
            answer = await exchange(host, bound, b"hello")
            print(answer.decode())
        else:
            await server.serve_forever()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="An echo server with asyncio's streams.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--once", action="store_true", help="one exchange with a client of its own, and end")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        netpoll_loop.run(serve(arguments.host, arguments.port, once=arguments.once))


if __name__ == "__main__":
    main()
