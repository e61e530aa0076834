"""What ``validate`` and ``test`` found, as a table whose names are never cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def results_table(results: Mapping[str, float]) -> str:
    """A line for each number; then of ``info/<layer>/<quantity>`` a line for each quantity, a column for each layer.

    >>> ranks = {"info/embedding/rankme": 9.87654321, "info/representation/rankme": 20.0}
    >>> print(results_table({**ranks, "val/loss": 0.5}))
    val/loss  0.5
    <BLANKLINE>
    info    embedding  representation
    rankme     9.8765              20
    """
    numbers: list[tuple[str, ...]] = []
    layers: list[str] = []
    quantities: dict[str, dict[str, str]] = {}
    for name, value in results.items():
        kind, *between, quantity = name.split("/")
        if kind == "info" and between:
            layer = "/".join(between)
            layers += [layer] if layer not in layers else []
            quantities.setdefault(quantity, {})[layer] = f"{value:.5g}"
        else:
            numbers.append((name, f"{value:.5g}"))
    blocks = [_aligned(numbers)] if numbers else []
    if layers:
        rows = [(name, *(row.get(layer, "-") for layer in layers)) for name, row in quantities.items()]
        blocks.append(_aligned([("info", *layers), *rows]))
    return "\n\n".join(blocks)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of as many cells each: the first to the left, numbers to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    )
