"""The picture of GeneralizationBound: what the bound is made of, over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

WIDEST_LINEAR = 5.0  # a stack that is higher would press the measured risk, near 1 or below, into the axis

TITLES = {"sharp": "certificate (sharp form)", "corollary": "certificate (corollary)", "paper": "the paper's sum"}


def draw(history: Sequence[dict[str, Any]], about: str) -> Figure:
    """The additive contributions of one form over optimizer steps, with the measured risk and the trivial value.

    Args:
        history: for each validation, oldest first, ``step``, ``form`` (sharp, corollary or paper), ``contributions`` by
            name, and ``measured_risk`` and ``best_constant`` where they are known.
        about: what it was measured with, for the title.
    """
    figure = Figure(figsize=(11, 5), dpi=110, layout="constrained")
    axis = figure.subplots()
    form = history[-1]["form"]
    rows = [entry for entry in history if entry["form"] == form]
    steps = [entry["step"] for entry in rows]
    names = list(rows[-1]["contributions"])
    heights = [[entry["contributions"].get(name, 0.0) for entry in rows] for name in names]
    colours = [colormaps["tab20"](number) for number in range(len(names))]
    labels = [f"{name} {row[-1]:.3g}" for name, row in zip(names, heights, strict=True)]
    if len(rows) > 1:
        axis.stackplot(steps, heights, labels=labels, colors=colours, alpha=0.8)
    else:
        base = 0.0
        for row, label, colour in zip(heights, labels, colours, strict=True):
            axis.bar(steps, row, bottom=base, label=label, color=colour, alpha=0.8, width=0.5)
            base += row[0]
        axis.set_xticks(steps)
        axis.set_xlim(steps[0] - 1, steps[0] + 1)
    for name, line, style in (("measured_risk", "black", "-"), ("best_constant", "red", "--")):
        known = [(entry["step"], entry[name]) for entry in rows if entry.get(name) is not None]
        if known:
            text = {"measured_risk": "measured risk", "best_constant": "best constant: vacuous above"}[name]
            span = known if len(known) > 1 else [(known[0][0] - 1, known[0][1]), (known[0][0] + 1, known[0][1])]
            axis.plot(*zip(*span, strict=True), color=line, linestyle=style, label=f"{text} {known[-1][1]:.3g}")
    highest = max(sum(entry["contributions"].values()) for entry in rows)
    if highest > WIDEST_LINEAR:
        axis.set_yscale("symlog", linthresh=1.0)
        ticks = [0.0, 0.5, *(step * 10**power for power in range(12) for step in (1, 2, 5))]
        ticks = [tick for tick in ticks if tick <= highest]
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_yticks([], minor=True)
    axis.set_ylim(0, 1.05 * max(highest, 1.0))
    scale = ", logarithmic above 1" if highest > WIDEST_LINEAR else ""
    axis.set(title=f"{TITLES[form]}: {about}", xlabel="optimizer step")
    axis.set(ylabel=f"E||W f(x) - y||, y one-hot{scale}")
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", reverse=True)
    return figure
