"""What ``make demo`` runs: aiohttp through netpoll_loop's policy, under load, next to other loops.

The application of ``examples/aiohttp_hello.py`` is served by stock asyncio, uvloop and netpoll_loop, each
in a process of its own; 32 connections load one after the other, five rounds. Every response's body is
checked.
"""

from __future__ import annotations

import sys

from benchmarks import harness, report
from benchmarks.compare import Row, failures, measure_row, table
from benchmarks.harness import LoopSpec

ROW = Row("aiohttp-example", 32)
LOOPS = [LoopSpec("asyncio"), LoopSpec("uvloop"), LoopSpec("netpoll_loop")]
ROUNDS = 5
SECONDS = 1.5


def main() -> int:
    """0 if every request was answered as it should be."""
    print(f"examples/aiohttp_hello.py, {ROW.connections} connections, {ROUNDS} rounds of {SECONDS} s each\n")
    with harness.no_process_left():
        results = measure_row(ROW, LOOPS, ROUNDS, SECONDS, warmup=0.2, progress=report.progress)
    print(table(results, ["asyncio", "uvloop"], cpu=False))
    served = sum(measured.load.total_requests for one in results for measured in one.rounds)
    failed = failures(results)
    for text in failed:
        print(f"FAILED {text}", file=sys.stderr)
    verdict = "with errors" if failed else "every response checked, no error"
    print(f"\n{report.thousands(served)} requests, {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
