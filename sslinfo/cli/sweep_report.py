"""Table and figure of a sweep."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from sslinfo.evaluation.probes import Mean

Row = dict[str, Any]


def short(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def write(file: Path, rows: Sequence[Row], first: Sequence[str], last: Sequence[str]) -> None:
    between = sorted({name for row in rows for name in row} - {*first, *last})
    new = file.with_suffix(".new")
    with new.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, [*first, *between, *last])
        writer.writeheader()
        writer.writerows(rows)
    new.replace(file)  # an interruption leaves the old file or the new one


def report(rows: Sequence[Row], names: Sequence[str], half: str, out: Path) -> None:
    """Table and figure of all runs of the folder, a row for each combination."""
    combinations: dict[tuple[float, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: [row[name] for name in names]):
        combinations.setdefault(tuple(row[name] for name in names), []).append(row)
    metrics = sorted({name for row in rows for name in row} - {"run", *names, "seed", "seconds", "error"})
    # linear_top1 before linear_loss: accuracies are what a sweep is about.
    metrics = [*sorted(metrics, key=lambda name: (not name.startswith("probe/"), "top1" not in name)), "seconds"]
    means: list[dict[str, Mean]] = []
    table = Table(box=box.SIMPLE, title=f"{half}: mean ± standard error over seeds", title_justify="left")
    for name in [*names, "runs", *(metric.split("/")[-1] for metric in metrics)]:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    records: list[Row] = []
    for values, group in combinations.items():
        good = [row for row in group if not row["error"]]
        mean = {m: Mean.of([row[m] for row in good if m in row]) for m in metrics if any(m in row for row in good)}
        count = f"{len(good)}" if len(good) == len(group) else f"{len(good)} of {len(group)}"
        table.add_row(*map(short, values), count, *(_cell(m, mean.get(m)) for m in metrics))
        record: Row = {**dict(zip(names, values, strict=True)), "runs": len(good)}
        for metric, value in mean.items():
            record[metric] = value.mean
            if len(good) > 1:
                record[f"{metric} standard error"] = value.error
        records.append(record)
        means.append(mean)
    write(out / "sweep.csv", records, [*names, "runs"], [])
    # Where nothing measures the terminal, lines are as long as they need to be.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print()
    console.print(table)
    print(f"table: {out / 'sweep.csv'}, and each run by itself: {out / 'runs.csv'}")
    points = [dict(zip(names, values, strict=True)) for values in combinations]
    if figure := draw(points, means, half):
        figure.savefig(out / "sweep.png", dpi=130)
        print(f"figure: {out / 'sweep.png'}")


def _cell(metric: str, value: Mean | None) -> str:
    if value is None:
        return ""
    if metric == "seconds":
        return f"{value.mean:.4g}"
    scale, digits, unit = (100, ".1f", " %") if "top1" in metric else (1, ".4g", "")
    error = f" ± {scale * value.error:{digits.replace('4', '2')}}" if value.error else ""
    return f"{scale * value.mean:{digits}}{error}{unit}"


def draw(points: Sequence[dict[str, float]], means: Sequence[dict[str, Mean]], half: str) -> Figure | None:
    """Each probe against the option with the most values, a line for each combination of the others."""
    measured = list(dict.fromkeys(metric for mean in means for metric in mean))
    shown = [metric for metric in measured if metric.startswith("probe/") and "top1" in metric]
    shown = shown or [metric for metric in measured if metric != "seconds"]
    if not shown:
        return None
    there = [number for number, mean in enumerate(means) if any(metric in mean for metric in shown)]
    points, means = [points[number] for number in there], [means[number] for number in there]
    values = {name: sorted({point[name] for point in points}) for name in points[0]}
    along = max(values, key=lambda name: len(values[name]))
    lines: dict[tuple[float, ...], list[tuple[float, dict[str, Mean]]]] = {}
    others = [name for name in values if name != along and len(values[name]) > 1]
    for point, mean in zip(points, means, strict=True):
        lines.setdefault(tuple(point[name] for name in others), []).append((point[along], mean))
    xs = values[along]
    logarithmic = xs[0] > 0 and xs[-1] >= 10 * xs[0]
    figure = Figure(figsize=(5.2 * len(shown), 4), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        scale, unit = (100, " (%)") if "top1" in metric else (1, " (nats)" if metric == "train/entropy" else "")
        for number, (key, line) in enumerate(sorted(lines.items())):
            marks = sorted((x, mean[metric]) for x, mean in line if metric in mean)
            # Side by side: bars at the same x would hide one another.
            aside = 0.012 * (number - (len(lines) - 1) / 2)
            axis.errorbar(
                [x * (xs[-1] / xs[0]) ** aside if logarithmic else x + aside * (xs[-1] - xs[0]) for x, _ in marks],
                [scale * mean.mean for _, mean in marks],
                [scale * mean.error for _, mean in marks],
                marker="o",
                capsize=3,
                color=colormaps["viridis"](0.85 * number / max(1, len(lines) - 1)),
                label=", ".join(f"{name} = {short(value)}" for name, value in zip(others, key, strict=True)),
            )
        if logarithmic:
            axis.set_xscale("log")
        if len(xs) <= 8:
            axis.set_xticks(xs, [short(x) for x in xs])
            axis.set_xticks([], minor=True)
        axis.set(xlabel=f"{along} of {half}", ylabel=f"{metric}{unit}")
        axis.grid(alpha=0.3)
    if others:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    constant = [f"{name} = {short(values[name][0])}" for name in values if len(values[name]) == 1 and name != along]
    repeated = any(mean[metric].error for mean in means for metric in shown if metric in mean)
    bars = "; bars: standard error over seeds" if repeated else ""
    figure.suptitle(", ".join([half, *constant]) + bars, fontsize="medium")
    return figure
