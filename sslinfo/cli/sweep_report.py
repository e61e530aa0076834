"""Table and figure of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from sslinfo.cli.sweep_folder import Row, write
from sslinfo.cli.sweep_options import shown
from sslinfo.evaluation.probes import Mean


def report(rows: Sequence[Row], options: Mapping[str, str], subject: str, out: Path) -> None:
    """Table and figure of all runs of the folder, a row for each combination.

    Args:
        rows: the runs, as ``runs.csv`` has them.
        options: for the columns that tell the combinations apart, the option in the words of title and figure.
        subject: what the options belong to, such as the class of the model; may be empty.
        out: the folder.
    """
    names = list(options)
    values = {name: ordered(row[name] for row in rows) for name in names}
    combinations: dict[tuple[float | str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: [values[name].index(row[name]) for name in names]):
        combinations.setdefault(tuple(row[name] for name in names), []).append(row)
    metrics = sorted({name for row in rows for name in row} - {"run", *names, "seed", "seconds", "error"})
    # linear_top1 before linear_loss: accuracies are what a sweep is about.
    metrics = [*sorted(metrics, key=lambda name: (not name.startswith("probe/"), "top1" not in name)), "seconds"]
    means: list[dict[str, Mean]] = []
    swept = " and ".join(options[name] for name in names if len(values[name]) > 1) or " and ".join(options.values())
    title = f"{_of(swept, subject)}: mean ± standard error over seeds"
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for name in [*names, "runs", *(metric.split("/")[-1] for metric in metrics)]:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    records: list[Row] = []
    for combination, group in combinations.items():
        good = [row for row in group if not row["error"]]
        mean = {m: Mean.of([row[m] for row in good if m in row]) for m in metrics if any(m in row for row in good)}
        count = f"{len(good)}" if len(good) == len(group) else f"{len(good)} of {len(group)}"
        table.add_row(*map(shown, combination), count, *(_cell(m, mean.get(m)) for m in metrics))
        record: Row = {**dict(zip(names, combination, strict=True)), "runs": len(good)}
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
    points = [dict(zip(options.values(), combination, strict=True)) for combination in combinations]
    if figure := draw(points, means, subject):
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


def ordered(values: Iterable[float | str]) -> list[float | str]:
    """Different values: numbers by size, then texts as they come.

    >>> ordered([10, "null", 1.5, "LogDet", 10])
    [1.5, 10, 'null', 'LogDet']
    """
    different = list(dict.fromkeys(values))
    numbers = sorted(value for value in different if not isinstance(value, str))
    return [*numbers, *(value for value in different if isinstance(value, str))]


def _of(option: str, subject: str) -> str:
    return f"{option} of {subject}" if subject else option


def draw(points: Sequence[dict[str, float | str]], means: Sequence[dict[str, Mean]], subject: str) -> Figure | None:
    """Each probe against the option with the most values, a line for each combination of the others.

    Along an option whose values are not all numbers, they stand side by side in equal steps, without lines between.

    Args:
        points: the values of each combination's options.
        means: what was measured there.
        subject: what the options belong to, such as the class of the model; may be empty.

    Returns:
        The figure; None where nothing was measured.
    """
    measured = list(dict.fromkeys(metric for mean in means for metric in mean))
    drawn = [metric for metric in measured if metric.startswith("probe/") and "top1" in metric]
    drawn = drawn or [metric for metric in measured if metric != "seconds"]
    if not drawn:
        return None
    there = [number for number, mean in enumerate(means) if any(metric in mean for metric in drawn)]
    points, means = [points[number] for number in there], [means[number] for number in there]
    values = {name: ordered(point[name] for point in points) for name in points[0]}
    along = max(values, key=lambda name: len(values[name]))
    others = [name for name in values if name != along and len(values[name]) > 1]
    lines: dict[tuple[int, ...], list[tuple[float, dict[str, Mean]]]] = {}
    numbers = [value for value in values[along] if not isinstance(value, str)]
    categorical = len(numbers) < len(values[along])
    xs = [float(number) for number in range(len(values[along]))] if categorical else numbers
    for point, mean in zip(points, means, strict=True):
        key = tuple(values[name].index(point[name]) for name in others)
        lines.setdefault(key, []).append((xs[values[along].index(point[along])], mean))
    logarithmic = not categorical and xs[0] > 0 and xs[-1] >= 10 * xs[0]
    figure = Figure(figsize=(5.2 * len(drawn), 4), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, metric in zip(axes, drawn, strict=True):
        scale, unit = (100, " (%)") if "top1" in metric else (1, " (nats)" if metric == "train/entropy" else "")
        for number, (key, line) in enumerate(sorted(lines.items(), key=lambda entry: entry[0])):
            marks = sorted(((x, mean[metric]) for x, mean in line if metric in mean), key=lambda mark: mark[0])
            # Side by side: bars at the same x would hide one another.
            aside = 0.012 * (number - (len(lines) - 1) / 2)
            axis.errorbar(
                [x * (xs[-1] / xs[0]) ** aside if logarithmic else x + aside * (xs[-1] - xs[0]) for x, _ in marks],
                [scale * mean.mean for _, mean in marks],
                [scale * mean.error for _, mean in marks],
                marker="o",
                linestyle="none" if categorical else "-",
                capsize=3,
                color=colormaps["viridis"](0.85 * number / max(1, len(lines) - 1)),
                label=", ".join(f"{name} = {shown(values[name][i])}" for name, i in zip(others, key, strict=True)),
            )
        if logarithmic:
            axis.set_xscale("log")
        if categorical or len(xs) <= 8:
            labels = [shown(value) for value in values[along]]
            long = len(labels) * max(map(len, labels)) > 50  # characters that an axis has room for
            axis.set_xticks(xs, labels, **({"rotation": 30, "ha": "right"} if long else {}))
            axis.set_xticks([], minor=True)
        axis.set(xlabel=_of(along, subject), ylabel=f"{metric}{unit}")
        axis.grid(alpha=0.3)
    if others:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    constant = [f"{name} = {shown(values[name][0])}" for name in values if len(values[name]) == 1 and name != along]
    repeated = any(mean[metric].error for mean in means for metric in drawn if metric in mean)
    bars = ["bars: standard error over seeds"] if repeated else []
    title = ", ".join([subject, *constant] if subject else constant)
    figure.suptitle("; ".join([*([title] if title else []), *bars]), fontsize="medium")
    return figure
