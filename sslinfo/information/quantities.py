"""Numbers with what is needed to read them, and their table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


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
