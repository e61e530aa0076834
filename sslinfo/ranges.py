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
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not _within(value, interval):
        place = f"in {interval}" if interval[0] in "[(" else interval
        raise UserError(f"{name} must be {'a whole number ' if whole else ''}{place}, got {value!r}")


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
