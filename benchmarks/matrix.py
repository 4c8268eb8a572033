"""The specification of ``netpoller="auto"``: as good as the better of the other modes, whatever the load.

Each cell is a row of its own: an echo of 1 KiB to so many connections, with so much pure-Python work for each message.
This module puts the cells together: a table, the geometric mean, the worst cell.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import report, verdict

GROUP = "matrix"
AUTO = "netpoll_loop"
OTHERS = ("netpoll_loop:inline", "netpoll_loop:dedicated")

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 1000)
WORK_US = (0, 3, 8, 15, 50, 200)
QUICK_CONNECTIONS = (1, 8, 32, 1000)
QUICK_WORK_US = (0, 15, 200)

CELL = "matrix cell"  # how a cell's outcome begins
MEAN_TARGET = 0.99
CELL_TARGET = 0.95


@dataclass(frozen=True)
class Cell:
    """``auto`` next to the better of the other two."""

    connections: int
    work_us: int
    better: str  #: which one that is
    pairs: dict[int, float]  #: by round
    ratio: verdict.Ratio

    @property
    def title(self) -> str:
        return f"{self.connections} connection{'s' * (self.connections > 1)}, {self.work_us} us"


def cell(row: dict[str, Any]) -> Cell | None:
    """Of a measured row; None if one of the modes has no round.

    The better mode is that of the better median, one for all rounds: the larger of two rates taken anew in each round
    would be too large by the noise of both.
    """
    rates = {name: {number: one["rate"] for number, one in found.items()} for name, found in row["measured"].items()}
    if not all(rates.get(name) for name in (AUTO, *OTHERS)):
        return None
    better = max(OTHERS, key=lambda name: statistics.median(rates[name].values()))
    pairs = {
        number: rate / rates[better][number]
        for number, rate in sorted(rates[AUTO].items())
        if rates[better].get(number)
    }
    ratio = verdict.ratio(list(pairs.values()))
    return None if ratio is None else Cell(row["connections"], row["work_us"], better, pairs, ratio)


def cells(found: Sequence[dict[str, Any]]) -> list[Cell]:
    """Of all rows of the matrix among those."""
    return [one for row in found if row["group"] == GROUP if (one := cell(row))]


def mean(found: Sequence[Cell]) -> verdict.Ratio | None:
    """The geometric mean over the cells: of each round, and of these the median with its interval.

    Rounds that some cell lacks are left out; without a whole round, None.
    """
    whole = set.intersection(*(set(one.pairs) for one in found)) if found else set()
    return verdict.ratio([statistics.geometric_mean(one.pairs[number] for one in found) for number in sorted(whole)])


def outcomes(found: Sequence[dict[str, Any]]) -> list[verdict.Outcome]:
    """Of the mean, then of each cell."""
    all_cells = cells(found)
    overall = mean(all_cells)
    if overall is None:
        return []
    title = f"matrix, geometric mean of {len(all_cells)} cells, wanted at least {MEAN_TARGET}"
    judged = [
        verdict.Outcome(
            title, f"{overall.median:.3f} [{overall.low:.3f}..{overall.high:.3f}]", overall.verdict(MEAN_TARGET)
        )
    ]
    judged += [
        verdict.Outcome(
            f"{CELL} {one.title}, wanted at least {CELL_TARGET}", str(one.ratio), one.ratio.verdict(CELL_TARGET)
        )
        for one in all_cells
    ]
    return judged


def text(found: Sequence[dict[str, Any]]) -> str:
    """The whole table; empty without a cell."""
    all_cells = cells(found)
    if not all_cells:
        return ""
    columns = sorted({one.connections for one in all_cells})
    by_place = {(one.work_us, one.connections): one for one in all_cells}
    lines = [["us of work, connections:", *map(str, columns)]]
    for work in sorted({one.work_us for one in all_cells}):
        line = [str(work)]
        for connections in columns:
            one = by_place.get((work, connections))
            line.append(
                ""
                if one is None
                else f"{one.ratio.median:.2f}{'d' if one.better == OTHERS[1] else 'i'}"
                + ("!" if one.ratio.verdict(CELL_TARGET) == "MISSED" else " ")
            )
        lines.append(line)
    worst = min(all_cells, key=lambda one: one.ratio.median)
    judged = outcomes(found)
    reached = sum(one.word != verdict.MISSED for one in judged[1:])
    return (
        'netpoller="auto" by the better of "inline" (i) and "dedicated" (d), requests/s, echo of 1 KiB; '
        f"! is a cell that misses {CELL_TARGET}\n{report.table(lines)}\n"
        f"  worst cell: {worst.title}: {worst.ratio}; {reached} of {len(all_cells)} cells reach {CELL_TARGET}"
        + "".join(f"\n  {one}" for one in judged[:1])
    )


def line(row: dict[str, Any]) -> str:
    """One cell, while the others are still to come."""
    rates = []
    for name, rounds in row["measured"].items():
        mode = name.partition(":")[2] or "auto"
        if rounds:
            rate = report.thousands(statistics.median(one["rate"] for one in rounds.values()))
            cpu = statistics.median(one["cpu_us"] for one in rounds.values())
            rates.append(f"{mode} {rate}/s ({cpu:.1f} us)")
        else:
            rates.append(f"{mode} can't")
    one = cell(row)
    failed = [f"\n  {name} failed: {reasons[-1].splitlines()[-1][:150]}" for name, reasons in row["failures"].items()]
    return f"{row['title']}: {', '.join(rates)}: {one.ratio if one else '-'}" + "".join(failed)
