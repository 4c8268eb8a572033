"""A chat room on a Unix socket: what one client says, all others hear.

python examples/unix_chat.py --path /tmp/chat.sock
nc -U /tmp/chat.sock
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from pathlib import Path

import netpoll_loop


class Room:
    """Everybody who is connected."""

    def __init__(self) -> None:
        self.writers: dict[asyncio.StreamWriter, str] = {}

    def say(self, text: str, author: asyncio.StreamWriter | None = None) -> None:
        """To everybody but the author."""
        for writer in self.writers:
            if writer is not author:
                writer.write(text.encode())

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, from its name to its end."""
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            writer.write(b"your name? ")
            name = (await reader.readline()).decode(errors="replace").strip()
            if not name:
                return
            self.writers[writer] = name
            try:
                self.say(f"* {name} is here, {len(self.writers)} in the room\n")
                while line := await reader.readline():
                    self.say(f"{name}: {line.decode(errors='replace')}", writer)
                    await writer.drain()
            finally:
                del self.writers[writer]
                self.say(f"* {name} left\n")


async def talk(path: Path) -> list[str]:
    """Two clients who meet in the room; what the second one read."""

    async def enter(name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(path)
        await reader.readuntil(b"? ")
        writer.write(name.encode() + b"\n")
        return reader, writer

    anna_reader, anna = await enter("anna")
    await anna_reader.readline()  # anna is here
    bert_reader, bert = await enter("bert")
    heard = [await bert_reader.readline()]
    anna.write(b"hello\n")
    heard.append(await bert_reader.readline())
    anna.write_eof()
    heard.append(await bert_reader.readline())
    bert.write_eof()
    await bert_reader.read()
    anna.close()
    bert.close()
    return [line.decode().rstrip() for line in heard]


async def serve(path: Path, *, once: bool = False) -> None:
    """Serve until cancelled, or ``once``: one short talk of two clients made here."""
    async with await asyncio.start_unix_server(Room().visit, path) as server:
        try:
            print(f"listening on {path}", flush=True)
            if once:
                print(*await talk(path), sep="\n")
            else:
                await server.serve_forever()
        finally:
            path.unlink(missing_ok=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A chat room on a Unix socket.")
    parser.add_argument("--path", type=Path, help="of the socket; without it one is made in a temporary directory")
    parser.add_argument("--once", action="store_true", help="one talk of two clients of its own, and end")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as directory:
        netpoll_loop.run(serve(arguments.path or Path(directory, "chat.sock"), once=arguments.once))


if __name__ == "__main__":
    main()
