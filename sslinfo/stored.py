"""What a checkpoint holds, as data: nothing that it names is imported, opened or called unless it is sslinfo's."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import io
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, Union

import torch
import yaml
from packaging.version import InvalidVersion, Version
from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.hyperparameters import HYPERPARAMETERS, LEFT_OUT_KEY
from sslinfo.torch_files import UnreadableError, read_torch_file

T = TypeVar("T")
_VERSION = "pytorch-lightning_version"
# More than any configuration has: what refers to itself or to the same list many times over has no end.
_VALUES, _DEPTH = 100_000, 50


# The file


def read_checkpoint(path: str | Path, argument: str = "ckpt_path") -> dict[str, Any]:
    """A checkpoint of a training, whose parts are of the kinds that Lightning writes.

    Args:
        path: the file.
        argument: what the message calls it by.

    Raises:
        UserError: it cannot be read, or is no such checkpoint.
    """
    given = f"{argument}={str(path)!r}"
    try:
        content = read_torch_file(path)
    except UnreadableError as error:
        raise UserError(f"{given} cannot be read as a checkpoint: {error}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{given} is no checkpoint of a training: weights alone go to model.weights")
    if fault := _fault(content):
        raise UserError(f"{given} is no checkpoint of a training: {fault}")
    return content


def _fault(content: dict[str, Any]) -> str:
    """Which part is not of the kind that Lightning writes."""
    wanted: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(["state_dict", "callbacks", "loops", *HYPERPARAMETERS], dict),
        **dict.fromkeys(["sslinfo_gradients", "sslinfo_training"], dict),
        **dict.fromkeys(["optimizer_states", "lr_schedulers", LEFT_OUT_KEY], list),
        **dict.fromkeys(["epoch", "global_step", "sslinfo_accumulated"], int),
        "sslinfo_seed": (int, type(None)),
    }
    for name, kind in wanted.items():
        if name in content and not isinstance(content[name], kind):
            return f"its {name} is {_kind(content[name])}"
    seed = content.get("sslinfo_seed")
    if seed is not None and not 0 <= seed < 2**32:
        return f"its sslinfo_seed, which seed_everything was, is {seed} and not in [0, {2**32 - 1}]"
    for name, value in content["state_dict"].items():
        if not isinstance(name, str):
            return f"its state_dict has the name {name!r}"
        if not isinstance(value, Tensor) and not name.endswith("_extra_state"):
            return f"its state_dict holds {_kind(value)} under {name}"
    return ""


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def check_version(content: dict[str, Any], path: str, argument: str = "ckpt_path") -> None:
    """See that a checkpoint names the version of Lightning that wrote it, which Lightning asks for.

    Raises:
        UserError: it does not.
    """
    version = content.get(_VERSION)
    try:
        Version(version)  # type: ignore[arg-type]
    except (InvalidVersion, TypeError) as error:
        raise UserError(
            f"{argument}={path!r} is no checkpoint of a training: its {_VERSION} is {version!r}; its weights alone go "
            "to model.weights"
        ) from error


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """Names of the weights that hold NaN or infinity.

    A mask of attention may hold -inf; weights that have overflown hold NaN or +inf beside it.

    >>> not_finite({"a": torch.tensor([1.0, -torch.inf]), "b": torch.tensor([torch.nan])})
    ['b']
    """
    floats = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
    # Eight bits have no comparison of their own.
    comparable = ((name, value if value.element_size() > 1 else value.float()) for name, value in floats.items())
    return [name for name, value in comparable if not bool((value < torch.inf).all())]


# Hyper-parameters


def as_data(value: Any) -> Any:
    """A copy in dicts with names, lists, text, numbers and None.

    Raises:
        UserError: it holds something else, or more than any configuration does.

    >>> as_data({"projector": (32, 16), "entropy": None})
    {'projector': [32, 16], 'entropy': None}
    """
    left = _VALUES

    def copied(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1 + (len(value) // 1000 if isinstance(value, str) else 0)
        if left < 0 or depth > _DEPTH:
            raise UserError("is larger than any configuration")
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int) and value.bit_length() < 64:
            return value
        if isinstance(value, str):
            return value
        if isinstance(value, list | tuple):
            return [copied(entry, depth + 1) for entry in value]
        if isinstance(value, Mapping):
            if unnamed := [name for name in value if not isinstance(name, str)]:
                raise UserError(f"has the name {unnamed[0]!r} in it")
            return {name: copied(entry, depth + 1) for name, entry in value.items()}
        raise UserError(f"has a {type(value).__name__} in it")

    return copied(value, 0)


def current_paths(value: Any) -> Any:
    """A configuration in which classes of ours have their public paths, whatever file they stood in when it was made.

    >>> current_paths({"class_path": "sslinfo.data.view.View", "init_args": {"flip": 0.5}})
    {'class_path': 'sslinfo.data.View', 'init_args': {'flip': 0.5}}
    """
    if isinstance(value, Mapping):
        return {name: current_paths(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [current_paths(entry) for entry in value]
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) < 4 or parts[0] != "sslinfo" or not all(part.isidentifier() for part in parts):
        return value
    public = f"{parts[0]}.{parts[1]}.{parts[-1]}"
    return value if known_class(public) is None else public


def known_class(path: Any) -> type | None:
    """The class at a dotted path, if it is sslinfo's or the program has imported it; no other module is imported.

    >>> known_class("sslinfo.data.View").__name__, known_class("sslinfo.data.datamodule.os"), known_class("this.s")
    ('View', None, None)
    """
    parts = path.split(".") if isinstance(path, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return None
    module = ".".join(parts[:-1])
    if parts[0] == "sslinfo" and "__main__" not in parts:
        try:
            importlib.import_module(module)
        except ImportError:
            return None
    # Of what a module has imported in turn, such as os.system through a module of ours, nothing is taken.
    found = vars(sys.modules[module]).get(parts[-1]) if module in sys.modules else None
    return found if isinstance(found, type) and found.__module__.split(".")[0] == parts[0] else None


# Objects


def hint_of(kind: type | None, name: str) -> Any:
    """The type that a class, or one that it is derived from, states for an argument of its constructor; Any without."""
    for base in kind.__mro__ if kind is not None else ():
        if "__init__" in vars(base) and name in (hints := _hints(base)):
            return hints[name]
    return Any


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind.__init__)  # type: ignore[misc]
    except Exception:  # a type that is imported for type checkers alone
        return {}


def hint_within(hint: Any, name: str | None = None) -> Any:
    """The type of a list's or dict's values, or of a dataclass's field."""
    for kind in kinds(hint):
        if dataclasses.is_dataclass(kind) and name is not None:
            return typing.get_type_hints(kind).get(name, Any)
        if arguments := [argument for argument in typing.get_args(kind) if argument is not Ellipsis]:
            return arguments[-1]
    return Any


