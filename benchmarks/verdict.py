"""Ratios between loops: taken pair by pair within a round, their median, and how sure it is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """The median of the pairs' ratios, with its bootstrap confidence interval (95 %)."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}..{self.high:.2f}]"

    def verdict(self, target: float) -> str:
        """A target is missed when the interval's upper end is below it."""
        if self.high < target:
            return "MISSED"
        return "met" if self.median >= target else "within the interval"


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours by theirs, for each round (the key) in which both were measured."""
    return [value / theirs[number] for number, value in sorted(ours.items()) if theirs.get(number)]


def ratio(values: Sequence[float], seed: int = 0) -> Ratio | None:
    """None without values. The resampling is seeded: the same values give the same interval."""
    if not values:
        return None
    generator = random.Random(seed)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = int(RESAMPLES * (1 - LEVEL) / 2)
    return Ratio(statistics.median(values), medians[tail], medians[-1 - tail], len(values))


def best_peer(rates: Mapping[str, Mapping[int, float]], ours: str) -> str | None:
    """The loop other than ours (in whatever mode) with the highest median rate; None if there is none."""
    others = {
        name: statistics.median(rounds.values())
        for name, rounds in rates.items()
        if rounds and name.partition(":")[0] != ours.partition(":")[0]
    }
    return max(others, key=lambda name: others[name]) if others else None
