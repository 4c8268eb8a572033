"""netpoll_loop beside uvloop and the other loops: one command, one table.

    python -m benchmarks --quick
    python -m benchmarks --rows echo,sched --loops netpoll_loop,uvloop,rloop --rounds 7 --json results.json
    python -m benchmarks --row matrix --plot plots
    python -m benchmarks --from results.json --plot plots --report docs/performance.md

Loops are interleaved round by round, every round in fresh processes. Ratios are taken within a round. A loop that
can't run a row says so in the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import harness, report, rows, table
from benchmarks.harness import BenchmarkError, LoopSpec
from benchmarks.measure import measure_row
from benchmarks.servers.loops import LOOPS, installed

PEERS = [name for name in LOOPS if name != "netpoll_loop"]


def commit() -> str:
    """The commit of the tree, with + if it is changed; unknown outside a repository."""
    try:
        words = ["git", "describe", "--always", "--dirty=+"]
        return subprocess.run(words, cwd=harness.ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def about(loops: list[LoopSpec], rounds: int, seconds: float) -> dict[str, Any]:
    """What a reader has to know of a run."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": report.machine(),
        "commit": commit(),
        "rounds": rounds,
        "seconds": seconds,
        "versions": {loop.name: LOOPS[loop.name].version() or "of this Python" for loop in loops},
    }


def choose_loops(text: str | None) -> tuple[list[LoopSpec], list[str]]:
    """The loops to run, and those that aren't installed. Raises ValueError for an unknown one."""
    asked = LoopSpec.parse_list(text) if text else [LoopSpec("netpoll_loop"), *(LoopSpec(name) for name in PEERS)]
    there = [loop for loop in asked if loop.name == "netpoll_loop" or installed(loop.name)]
    return there, [str(loop) for loop in asked if loop not in there]


def loops_of(row: rows.Row, loops: list[LoopSpec]) -> list[LoopSpec]:
    """A row may be about certain loops, or about others too."""
    if row.only:
        return LoopSpec.parse_list(",".join(row.only))
    also = [LoopSpec.parse(name) for name in row.also]
    names = {loop.name for loop in loops}
    return list(dict.fromkeys([*loops, *(loop for loop in also if loop.name in names)]))


def main() -> int:
    """The command line; 1 if netpoll_loop failed in a row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", "--row", help="rows, groups, KIND:CONNECTIONS[:BYTES]; all of the table")
    parser.add_argument(
        "--loops", help="all that are installed; netpoll_loop:MODE for one mode; some rows are about certain ones"
    )
    parser.add_argument("--rounds", type=int, help="7; 3 with --quick")
    parser.add_argument(
        "--seconds", type=float, help="measured in each round; 0.5, 0.4 with --quick; some rows take a multiple"
    )
    parser.add_argument("--quick", action="store_true", help=f"{rows.QUICK} against uvloop and asyncio")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there, after each row")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="show results that --json wrote")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw PNGs there (needs matplotlib)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="put tables and plots into this Markdown file")
    arguments = parser.parse_args()
    quick = arguments.quick
    try:
        chosen = rows.parse(arguments.rows or (rows.QUICK if quick else ",".join(rows.GROUPS)), quick)
        loops, missing = choose_loops(arguments.loops or ("netpoll_loop,uvloop,asyncio" if quick else None))
    except ValueError as error:
        parser.error(str(error))

    if arguments.source:
        results = json.loads(arguments.source.read_text(), object_hook=table.numbered)
        print(table.text(results))
    else:
        rounds = arguments.rounds or (3 if quick else 7)
        seconds = arguments.seconds or (0.4 if quick else 0.5)
        results = {"about": about(loops, rounds, seconds), "rows": []}
        print(table.headline(results))
        if missing:
            print(f"not installed here: {', '.join(missing)}")
        with harness.no_process_left():
            for row in chosen:
                asked = arguments.rounds or row.rounds or rounds
                results["rows"].append(measure_row(row, loops_of(row, loops), asked, seconds * row.longer))
                print(table.new_row_text(results["rows"]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        print(table.end_text(results))
    try:
        drawn: list[Path] = []
        if arguments.plot:
            from benchmarks import plots

            drawn = plots.draw(results, arguments.plot)
            print("\n".join(map(str, drawn)))
        if arguments.report:
            table.write_report(results, arguments.report, drawn)
    except (BenchmarkError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 1 if any("netpoll_loop" in row["failures"] for row in results["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
