"""What a checkpoint says of itself: its model, data and callbacks as plain values, and which of them may be used."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from sslinfo.cli.words import say
from sslinfo.errors import UserError
from sslinfo.hyperparameters import HYPERPARAMETERS, LEFT_OUT_KEY
from sslinfo.objectives.resumed import TRAINER, TRAINING_KEY, UNSAID
from sslinfo.stored import (
    as_data,
    check_version,
    current_paths,
    hint_of,
    hint_within,
    is_plain,
    kinds,
    known_class,
    not_finite,
    read_checkpoint,
    takes_text,
)

CALLBACKS_KEY = "sslinfo_callbacks"
_CONFIGURATION = (*HYPERPARAMETERS, CALLBACKS_KEY)
_CLASS = ("class_path", "init_args", "dict_kwargs")


@dataclass
class StoredConfig:
    """A checkpoint's configuration, in the form of a file for the command line.

    Attributes:
        config: ``{"model": ..., "data": ..., "trainer": {"callbacks": [...]}}``.
        left_out: options that were given from Python as objects, which a checkpoint cannot hold.
        path: the file.
        training: ``{"seed_everything": ..., "trainer": {...}}``, what else made the training.
        step: optimizer steps that were done.
    """

    config: dict[str, Any]
    left_out: list[str] = field(default_factory=list)
    path: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    step: int = 0

    @classmethod
    def read(cls, path: str | Path, named: set[str], folders: Iterable[str | Path] = ()) -> StoredConfig:
        """Read a checkpoint weights-only.

        A class that it names is taken over only if it is one of sslinfo's or among ``named``, the classes that the user
        named: a file from elsewhere cannot choose what runs. Callbacks that are neither are left out. Every other text
        stays text: the parser that takes this configuration reads no files, or, where the user's words name some in
        ``folders``, no text is the name of one.

        Raises:
            UserError: the file cannot be read, or its model or data is of a class that the user has not named.
        """
        return cls.of(read_checkpoint(path), path, named, folders)

    @classmethod
    def of(
        cls, content: dict[str, Any], path: str | Path, named: set[str], folders: Iterable[str | Path] = ()
    ) -> StoredConfig:
        """The same of a file's content."""
        folders = list(folders)
        parts = {name: _configuration(content.get(name), name, path) for name in _CONFIGURATION}
        model = _as_class(parts["hyper_parameters"], "sslinfo.objectives.JointEmbedding")
        data = _as_class(parts["datamodule_hyper_parameters"], "sslinfo.data.TwoViewDataModule")
        model["init_args"].pop("weights", None)  # the checkpoint's own weights follow
        for name, part in (("model", model), ("data", data)):
            for option, text in _references(part, name, folders):
                if not _allowed(text, named):
                    raise UserError(
                        f"the checkpoint's {name} uses {text}, which is not sslinfo's: if you trust it, name "
                        f"it on the command line (--{option} {text})"
                    )
        callbacks = [
            entry
            for entry in parts[CALLBACKS_KEY]
            if isinstance(entry, dict)
            # `predict` brings its own, whose file the user chose.
            and not str(entry.get("class_path")).endswith("PredictionWriter")
            and all(_allowed(found, named) for _, found in _references(entry, "callbacks", folders))
        ]
        left_out = [str(name) for name in content.get(LEFT_OUT_KEY, [])]
        config = {"model": model, "data": data, "trainer": {"callbacks": callbacks}}
        return cls(config, left_out, str(path), _training(content), int(content.get("global_step", 0)))


def _configuration(part: Any, name: str, path: str | Path) -> Any:
    empty: Any = [] if name == CALLBACKS_KEY else {}
    try:
        plain = empty if part is None else current_paths(as_data(part))
    except UserError as error:
        raise UserError(f"ckpt_path={str(path)!r} is no checkpoint of a training: its {name} {error}") from error
    if not isinstance(plain, type(empty)):
        raise UserError(
            f"ckpt_path={str(path)!r} is no checkpoint of a training: its {name} is no {type(empty).__name__}"
        )
    return plain


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


def _references(value: Any, option: str, folders: Sequence[str | Path], hint: Any = Any) -> list[tuple[str, str]]:
    """Everything in a configuration that could be more than data, with the option that it belongs to.

    A class may be written as ``{class_path: ...}``, as its dotted path alone, or as either in a string of YAML. Where
    an option takes text alone, text is text.
    """
    if isinstance(value, dict):
        found = [(option, name) for name in value if _hides_a_class(name)]
        path = value.get("class_path")
        if "class_path" in value:
            found.append((option, str(path)))
        kind = known_class(path) if _is_ours(path) else None
        for name, entry in value.items():
            if name not in ("init_args", "dict_kwargs"):
                inside = {f"{option}.{name}": (entry, hint_within(hint, name))} if name != "class_path" else {}
            elif isinstance(entry, dict):
                found += [(option, argument) for argument in entry if argument in _CLASS or _hides_a_class(argument)]
                inside = {f"{option}.{argument}": (given, hint_of(kind, argument)) for argument, given in entry.items()}
            else:
                found.append((option, str(entry)))
                inside = {}
            found += [
                each for within, (given, of) in inside.items() for each in _references(given, within, folders, of)
            ]
        return found
    if isinstance(value, list):
        return [reference for entry in value for reference in _references(entry, option, folders, hint_within(hint))]
    if not isinstance(value, str) or _is_data(value, hint, folders):
        return []
    return [(option, value.strip())]


