"""What a checkpoint says of itself: its model, data and callbacks as plain values, and which of them may be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sslinfo.errors import UserError

CALLBACKS_KEY = "sslinfo_callbacks"
# Where a run is, not what it is: a difference from the checkpoint needs no word.
_PLACES = ("data.root", "data.download", "data.num_workers", "data.in_memory", "data.compile_views")


@dataclass
class StoredConfig:
    """A checkpoint's configuration, in the form of a file for the command line.

    Attributes:
        config: ``{"model": ..., "data": ..., "trainer": {"callbacks": [...]}}``.
    """

    config: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path, named: set[str], fitting: bool = False) -> StoredConfig:
        """Read a checkpoint weights-only.

        A class that it names is taken over only if it is one of sslinfo's or among ``named``, the classes that the user
        named: a file from elsewhere cannot choose what runs. Callbacks that are neither are left out.

        Raises:
            UserError: the file cannot be read, or its model or data is of a class that the user has not named.
        """
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"ckpt_path={str(path)!r} cannot be read as a checkpoint: {error}") from error
        model = _as_class(checkpoint.get("hyper_parameters", {}), "sslinfo.objectives.JointEmbedding")
        data = _as_class(checkpoint.get("datamodule_hyper_parameters", {}), "sslinfo.data.TwoViewDataModule")
        model["init_args"].pop("weights", None)  # the checkpoint's own weights follow
        for name, part in (("model", model), ("data", data)):
            for class_path in _class_paths(part):
                if not _allowed(class_path, named):
                    raise UserError(
                        f"the checkpoint's {name} uses {class_path}, which is not sslinfo's: if you trust it, name it "
                        f"on the command line (--model {class_path})"
                    )
        callbacks = [c for c in checkpoint.get(CALLBACKS_KEY, []) if all(_allowed(p, named) for p in _class_paths(c))]
        return cls({"model": model, "data": data, "trainer": {"callbacks": callbacks}})


def _as_class(hyper_parameters: dict[str, Any], default: str) -> dict[str, Any]:
    init_args = {name: value for name, value in hyper_parameters.items() if not name.startswith("_")}
    return {"class_path": hyper_parameters.get("_class_path", default), "init_args": init_args}


def _class_paths(value: Any) -> set[str]:
    """Every class that a configuration would import."""
    found: set[str] = set()
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            found.add(value["class_path"])
        for entry in value.values():
            found |= _class_paths(entry)
    elif isinstance(value, list):
        for entry in value:
            found |= _class_paths(entry)
    return found


def _allowed(class_path: str, named: set[str]) -> bool:
    return class_path.split(".")[0] == "sslinfo" or class_path in named


def differences(stored: StoredConfig, now: dict[str, Any]) -> list[str]:
    """A line for each value of model and data on which the command line and the checkpoint disagree.

    >>> stored = StoredConfig({"model": {"class_path": "VICReg", "init_args": {"invariance": 25.0}}, "data": {}})
    >>> differences(stored, {"model": {"class_path": "VICReg", "init_args": {"invariance": 9.0}}, "data": {}})
    ['model.invariance is 9.0 as you say; the checkpoint was trained with 25.0']
    """
    lines = []
    for part in ("model", "data"):
        before, after = _flat(stored.config[part], part), _flat(now.get(part) or {}, part)
        for name in sorted(set(before) & set(after)):
            if before[name] != after[name] and name not in _PLACES:
                lines.append(f"{name} is {after[name]} as you say; the checkpoint was trained with {before[name]}")
    return lines


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for name, entry in value.items():
        out.update(_flat(entry, prefix if name == "init_args" else f"{prefix}.{name}"))
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
    states = torch.load(newest, map_location="cpu", weights_only=True).get("callbacks", {})
    for name, state in states.items():
        best = state.get("best_model_path") if name.startswith("ModelCheckpoint") else None
        if best and state.get("monitor"):
            if not Path(best).is_file():
                best = str(newest.with_name(Path(best).name))
            if Path(best).is_file():
                return best
    raise UserError(
        f"ckpt_path='best': the run of {str(newest)!r} monitored no quantity: add a ModelCheckpoint with monitor, or "
        "say last"
    )
