"""Worker groups: an echo with work for each message, through one loop and through several.

    python -m benchmarks.groups --workers 1,2 --work 0,50,200

Each number of workers serves in a process of its own, in turn within each round, and is loaded by the load generator.
Printed for each amount of work: requests a second, the ratio to one worker (median of the rounds, and the range), and
how the accepted connections spread over the loops. With the GIL the loops take turns; without it they run in parallel.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import sysconfig
import threading
from collections.abc import Sequence
from typing import Any

import netpoll_loop
from benchmarks.harness import BenchmarkError, Load, Process, no_process_left, start_loadgen
from benchmarks.servers.work import _Echo, spins_per_us

HOST = "127.0.0.1"
CONNECTIONS = 64
SIZE = 1024  # bytes
START_SECONDS = 20.0


def serve(workers: int, spins: int) -> None:
    """Prints {"port": ...}, serves until SIGTERM, and prints {"accepted": [...]}: connections, loop by loop."""
    accepted = [0] * workers
    indices, lock = iter(range(workers)), threading.Lock()

    class Counting(_Echo):
        def __init__(self, index: int) -> None:
            super().__init__(spins)
            self.index = index

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted[self.index] += 1
            super().connection_made(transport)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, ended.set)
        with lock:
            index = next(indices)
        server = await loop.create_server(lambda: Counting(index), HOST, 0, backlog=1024)
        if index == workers - 1:
            print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
        await ended.wait()
        server.close()

    if workers == 1:
        netpoll_loop.run(main())
    else:
        netpoll_loop.run(main, workers=workers)
    print(json.dumps({"accepted": accepted}), flush=True)


def measure(workers: int, spins: int, seconds: float) -> tuple[Load, list[int]]:
    """One server, loaded. Raises BenchmarkError on a lost connection or a wrong byte."""
    server = Process(
        [sys.executable, "-m", "benchmarks.groups", "--serve", str(workers), "--spins", str(spins)],
    )
    try:
        port = json.loads(server.read_line(START_SECONDS))["port"]
        client = start_loadgen("echo", port, connections=CONNECTIONS, size=SIZE, seconds=seconds, warmup=0.3)
        try:
            line = client.read_line(seconds + 30)
            if client.wait(30) != 0:
                client.fail("failed")
            load = Load.from_json(line)
        finally:
            client.end()
        server.send_signal(signal.SIGTERM)
        accepted: list[int] = json.loads(server.read_line(START_SECONDS))["accepted"]
        if server.wait(START_SECONDS) != 0:
            server.fail("ended with an error")
        return load, accepted
    finally:
        server.end()


def _row(work: float, spins: int, counts: Sequence[int], rounds: int, seconds: float) -> None:
    rates: dict[int, list[float]] = {count: [] for count in counts}
    spread: dict[int, float] = dict.fromkeys(counts, 0.0)
    for number in range(rounds):
        for count in counts if number % 2 == 0 else reversed(counts):
            load, accepted = measure(count, spins, seconds)
            rates[count].append(load.rps)
            even = sum(accepted) / len(accepted)
            spread[count] = max(spread[count], *(abs(one - even) / even for one in accepted))
    for count in counts:
        ratios = [ours / alone for ours, alone in zip(rates[count], rates[counts[0]], strict=True)]
        print(
            f"{work:6.0f} us {count:3} workers {statistics.median(rates[count]):9.0f}/s"
            f"   {statistics.median(ratios):5.2f} x {counts[0]} ({min(ratios):.2f} to {max(ratios):.2f})"
            f"   connections within {spread[count]:.0%} of even",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""

    def numbers(text: str) -> list[Any]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m benchmarks.groups", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workers", type=numbers, default=[1, 2], help="1,2 (default): the first is what others are compared with"
    )
    parser.add_argument("--work", type=numbers, default=[0, 50, 200], help="microseconds for each message")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each measurement")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--spins", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve is not None:
        serve(options.serve, options.spins)
        return
    gil = "no GIL" if sysconfig.get_config_var("Py_GIL_DISABLED") and not sys._is_gil_enabled() else "GIL"  # type: ignore[attr-defined]
    print(f"Python {sys.version.split()[0]}, {gil}; echo of {SIZE} bytes, {CONNECTIONS} connections", flush=True)
    per_us = spins_per_us()
    try:
        with no_process_left():
            for work in options.work:
                _row(work, round(work * per_us), options.workers, options.rounds, options.seconds)
    except BenchmarkError as error:
        sys.exit(f"benchmarks.groups: {error}")


if __name__ == "__main__":
    main()
