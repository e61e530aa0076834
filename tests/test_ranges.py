"""Every number that a user can give to a class has a range, which its documentation states and its constructor keeps.

The signatures say which arguments are numbers, so that a new one is looked at without a line here. A class that needs
arguments to be made has them in NEEDED.
"""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from sslinfo import callbacks, data, models, objectives
from sslinfo.errors import UserError
from sslinfo.objectives import JointEmbedding
from sslinfo.optim import OptimizerConfig
from sslinfo.ranges import check_range

SMALL = {"backbone": "conv4", "backbone_options": {"width": 2}, "in_channels": 1, "projector": [8, 4]}
NEEDED: dict[str, dict[str, Any]] = {
    "MoCo": {"predictor": [4]},
    "BYOL": {"predictor": [4]},
    "SimSiam": {"predictor": [4]},
    "SwAV": {"prototypes": 3},
    "RingQueue": {"size": 2, "dim": 2},
    "PredictionWriter": {"path": "x.npz"},
    "ViewPipeline": {"views": [data.View()], "size": 8, "mean": [0.5], "std": [0.5]},
}
# What is taken although it is absurd or below zero, and why.
TAKEN: dict[tuple[str, str], tuple[set[float], str]] = {
    ("OptimizerConfig", "lr"): ({1e30}, "no bound fits every optimizer: the weights that it makes are refused"),
    ("OptimizerConfig", "weight_decay"): ({1e30}, "as for the rate"),
}
ABSURD = (math.nan, math.inf, -math.inf, 1e30, -1, 10**400, True, "3")


def public_classes() -> Iterator[type]:
    yield OptimizerConfig
    for room in (data, models, objectives, callbacks):
        for name in room.__all__:
            found = getattr(room, name)
            if inspect.isclass(found) and not inspect.isabstract(found) and found.__name__ != "EMATarget":
                yield found


def parameters(kind: type) -> dict[str, Any]:
    """Arguments of a constructor and their types, those that it hands on as **kwargs included."""
    found: dict[str, Any] = {}
    for owner in kind.__mro__:
        init = owner.__dict__.get("__init__")
        if init is None:
            continue
        hints = get_type_hints(init)
        given = inspect.signature(init).parameters
        found = {**{name: hints[name] for name in given if name in hints}, **found}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in given.values()):
            break
    return {name: hint for name, hint in found.items() if name not in ("kwargs", "return")}


def number_in(hint: Any) -> Callable[[Any], Any] | None:
    """How a number is put into an argument of this type: as it is, or in a list; None where there are no numbers."""
    if hint in (int, float):
        return lambda value: value
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return next((put for part in get_args(hint) if (put := number_in(part)) is not None), None)
    if origin in (list, tuple, Sequence) and (inner := number_in(get_args(hint)[0])) is not None:
        return lambda value: [inner(value)]
    assert origin in (None, dict, Literal, Callable, list, tuple, Sequence), f"what numbers are there in {hint}?"
    return None


def made(kind: type, **options: Any) -> Any:
    small = SMALL if issubclass(kind, JointEmbedding) else {}
    return kind(**{**small, **NEEDED.get(kind.__name__, {}), **options})


CASES = [
    pytest.param(kind, name, put, id=f"{kind.__name__}.{name}")
    for kind in public_classes()
    for name, hint in parameters(kind).items()
    if (put := number_in(hint)) is not None
]


def entry(kind: type, name: str) -> str:
    """What the documentation of a class, or of the one that it has the argument from, says of an argument."""
    for owner in kind.__mro__:
        text = inspect.cleandoc(owner.__doc__ or "")
        if found := re.search(rf"^    {name}: (.*(?:\n {{8}}.*)*)", text, re.MULTILINE):
            return re.sub(r"\s+", " ", found[1])
    return ""


@pytest.mark.parametrize(("kind", "name", "put"), CASES)
def test_absurd_numbers_are_refused(kind: type, name: str, put: Callable[[Any], Any]) -> None:
    taken, _ = TAKEN.get((kind.__name__, name), (set(), ""))
    for value in ABSURD:
        if not isinstance(value, str) and value in taken and value is not True:
            made(kind, **{name: put(value)})
            continue
        with pytest.raises(UserError, match=name) as caught:
            made(kind, **{name: put(value)})
        assert f"{value!r}" in str(caught.value)


@pytest.mark.parametrize(("kind", "name", "put"), CASES)
def test_the_documentation_states_the_range(kind: type, name: str, put: Callable[[Any], Any]) -> None:
    with pytest.raises(UserError) as caught:
        made(kind, **{name: put(-1)})
    if (kind.__name__, name) == ("TwoViewDataModule", "channels"):
        assert "must be 1, 3 or null" in str(caught.value)
        assert entry(kind, name).startswith("1 or 3 converts")
        return
    said = re.search(r"must be .*?([\[(]\S+, \S+[\])]|>=? \S+), got ", str(caught.value))
    assert said is not None
    assert said[1] in entry(kind, name)


def test_the_walk_finds_what_there_is() -> None:
    found = {case.id for case in CASES}
    assert {"OptimizerConfig.final", "VICReg.invariance", "SIGReg.seed", "SwAV.stem_padding"} <= found
    assert {"RunSummary.labels_per_class", "NoiseNormality.sigmas", "GeneralizationBound.weight_norm"} <= found
    assert {f"{kind}.{name}" for kind, name in TAKEN} <= found


def test_classes_as_they_are_made_without_arguments_are_in_their_ranges() -> None:
    for kind in public_classes():
        made(kind)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("> 0", [1e-300, 5, np.float32(0.5)], [0, -0.0, -1e-9]),
        (">= 0", [0, 7.5], [-1e-9]),
        ("[0, 1]", [0, 1, 0.5], [-1e-9, 1.0000001]),
        ("(0, 1)", [0.5, 1e-9], [0, 1]),
        ("[0, 1e3)", [0, 999.9], [1000]),
    ],
)
def test_ends_of_intervals(interval: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        check_range("x", value, interval)
    for value in outside:
        with pytest.raises(UserError, match=f"x must be .*, got {re.escape(repr(value))}"):
            check_range("x", value, interval)


@pytest.mark.parametrize("value", [3, np.int64(3)])
def test_whole_numbers_of_any_kind(value: Any) -> None:
    check_range("x", value, "[1, 10]", whole=True)


@pytest.mark.parametrize("value", [3.0, "3", None, [3], True, 10**400])
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(UserError, match="must be a whole number in"):
        check_range("x", value, "[1, 10]", whole=True)


@pytest.mark.parametrize(
    "options",
    [{"momentum": -0.1}, {"momentum": math.nan}, {"betas": [0.9, 1.0]}, {"trust_coeff": -1}, {"anything": math.inf}],
    ids=str,
)
def test_numbers_among_the_options_of_an_optimizer(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"optimizer.options.{next(iter(options))} must be"):
        OptimizerConfig(options=options)
