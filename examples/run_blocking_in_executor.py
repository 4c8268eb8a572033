"""A server whose answers need a blocking call: passwords hashed in an executor.

scrypt takes tens of milliseconds of CPU and releases the GIL. In a thread of the executor it holds up neither the loop
nor the other clients. Each line that a client sends is answered with its hash.

    python examples/run_blocking_in_executor.py --port 8888
    echo secret | nc -q 1 127.0.0.1 8888
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

import netpoll_loop


def blocking_hash(password: bytes) -> str:
    """Blocks for as long as it computes; called on a thread of the executor."""
    return hashlib.scrypt(password, salt=b"an example's salt", n=2**14, r=8, p=1).hex()


class HashServer:
    """Answers each line with its hash."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.executor = executor

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while line := await reader.readline():
                digest = await loop.run_in_executor(self.executor, blocking_hash, line.rstrip(b"\r\n"))
                writer.write(digest.encode() + b"\n")
                await writer.drain()


async def ask(host: str, port: int, password: bytes) -> str:
    """A client: one password's hash."""
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.closing(writer):
        writer.write(password + b"\n")
        writer.write_eof()
        return (await reader.read()).decode().rstrip()


async def longest_pause(stop: asyncio.Event) -> float:
    """The longest time, in seconds, that the loop didn't get to this task, which wants to run every millisecond."""
    longest = 0.0
    while not stop.is_set():
        started = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - started)
    return longest


async def serve(host: str, port: int, *, once: bool = False) -> None:
    """Serve until cancelled, or ``once``: eight clients made here, at the same time."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as executor:
        async with await asyncio.start_server(HashServer(executor).answer, host, port) as server:
            bound = server.sockets[0].getsockname()[1]
            print(f"listening on {host}:{bound}", flush=True)
            if not once:
                await server.serve_forever()
            stop = asyncio.Event()
            watching = asyncio.create_task(longest_pause(stop))
            started = time.perf_counter()
            digests = await asyncio.gather(*(ask(host, bound, b"secret %d" % i) for i in range(8)))
            elapsed = time.perf_counter() - started
            stop.set()
            print(f"{len(set(digests))} different hashes in {elapsed * 1000:.1f} ms")
            print(f"the loop's longest pause was {await watching * 1000:.1f} ms")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A server whose answers need a blocking call.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--once", action="store_true", help="answer eight clients of its own, and end")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        netpoll_loop.run(serve(arguments.host, arguments.port, once=arguments.once))


if __name__ == "__main__":
    main()
