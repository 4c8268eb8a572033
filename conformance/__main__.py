"""The command: python -m conformance uvloop|aiohttp|cpython. See the package's docstring."""

import argparse
import collections
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence

from conformance import compatibility, driver, ledger, loops, records, reference, sources
from conformance.suites import REFERENCE, SUITES, Suite

MODES = ("auto", "dedicated", "inline")

#: Lines of a failure's text that are printed; --json has all of it.
DETAIL_LINES = 12


def expression(text: str) -> Callable[[str], bool]:
    """pytest's -k: parts of an id, in any case, joined by `and`, `or`, `not` and parentheses. Raises ValueError."""
    tokens = re.findall(r"[()]|[^\s()]+", text)

    def matches(test: str) -> bool:
        lowered = test.lower()
        source = " ".join(
            token if token in ("(", ")", "and", "or", "not") else str(token.lower() in lowered) for token in tokens
        )
        return bool(eval(source, {"__builtins__": {}}))  # Only the words True, False, and, or, not remain.

    try:
        matches("")
    except SyntaxError:
        raise ValueError(f"not an expression of words, and, or, not: {text!r}") from None
    return matches


class Progress:
    """One line for each file of the suite, and one for each test that doesn't pass."""

    def __init__(self, suite: Suite, total: int) -> None:
        self._suite, self._total, self._done, self._began = suite, total, 0, time.monotonic()

    def test(self, test: str, outcome: driver.Outcome) -> None:
        self._done += 1
        if outcome.outcome not in (records.PASS, records.SKIP, records.XFAIL):
            print(f"    {outcome.outcome:7} {test}", flush=True)

    def chunk(self, name: str, outcomes: Sequence[driver.Outcome]) -> None:
        counts = collections.Counter(outcome.outcome for outcome in outcomes)
        said = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        elapsed = time.monotonic() - self._began
        print(f"[{self._done:5}/{self._total}] {elapsed:5.0f} s  {name}: {said}", flush=True)


def run(suite: Suite, kind: str, netpoller: str, tests: Sequence[str]) -> dict[str, driver.Outcome]:
    job = suite.job(kind, netpoller)
    progress = Progress(suite, len(tests))
    results: dict[str, driver.Outcome] = {}
    for chunk in suite.chunks(tests):
        outcomes = driver.run(job, chunk, progress.test)
        results.update(outcomes)
        progress.chunk(suite.module(chunk[0]), list(outcomes.values()))
    return results


def refresh(suite: Suite, rounds: int) -> tuple[list[str], dict[str, str]]:
    tests = suite.discover()
    passes: collections.Counter[str] = collections.Counter()
    for number in range(1, rounds + 1):
        print(
            f"conformance {suite.name}: {suite.reference}, round {number} of {rounds}, {len(tests)} tests", flush=True
        )
        for test, outcome in run(suite, REFERENCE, "auto", tests).items():
            passes[test] += outcome.outcome == records.PASS
    passed, flickering = reference.save(suite, tests, passes, rounds)
    print(f"conformance {suite.name}: {len(passed)} in {reference.path(suite).relative_to(sources.ROOT)}")
    return passed, flickering


def delay_breaks(suite: Suite, tests: Sequence[str]) -> list[str]:
    """Those that fail on stock asyncio with each I/O event delayed by one turn, and only because of the delay."""
    print(f"{len(tests)} on stock asyncio with each I/O event delayed by one turn", flush=True)
    outcomes = run(suite, loops.DELAYED, "auto", tests)
    broken = [test for test, outcome in outcomes.items() if outcome.outcome != records.PASS]
    if not broken:
        return broken
    print(f"{len(broken)} on stock asyncio as it is", flush=True)
    return [
        test for test, outcome in run(suite, loops.STOCK, "auto", broken).items() if outcome.outcome == records.PASS
    ]


def write_json(path: str, suite: Suite, results: dict[str, driver.Outcome], verdict: ledger.Verdict) -> None:
    document = {
        "suite": suite.name,
        "version": suite.version,
        "reference": verdict.reference,
        "ours": verdict.ours,
        "explained": verdict.explained,
        "unexplained": verdict.unexplained,
        "tests": {test: vars(outcome) for test, outcome in results.items()},
    }
    with open(path, "w") as file:
        json.dump(document, file, indent=1)


