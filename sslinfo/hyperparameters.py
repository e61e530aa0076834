"""Hyper-parameters as plain values, so that a checkpoint is loaded weights-only and rebuilds its model by itself."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from sslinfo.lightning_compat import replace_hyperparameters

# Where a checkpoint lists the options that it cannot hold: what was given from Python as an object.
LEFT_OUT_KEY = "sslinfo_left_out"
HYPERPARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")  # where Lightning puts model's and data's


def public_path(kind: type) -> str:
    """The dotted path by which a class is known: of ours the package that exports it, not the file it stands in.

    A file can then move without a checkpoint or a configuration noticing.

    >>> from sslinfo.data import View
    >>> public_path(View), public_path(dict)
    ('sslinfo.data.View', 'builtins.dict')
    """
    module, name = kind.__module__, kind.__qualname__
    parts = module.split(".")
    if parts[0] == "sslinfo":
        for depth in range(1, len(parts)):
            package = ".".join(parts[:depth])
            if getattr(sys.modules.get(package), name, None) is kind:
                return f"{package}.{name}"
    return f"{module}.{name}"


def current_paths(value: Any) -> Any:
    """A configuration in which classes of ours have their public paths, whatever file they stood in when it was made.

    >>> current_paths({"class_path": "sslinfo.data.view.View", "init_args": {"flip": 0.5}})
    {'class_path': 'sslinfo.data.View', 'init_args': {'flip': 0.5}}
    """
    if isinstance(value, Mapping):
        return {name: current_paths(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [current_paths(entry) for entry in value]
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) < 4 or parts[0] != "sslinfo" or not all(part.isidentifier() for part in parts):
        return value
    room, name = ".".join(parts[:2]), parts[-1]
    if importlib.util.find_spec(room) is None:
        return value
    return f"{room}.{name}" if isinstance(getattr(importlib.import_module(room), name, None), type) else value


def with_current_paths(checkpoint: str | Path | IO[bytes]) -> str | Path | IO[bytes]:
    """A checkpoint whose hyper-parameters name classes of ours by their public paths: itself where they do.

    It is read weights-only.
    """
    if not isinstance(checkpoint, str | Path) or not Path(checkpoint).is_file():
        return checkpoint  # an address, or something open: as it is
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception:
        return checkpoint  # what is wrong with it is for Lightning to say
    changed = {name: current_paths(content[name]) for name in HYPERPARAMETERS if name in content}
    if all(content[name] == value for name, value in changed.items()):
        return checkpoint
    buffer = io.BytesIO()
    torch.save({**content, **changed}, buffer)
    buffer.seek(0)
    return buffer


def init_arguments(obj: Any) -> dict[str, Any]:
    """Arguments of an object's constructor, read from the attributes of the same names."""
    names = [name for name in inspect.signature(type(obj).__init__).parameters if name != "self"]
    return {name: getattr(obj, name) for name in names if hasattr(obj, name)}


def to_plain(value: Any) -> Any:
    """A value as strings, numbers, lists and dicts.

    Objects that keep their constructor arguments as attributes become ``{class_path, init_args}``.

    Raises:
        TypeError: for what has no such form (a network, an open file).

    >>> to_plain({"projector": (32, 16), "optimizer": None})
    {'projector': [32, 16], 'optimizer': None}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if getattr(type(value), "has_plain_form", False):
        return {"class_path": public_path(type(value)), "init_args": to_plain(init_arguments(value))}
    raise TypeError(f"{type(value).__name__} has no plain form")


def plain_hyperparameters(module: Any) -> list[str]:
    """Replace what ``save_hyperparameters`` collected by plain values; leave out what has none (a network, a data set).

    The class is noted too, in the form that ``load_from_checkpoint`` rebuilds from.

    Returns:
        The names of the arguments left out.
    """
    hparams, left_out = {}, []
    for name, value in dict(module.hparams).items():
        try:
            hparams[name] = to_plain(value)
        except TypeError:
            left_out.append(name)
    hparams["_class_path"] = public_path(type(module))
    hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
    replace_hyperparameters(module, hparams)
    return left_out
