"""Echo servers whose callbacks are long: each a little, or one of them once."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

#: More than the clients of a burst, so that the kernel takes all of them while nobody accepts.
STALL_BACKLOG = 2048


class _Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, spins: int = 0) -> None:
        self.spins = spins

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        # Turns of a loop, not a time: who is interrupted or waits for the GIL has no less to do.
        for _ in range(self.spins):
            pass
        self.transport.write(data)


@functools.cache
def spins_per_us(seconds: float = 0.3, tries: int = 15) -> float:
    """How many turns of the loop in ``data_received`` take a microsecond here; the best of some tries."""
    best = 0.0
    for _ in range(tries):
        spins, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / tries:
            for _ in range(2000):
                pass
            spins += 2000
        best = max(best, spins / (time.perf_counter() - start) / 1e6)
    return best


@asynccontextmanager
async def working(host: str, port: int, spins: int = 0) -> AsyncIterator[int]:
    """``asyncio.Protocol`` that computes for ``spins`` turns of an empty loop before it answers."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(functools.partial(_Echo, spins), host, port, backlog=STALL_BACKLOG)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _stall(seconds: float) -> None:
    """Pure Python that doesn't return; the two lines tell the client when it began and ended."""
    print(json.dumps({"stall_began_ns": time.monotonic_ns()}), flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    print(json.dumps({"stall_ended_ns": time.monotonic_ns()}), flush=True)


@asynccontextmanager
async def stalling(host: str, port: int, stall: float = 0.5) -> AsyncIterator[int]:
    """``asyncio.Protocol`` on a loop that SIGUSR1 stalls for so many seconds."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, _stall, stall)
    async with working(host, port) as bound:
        yield bound
