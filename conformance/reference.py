"""Which tests the reference loop passes: `reference/<suite>-<version>-<python>[-debug].txt`, committed.

One id a line, sorted; lines with `#` say how the file was made, and name what the reference passes only sometimes:

    # flickers 2/3: tests.test_x.TestX.test_y

With PYTHONASYNCIODEBUG=1 some tests do something else, so that has files of its own.
"""

import os
import platform
import re
from collections.abc import Iterable

from conformance import sources
from conformance.suites import Suite

FOLDER = sources.HERE / "reference"

_FLICKERS = re.compile(r"# flickers (\d+)/(\d+): (.*)")


def debug() -> bool:
    return bool(os.environ.get("PYTHONASYNCIODEBUG"))


def run_on() -> str:
    """Which thread runs the callbacks of our loop."""
    return os.environ.get("NETPOLL_LOOP_RUN_ON") or "caller"


def path(suite: Suite):
    parts = [suite.name, suite.version]
    if suite.name != "cpython":
        parts.append(sources.python_tag())
    if debug():
        parts.append("debug")
    return FOLDER / ("-".join(parts) + ".txt")


def load(suite: Suite) -> tuple[list[str], dict[str, str]]:
    """The ids that pass, and those that flicker with their rates ("2/3"). FileNotFoundError if there's no such file."""
    passed, flickering = [], {}
    for line in path(suite).read_text().splitlines():
        if match := _FLICKERS.fullmatch(line):
            flickering[match[3]] = f"{match[1]}/{match[2]}"
        elif line and not line.startswith("#"):
            passed.append(line)
    return passed, flickering


def save(suite: Suite, tried: Iterable[str], passes: dict[str, int], rounds: int) -> tuple[list[str], dict[str, str]]:
    """`passes`: how often each id passed in `rounds` rounds."""
    passed = sorted(test for test, times in passes.items() if times == rounds)
    flickering = {test: f"{times}/{rounds}" for test, times in sorted(passes.items()) if 0 < times < rounds}
    tried = set(tried)
    lines = [
        f"# {suite.name} {suite.version}, Python {platform.python_version()}: {len(passed)} of {len(tried)} tests,",
        f"# those that {suite.reference} passes in {rounds} of {rounds} rounds.",
        f"# Made by: python -m conformance {suite.name} --refresh-reference",
        *(f"# flickers {rate}: {test}" for test, rate in flickering.items()),
        *passed,
    ]
    path(suite).write_text("\n".join(lines) + "\n")
    return passed, flickering
