"""The results of `python -m benchmarks` as text, and as Markdown between the markers of docs/performance.md."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import matrix, report, verdict

OURS = "netpoll_loop"


def markers(results: dict[str, Any]) -> tuple[str, str]:
    """Between which a file has the table: one place for each Python."""
    python = ".".join(results["about"]["machine"]["python"].split(".")[:2])
    return f"<!-- benchmarks {python}: begin -->", f"<!-- benchmarks {python}: end -->"


def numbered(pairs: dict[str, Any]) -> dict[Any, Any]:
    """For json.loads: rounds are numbers again."""
    return {int(key) if key.isdigit() else key: value for key, value in pairs.items()}


def rates(row: dict[str, Any]) -> dict[str, dict[int, float]]:
    """By loop and round."""
    return {name: {number: one["rate"] for number, one in found.items()} for name, found in row["measured"].items()}


def _median(found: dict[int, dict[str, Any]], what: str) -> float | None:
    values = [one[what] for one in found.values() if what in one]
    return statistics.median(values) if values else None


def _cell(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def against(row: dict[str, Any]) -> list[tuple[str, float | None, verdict.Ratio]]:
    """What ours is compared with: (name, target, ratio), uvloop first, then the best other loop."""
    all_rates = rates(row)
    best = verdict.best_peer(all_rates, OURS)
    found: list[tuple[str, float | None, verdict.Ratio]] = []
    if not row.get("compared", True):
        return found
    for name, target in (("uvloop", row["to_uvloop"]), (best, row["to_best"])):
        if name is None or name not in all_rates or (found and name == found[0][0] and target is None):
            continue
        ratio = verdict.ratio(verdict.paired(all_rates.get(OURS, {}), all_rates[name]))
        if ratio is not None:
            found.append((name, target, ratio))
    return found


def outcomes(row: dict[str, Any]) -> list[verdict.Outcome]:
    """What the row's targets for other metrics came to."""
    found = (verdict.outcome(verdict.Target(**one), row["measured"], OURS) for one in row.get("targets", ()))
    return [one for one in found if one is not None]


def _own(row: dict[str, Any]) -> bool:
    """Whether its figures don't fit the table of all rows."""
    return bool(row.get("only") or row.get("columns") or not row.get("compared", True))


def row_text(row: dict[str, Any]) -> str:
    """One row: a line for each loop, then the ratios and what they had to be."""
    lines = [
        ["", row["unit"].strip() if row["unit"] != "/s" else "per second", "CPU us each", "p50 us", "p99", "p99.9"]
    ]
    columns = row.get("columns", ())
    lines[0] += [heading for _, heading, _ in columns]
    bound = False
    for name, found in row["measured"].items():
        if not found:
            lines.append([name, "can't" if row["failures"].get(name) else "-"])
            continue
        limited = any(one.get("client_bound") for one in found.values())
        bound |= limited
        rate = report.thousands(_median(found, "rate") or 0) + ("*" if limited else " ")
        cells = [_cell(_median(found, "cpu_us"), 2)]
        cells += [_cell(_median(found, what)) for what in ("p50_us", "p99_us", "p999_us")]
        lines.append([name, rate, *cells, *(_cell(_median(found, what), digits) for what, _, digits in columns)])
    text = f"{row['title']}\n{report.table(lines)}"
    for name, target, ratio in against(row):
        wanted = "" if target is None else f", wanted {target:.2f}: {ratio.verdict(target)}"
        text += f"\n  to {name}: {ratio}{wanted}"
    for one in outcomes(row):
        text += f"\n  {one}"
    for what, value in row.get("shared", {}).items():
        text += f"\n  {what}: {value:.6g}"
    if row.get("missing"):
        text += f"\n  not installed here: {', '.join(row['missing'])}"
    if bound:
        text += "\n  * the load generator used up its core: compare the CPU of each request"
    for name, reasons in row["failures"].items():
        text += f"\n  {name} failed {len(reasons)} times: {reasons[-1].splitlines()[-1][:150]}"
    return text


def new_row_text(all_rows: list[dict[str, Any]]) -> str:
    """The last of the rows. A cell of the matrix is one line, for their table comes at the end."""
    row = all_rows[-1]
    if row["group"] != matrix.GROUP:
        return f"\n{row_text(row)}"
    first = len(all_rows) == 1 or all_rows[-2]["group"] != matrix.GROUP
    return ("\n" if first else "") + matrix.line(row)


