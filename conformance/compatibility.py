"""docs/compatibility.md, written from what was measured: never by hand.

The numbers of whole runs (`--record`) are kept in `results.json`; the explained differences come from the ledgers, and
the behaviours in which the loops differ from `differences`, which `tests/test_differences.py` measures.
"""

import json
import platform
import tomllib

from conformance import differences, ledger, reference, sources
from conformance.suites import SUITES, Suite

RESULTS = sources.HERE / "results.json"
DOCUMENT = sources.ROOT / "docs" / "compatibility.md"

_OPENING = """\
# Compatibility

<!-- Written by `python -m conformance.compatibility`; edit conformance/, not this file. -->

What breaks if you swap the loop? This page answers with other people's test suites, unchanged, on netpoll_loop.
`python -m conformance uvloop` (or `aiohttp`, `cpython`) runs one again; `make conformance` runs all three.

A test counts when the suite's reference loop passes it: uvloop for uvloop's own suite, stock asyncio for the others.
**Explained** tests fail on netpoll_loop for a reason that is written down below, by exact test id. **Unexplained** ones
fail without; a run with any exits with status 1, and so does a run in which an explained test passes.
"""


def record(suite: Suite, netpoller: str, verdict: ledger.Verdict) -> None:
    """Keeps the numbers of a whole run and writes the document anew."""
    rows = _rows()
    key = {
        "suite": suite.name,
        "version": suite.version,
        "python": platform.python_version(),
        "netpoller": netpoller,
        "debug": reference.debug(),
        "run_on": reference.run_on(),
    }
    rows = [row for row in rows if any(row.get(name, "caller") != value for name, value in key.items())]
    rows.append(
        {
            **key,
            "reference": verdict.reference,
            "ours": verdict.ours,
            "explained": len(verdict.explained),
            "unexplained": len(verdict.unexplained),
        }
    )
    rows.sort(
        key=lambda row: [str(row.get(name, "caller")) for name in ("suite", "python", "debug", "run_on", "netpoller")]
    )
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    write()


def write() -> None:
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text())


def text() -> str:
    """The document."""
    return "\n".join([_OPENING, *_numbers(), *_behaviours(), *_explained()])


def _rows() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def _numbers():
    yield "## The suites\n"
    yield "| suite | Python | netpoller | the reference passes | we pass | explained | unexplained |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in _rows():
        name = row["suite"] if row["suite"] == "cpython" else f"{row['suite']} {row['version']}"
        mode = row["netpoller"] + (", PYTHONASYNCIODEBUG=1" if row["debug"] else "")
        mode += ", run_on worker" if row.get("run_on") == "worker" else ""
        numbers = [row["reference"], row["ours"], row["explained"], row["unexplained"]]
        yield f"| {name} | {row['python']} | {mode} | {' | '.join(map(str, numbers))} |"
    yield ""


def _behaviours():
    yield "## Where the loops differ\n"
    yield "Each line is measured by `tests/test_differences.py` on all three loops.\n"
    yield f"| | {' | '.join(differences.LOOPS)} | |"
    yield "| --- | --- | --- | --- | --- |"
    for difference in differences.DIFFERENCES:
        yield f"| {difference.question} | {' | '.join(difference.answers)} | {difference.note} |"
    yield ""


def _explained():
    yield "## Explained differences\n"
    for suite in SUITES.values():
        path = sources.HERE / "expected" / f"{suite.name}.toml"
        document = tomllib.loads(path.read_text()) if path.exists() else {}
        yield f"### {suite.name}\n"
        if not any(document.values()):
            yield "None.\n"
        for kind in ("difference", "flicker"):
            for entry in document.get(kind, []):
                limits = [
                    f"{name} {', '.join(entry[key])}"
                    for key, name in (("python", "Python"), ("netpoller", "netpoller"))
                    if key in entry
                ]
                if "debug" in entry:
                    limits.append("with PYTHONASYNCIODEBUG=1" if entry["debug"] else "without PYTHONASYNCIODEBUG")
                if "run_on" in entry:
                    limits.append(f"run_on {entry['run_on']}")
                where = f" ({'; '.join(limits)})" if limits else ""
                if kind == "flicker":
                    where += f" (flickers: fails {entry['reference']} on {suite.reference}, {entry['ours']} on ours)"
                yield f"{' '.join(entry['reason'].split())}{where}\n"
                yield from (f"- `{test}`" for test in entry["tests"])
                yield ""


if __name__ == "__main__":
    write()
