"""What a loop does without a server: callbacks, timers, tasks, threads, names, processes, connections.

One workload on one loop in a process of its own prints one JSON line:

    python -m benchmarks.micro call-soon --loop uvloop --seconds 0.5

Each workload takes a number of operations, and is first run with ever more of them until it takes long enough to
be timed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from benchmarks.harness import LoopSpec
from benchmarks.servers import BACKLOG
from benchmarks.servers.loops import run

Workload: TypeAlias = Callable[[asyncio.AbstractEventLoop, int], Awaitable[None]]

#: Seconds that a batch has to take before it counts.
BATCH = 0.1

WORKLOADS: dict[str, Workload] = {}


def workload(name: str) -> Callable[[Workload], Workload]:
    """Puts it into WORKLOADS."""

    def add(function: Workload) -> Workload:
        WORKLOADS[name] = function
        return function

    return add


def _nothing(*args: object) -> None:
    pass


# ---- the scheduler ----


@workload("call-soon")
async def call_soon(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """A burst: all are queued, then all run."""
    done = loop.create_future()
    for _ in range(count):
        loop.call_soon(_nothing)
    loop.call_soon(done.set_result, None)
    await done


@workload("call-soon-args")
async def call_soon_args(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """The same with two arguments."""
    done = loop.create_future()
    for _ in range(count):
        loop.call_soon(_nothing, 1, 2)
    loop.call_soon(done.set_result, None)
    await done


@workload("call-soon-chain")
async def call_soon_chain(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Each callback schedules the next one."""
    done = loop.create_future()

    def link() -> None:
        nonlocal count
        count -= 1
        if count > 0:
            loop.call_soon(link)
        else:
            done.set_result(None)

    loop.call_soon(link)
    await done


