"""What ``make demo`` runs: aiohttp through netpoll_loop's policy, under load, next to other loops.

The application of ``examples/aiohttp_hello.py`` is served by stock asyncio, uvloop and netpoll_loop, each
in a process of its own; 32 connections load one after the other, five rounds. Every response's body is
checked.
"""

from __future__ import annotations

import sys

from benchmarks import harness, report, table
from benchmarks.harness import LoopSpec
from benchmarks.measure import measure_row
from benchmarks.rows import Row

ROW = Row("demo", "http", "examples/aiohttp_hello.py, 32 connections", "aiohttp-example", connections=32)
LOOPS = [LoopSpec("asyncio"), LoopSpec("uvloop"), LoopSpec("netpoll_loop")]
ROUNDS = 5
SECONDS = 1.5


def main() -> int:
    """0 if every request was answered as it should be."""
    print(f"{ROUNDS} rounds of {SECONDS} s each\n", flush=True)
    with harness.no_process_left():
        results = measure_row(ROW, LOOPS, ROUNDS, SECONDS)
    print(table.row_text(results))
    served = sum(one["requests"] for rounds in results["measured"].values() for one in rounds.values())
    verdict = "with errors" if results["failures"] else "every response checked, no error"
    print(f"\n{report.thousands(served)} requests, {verdict}")
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
