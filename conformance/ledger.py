"""Accepted differences, `expected/<suite>.toml`, and the verdict on a run. Strict in both directions.

    [[difference]]
    reason = "why a maintainer of the suite would agree that this test says nothing against the loop"
    tests = ["exact.id", ...]
    netpoller = ["dedicated"]     # optional: only in these modes
    python = ["3.11", "3.13.0"]   # optional: only on these Pythons
    debug = true                  # optional: only with (or only without) PYTHONASYNCIODEBUG
    run_on = "worker"             # optional: only where this thread runs the callbacks

    [[flicker]]
    reason = "..."
    tests = ["exact.id"]
    reference = "1/20"            # how often it fails there
    ours = "1/20"

A listed test that passes, or that the reference doesn't pass, is as wrong as an unlisted one that fails. A flicker may
pass or fail.
"""

import collections
import dataclasses
import platform
import tomllib
from collections.abc import Collection, Mapping

from conformance import sources
from conformance.driver import Outcome
from conformance.records import PASS

_KEYS = {
    "difference": {"reason", "tests", "netpoller", "python", "debug", "run_on"},
    "flicker": {"reason", "tests", "reference", "ours", "netpoller", "python", "debug", "run_on"},
}


class LedgerError(Exception):
    """The ledger itself is wrong."""


@dataclasses.dataclass
class Ledger:
    """What applies to one run."""

    differences: dict[str, str] = dataclasses.field(default_factory=dict)
    flickers: dict[str, str] = dataclasses.field(default_factory=dict)


def load(text: str, *, netpoller: str, python: str, debug: bool, run_on: str = "caller") -> Ledger:
    """The entries for this mode, Python ("3.11.7"), debug mode and thread. Raises LedgerError."""
    ledger = Ledger()
    document = tomllib.loads(text)
    if unknown := set(document) - set(_KEYS):
        raise LedgerError(f"unknown table: {', '.join(sorted(unknown))}")
    for kind, keys in _KEYS.items():
        for entry in document.get(kind, []):
            if unknown := set(entry) - keys:
                raise LedgerError(f"unknown key in [[{kind}]]: {', '.join(sorted(unknown))}")
            if not entry.get("reason", "").strip():
                raise LedgerError(f"[[{kind}]] without a reason: {entry.get('tests')}")
            if not entry.get("tests"):
                raise LedgerError(f"[[{kind}]] without tests: {entry['reason']}")
            if kind == "flicker" and not {"reference", "ours"} <= set(entry):
                raise LedgerError(f"[[flicker]] without its rates: {entry['tests']}")
            if (
                netpoller not in entry.get("netpoller", [netpoller])
                or not any(f"{python}.".startswith(f"{version}.") for version in entry.get("python", [python]))
                or entry.get("debug", debug) != debug
                or entry.get("run_on", run_on) != run_on
            ):
                continue
            for test in entry["tests"]:
                if test in ledger.differences or test in ledger.flickers:
                    raise LedgerError(f"listed twice: {test}")
                (ledger.differences if kind == "difference" else ledger.flickers)[test] = entry["reason"]
    return ledger


def load_for(suite: str, *, netpoller: str, debug: bool, run_on: str = "caller") -> Ledger:
    path = sources.HERE / "expected" / f"{suite}.toml"
    text = path.read_text() if path.exists() else ""
    python = platform.python_version()
    try:
        return load(text, netpoller=netpoller, python=python, debug=debug, run_on=run_on)
    except (LedgerError, tomllib.TOMLDecodeError) as error:
        raise LedgerError(f"{path.name}: {error}") from None


@dataclasses.dataclass
class Verdict:
    reference: int
    ours: int
    #: id -> reason. What fails and is accounted for.
    explained: dict[str, str]
    #: id -> what is wrong: a failure without a reason, or a reason without a failure.
    unexplained: dict[str, str]

    def line(self, suite: str) -> str:
        return (
            f"conformance {suite}: reference {self.reference}, ours {self.ours}, "
            f"explained {len(self.explained)}, unexplained {len(self.unexplained)}"
        )


def judge(
    reference: Collection[str],
    results: Mapping[str, Outcome],
    ledger: Ledger,
    *,
    also_fails: Collection[str] = (),
    selected: bool = False,
) -> Verdict:
    """Compares `results` with the ids that the reference passes.

    `also_fails`: failures on the delayed stock loop, which explain the same failure in `dedicated`. `selected`: only a
    part of the suite was run, so entries for the rest aren't missed.
    """
    reference = set(reference)
    explained: dict[str, str] = {}
    unexplained: dict[str, str] = {}
    ours = 0
    for test in sorted(reference):
        outcome = results[test].outcome if test in results else "missing"
        if outcome == PASS:
            ours += 1
            if test in ledger.differences:
                unexplained[test] = "passes, but the ledger lists it as a difference"
        elif test in ledger.differences:
            explained[test] = ledger.differences[test]
        elif test in ledger.flickers:
            explained[test] = f"flickers: {ledger.flickers[test]}"
        elif test in also_fails:
            explained[test] = "fails on stock asyncio too when each I/O event comes one turn later"
        else:
            unexplained[test] = outcome
    if not selected:
        for test in sorted((set(ledger.differences) | set(ledger.flickers)) - reference):
            unexplained[test] = "in the ledger, but not a test that the reference passes"
    return Verdict(len(reference), ours, explained, unexplained)


def by_reason(explained: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    for test, reason in explained.items():
        reasons[reason].append(test)
    return dict(reasons)
