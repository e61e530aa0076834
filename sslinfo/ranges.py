"""Whether a number that a user gives lies in the range that the documentation states."""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import Any

from sslinfo.errors import UserError

_INTERVAL = re.compile(r"([\[(])([^,]+), ([^\])]+)([\])])")


def check_range(name: str, value: Any, interval: str, *, whole: bool = False) -> None:
    """Refuse what is no number of the interval: another kind of value (True and False among them), NaN, infinity.

    Args:
        name: of the argument.
        value: what was given.
        interval: ``> 0``, ``>= 0``, or with both ends as in ``[0, 1)``, as the argument's documentation has it.
        whole: integers alone.

    Raises:
        UserError: the value is not in it.

    >>> check_range("momentum", 0.9, "[0, 1]")
    >>> check_range("lr", -1, "> 0")
    Traceback (most recent call last):
    sslinfo.errors.UserError: lr must be > 0, got -1
    >>> check_range("k", 2.5, "[1, 1e9]", whole=True)
    Traceback (most recent call last):
    sslinfo.errors.UserError: k must be a whole number in [1, 1e9], got 2.5
    """
    if not _fits(value, interval) or (whole and not isinstance(value, Integral)):
        place = f"in {interval}" if interval[0] in "[(" else interval
        raise UserError(f"{name} must be {'a whole number ' if whole else ''}{place}, got {value!r}")


def check_numbers(name: str, values: Any, interval: str, *, count: int | None = None, hint: str = "") -> None:
    """Refuse what is no list of numbers of the interval: of ``count`` of them, or of one or more.

    >>> check_numbers("std", [0.2, -1.0], "[0.001, 10]")
    Traceback (most recent call last):
    sslinfo.errors.UserError: std must be numbers in [0.001, 10], got [0.2, -1.0]
    """
    if not _listed(values, count) or not all(_fits(value, interval) for value in values):
        many = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"{name} must be {many} in {interval}, got {values!r}{hint and ': '}{hint}")


def check_ends(name: str, values: Any, interval: str) -> None:
    """Refuse what is no smallest and largest value in the interval.

    >>> check_ends("crop_scale", (0.5, 1.2), "(0, 1]")
    Traceback (most recent call last):
    sslinfo.errors.UserError: crop_scale must be a smallest and a largest value in (0, 1], got (0.5, 1.2)
    """
    if not _listed(values, 2) or not all(_fits(value, interval) for value in values) or values[0] > values[1]:
        raise UserError(f"{name} must be a smallest and a largest value in {interval}, got {values!r}")


def _listed(values: Any, count: int | None) -> bool:
    if not hasattr(values, "__len__") or not hasattr(values, "__getitem__") or isinstance(values, str | dict):
        return False
    return len(values) > 0 if count is None else len(values) == count


def _fits(value: Any, interval: str) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and _within(value, interval)


def _within(value: Real, interval: str) -> bool:
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        return False
    if not math.isfinite(number):
        return False
    if found := _INTERVAL.fullmatch(interval):
        opens, low, high, closes = found.groups()
        above = number >= float(low) if opens == "[" else number > float(low)
        below = number <= float(high) if closes == "]" else number < float(high)
        return above and below
    sign, _, end = interval.partition(" ")
    return {">": number > float(end), ">=": number >= float(end)}[sign]
