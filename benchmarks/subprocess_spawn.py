"""How fast child processes are started and waited for: ``create_subprocess_exec("true")`` and ``wait()``.

One child at a time, or with --parallel several; loops in turns, each round in a process of its own.

    python -m benchmarks.subprocess_spawn --rounds 5 --seconds 1
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import harness, report
from benchmarks.harness import BenchmarkError, LoopSpec
from benchmarks.servers.loops import run

LOOPS = "netpoll_loop,uvloop,asyncio"
WARMUP = 0.2


# ---- the measured process ----


async def _spawn(until: float, latencies: list[float]) -> None:
    """Children one after the other until that time; how long each took, in seconds."""
    started = time.perf_counter()
    while started < until:
        process = await asyncio.create_subprocess_exec("true")
        status = await process.wait()
        if status != 0:
            raise RuntimeError(f"true ended with status {status}")
        ended = time.perf_counter()
        latencies.append(ended - started)
        started = ended


async def _measure(seconds: float, parallel: int) -> dict[str, float]:
    await _spawn(time.perf_counter() + WARMUP, [])
    latencies: list[float] = []
    started = time.perf_counter()
    await asyncio.gather(*(_spawn(started + seconds, latencies) for _ in range(parallel)))
    elapsed = time.perf_counter() - started
    latencies.sort()
    return {
        "rate": len(latencies) / elapsed,
        "p50_us": statistics.median(latencies) * 1e6,
        "p99_us": latencies[int(len(latencies) * 0.99)] * 1e6,
    }


def _worker(loop: LoopSpec, seconds: float, parallel: int) -> None:
    options: dict[str, Any] = {"netpoller": loop.netpoller} if loop.netpoller else {}
    print(json.dumps(run(loop.name, _measure(seconds, parallel), **options)), flush=True)


# ---- the rounds ----


@dataclass
class Series:
    """All rounds of one loop."""

    rates: dict[int, float] = field(default_factory=dict)  #: by round
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)


def _round(loop: LoopSpec, seconds: float, parallel: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.subprocess_spawn", "--worker", f"--loops={loop}"]
    process = harness.Process([*command, f"--seconds={seconds}", f"--parallel={parallel}"])
    try:
        line = process.read_line(seconds + harness.START_SECONDS)
        if process.wait(harness.STOP_SECONDS) != 0:
            process.fail("failed")
        measured: dict[str, float] = json.loads(line)
        return measured
    finally:
        process.end()


def _table(loops: Sequence[LoopSpec], results: dict[LoopSpec, Series], baseline: str) -> str:
    lines = [["", "children/s", "p50 us", "p99 us", f"to {baseline}"]]
    base = next((results[loop].rates for loop in loops if str(loop) == baseline), {})
    for loop in loops:
        one = results[loop]
        if not one.rates:
            lines.append([str(loop), "failed"])
            continue
        medians = [statistics.median(values) for values in (one.rates.values(), one.p50_us, one.p99_us)]
        ratios = [rate / base[number] for number, rate in one.rates.items() if number in base]
        lines.append([str(loop), *map(report.thousands, medians), report.ratio(ratios)])
    return report.table(lines)


def main() -> int:
    """The command line; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.subprocess_spawn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--loops", default=LOOPS, help=LOOPS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--parallel", type=int, default=1, help="children at the same time (1)")
    parser.add_argument("--netpoller", metavar="MODE", help="auto, dedicated or inline, for netpoll_loop")
    parser.add_argument("--baseline", default="uvloop", help="the loop that ratios are taken to (uvloop)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        loops = LoopSpec.parse_list(arguments.loops, arguments.netpoller)
    except ValueError as error:
        parser.error(str(error))
    if arguments.worker:
        _worker(loops[0], arguments.seconds, arguments.parallel)
        return 0

    print(report.machine_line())
    print(f"{arguments.rounds} rounds of {arguments.seconds:g} s, {arguments.parallel} at a time\n")
    results = {loop: Series() for loop in loops}
    failed = False
    with harness.no_process_left():
        for number in range(arguments.rounds):
            for loop in harness.order(loops, number):
                report.progress(f"round {number + 1} of {arguments.rounds}: {loop}")
                try:
                    measured = _round(loop, arguments.seconds, arguments.parallel)
                except BenchmarkError as error:
                    failed = True
                    report.progress("")
                    print(f"FAILED {loop}: {error}", file=sys.stderr)
                    continue
                results[loop].rates[number] = measured["rate"]
                results[loop].p50_us.append(measured["p50_us"])
                results[loop].p99_us.append(measured["p99_us"])
    report.progress("")
    print(_table(loops, results, arguments.baseline))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
