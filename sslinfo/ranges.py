"""Numbers that a user gives, held against their ranges: the message names the argument, the range and the value."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from sslinfo.errors import UserError


def check_number(
    name: str, value: Any, low: float, high: float, *, above: bool = False, below: bool = False, hint: str = ""
) -> None:
    """Refuse what is no number from ``low`` to ``high``: NaN, infinity, true, text.

    Args:
        name: of the argument.
        value: what was given.
        low, high: the range, ends included.
        above: leave out ``low`` itself.
        below: leave out ``high`` itself.
        hint: what to do, for the end of the message.

    Raises:
        UserError: naming all of that.

    >>> check_number("flip", 0.5, 0, 1)
    >>> check_number("flip", float("nan"), 0, 1)
    Traceback (most recent call last):
    sslinfo.errors.UserError: flip must be in [0, 1], got nan
    """
    if not _fits(value, low, high, above, below):
        raise UserError(f"{name} must be in {_range(low, high, above, below)}, got {value!r}{hint and ': '}{hint}")


def check_whole_number(name: str, value: Any, low: int, high: int, *, hint: str = "") -> None:
    """Refuse what is no whole number from ``low`` to ``high``, ends included.

    >>> check_whole_number("batch_size", 2.5, 1, 10)
    Traceback (most recent call last):
    sslinfo.errors.UserError: batch_size must be a whole number in [1, 10], got 2.5
    """
    if not isinstance(value, Integral) or not _fits(value, low, high):
        given = f"got {value!r}{hint and ': '}{hint}"
        raise UserError(f"{name} must be a whole number in {_range(low, high)}, {given}")


def check_numbers(name: str, values: Any, count: int, low: float, high: float, *, hint: str = "") -> None:
    """Refuse what is no list of ``count`` numbers from ``low`` to ``high``; any number of them where ``count`` is 0.

    >>> check_numbers("std", [0.2, -1.0], 0, 0.001, 10)
    Traceback (most recent call last):
    sslinfo.errors.UserError: std must be numbers in [0.001, 10], got [0.2, -1.0]
    """
    listed = _listed(values) and len(values) == (count or len(values)) and len(values) > 0
    if not listed or not all(_fits(value, low, high) for value in values):
        many = f"{count} numbers" if count else "numbers"
        raise UserError(f"{name} must be {many} in {_range(low, high)}, got {values!r}{hint and ': '}{hint}")


def check_interval(name: str, values: Any, low: float, high: float, *, above: bool = False) -> None:
    """Refuse what is no smallest and largest value from ``low`` to ``high``; ``above`` leaves out ``low`` itself.

    >>> check_interval("crop_scale", (0.5, 1.2), 0, 1, above=True)
    Traceback (most recent call last):
    sslinfo.errors.UserError: crop_scale must be a smallest and a largest value in (0, 1], got (0.5, 1.2)
    """
    if not (
        _listed(values)
        and len(values) == 2
        and all(_fits(v, low, high, above) for v in values)
        and values[0] <= values[1]
    ):
        raise UserError(f"{name} must be a smallest and a largest value in {_range(low, high, above)}, got {values!r}")


def _listed(values: Any) -> bool:
    return hasattr(values, "__len__") and hasattr(values, "__getitem__") and not isinstance(values, str | dict)


def _fits(value: Any, low: float, high: float, above: bool = False, below: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return False
    number = float(value)
    return (low < number if above else low <= number) and (number < high if below else number <= high)


def _range(low: float, high: float, above: bool = False, below: bool = False) -> str:
    return f"{'(' if above else '['}{low:.10g}, {high:.10g}{')' if below else ']'}"
