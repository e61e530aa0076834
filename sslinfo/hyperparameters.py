"""Hyper-parameters as plain values, so that a checkpoint is loaded weights-only and rebuilds its model by itself."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from typing import Any

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

    The class is noted too.

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
