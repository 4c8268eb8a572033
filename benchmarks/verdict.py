"""Ratios between loops: taken pair by pair within a round, their median, and how sure it is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RESAMPLES = 2000
LEVEL = 0.95
MISSED = "MISSED"


@dataclass(frozen=True)
class Ratio:
    """The median of the pairs' ratios, with its bootstrap confidence interval (95 %)."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}..{self.high:.2f}]"

    def verdict(self, target: float, at_most: bool = False) -> str:
        """A target is missed when the whole interval is below it; when it is above it, if less is better."""
        if self.low > target if at_most else self.high < target:
            return MISSED
        reached = self.median <= target if at_most else self.median >= target
        return "met" if reached else "within the interval"


@dataclass(frozen=True)
class Target:
    """What one of a row's metrics has to reach, where that isn't the rate next to uvloop's or the best loop's."""

    metric: str
    title: str
    bound: float | None  #: None: only reported
    to: str | None = None  #: the loop whose value it is divided by, round by round; None: the value itself
    at_most: bool = False  #: less is better
    worst: bool = False  #: the worst round counts, not the median: there is no interval


@dataclass(frozen=True)
class Outcome:
    """What a target came to."""

    title: str
    found: str
    word: str  #: as of `Ratio.verdict`; empty: nothing was wanted

    def __str__(self) -> str:
        return f"{self.title}: {self.found}" + (f": {self.word}" if self.word else "")


def outcome(target: Target, measured: Mapping[str, Mapping[int, Mapping[str, float]]], ours: str) -> Outcome | None:
    """None if there is nothing to judge by."""

    def values(name: str) -> dict[int, float]:
        return {number: one[target.metric] for number, one in measured.get(name, {}).items() if target.metric in one}

    mine = values(ours)
    judged = list(mine.values()) if target.to is None else paired(mine, values(target.to))
    found = ratio(judged)
    if found is None:
        return None
    if target.worst:
        one = max(judged) if target.at_most else min(judged)
        found = Ratio(one, one, one, len(judged))
        text = f"{_number(one, target)} in the worst of {len(judged)}"
    else:
        low, high = _number(found.low, target), _number(found.high, target)
        text = f"{_number(found.median, target)} [{low}..{high}]"
    if target.bound is None:
        return Outcome(target.title, text, "")
    title = f"{target.title}, wanted at {'most' if target.at_most else 'least'} {_number(target.bound, target)}"
    return Outcome(title, text, found.verdict(target.bound, target.at_most))


def _number(value: float, target: Target) -> str:
    if target.to is not None:
        return f"{value:.2f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


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