def headline(results: dict[str, Any]) -> str:
    """What the numbers come from."""
    about = results["about"]
    machine = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['date']}, commit {about['commit']}; {machine}\n{versions}\n"
        f"{about['rounds']} rounds of {about['seconds']:g} s, interleaved; medians, with a 95 % bootstrap interval"
    )


def summary(results: dict[str, Any]) -> str:
    """How many targets were met."""
    verdicts = [
        (f"{row['name']} to {name} {ratio}", ratio.verdict(target))
        for row in results["rows"]
        for name, target, ratio in against(row)
        if target is not None
    ]
    others = [one for row in results["rows"] for one in outcomes(row)] + matrix.outcomes(results["rows"])
    verdicts += [(f"{one.title}: {one.found}", one.word) for one in others if one.word]
    missed = [name for name, word in verdicts if word == verdict.MISSED and not name.startswith(matrix.CELL)]
    if cells := sum(name.startswith(matrix.CELL) and word == verdict.MISSED for name, word in verdicts):
        missed.append(f"{cells} cells of the matrix")
    reached = sum(word != verdict.MISSED for _, word in verdicts)
    text = f"{reached} of {len(verdicts)} targets reached"
    return text + (f"; missed: {'; '.join(missed)}" if missed else "")


def end_text(results: dict[str, Any]) -> str:
    """What comes after the last row."""
    cells = matrix.text(results["rows"])
    return (f"\n{cells}\n" if cells else "") + f"\n{summary(results)}"


def text(results: dict[str, Any]) -> str:
    """Everything."""
    found = results["rows"]
    return "\n".join([headline(results), *(new_row_text(found[: i + 1]) for i in range(len(found))), end_text(results)])


def markdown(results: dict[str, Any]) -> str:
    """The table of all rows."""
    about = results["about"]
    usual = [row for row in results["rows"] if not _own(row)]
    names = list(dict.fromkeys(name for row in usual for name in row["measured"]))
    machine = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    lines = [
        f"Measured on {about['date']} at commit `{about['commit']}`: {machine}; {about['rounds']} rounds of "
        f"{about['seconds']:g} s. "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + ".",
    ]
    if usual:
        lines += [
            "",
            "Operations or requests a second (median), and in brackets the microseconds of CPU that the process spent "
            "on each; ratios of the rates with their 95 % bootstrap interval.",
            "",
            "| row | " + " | ".join(names) + " | to uvloop | to the best other loop |",
            "| --- |" + " ---: |" * (len(names) + 2),
        ]
    for row in usual:
        cells = []
        for name in names:
            found = row["measured"].get(name)
            cpu = f" ({_cell(_median(found, 'cpu_us'), 2)})" if found else ""
            cells.append(report.thousands(_median(found, "rate") or 0) + cpu if found else "-")
        ratios = against(row)
        to_uvloop = next((str(ratio) for name, _, ratio in ratios if name == "uvloop"), "-")
        to_best = f"{ratios[-1][2]} ({ratios[-1][0]})" if ratios else "-"
        lines.append(f"| {row['title']} | " + " | ".join(cells) + f" | {to_uvloop} | {to_best} |")
    blocks = [row_text(row) for row in results["rows"] if _own(row) and row["group"] != matrix.GROUP]
    if table_of_cells := matrix.text(results["rows"]):
        blocks.append(table_of_cells)
    if blocks:
        lines += [
            "",
            "Rows that are more than a rate (the section below says what they measure):",
            "",
            "```text",
            "\n\n".join(blocks),
            "```",
        ]
    return "\n".join(lines)


def write_report(results: dict[str, Any], file: Path, plots: Sequence[Path] = ()) -> None:
    """Replaces what is between the markers; shows the plots behind it. Raises ValueError if the markers are missing."""
    first, last = markers(results)
    before, begin, rest = file.read_text().partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"{file} has no {first} ... {last}")
    links = [f"\n![{plot.stem}]({os.path.relpath(plot, file.parent)})\n" for plot in plots]
    file.write_text(f"{before}{first}\n{markdown(results)}\n{''.join(links)}{last}{after}")