def kinds(hint: Any) -> list[Any]:
    """The types that one allows.

    >>> kinds(str | list[int] | None)
    [<class 'str'>, list[int], <class 'NoneType'>]
    """
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [kind for argument in typing.get_args(hint) for kind in kinds(argument)]
    return [hint]


def is_plain(hint: Any) -> bool:
    """Whether a type's values are text and numbers, so that text is nothing but text."""
    plain = (str, int, float, bool, type(None), Path)
    return all(kind in plain or typing.get_origin(kind) is Literal for kind in kinds(hint))


def takes_text(hint: Any) -> bool:
    """Whether text is a value of a type.

    >>> takes_text(str | torch.nn.Module), takes_text(torch.nn.Module | None)
    (True, False)
    """
    return any((is_plain(kind) and kind is not type(None)) or kind in (Any, object) for kind in kinds(hint))


def rebuilt(value: Any, hint: Any, option: str) -> Any:
    """A stored value as its constructor takes it: ``{class_path, init_args}`` of a class of ours becomes an object.

    Raises:
        UserError: it names a class that is neither sslinfo's nor of the program's own kind, or is text where an object
            is due.

    >>> rebuilt({"class_path": "sslinfo.objectives.LogDet", "init_args": {"beta": 3.0}}, Any, "entropy").beta
    3.0
    """
    if isinstance(value, Mapping) and "class_path" in value:
        kind = known_class(value["class_path"])
        arguments = value.get("init_args") or {}
        if kind is None or not getattr(kind, "has_plain_form", False) or not isinstance(arguments, Mapping):
            raise _foreign(option, value["class_path"])
        return _made(kind, {n: rebuilt(entry, hint_of(kind, n), f"{option}.{n}") for n, entry in arguments.items()})
    if isinstance(value, Mapping):
        inside = {n: rebuilt(entry, hint_within(hint, n), f"{option}.{n}") for n, entry in value.items()}
        fields = [kind for kind in kinds(hint) if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        return _made(fields[0], inside) if fields else inside
    if isinstance(value, list):
        return [rebuilt(entry, hint_within(hint), option) for entry in value]
    if isinstance(value, str) and not takes_text(hint):
        raise _foreign(option, value)
    return value


def _foreign(option: str, path: Any) -> UserError:
    return UserError(
        f"the checkpoint's {option} is {path!r}, which is not sslinfo's: a file cannot choose what runs. If you trust "
        f"it, make that object and pass it: load_from_checkpoint(..., {option.partition('.')[0]}=...)"
    )


def _made(kind: type, arguments: dict[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except TypeError as error:
        raise UserError(f"the checkpoint's {kind.__name__} cannot be made: {error}") from error


def load_parts(
    path: str | Path | IO[bytes],
    part: str,
    base: type[T],
    given: dict[str, Any],
    hparams_file: str | Path | None = None,
) -> tuple[type[T], dict[str, Any], IO[bytes]]:
    """What ``load_from_checkpoint`` rebuilds an objective or a data module from.

    Args:
        path: the file, or one that is open.
        part: which of ``HYPERPARAMETERS``.
        base: the class that was asked for.
        given: arguments that the caller gives in place of the stored ones.
        hparams_file: a YAML file with hyper-parameters in place of the checkpoint's.

    Returns:
        The class, its arguments, and the checkpoint without hyper-parameters, for Lightning to read.

    Raises:
        UserError: it cannot be read, or names a class that is neither sslinfo's nor imported.
    """
    if isinstance(path, str) and "://" in path:
        raise UserError(f"checkpoint_path={path!r} is an address: fetch the file, and give its path")
    if isinstance(path, str | Path):
        content = read_checkpoint(path, "checkpoint_path")
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
    check_version(content, str(path), "checkpoint_path")
    stored = content.get(part, {}) if hparams_file is None else yaml.safe_load(Path(hparams_file).read_text())
    try:
        plain = current_paths(as_data({name: value for name, value in stored.items() if name not in given}))
    except UserError as error:
        raise UserError(f"checkpoint_path={str(path)!r}: its {part} {error}, and is no configuration") from error
    named = plain.pop("_class_path", None)
    kind = base if named is None else known_class(named)
    if kind is None or not issubclass(kind, base):
        raise UserError(
            f"checkpoint_path={str(path)!r} is of {named!r}, which is no {base.__name__} of sslinfo's or of this "
            "program: import its module and call its own load_from_checkpoint"
        )
    prefix = "model." if part == HYPERPARAMETERS[0] else "data."
    for name in (
        str(name).removeprefix(prefix) for name in content.get(LEFT_OUT_KEY, []) if str(name).startswith(prefix)
    ):
        if name not in given:
            raise UserError(
                f"{name} of this run was an object given from Python, which a checkpoint cannot hold: make it again "
                f"and pass it: load_from_checkpoint(..., {name}=...)"
            )
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    arguments = {
        name: rebuilt(value, hint_of(kind, name), name)
        for name, value in plain.items()
        if not name.startswith("_") and (takes_any or name in parameters)
    }
    arguments.pop("weights", None)  # the checkpoint's own weights follow
    bare = io.BytesIO()
    torch.save({name: value for name, value in content.items() if name not in HYPERPARAMETERS}, bare)
    bare.seek(0)
    return kind, {**arguments, **given}, bare
