"""All quantities of one layer, as numbers with what is needed to read them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.layer import DEFAULT_SCALES, Layer, Scales
from sslinfo.information.moments import Moments
from sslinfo.information.quantities import QUANTITIES, Specification


class Quantity(NamedTuple):
    """A number, the largest value that it could take (None without one), its unit, and what it was computed with."""

    value: float
    ceiling: float | None
    unit: str
    n: int
    d: int
    settings: str


@dataclass
class Report(Mapping[str, Quantity]):
    """Quantities by name, and the reasons for those that do not exist; prints as a table."""

    quantities: dict[str, Quantity] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    precision: str = ""

    def __getitem__(self, name: str) -> Quantity:
        if name in self.reasons:
            raise KeyError(f"{name}: {self.reasons[name]}")
        return self.quantities[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.quantities)

    def __len__(self) -> int:
        return len(self.quantities)

    def rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """(name, value, ceiling, unit, N x d, settings or the reason) of all quantities, as text."""
        rows = [
            (name, f"{q.value:.4g}", _text(q.ceiling), q.unit, f"{q.n} x {q.d}", q.settings)
            for name, q in self.quantities.items()
        ]
        return rows + [(name, "-", "", "", "", f"undefined: {reason}") for name, reason in self.reasons.items()]

    def __str__(self) -> str:
        rows = [("quantity", "value", "ceiling", "unit", "N x d", "settings"), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [self.precision] if self.precision else []
        for row in rows:
            cells = [
                cell.rjust(w) if 0 < i < 3 else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row[:5], widths, strict=True))
            ]
            lines.append("  ".join([*cells, row[5]]).rstrip())
        return "\n".join(lines)


def _text(ceiling: float | None) -> str:
    return "" if ceiling is None else f"{ceiling:.4g}"


def measure(
    views: Sequence[Tensor],
    moments: Moments | None = None,
    scales: Scales = DEFAULT_SCALES,
    window: int = 1,
    labels: Tensor | None = None,
) -> Report:
    """All quantities of one layer, those of ``sslinfo.information.quantities.QUANTITIES``.

    What needs second moments alone takes them from ``moments``, which may be of many more samples; what needs pairs of
    samples takes the views. Marginal quantities are of the first view, information is between the first two, and three
    or more are needed for LiDAR.

    Args:
        views: (N, d) each, one or more.
        moments: ``Moments.of(views[0])``, or joint ``Moments.of(views[0], views[1])``; without them the views serve.
        scales: beta, variance and temperature.
        window: training steps that the moments are of, named in the settings where more than one.
        labels: (N,) integer classes, negative where unknown, for what needs them.

    Returns:
        The quantities by name; one that does not exist at this N and d is among the reasons instead. What needs more
        views than there are, or labels where there are none, is in neither.
    """
    layer = Layer(views, moments, scales, window, labels)
    report = Report(precision=f"samples in {layer.dtype}, computed in float64")
    for specification in QUANTITIES:
        if layer.has(specification.needs):
            found = _quantity(specification, layer)
            if isinstance(found, str):
                report.reasons[specification.name] = found
            else:
                report.quantities[specification.name] = found
    return report


def _quantity(specification: Specification, layer: Layer) -> Quantity | str:
    """One quantity of the layer, or the reason why it is absent."""
    try:
        found = specification.compute(layer)
    except UndefinedEstimate as error:
        return str(error)
    number, words = found if isinstance(found, tuple) else (found, "")
    value, n = float(number), layer.count(specification.needs)
    if not math.isfinite(value):
        return f"{value} at N={n}, d={layer.d}: a covariance is singular, or the views coincide"
    settings = specification.settings if isinstance(specification.settings, str) else specification.settings(layer)
    window = f"window of {layer.window} steps" if layer.window > 1 and n == layer.n else ""
    ceiling = None if specification.ceiling is None else specification.ceiling.of(layer)
    return Quantity(value, ceiling, specification.unit, n, layer.d, ", ".join(filter(None, (settings, words, window))))