def _hides_a_class(name: str) -> bool:
    """Whether a name, such as entropy.class_path, is one more way to write a class."""
    return name not in _CLASS and any(word in name for word in _CLASS)


def _is_data(text: str, hint: Any, folders: Sequence[str | Path]) -> bool:
    """Whether text can be nothing but text to the parser, which may read files of these folders, for such an option."""
    try:
        events = list(yaml.parse(text, yaml.SafeLoader))
    except yaml.YAMLError:
        return is_plain(hint)
    if is_plain(hint):
        # The parser reads text as YAML before it asks for the type, and an alias can stand for a billion of values.
        return not any(isinstance(event, yaml.AliasEvent) for event in events)
    if any(isinstance(event, yaml.CollectionStartEvent | yaml.AliasEvent) for event in events):
        return False
    if not takes_text(hint):
        return False  # a class or a function is due
    # Where no type is known, a group of options may stand behind it, for which a file is taken.
    places = [*folders, *([""] if Any in kinds(hint) else [])]
    file = any(os.path.isfile(os.path.join(place, name)) for place in places for name in (text, text.strip()))
    text = text.strip()
    return "://" not in text and not file and not _is_importable(text)


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


def _is_ours(class_path: Any) -> bool:
    """Whether this is a class that sslinfo defines, and not something that one of its modules has imported."""
    return str(class_path).startswith("sslinfo.") and known_class(class_path) is not None


def differences(stored: StoredConfig, now: dict[str, Any]) -> list[str]:
    """A line for each value of model and data on which the command line and the checkpoint disagree.

    >>> stored = StoredConfig({"model": {"class_path": "VICReg", "init_args": {"invariance": 25.0}}, "data": {}})
    >>> differences(stored, {"model": {"class_path": "VICReg", "init_args": {"invariance": 9.0}}, "data": {}})
    ['model.invariance is 9.0 as you say; the checkpoint was trained with 25.0']
    """
    lines = []
    for part in ("model", "data"):
        before, after = flat(_canonical(stored.config[part]), part), flat(_canonical(now.get(part) or {}), part)
        if "data.seed" in after and after["data.seed"] is None:
            after["data.seed"] = int(now.get("seed_everything") or 0)  # what the data module then takes
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
        found = known_class(path)
        assert found is not None
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


def resolve_checkpoint(path: str, root: str | Path, resumes: bool = False) -> str:
    """``last`` or ``best`` as the path of a file; another path as it is.

    ``last`` is the newest checkpoint below ``root`` that can be read and whose weights are finite, and from which a
    training can go on where it is for that; ``best`` is the best one, by the monitored quantity, of the run that wrote
    it. What is passed over is said.

    Raises:
        UserError: there is no such file.
    """
    return find_checkpoint(path, root, resumes)[0]