def conform(suite: Suite, options: argparse.Namespace) -> int:
    """One suite in one mode; the exit status."""
    expected = ledger.load_for(
        suite.name, netpoller=options.netpoller, debug=reference.debug(), run_on=reference.run_on()
    )
    if obstacle := suite.obstacle():
        sys.exit(f"conformance: {obstacle}")
    if options.refresh_reference:
        refresh(suite, options.rounds)
        return 0
    try:
        passed, _ = reference.load(suite)
    except FileNotFoundError as error:
        print(f"conformance: no {error.filename}; make it with --refresh-reference", file=sys.stderr)
        return 2
    tests = [test for test in passed if options.select is None or options.select(test)]
    loop = "" if options.loop == loops.NETPOLL else f"{options.loop} loop, "
    loop += "run_on worker, " if reference.run_on() == "worker" else ""
    print(
        f"conformance {suite.name} {suite.version}: {loop}netpoller {options.netpoller}, {len(tests)} tests", flush=True
    )

    results: dict[str, driver.Outcome] = {}
    flickering: dict[str, int] = collections.Counter()
    for number in range(1, options.rounds + 1):
        if options.rounds > 1:
            print(f"round {number} of {options.rounds}", flush=True)
        for test, outcome in run(suite, options.loop, options.netpoller, tests).items():
            flickering[test] += outcome.outcome != records.PASS
            if test not in results or outcome.outcome != records.PASS:
                results[test] = outcome

    also_fails: list[str] = []
    suspects = [
        test
        for test, outcome in results.items()
        if outcome.outcome != records.PASS and test not in expected.differences and test not in expected.flickers
    ]
    if options.netpoller == "dedicated" and suspects:
        also_fails = delay_breaks(suite, suspects)

    selected = len(tests) != len(passed)
    verdict = ledger.judge(tests, results, expected, also_fails=also_fails, selected=selected)
    if options.json:
        write_json(options.json, suite, results, verdict)
    for reason, names in ledger.by_reason(verdict.explained).items():
        print(f"\nexplained: {reason}")
        for test in names:
            print(f"    {test}")
    for test, what in verdict.unexplained.items():
        print(f"\nunexplained: {test}: {what}")
        if test in results:
            for text in results[test].detail.strip().splitlines()[-DETAIL_LINES:]:
                print(f"    {text}")
    for test, failures in flickering.items():
        if 0 < failures < options.rounds:
            print(f"\nflickers: {test}: failed {failures} of {options.rounds}")
    if strays := [test for test, outcome in results.items() if outcome.stock and not outcome.ours]:
        print(f"\n{len(strays)} tests made only loops of asyncio's own, so they say nothing about ours:")
        for test in strays:
            print(f"    {test}")
    print()
    print(verdict.line(suite.name), flush=True)
    if options.record and not selected and options.loop == loops.NETPOLL:
        compatibility.record(suite, options.netpoller, verdict)
    return 1 if verdict.unexplained else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__.splitlines()[0])
    parser.add_argument("suite", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--netpoller", choices=MODES, default="auto", help="mode of our loop (default: auto)")
    parser.add_argument("--run-on", choices=("caller", "worker"), help="thread that runs the callbacks of our loop")
    parser.add_argument("-k", dest="select", type=expression, metavar="EXPR",
                        help="only tests whose id matches, as in pytest: words, and, or, not")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write every result, with its whole text")
    parser.add_argument("--refresh-reference", action="store_true",
                        help="only run the suite on its reference loop and rewrite the list of passes")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=1, help="run it this often, to find what flickers (default: 1)")
    parser.add_argument("--loop", choices=loops.KINDS, default=loops.NETPOLL, help="for comparison: asyncio's own loop")
    parser.add_argument("--record", action="store_true", help="put the numbers into docs/compatibility.md's table")
    options = parser.parse_args(argv)
    if options.run_on:
        os.environ["NETPOLL_LOOP_RUN_ON"] = options.run_on
    # A shell's background job ignores SIGINT, nohup's SIGHUP, and so would the programs that tests send them to.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sources.CACHE.mkdir(exist_ok=True)
    status = 0
    for name in options.suite:
        status = max(status, conform(SUITES[name], options))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ledger.LedgerError as error:
        sys.exit(f"conformance: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
