"""What the parser lets pass and no class can take: nulls, empty mappings, and devices that are not there."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer

from sslinfo.cli.errors import explain
from sslinfo.errors import UserError
from sslinfo.optim import OptimizerConfig

_MOST_DEVICES = 64  # of a machine of fewer cores


def check_nulls(options: Namespace) -> None:
    """See that null stands only where it means something; in a file the parser takes it for any value.

    Args:
        options: a subcommand's configuration.

    Raises:
        UserError: an option is null that has a type and a default of its own.
    """
    if not isinstance(options["trainer"], Namespace):
        raise UserError(f"trainer: expected options by name, such as {{max_epochs: 3}}, got {options['trainer']!r}")
    for owner, name, key in _nulls(options["trainer"], Trainer, "trainer"):
        _check_null(owner, name, key)
    for part in ("model", "data"):
        for owner, name, key in _nulls(options.get(part), None, part):
            _check_null(owner, name, key)


def _nulls(value: Any, owner: type | None, key: str) -> Iterator[tuple[type, str, str]]:
    """Every option that is null: its class, its name there, and its whole name."""
    if isinstance(value, list):
        for entry in value:
            yield from _nulls(entry, None, key)
    if not isinstance(value, Namespace):
        return
    if "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        owner = getattr(importlib.import_module(module), name, None)
        value = value.get("init_args") or Namespace()
    elif key == "model.optimizer":
        owner = OptimizerConfig  # a dataclass of one kind needs no name
    for name, entry in vars(value).items():
        if entry is None and isinstance(owner, type):
            yield owner, name, f"{key}.{name}"
        yield from _nulls(entry, None, f"{key}.{name}")


def _check_null(owner: type, name: str, key: str) -> None:
    for kind in owner.__mro__:
        parameter = inspect.signature(kind.__init__).parameters.get(name)  # type: ignore[misc]
        if parameter is None:
            continue
        untyped = parameter.annotation is inspect.Parameter.empty
        if parameter.default is None or untyped or any(word in str(parameter.annotation) for word in _TAKE_NULL):
            return
        raise UserError(
            f"{key}: null is no value that it can have: leave it out for its default, {parameter.default!r}"
        )


_TAKE_NULL = ("None", "Optional", "Any")


def empty_options(settings: Any, key: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Options of a recipe that are an empty mapping, of which the parser says nothing where it does not know them.

    >>> empty_options({"trainer": {"x": {}, "callbacks": [{"class_path": "KNNProbe", "init_args": {"y": {}}}]}})
    [('trainer', 'x'), ('trainer', 'callbacks', 'KNNProbe', 'y')]
    """
    if settings == {} and key:
        return [key]
    found = []
    if isinstance(settings, list):
        for entry in settings:
            if isinstance(entry, dict) and entry:
                found += empty_options(entry, (*key, str(entry.get("class_path", "")).rpartition(".")[2]))
    elif isinstance(settings, dict):
        for name, value in settings.items():
            found += empty_options(value, key if name == "init_args" else (*key, name.removesuffix("+")))
    return found


def check_empty(options: Namespace, empty: Sequence[tuple[str, ...]]) -> None:
    """See that options which a recipe gives as an empty mapping exist.

    Raises:
        UserError: one does not.
    """
    for key in empty:
        value: Any = options
        for part in key:
            if isinstance(value, list):  # of classes, where the part names one
                value = next((entry for entry in value if _class_name(entry).endswith(part)), None)
                continue
            if isinstance(value, Namespace) and part not in value and "init_args" in value:
                value = value["init_args"]
            if not isinstance(value, Namespace):  # an option of no fixed form
                break
            if part not in value:
                raise UserError(explain(f"Option '{part}' is not accepted"))
            value = value[part]


def _class_name(entry: Any) -> str:
    return str(entry.get("class_path", "")) if isinstance(entry, Namespace) else ""


def check_devices(options: Namespace) -> None:
    """See that the devices that are asked for can be there.

    Raises:
        UserError: more of them than any machine has, or machines that nothing has started.
    """
    devices, nodes = options["trainer"]["devices"], options["trainer"]["num_nodes"]
    text = str(devices).strip()
    if re.fullmatch(r"\d+", text) and (len(text) > 9 or int(text) > max(_MOST_DEVICES, os.cpu_count() or 1)):
        raise UserError(f"trainer.devices={devices} is more than a machine has: give 1, or as many as there are GPUs")
    if nodes < 1:
        raise UserError(f"trainer.num_nodes={nodes} must be 1 or more")
    started = any(
        name in os.environ for name in ("MASTER_ADDR", "GROUP_RANK", "NODE_RANK", "SLURM_NTASKS", "LSB_JOBID")
    )
    if nodes > 1 and not started:
        raise UserError(
            f"trainer.num_nodes={nodes}, and nothing has started this on {nodes} machines: start it with torchrun or "
            "srun (docs/several_machines.md), or leave num_nodes out"
        )