def find_checkpoint(path: str, root: str | Path, resumes: bool = False) -> tuple[str, dict[str, Any] | None]:
    """The same with what the file holds; None of an address or of hpc, which Lightning looks for.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if path not in ("last", "best"):
        if os.path.lexists(path):
            return path, read_checkpoint(path)
        if not path.startswith("hpc") and "://" not in path:
            raise UserError(f"ckpt_path={path!r} is not a file: check the path, or say last or best")
        return path, None
    files = _newest_first(Path(root))
    newest, content = _first_good(files, f"ckpt_path={path!r}: below {str(root)!r}", resumes)
    if newest is None:
        usable = f" that can be {'gone on from' if resumes else 'read'}" if files else ""
        first = f" (the newest, {str(files[0])!r}: {_opened(files[0], resumes)[1]})" if files else ""
        raise UserError(
            f"ckpt_path={path!r}: there is no checkpoint below {str(root)!r}{usable}{first}: give its path, or the "
            "folder of the runs with --trainer.default_root_dir"
        )
    if path == "best":
        newest, content = _best(newest, content, Path(root), resumes)
    return str(newest), content


def check_usable(content: dict[str, Any], path: str, resumes: bool) -> None:
    """See that a checkpoint can be used: by ``fit``, which resumes from it, or for its weights.

    Raises:
        UserError: it has no version, its weights are not finite, or a training cannot go on from it.
    """
    check_version(content, path)
    check_finite(content, path)
    lacking = [name for name in ("optimizer_states", "loops") if not content.get(name)]
    if resumes and lacking:
        raise UserError(
            f"ckpt_path={path!r} holds weights alone, without {lacking[0]} (save_weights_only): a training cannot go "
            f"on from it. Start a new one from its weights, --model.weights {path}, or resume from a whole checkpoint"
        )


def check_finite(content: dict[str, Any], path: str | Path) -> None:
    """See that a checkpoint's weights are numbers.

    Raises:
        UserError: some are NaN or infinite.
    """
    if names := not_finite(content["state_dict"]):
        raise UserError(
            f"ckpt_path={str(path)!r} holds weights that are not finite ({names[0]}, and {len(names) - 1} more): its "
            "training had diverged: take an earlier checkpoint"
        )


def _newest_first(root: Path) -> list[Path]:
    """Checkpoints below a folder; where two are of the same time, as copies may be, that of the later step first."""
    times: dict[Path, int] = {}
    for file in root.rglob("*.ckpt"):
        with contextlib.suppress(OSError):  # gone since
            status = file.lstat() if file.is_symlink() and not file.exists() else file.stat()
            if not stat.S_ISDIR(status.st_mode):
                times[file] = status.st_mtime_ns
    ordered: list[Path] = []
    for _, same in groupby(sorted(times, key=lambda file: times[file], reverse=True), key=lambda file: times[file]):
        files = sorted(same)
        ordered += sorted(files, key=_step, reverse=True) if len(files) > 1 else files
    return ordered


def _step(file: Path) -> int:
    try:
        return int(read_checkpoint(file).get("global_step", -1))
    except UserError:
        return -1


def _first_good(files: Iterable[Path], what: str, resumes: bool) -> tuple[Path | None, dict[str, Any]]:
    """The first of the files that can be used, with its content."""
    for file in files:
        content, reason = _opened(file, resumes)
        if content is not None:
            return file, content
        say(f"note: {what}, {str(file)!r} is passed over: {reason}")
    return None, {}


def _opened(file: Path, resumes: bool) -> tuple[dict[str, Any] | None, str]:
    """What a file holds; or None, and why it cannot be used."""
    try:
        content = read_checkpoint(file)
        check_finite(content, file)
        if resumes:
            check_usable(content, str(file), resumes)
    except UserError as error:
        return None, str(error).partition(repr(str(file)))[2].strip()
    return content, ""


def _best(newest: Path, content: dict[str, Any], root: Path, resumes: bool) -> tuple[Path, dict[str, Any]]:
    """The best file of the run that wrote this one, with its content."""
    for name, state in content.get("callbacks", {}).items():
        if not str(name).startswith("ModelCheckpoint") or not isinstance(state, dict) or not state.get("monitor"):
            continue
        wanted = _best_first(state)
        files = []
        for path in wanted:
            if file := _found(path, state.get("dirpath"), newest, root):
                files.append(file)
            else:
                say(f"note: ckpt_path='best': {path!r} is passed over: there is no such file below {str(root)!r}")
        best, held = _first_good(files, "ckpt_path='best'", resumes)
        if best is not None:
            return best, held
        if wanted:
            raise UserError(
                f"ckpt_path='best': of the run of {str(newest)!r} no checkpoint with a {state['monitor']} can be read: "
                "give the path of a file (--ckpt_path PATH), or say last"
            )
    if "callbacks" not in content:
        raise UserError(
            f"ckpt_path='best': {str(newest)!r}, the newest, holds weights alone and does not say which was the best: "
            "give the path of a file (--ckpt_path PATH), or say last"
        )
    raise UserError(
        f"ckpt_path='best': the run of {str(newest)!r} monitored no quantity: say last, or train with a second "
        "ModelCheckpoint among the callbacks, with monitor (such as val/loss)"
    )


def _best_first(state: dict[str, Any]) -> list[str]:
    """The paths that a ModelCheckpoint kept, the best first."""
    first = state.get("best_model_path")
    kept = state.get("best_k_models")
    scores = {path: float(score) for path, score in kept.items()} if isinstance(kept, dict) else {}
    if isinstance(first, str) and first in scores:
        distance = {path: abs(score - scores[first]) for path, score in scores.items()}
        scores = dict(sorted(scores.items(), key=lambda item: distance[item[0]]))
    return list(dict.fromkeys(path for path in [first, *scores] if isinstance(path, str) and path))


def _found(path: str, folder: Any, newest: Path, root: Path) -> Path | None:
    """A file that a run wrote, where it was or where the run's folder has been moved; none outside of ``root``."""
    inner = Path(path).name
    if isinstance(folder, str) and Path(path).is_relative_to(folder):
        inner = str(Path(path).relative_to(folder))  # a quantity such as val/loss in its name makes a folder
    above = [folder for folder in newest.parents if folder.is_relative_to(root)]
    for file in (Path(path), *(folder / inner for folder in above), *(folder / Path(path).name for folder in above)):
        if file.is_file() and file.resolve().is_relative_to(root.resolve()):
            return file
    return None
