"""What a checkpoint says of itself: its model, data and callbacks as plain values, and which of them may be used."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from sslinfo.errors import UserError
from sslinfo.hyperparameters import HYPERPARAMETERS, LEFT_OUT_KEY, current_paths
from sslinfo.objectives.resumed import TRAINER, TRAINING_KEY, UNSAID

CALLBACKS_KEY = "sslinfo_callbacks"
_CONFIGURATION = (*HYPERPARAMETERS, CALLBACKS_KEY)


@dataclass
class StoredConfig:
    """A checkpoint's configuration, in the form of a file for the command line.

    Attributes:
        config: ``{"model": ..., "data": ..., "trainer": {"callbacks": [...]}}``.
        left_out: options that were given from Python as objects, which a checkpoint cannot hold.
        path: the file.
        training: ``{"seed_everything": ..., "trainer": {...}}``, what else made the training.
    """

    config: dict[str, Any]
    left_out: list[str] = field(default_factory=list)
    path: str = ""
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path, named: set[str]) -> StoredConfig:
        """Read a checkpoint weights-only.

        A class that it names is taken over only if it is one of sslinfo's or among ``named``, the classes that the user
        named: a file from elsewhere cannot choose what runs. Callbacks that are neither are left out.

        Raises:
            UserError: the file cannot be read, or its model or data is of a class that the user has not named.
        """
        checkpoint = _load(path)
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise UserError(
                f"ckpt_path={str(path)!r} is no checkpoint of a training: weights alone go to model.weights"
            )
        checkpoint = {**checkpoint, **current_paths({name: checkpoint.get(name, {}) for name in _CONFIGURATION})}
        model = _as_class(checkpoint["hyper_parameters"], "sslinfo.objectives.JointEmbedding")
        data = _as_class(checkpoint["datamodule_hyper_parameters"], "sslinfo.data.TwoViewDataModule")
        model["init_args"].pop("weights", None)  # the checkpoint's own weights follow
        for name, part in (("model", model), ("data", data)):
            for option, path_of_class in _references(part, name):
                if not _allowed(path_of_class, named):
                    raise UserError(
                        f"the checkpoint's {name} uses {path_of_class}, which is not sslinfo's: if you trust it, name "
                        f"it on the command line (--{option} {path_of_class})"
                    )
        callbacks = [
            entry
            for entry in checkpoint[CALLBACKS_KEY] or []
            if isinstance(entry, dict)
            # `predict` brings its own, whose file the user chose.
            and not str(entry.get("class_path")).endswith("PredictionWriter")
            and all(_allowed(found, named) for _, found in _references(entry, "callbacks"))
        ]
        left_out = [str(name) for name in checkpoint.get(LEFT_OUT_KEY, [])]
        config = {"model": model, "data": data, "trainer": {"callbacks": callbacks}}
        return cls(config, left_out, str(path), _training(checkpoint))


def _load(path: str | Path) -> Any:
    """What a file holds, of which no tensor is read before somebody looks at it."""
    try:
        in_new_format = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=in_new_format)
    except Exception as error:
        raise UserError(f"ckpt_path={str(path)!r} cannot be read as a checkpoint: {error}") from error


def _training(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The seed and the Trainer's options of a training; what is not of their kind in a file is not taken over."""
    size, seed = checkpoint.get(TRAINING_KEY), checkpoint.get("sslinfo_seed")
    trainer = {name: size.get(f"trainer.{name}") for name in TRAINER} if isinstance(size, dict) else {}
    plain = {
        name: value
        for name, value in trainer.items()
        if isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"[a-z0-9-]+", value))
    }
    return {"trainer": plain, **({"seed_everything": seed} if isinstance(seed, int) else {})}


def _as_class(hyper_parameters: dict[str, Any], default: str) -> dict[str, Any]:
    init_args = {name: value for name, value in hyper_parameters.items() if not name.startswith("_")}
    return {"class_path": hyper_parameters.get("_class_path", default), "init_args": init_args}


def _references(value: Any, option: str) -> list[tuple[str, str]]:
    """Everything that a configuration would import or read, with the option that it belongs to.

    A class may be written as ``{class_path: ...}``, as its dotted path alone, or as either in a string of YAML, and the
    command line's parser also takes files and addresses of configurations.
    """
    if isinstance(value, dict):
        found = [(option, str(value["class_path"]))] if "class_path" in value else []
        for name, entry in value.items():
            if name != "class_path":
                found += _references(entry, option if name == "init_args" else f"{option}.{name}")
        return found
    if isinstance(value, list):
        return [reference for entry in value for reference in _references(entry, option)]
    if not isinstance(value, str) or option == "data.root":
        return []
    text = value.strip()
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError:
        return [(option, text)]
    if isinstance(parsed, dict | list):
        return _references(parsed, option)
    return [(option, text)] if "://" in text or os.path.isfile(text) or _is_importable(text) else []


