"""PNGs of the results of `python -m benchmarks`: one for each group of rows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from benchmarks import table, verdict
from benchmarks.harness import BenchmarkError

TITLES = {
    "sched": "Callbacks, timers and tasks",
    "misc": "Names, threads, processes, connections",
    "udp": "UDP echo",
    "echo": "TCP echo and bulk transfer",
    "http": "HTTP servers",
}


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draws into the folder; the files. Raises BenchmarkError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise BenchmarkError("plots need matplotlib: pip install --group bench") from None
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _group(group, list(found), results["about"], folder)
        for group, found in itertools.groupby(results["rows"], key=lambda row: row["group"])
        if group in TITLES
    ]


def _group(group: str, found: list[dict[str, Any]], about: dict[str, Any], folder: Path) -> Path:
    from matplotlib import pyplot

    names = list(found[0]["measured"])
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + len(found) * (0.25 + 0.13 * len(names))))
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        middles, low, high, at = [], [], [], []
        for number, row in enumerate(found):
            rates = table.rates(row)
            ratio = verdict.ratio(verdict.paired(rates.get(name, {}), rates.get("uvloop", {})))
            if ratio is None:
                continue
            middles.append(ratio.median)
            low.append(ratio.median - ratio.low)
            high.append(ratio.high - ratio.median)
            at.append(number + (place - (len(names) - 1) / 2) * height)
        color = "#c0392b" if name == table.OURS else None
        axes.barh(at, middles, height=height * 0.9, xerr=[low, high], label=name, color=color, error_kw={"lw": 0.7})
    axes.axvline(1.0, color="black", lw=0.8)
    axes.set_yticks(range(len(found)), [row["title"] for row in found])
    axes.invert_yaxis()
    axes.set_xlabel("rate, as a multiple of uvloop's in the same round (median, 95 % interval); longer is faster")
    machine = about["machine"]
    axes.set_title(f"{TITLES[group]}\nPython {machine['python']}, {machine['cpus']} CPUs, {about['date']}", fontsize=10)
    axes.legend(fontsize=8)
    figure.tight_layout()
    file = folder / f"{group}.png"
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file
