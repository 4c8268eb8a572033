"""PNGs of the results of `python -m benchmarks`: one for each group of rows, a heat map for the matrix."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from benchmarks import matrix, table, verdict
from benchmarks.harness import BenchmarkError

TITLES = {
    "sched": "Callbacks, timers and tasks",
    "misc": "Names, threads, processes, connections",
    "udp": "UDP echo",
    "echo": "TCP echo and bulk transfer",
    "http": "HTTP servers",
    "json": "HTTP servers, a JSON document of 10 KiB for each request",
}

OURS = "#c0392b"
#: Nothing that looks like OURS.
OTHERS = [f"tab:{name}" for name in ("blue", "orange", "green", "purple", "gray", "olive", "cyan", "pink")]


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draws into the folder; the files. Raises BenchmarkError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise BenchmarkError("plots need matplotlib: pip install --group bench") from None
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        _group(group, list(found), results["about"], folder)
        for group, found in itertools.groupby(results["rows"], key=lambda row: row["group"])
        if group in TITLES
    ]
    cells = matrix.cells(results["rows"])
    return [*files, _matrix(cells, results["about"], folder)] if cells else files


def _group(group: str, found: list[dict[str, Any]], about: dict[str, Any], folder: Path) -> Path:
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for row in found for name in row["measured"]))
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
        color = OURS if name == table.OURS else OTHERS[place % len(OTHERS)]
        axes.barh(at, middles, height=height * 0.9, xerr=[low, high], label=name, color=color, error_kw={"lw": 0.7})
    axes.axvline(1.0, color="black", lw=0.8)
    axes.set_yticks(range(len(found)), [row["title"] for row in found])
    axes.invert_yaxis()
    axes.set_xlabel("rate, as a multiple of uvloop's in the same round\n(median, 95 % interval); longer is faster")
    machine = about["machine"]
    axes.set_title(f"{TITLES[group]}\nPython {machine['python']}, {machine['cpus']} CPUs, {about['date']}", fontsize=10)
    axes.legend(fontsize=8)
    figure.tight_layout()
    file = folder / f"{group}.png"
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file


def _matrix(cells: list[matrix.Cell], about: dict[str, Any], folder: Path) -> Path:
    """A square for each cell. What is worse than the better mode is red, what is better blue, what is as good white."""
    from matplotlib import colors, patches, pyplot

    columns = sorted({one.connections for one in cells})
    lines = sorted({one.work_us for one in cells})
    grid = [[math.nan] * len(columns) for _ in lines]
    figure, axes = pyplot.subplots(figsize=(2.6 + 1.05 * max(6, len(columns)), 2.7 + 0.8 * len(lines)))
    for one in cells:
        x, y = columns.index(one.connections), lines.index(one.work_us)
        grid[y][x] = one.ratio.median
        mode = one.better.partition(":")[2]
        ink = "white" if abs(one.ratio.median - 1) > 0.16 else "black"
        axes.text(x, y - 0.12, f"{one.ratio.median:.2f}", ha="center", va="center", fontsize=12, color=ink)
        axes.text(x, y + 0.24, f"to {mode}", ha="center", va="center", fontsize=7, color=ink)
        if one.ratio.verdict(matrix.CELL_TARGET) == verdict.MISSED:
            axes.add_patch(patches.Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, ec="black", lw=2.2))
    # Beyond a quarter off it makes no difference to the reader how far.
    image = axes.imshow(grid, cmap="RdBu", norm=colors.Normalize(0.75, 1.25), aspect="auto")
    bar = figure.colorbar(image, ax=axes, extend="both", ticks=[0.75, 0.85, 0.95, 1.0, 1.05, 1.15, 1.25])
    bar.set_label('requests/s of "auto" by those of the better mode\nred: "auto" is slower, blue: faster')
    axes.set_xticks(range(len(columns)), [str(number) for number in columns])
    axes.set_yticks(range(len(lines)), [f"{number} us" for number in lines])
    axes.set_xlabel("connections that ask all the time, echo of 1 KiB")
    axes.set_ylabel("pure Python for each request")
    worst = min(cells, key=lambda one: one.ratio.median)
    overall = matrix.mean(cells)
    mean = f"geometric mean {overall.median:.3f}, wanted {matrix.MEAN_TARGET}; " if overall else ""
    machine = about["machine"]
    axes.set_title(
        'Is netpoller="auto" as good as the better of "inline" and "dedicated"? 1.00: just as good\n'
        f"{mean}worst cell {worst.ratio.median:.2f}, wanted {matrix.CELL_TARGET}\n"
        "In a square: the ratio, and to which mode, the better one; "
        f"framed: surely below {matrix.CELL_TARGET} (95 % interval)\n"
        f"Python {machine['python']}, {machine['cpus']} CPUs, {about['date']}, median of {about['rounds']} rounds",
        fontsize=9,
        linespacing=1.4,
    )
    figure.tight_layout()
    file = folder / "matrix.png"
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file