@workload("call-soon-threadsafe")
async def call_soon_threadsafe(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """A burst, made on the loop's own thread."""
    done = loop.create_future()
    for _ in range(count):
        loop.call_soon_threadsafe(_nothing)
    loop.call_soon(done.set_result, None)
    await done


@workload("call-later-cancel")
async def call_later_cancel(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """A timer that is cancelled, as time-outs are."""
    for _ in range(count):
        loop.call_later(60, _nothing).cancel()


@workload("timers")
async def timers(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """100 000 timers at a time, all of which fire."""
    for start in range(0, count, 100_000):
        done = loop.create_future()
        batch = min(100_000, count - start)
        for i in range(batch):
            loop.call_later(i * 1e-8, _nothing)
        loop.call_later(0.002, done.set_result, None)
        await done


@workload("sleep-0")
async def sleep_0(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """``await asyncio.sleep(0)``."""
    for _ in range(count):
        await asyncio.sleep(0)


async def _return() -> None:
    pass


@workload("gather")
async def gather(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """1000 tasks at a time."""
    for start in range(0, count, 1000):
        await asyncio.gather(*(_return() for _ in range(min(1000, count - start))))


# ---- names, threads, processes ----


@workload("getaddrinfo")
async def getaddrinfo(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Of an address literal."""
    for _ in range(count):
        await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)


@workload("run-in-executor")
async def run_in_executor(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """An empty function, one after the other."""
    for _ in range(count):
        await loop.run_in_executor(None, _nothing)


@workload("run-coroutine-threadsafe")
async def run_coroutine_threadsafe(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Round trips of another thread."""
    done = loop.create_future()

    def ask() -> None:
        for _ in range(count):
            asyncio.run_coroutine_threadsafe(_return(), loop).result()
        loop.call_soon_threadsafe(done.set_result, None)

    thread = threading.Thread(target=ask)
    thread.start()
    await done
    thread.join()


@workload("subprocess")
async def create_subprocess(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """``create_subprocess_exec("true")`` and ``wait()``."""
    for _ in range(count):
        process = await asyncio.create_subprocess_exec("true")
        if await process.wait() != 0:
            raise RuntimeError("true has failed")


# ---- connections ----

_ACCEPTOR = """
import socket
with socket.create_server(("127.0.0.1", 0), backlog=%d) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        listener.accept()[0].close()
"""

_SINK = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    with connection:
        room = bytearray(1 << 20)
        while connection.recv_into(room):
            pass
        connection.sendall(b"!")
"""


@contextlib.asynccontextmanager
async def _peer(program: str) -> AsyncIterator[int]:
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            yield int(child.stdout.readline())
        finally:
            child.kill()


@workload("connect-abort")
async def connect_abort(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """``create_connection`` over loopback and ``transport.abort()``, one after the other."""
    async with _peer(_ACCEPTOR % BACKLOG) as port:
        for _ in range(count):
            transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
            transport.abort()


class _Source(asyncio.Protocol):
    """Writes pieces of 64 KiB, as fast as it may."""

    piece = bytes(65536)

    def __init__(self, done: asyncio.Future[None], count: int) -> None:
        self.done = done
        self.left = count

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.paused = False
        self.write()

    def write(self) -> None:
        while self.left and not self.paused:
            self.left -= 1
            self.transport.write(self.piece)
        if not self.left:
            self.transport.write_eof()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.left:
            self.write()

    def data_received(self, data: bytes) -> None:
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc:
            self.done.set_exception(exc)
        else:
            self.done.set_result(None)


@workload("bulk")
async def bulk(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """One connection, one way: pieces of 64 KiB to another process that reads them all."""
    async with _peer(_SINK) as port:
        done = loop.create_future()
        await loop.create_connection(lambda: _Source(done, count), "127.0.0.1", port)
        await done


# ---- fairness ----


@workload("chain-beside-echo")
async def chain_beside_echo(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Not for its rate: see `fairness`."""
    await fairness(loop, 0.2)


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def fairness(loop: asyncio.AbstractEventLoop, seconds: float) -> dict[str, float]:
    """Latencies, in microseconds, of an echo on the loop on which a chain of call_soon runs.

    Asked by another process, so that no GIL stands between the two.
    """
    server = await loop.create_server(_Echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    stopped = False

    def link() -> None:
        if not stopped:
            loop.call_soon(link)

    program = _ASKER % (port, seconds)
    loop.call_soon(link)
    child = await loop.run_in_executor(
        None, lambda: subprocess.run([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, timeout=60)
    )
    stopped = True
    server.close()
    measured: dict[str, float] = json.loads(child.stdout)
    return measured


_ASKER = """
import json, socket, time
latencies = []
try:
    with socket.create_connection(("127.0.0.1", %d), timeout=5) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.perf_counter() + %f
        while (now := time.perf_counter()) < until:
            client.sendall(b"x" * 64)
            client.recv(64)
            latencies.append((time.perf_counter() - now) * 1e6)
except OSError:
    latencies.append(5e6)
latencies.sort()
print(json.dumps({"p50_us": latencies[len(latencies) // 2], "p99_us": latencies[int(len(latencies) * 0.99)]}))
"""


# ---- the measured process ----


async def _measure(name: str, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    if name == "chain-beside-echo":
        found = await fairness(loop, seconds)
        return {"rate": 1e6 / found["p50_us"], "cpu_us": 0.0, **found}
    function = WORKLOADS[name]
    count = 4
    while True:
        started = time.perf_counter()
        await function(loop, count)
        elapsed = time.perf_counter() - started
        if elapsed >= BATCH:
            break
        count = min(count * 10, max(count + 1, int(count * BATCH * 1.5 / elapsed)))
    operations = 0
    cpu = time.process_time()
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        await function(loop, count)
        operations += count
    return {"rate": operations / elapsed, "cpu_us": (time.process_time() - cpu) / operations * 1e6}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description=__doc__.splitlines()[0])
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--loop", type=LoopSpec.parse, default=LoopSpec("netpoll_loop"))
    parser.add_argument("--seconds", type=float, default=0.5)
    arguments = parser.parse_args()
    options: dict[str, Any] = {"netpoller": arguments.loop.netpoller} if arguments.loop.netpoller else {}
    print(json.dumps(run(arguments.loop.name, _measure(arguments.workload, arguments.seconds), **options)), flush=True)


if __name__ == "__main__":
    main()
