"""What blocking() costs, beside the executor: python -m benchmarks.blocking

Everything runs on one loop in this process. Each number is the median (or the percentile named) of `--rounds` rounds,
the two ways interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

import netpoll_loop
from netpoll_loop import blocking


def nothing() -> None:
    """What the executor is given to do."""


async def empty_bodies(count: int) -> float:
    """Microseconds for one empty body."""
    started = time.perf_counter()
    for _ in range(count):
        with blocking():
            pass
    return (time.perf_counter() - started) / count * 1e6


async def executor_round_trips(count: int) -> float:
    """Microseconds for one `await run_in_executor(None, nothing)`."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    for _ in range(count):
        await loop.run_in_executor(None, nothing)
    return (time.perf_counter() - started) / count * 1e6


async def long_bodies(count: int, seconds: float) -> float:
    """Microseconds from the end of a body to the coroutine, which has P again."""
    total = 0.0
    for _ in range(count):
        with blocking():
            time.sleep(seconds)
            slept = time.perf_counter()
        total += time.perf_counter() - slept
        # Each is the first of its kind: the loop has waited in between, as that of a server does.
        await asyncio.sleep(0.002)
    return total / count * 1e6


async def long_executor_calls(count: int, seconds: float) -> float:
    """The same, in the executor: from the end of the sleep to the coroutine."""
    loop = asyncio.get_running_loop()

    def call() -> float:
        time.sleep(seconds)
        return time.perf_counter()

    total = 0.0
    for _ in range(count):
        slept = await loop.run_in_executor(None, call)
        total += time.perf_counter() - slept
        await asyncio.sleep(0.002)
    return total / count * 1e6


async def takeovers(count: int, seconds: float) -> list[float]:
    """Microseconds from the start of a body to the next callback, which another thread runs."""
    loop = asyncio.get_running_loop()
    found: list[float] = []
    for _ in range(count):
        loop.call_soon(lambda: found.append(time.perf_counter()))
        with blocking():
            started = time.perf_counter()
            time.sleep(seconds)
        found[-1] = (found[-1] - started) * 1e6
        await asyncio.sleep(0.002)
    return found


async def _rounds(rounds: int, *ways: Callable[[], Awaitable[float]]) -> list[float]:
    numbers: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, found in zip(ways, numbers, strict=True):
            found.append(await way())
    return [statistics.median(found) for found in numbers]


async def measure(rounds: int) -> None:
    """Prints the three comparisons."""
    await empty_bodies(1000)
    await executor_round_trips(100)
    empty, executor = await _rounds(rounds, lambda: empty_bodies(20_000), lambda: executor_round_trips(1000))
    print(
        f"empty body                      {empty:8.2f} us   run_in_executor {executor:8.2f} us   {empty / executor:.3f}"
    )
    ours, theirs = await _rounds(rounds, lambda: long_bodies(30, 0.01), lambda: long_executor_calls(30, 0.01))
    print(f"return from a body of 10 ms     {ours:8.2f} us   run_in_executor {theirs:8.2f} us   {ours / theirs:.3f}")
    found = sorted([one for _ in range(rounds) for one in await takeovers(60, 0.01)])
    p50, p99 = found[len(found) // 2], found[len(found) * 99 // 100]
    print(f"a body of 10 ms has lost P after {p50:8.0f} us at p50, {p99:.0f} us at p99, {found[-1]:.0f} us at most")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocking", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    netpoll_loop.run(measure(options.rounds))


if __name__ == "__main__":
    main()