def _is_importable(text: str) -> bool:
    """Whether a string is a dotted path into an installed module; a timm name with a tag (vit.mae) is not."""
    if not re.fullmatch(r"\w+(\.\w+)+", text):
        return False
    try:
        return importlib.util.find_spec(text.split(".")[0]) is not None
    except ValueError:
        return True


def _allowed(class_path: str, named: set[str]) -> bool:
    return class_path in named or _is_ours(class_path)


def _is_ours(class_path: str) -> bool:
    """Whether this is a class that sslinfo defines, and not something that one of its modules has imported."""
    module, _, name = class_path.rpartition(".")
    if module.split(".")[0] != "sslinfo" or "__main__" in module:
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and found.__module__.split(".")[0] == "sslinfo"


def differences(stored: StoredConfig, now: dict[str, Any]) -> list[str]:
    """A line for each value of model and data on which the command line and the checkpoint disagree.

    >>> stored = StoredConfig({"model": {"class_path": "VICReg", "init_args": {"invariance": 25.0}}, "data": {}})
    >>> differences(stored, {"model": {"class_path": "VICReg", "init_args": {"invariance": 9.0}}, "data": {}})
    ['model.invariance is 9.0 as you say; the checkpoint was trained with 25.0']
    """
    lines = []
    for part in ("model", "data"):
        before, after = flat(_canonical(stored.config[part]), part), flat(_canonical(now.get(part) or {}), part)
        if after.get("data.seed", 0) is None:
            after.pop("data.seed")  # the run's own, which the checkpoint names
        for name in sorted(set(before) & set(after)):
            if before[name] != after[name] and name not in UNSAID:
                lines.append(f"{name} is {after[name]} as you say; the checkpoint was trained with {before[name]}")
    return lines


def check_same_classes(stored: StoredConfig, now: dict[str, Any]) -> None:
    """A training goes on with the objective that it began with: its model and halves are of the checkpoint's classes.

    Raises:
        UserError: the model or one of its parts is of another class than in the checkpoint.

    >>> stored = StoredConfig({"model": {"class_path": "VICReg", "init_args": {}}, "data": {}}, path="a.ckpt")
    >>> check_same_classes(stored, {"model": {"class_path": "VICReg", "init_args": {}}})
    """
    before, after = (flat(_canonical(model), "model") for model in (stored.config["model"], now.get("model") or {}))
    for name in sorted({name for name in {*before, *after} if name.endswith(".class_path")}):
        if before.get(name) != after.get(name):
            raise UserError(
                f"{name.removesuffix('.class_path')} is {after.get(name, 'left out')} on this command line; in the "
                f"checkpoint {stored.path!r} it is {before.get(name, 'left out')}: give the path of the run to resume "
                "(--ckpt_path PATH), or leave out the recipe to go on with the checkpoint's own"
            )


def _canonical(value: Any) -> Any:
    """A configuration whose classes of sslinfo are named by the module that defines them, whatever exports them."""
    if isinstance(value, list):
        return [_canonical(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    out = {name: _canonical(entry) for name, entry in value.items()}
    path = out.get("class_path")
    if isinstance(path, str) and _is_ours(path):
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        out["class_path"] = f"{found.__module__}.{found.__qualname__}"
    return out


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration's values by the option that they belong to.

    >>> flat({"model": {"class_path": "VICReg", "init_args": {"projector": [16, 8]}}})
    {'model.class_path': 'VICReg', 'model.projector': [16, 8]}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for name, entry in value.items():
        out.update(flat(entry, prefix if name == "init_args" else f"{prefix}.{name}".lstrip(".")))
    return out


def resolve_checkpoint(path: str, root: str | Path) -> str:
    """``last`` or ``best`` as the path of a file; another path as it is.

    ``last`` is the newest checkpoint below ``root``; ``best`` is the best one, by the monitored quantity, of the run
    that wrote it.

    Raises:
        UserError: there is no such file.
    """
    if path not in ("last", "best"):
        if not Path(path).is_file() and not path.startswith("hpc") and "://" not in path:
            raise UserError(f"ckpt_path={path!r} is not a file: check the path, or say last or best")
        return path
    files = sorted(Path(root).rglob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise UserError(
            f"ckpt_path={path!r}: there is no checkpoint below {str(root)!r}: give its path, or the folder of the runs "
            "with --trainer.default_root_dir"
        )
    newest = files[-1]
    if path == "last":
        return str(newest)
    states = _load(newest).get("callbacks", {})
    for name, state in states.items():
        best = state.get("best_model_path") if name.startswith("ModelCheckpoint") else None
        if best and state.get("monitor"):
            if not Path(best).is_file():
                best = str(newest.with_name(Path(best).name))
            if Path(best).is_file():
                return best
    raise UserError(
        f"ckpt_path='best': the run of {str(newest)!r} monitored no quantity: say last, or train with a second "
        "ModelCheckpoint among the callbacks, with monitor (such as val/loss)"
    )
