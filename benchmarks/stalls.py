"""What of a large write arrives while the callback that made it goes on computing.

    python -m benchmarks.stalls one --loop uvloop
    python -m benchmarks.stalls four --loop netpoll_loop:dedicated

``one``: 256 MiB to one reader that takes what there is. ``four``: four threads with a loop each write 64 MiB each, to
readers that pause after every piece; the computing threads share the GIL. Prints one JSON line: ``rate`` is the MiB
that the readers had when the callbacks ended. Afterwards all of it has to arrive, unchanged in length.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import LoopSpec
from benchmarks.servers.loops import run

MIB = 1 << 20
PIECE = bytes(64 * 1024)
COMPUTED = 2.0  # seconds
WHOLE_SECONDS = 30.0  # in which everything has to arrive after the callback

#: A process of its own: what it reads has nothing to do with anybody's GIL. It counts in memory that both see.
_READER = """
import mmap, socket, sys, time
socket_fd, memory_fd, whole, pause = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
count = memoryview(mmap.mmap(memory_fd, mmap.PAGESIZE)).cast("Q")
room = bytearray(256 * 1024)
with socket.socket(fileno=socket_fd) as connection:
    while count[0] < whole and (n := connection.recv_into(room)):
        count[0] += n
        if pause:
            time.sleep(pause)
    count[1] = time.monotonic_ns()
    # Nothing may follow. Not every loop closes a socket that it was given.
    connection.settimeout(5)
    try:
        count[0] += connection.recv_into(room)
    except TimeoutError:
        pass
"""


@dataclass(frozen=True)
class Form:
    """How many threads write how much, and how long a reader pauses after each of its reads."""

    threads: int
    each: int
    pause: float


# 256 KiB and 2 ms: at most 128 MiB/s, so that 64 MiB can arrive in the time, by many small steps.
FORMS = {"one": Form(1, 256 * MIB, 0.0), "four": Form(4, 64 * MIB, 0.002)}


class _Reader:
    def __init__(self, whole: int, pause: float) -> None:
        memory = os.memfd_create("count")
        os.ftruncate(memory, mmap.PAGESIZE)
        self._count = memoryview(mmap.mmap(memory, mmap.PAGESIZE)).cast("Q")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        with theirs:
            words = [sys.executable, "-S", "-c", _READER, str(theirs.fileno())]
            words += [str(memory), str(whole), str(pause)]
            self._process = subprocess.Popen(words, pass_fds=[theirs.fileno(), memory])
        os.close(memory)

    def bytes(self) -> int:
        """What it has."""
        return self._count[0]

    def ended(self) -> int:
        """When it had everything, by CLOCK_MONOTONIC. Raises RuntimeError if that doesn't come."""
        try:
            status = self._process.wait(WHOLE_SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"only {self._count[0]} bytes arrived in {WHOLE_SECONDS:.0f} s") from None
        if status:
            raise RuntimeError("a reader has failed")
        return self._count[1]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def _readers(form: Form) -> Iterator[list[_Reader]]:
    readers: list[_Reader] = []
    try:
        for _ in range(form.threads):
            readers.append(_Reader(form.each, form.pause))
        yield readers
    finally:
        for reader in readers:
            reader.kill()


class _Writer(asyncio.Protocol):
    def __init__(self, lost: asyncio.Future[None]) -> None:
        self._lost = lost

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._lost.set_result(None)
        else:
            self._lost.set_exception(exc)


async def _write(form: Form, reader: _Reader, all_ready: threading.Barrier) -> dict[str, float]:
    """On one loop: the callback, and then whatever the loop still has to do until everything is sent."""
    loop = asyncio.get_running_loop()
    lost = loop.create_future()
    transport, _ = await loop.create_connection(lambda: _Writer(lost), sock=reader.sock)
    # The loop has its transport and, if it has such a thing, its netpoller thread before the clock starts.
    await asyncio.sleep(0.05)
    await loop.run_in_executor(None, all_ready.wait)
    found: dict[str, float] = {}

    def callback() -> None:
        found["began"] = time.monotonic()
        for _ in range(form.each // len(PIECE)):
            transport.write(PIECE)
        computed = time.thread_time()
        end = time.monotonic() + COMPUTED
        while time.monotonic() < end:
            pass
        found["computed"] = time.thread_time() - computed
        found["bytes"] = reader.bytes()
        transport.close()

    loop.call_soon(callback)
    await lost
    return found


def measure(form: Form, loop: LoopSpec) -> dict[str, float]:
    """The figures of one run."""
    options: dict[str, Any] = {"netpoller": loop.netpoller} if loop.netpoller else {}
    found: list[dict[str, float]] = []
    errors: list[BaseException] = []
    with _readers(form) as readers:
        all_ready = threading.Barrier(form.threads)

        def one(reader: _Reader) -> None:
            try:
                found.append(run(loop.name, _write(form, reader, all_ready), **options))
            except BaseException as error:
                all_ready.abort()
                errors.append(error)

        cpu = time.process_time()
        threads = [threading.Thread(target=one, args=(reader,)) for reader in readers[1:]]
        for thread in threads:
            thread.start()
        one(readers[0])  # on the main thread, where a program has its loop
        for thread in threads:
            thread.join()
        cpu = time.process_time() - cpu
        if errors:
            raise errors[0]
        last = max(reader.ended() for reader in readers) / 1e9
        whole = sum(reader.bytes() for reader in readers)
        if whole != form.threads * form.each:
            raise RuntimeError(f"{whole} bytes arrived instead of {form.threads * form.each}")
        arrived = sum(one["bytes"] for one in found)
        computed = sum(one["computed"] for one in found)
        return {
            "rate": arrived / MIB,
            "all_seconds": last - min(one["began"] for one in found),
            "cpu_us": max(0.0, cpu - computed) / (whole / MIB) * 1e6,
        }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stalls", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("--loop", type=LoopSpec.parse, default=LoopSpec("netpoll_loop"))
    arguments = parser.parse_args()
    print(json.dumps(measure(FORMS[arguments.form], arguments.loop)), flush=True)


if __name__ == "__main__":
    main()
