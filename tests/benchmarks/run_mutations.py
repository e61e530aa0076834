"""Mutated configurations and command lines: ``python tests/benchmarks/run_mutations.py --count 1000 --seed 0``.

Each is run in a process of its own, on digits with a small network for two steps. It holds where it trains with finite
weights, or ends with one readable message and exit code 2. A mutation that cannot mean anything has to be refused.
Prints a line for each case that does not hold, with its command, and a table by kind; exit code 1 where one does not.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import re
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

import sslinfo.cli
import sslinfo.cli.sweep
from sslinfo.__main__ import console

MEMORY = 8 * 2**30  # bytes of address space of one case
LONGEST = 1200  # characters of a readable message
# Traces of a parser, of Python or of a library's insides, which say nothing to a user.
UNREADABLE = re.compile(
    r"<class '|typing\.|Namespace\(|NestedArg|[Pp]arser key|object at 0x|unhashable type|is not iterable|"
    r"has no attribute|not subscriptable|unexpected: |Subtypes:|object is not callable|unsupported operand|"
    r"not supported between instances"
)

COMMON: dict[str, Any] = {
    "backbone": "conv4",
    "backbone_options": {"width": 4},
    "in_channels": 1,
    "projector": [16, 8],
    "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 1e-4, "warmup_epochs": 0, "options": {"eps": 1e-8}},
}
MODELS: dict[str, dict[str, Any]] = {
    "VICReg": {
        "invariance": 25.0,
        "entropy": {"class_path": "LogDet", "init_args": {"weight": 25.0, "beta": 10.0, "normalize": True}},
    },
    "BarlowTwins": {"off_diagonal": 0.0051, "scale": 1.0},
    "SimCLR": {
        "temperature": 0.2,
        "entropy": {"class_path": "PairDist", "init_args": {"weight": 1.0, "variance": 0.1, "bound": "upper"}},
    },
    "SimSiam": {"predictor": [8], "constant_predictor_lr": True},
    "BYOL": {"predictor": [8], "momentum": 0.99, "final_momentum": 1.0},
    "MoCo": {"queue": 512, "predictor": None, "temperature": 0.2, "momentum": 0.99},
    "SwAV": {"prototypes": 12, "temperature": 0.1, "epsilon": 0.05, "iterations": 3, "queue": 0},
    "WMSE": {"slice_size": 32, "eps": 0.01},
}


def recipe(model: str) -> dict[str, Any]:
    """A small training, every part of which is written out, so that all can be mutated."""
    return {
        "seed_everything": 0,
        "model": {"class_path": model, "init_args": copy.deepcopy({**COMMON, **MODELS[model]})},
        "data": {
            "class_path": "TwoViewDataModule",
            "init_args": {
                "dataset": "digits",
                "root": "data",
                "batch_size": 256,
                "views": [{"class_path": "View", "init_args": {"flip": 0.5, "noise": 0.1, "crop_scale": [0.5, 1.0]}}]
                * 2,
                "image_size": 8,
                "channels": 1,
                "mean": [0.3],
                "std": [0.4],
                "val_fraction": 0.2,
                "num_workers": 0,
                "on_bad_image": "error",
            },
        },
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "devices": 1,
            "limit_val_batches": 1,
            "log_every_n_steps": 1,
            "check_val_every_n_epoch": 1,
            "accumulate_grad_batches": 1,
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "mutated"}},
            "callbacks": [
                {"class_path": "LinearProbe", "init_args": {"lr": 0.003}},
                {"class_path": "KNNProbe", "init_args": {"k": 5, "temperature": 0.07}},
                {"class_path": "InformationMonitor", "init_args": {"every_n_steps": 2, "window": 2}},
                {"class_path": "ModelCheckpoint", "init_args": {"save_last": True}},
            ],
        },
    }


@dataclass
class Case:
    """One command line.

    Attributes:
        kind: what was done to it.
        words: its words.
        files: files of the working folder, by name.
        nonsense: whether it has to be refused.
        untouched: whether the recipe was not touched, and has to run.
    """

    kind: str
    words: list[str]
    files: dict[str, str] = field(default_factory=dict)
    nonsense: bool = False
    what: str = ""


@dataclass
class Outcome:
    """What a case came to: silence, a traceback, ... or nothing that is wrong with it."""

    fault: str
    code: int | None
    text: str
    seconds: float


Path_ = tuple[str | int, ...]


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Values of a configuration that are no mapping, with their places."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None or (isinstance(value, list) and not any(isinstance(entry, dict) for entry in value)):
        yield path, value
        return
    for name, entry in parts:
        yield from leaves(entry, (*path, name))


def put(config: Any, path: Path_, value: Any) -> None:
    for part in path[:-1]:
        config = config[part]
    config[path[-1]] = value


def get(config: Any, path: Path_) -> Any:
    for part in path:
        config = config[part]
    return config


def option(path: Path_) -> str | None:
    """The command line's name of a place; None within a list."""
    if any(isinstance(part, int) for part in path):
        return None
    return "--" + ".".join(str(part) for part in path if part != "init_args")


def misspelt(rng: random.Random, word: str) -> str:
    place = rng.randrange(len(word))
    return rng.choice(
        [word[:place] + word[place + 1 :], word[:place] + "x" + word[place:], word + "s", word[::-1] + "q"]
    )


# Kinds of mutation: each makes a configuration and says what it did, and whether that can mean anything.

Mutation = Callable[[random.Random, dict[str, Any]], tuple[str, bool]]
SIZES = re.compile(
    r"batch_size|image_size|in_channels|width|queue|prototypes|iterations|slice_size|every_n_steps|window|"
    r"max_steps|devices|num_workers|check_val|accumulate|\.k$|\.channels"
)
PROBABILITIES = ("flip", "val_fraction", "momentum", "final_momentum")
POSITIVE = ("temperature", "lr", "beta", "variance", "epsilon", "std")


def _any(rng: random.Random, config: dict[str, Any], wanted: Callable[[str, Any], bool]) -> tuple[Path_, Any]:
    found = [(path, value) for path, value in leaves(config) if wanted(".".join(map(str, path)), value)]
    return rng.choice(found)


def _number(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def wrong_type(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, _ = _any(rng, config, lambda name, value: _number(name, value) or isinstance(value, bool))
    new = rng.choice(["abc", "one", "1,5", "--3", "0x1G", "[", "true false", "⅓"])
    if path[-1] in ("width", "eps"):  # options of no fixed type
        new = "abc"
    put(config, path, new)
    return f"{path[-1]}: {new!r}", path[-1] != "devices"


def list_for_scalar(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, value = _any(rng, config, lambda name, value: not isinstance(value, list) and value is not None)
    put(config, path, [value, value])
    return f"{path[-1]}: {[value, value]}", path[-1] not in ("devices",)


def scalar_for_list(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, _ = _any(rng, config, lambda name, value: isinstance(value, list))
    new = rng.choice([3, "abc", True, {"a": 1}])
    put(config, path, new)
    return f"{path[-1]}: {new!r}", path[-1] != "predictor"


def mapping_for_scalar(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, _ = _any(rng, config, lambda name, value: True)
    new = rng.choice([{"a": 1}, {}, {"class_path": "VICReg"}, {"init_args": {}}])
    put(config, path, new)
    return f"{path[-1]}: {new!r}", path[-1] not in ("options",)


def null(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, _ = _any(rng, config, lambda name, value: True)
    put(config, path, None)
    return f"{path[-1]}: null", path[-1] in (
        *("batch_size", "lr", "weight", "beta", "momentum", "temperature", "projector", "backbone", "in_channels"),
        *("invariance", "k", "every_n_steps", "num_workers", "flip", "val_fraction", "slice_size", "prototypes"),
    )


def null_section(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path: Path_ = rng.choice([("model",), ("data",), ("trainer",), ("model", "init_args"), ("data", "init_args")])
    put(config, path, rng.choice([None, [], "", 0]))
    return f"{'.'.join(map(str, path))}: {get(config, path)!r}", path[0] == "model" and get(config, path) is not None


def negative(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, value = _any(rng, config, _number)
    new = rng.choice([-1, -3, -0.5]) if isinstance(value, float) else rng.choice([-2, -7, -1000])
    put(config, path, new)
    name = str(path[-1])
    shape = SIZES.search(".".join(map(str, path))) is not None
    return f"{name}: {new}", shape or name in (*POSITIVE, *PROBABILITIES, "weight_decay", "noise", "weight")


def zero_size(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, _ = _any(rng, config, lambda name, value: _number(name, value) and SIZES.search(name) is not None)
    put(config, path, 0)
    return f"{path[-1]}: 0", path[-1] not in ("queue", "num_workers", "every_n_steps", "log_every_n_steps")


def huge(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, value = _any(rng, config, lambda name, value: _number(name, value) and "max_steps" not in name)
    new = rng.choice([10**9, 10**12, 10**30]) if isinstance(value, int) else rng.choice([1e30, 1e300, 1.5e308])
    put(config, path, new)
    return f"{path[-1]}: {new}", path[-1] in ("batch_size", "image_size", "in_channels", *PROBABILITIES)


def huge_width(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, value = _any(rng, config, lambda name, value: (isinstance(value, list) and "proj" in name) or "width" in name)
    new: Any = rng.choice([10**9, 10**12, 10**19])
    put(config, path, [new] if isinstance(value, list) else new)
    return f"{path[-1]}: {new}", True


def not_finite(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, _ = _any(rng, config, _number)
    new = float(rng.choice(["nan", "inf", "-inf"]))
    put(config, path, new)
    return f"{path[-1]}: {new}", path[-1] not in ("eps", "devices", "gradient_clip_val", "width")


def unknown_key(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    mappings = [path[:-1] for path, _ in leaves(config) if isinstance(path[-1], str)]
    path = (*rng.choice(mappings), rng.choice(["nokey", "learning_rate", "x", "callback", "Ünknown", "1", ""]))
    put(config, path, rng.choice([1, "a", None, [], {}]))
    return f"{'.'.join(map(str, path))}: {get(config, path)!r}", "backbone_options" in path or "options" not in path


def misspelt_key(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, _ = _any(rng, config, lambda name, value: not name[-1].isdigit())
    holder = get(config, path[:-1])
    new = misspelt(rng, str(path[-1]))
    holder[new] = holder.pop(path[-1])
    return f"{path[-1]} -> {new}", True


def misspelt_name(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    names = ("class_path", "name", "backbone", "dataset", "on_bad_image", "bound", "accelerator")
    path, value = _any(rng, config, lambda name, value: name.rpartition(".")[2] in names)
    put(config, path, misspelt(rng, value))
    return f"{path[-1]}: {get(config, path)}", "logger" not in path


def wrong_nesting(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, value = _any(rng, config, lambda name, value: "init_args" in name and "." in name)
    at = max(place for place, part in enumerate(path) if part == "init_args")
    where = rng.choice(["beside", "above", "below"])
    holder = get(config, path[:-1])
    holder.pop(path[-1])
    if where == "beside":
        get(config, path[:at])[path[-1]] = value
    elif where == "above":
        config[str(path[-1])] = value
    else:
        get(config, path[: at + 1]).setdefault("init_args", {})[path[-1]] = value
    return f"{path[-1]} {where} its place", True


def class_of_another_kind(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, value = _any(rng, config, lambda name, value: name.endswith("class_path"))
    new = rng.choice(["LogDet", "KNNProbe", "VICReg", "os.system", "torch.nn.Linear", "builtins.print", "pathlib.Path"])
    put(config, path, new)
    same = (
        new in value or (value in MODELS and new == "VICReg") or (value in ("LogDet", "PairDist") and new == "LogDet")
    )
    return f"{'.'.join(map(str, path))}: {new}", not same and "callbacks" not in path


def strange_text(rng: random.Random, config: dict[str, Any]) -> tuple[str, bool]:
    path, _ = _any(rng, config, lambda name, value: isinstance(value, str))
    new = rng.choice(["", " ", "\x00", "\n", "a" * 5000, "../..", "/dev/null", "💥", "null", "%s", "{}", "~", "$HOME"])
    put(config, path, new)
    return f"{path[-1]}: {new[:20]!r}", path[-1] == "class_path"


STRUCTURED: dict[str, Mutation] = {
    "wrong type": wrong_type,
    "list for a scalar": list_for_scalar,
    "scalar for a list": scalar_for_list,
    "mapping for a scalar": mapping_for_scalar,
    "null": null,
    "null for a section": null_section,
    "negative number": negative,
    "size of zero": zero_size,
    "huge number": huge,
    "impossible width": huge_width,
    "NaN or infinity": not_finite,
    "unknown key": unknown_key,
    "misspelt key": misspelt_key,
    "misspelt name": misspelt_name,
    "wrong nesting": wrong_nesting,
    "class of another kind": class_of_another_kind,
    "strange text": strange_text,
}


def on_the_command_line(rng: random.Random, kind: str, base: str) -> Case | None:
    """A mutation of one value, written as an option; None where it has no option of its own."""
    before = recipe(base)
    after = copy.deepcopy(before)
    what, nonsense = STRUCTURED[kind](rng, after)
    changed = [
        (path, value)
        for path, value in leaves(after)
        if path not in dict(leaves(before)) or dict(leaves(before))[path] != value
    ]
    if len(changed) != 1 or option(changed[0][0]) is None or "\x00" in str(changed[0][1]):
        return None
    path, value = changed[0]
    text = (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")
    )
    return Case(kind, ["fit", "-c", "a.yaml", f"{option(path)}={text}"], {"a.yaml": dumped(before)}, nonsense, what)


def in_a_file(rng: random.Random, kind: str, base: str) -> Case:
    config = recipe(base)
    what, nonsense = STRUCTURED[kind](rng, config)
    return Case(kind, ["fit", "-c", "a.yaml"], {"a.yaml": dumped(config)}, nonsense, what)


class _Whole(yaml.SafeDumper):
    """Writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dumped(config: Any) -> str:
    return yaml.dump(config, Dumper=_Whole, sort_keys=False, allow_unicode=True)


def key_twice(rng: random.Random, base: str) -> Case:
    lines = dumped(recipe(base)).splitlines()
    places = [n for n, line in enumerate(lines) if re.match(r"\s*\w+: \S", line)]
    place = rng.choice(places)
    lines.insert(place + 1, lines[place])
    return Case("key twice", ["fit", "-c", "a.yaml"], {"a.yaml": "\n".join(lines)}, True, lines[place].strip())


def broken_yaml(rng: random.Random, base: str) -> Case:
    text = dumped(recipe(base))
    place = rng.randrange(len(text))
    piece = rng.choice(
        ["\t", "[", "}", "'", '"', ": :", "&a *b", "!!python/object:os.system", "%", "@", "\x07", "- - -", "|"]
    )
    return Case(
        "broken YAML", ["fit", "-c", "a.yaml"], {"a.yaml": text[:place] + piece + text[place:]}, False, repr(piece)
    )


def alias_bomb(rng: random.Random, base: str) -> Case:
    depth, width = rng.choice([(9, 9), (30, 2), (5, 40)])
    lines = ["l0: &l0 [x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, depth + 1)]
    loop = rng.random() < 0.3
    text = "model: &m\n  class_path: VICReg\n  init_args: {backbone_options: *m}\n" if loop else "\n".join(lines)
    where = rng.choice(["-c", "option"])
    if where == "-c":
        return Case(
            "alias bomb",
            ["fit", "-c", "r.yaml", "-c", "a.yaml"],
            {"a.yaml": text, "r.yaml": dumped(recipe(base))},
            True,
        )
    value = (
        "["
        + ", ".join(["&a [x, x]"] + [f"&{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(8)])
        + "]"
    )
    return Case(
        "alias bomb", ["fit", "-c", "r.yaml", "--model.projector", value], {"r.yaml": dumped(recipe(base))}, True
    )


def deep(rng: random.Random, base: str) -> Case:
    count = rng.choice([200, 2000, 20000])
    text = rng.choice(["[" * count, "[" * count + "]" * count, "{a: " * count + "1" + "}" * count])
    if rng.random() < 0.5:
        return Case("deep nesting", ["fit", "-c", "a.yaml"], {"a.yaml": "model: " + text}, True, f"{count}")
    return Case(
        "deep nesting", ["fit", "-c", "a.yaml", "--model.projector", text], {"a.yaml": dumped(recipe(base))}, True
    )


FLAGS = [
    "--nokey",
    "--data.nokey.deeper",
    "--model.entropy.nokey",
    "--trainer.callbacks.nokey",
    "-x",
    "--trainer..",
    "--",
]


def flag(rng: random.Random, base: str) -> Case:
    files = {"a.yaml": dumped(recipe(base))}
    words = rng.choice(
        [
            [rng.choice(FLAGS[:-1]), "3"],
            [f"{rng.choice(FLAGS[:-1])}=3"],
            ["extra"],
            ["--data.batch_size"],
            ["--data.batch_size="],
            ["--model.projector=[16"],
            ["--model", ""],
            ["--trainer.callbacks+=Nobody"],
            ["--trainer.callbacks", "{}"],
            ["--trainer.logger", "[1]"],
            ["-c"],
            ["-c", "missing"],
            ["-c", ""],
            ["-c", "[]"],
            ["-c", "{}: 3"],
            ["--seed_everything", rng.choice(["-1", "abc", "1e3", "99999999999999"])],
            ["--ckpt_path", rng.choice(["last", "best", "none.ckpt", ".", "a.yaml", ""])],
        ]
    )
    return Case("option", ["fit", "-c", "a.yaml", *words], files, words != ["-c", ""], " ".join(words))


TRAINER: dict[str, list[str]] = {
    "devices": ["abc", "null", "-1", "0", "1.5", "[]", "[7]", "1000000", "{}", "1,2"],
    "accelerator": ["gpu", "tpu", "abc", "[]", "mps"],
    "strategy": ["fsdp", "deepspeed", "abc", "7"],
    "num_nodes": ["-1", "0", "2", "abc"],
    "precision": ["transformer-engine", "17", "abc", "bf16-true", "16-true"],
    "max_epochs": ["-2", "0", "abc", "1.5"],
    "max_time": ["abc", "-1", "00:00", "99:99:99:99:99"],
    "limit_train_batches": ["0", "-1", "1.5", "nan", "0.0001", "abc"],
    "limit_val_batches": ["-1", "1.5", "nan", "0.0001", "abc"],
    "overfit_batches": ["-1", "1.5", "nan", "abc", "0.00001"],
    "val_check_interval": ["0", "-1", "1.5", "nan", "1000000", "abc"],
    "check_val_every_n_epoch": ["0", "-1", "1.5", "abc"],
    "num_sanity_val_steps": ["-2", "1.5", "abc"],
    "log_every_n_steps": ["-1", "1.5", "abc"],
    "accumulate_grad_batches": ["0", "-1", "1.5", "abc"],
    "gradient_clip_val": ["-1", "nan", "abc"],
    "gradient_clip_algorithm": ["abc", "3"],
    "deterministic": ["abc", "3.5"],
    "profiler": ["abc", "{}"],
    "plugins": ["abc", "[1]"],
    "reload_dataloaders_every_n_epochs": ["-1", "abc"],
    "barebones": ["true", "abc"],
    "fast_dev_run": ["-1", "abc"],
    "callbacks": [
        "[1]",
        "[[]]",
        "abc",
        "{class_path: 3}",
        "[{class_path: EarlyStopping}]",
        "[{init_args: {}}]",
        "[null]",
    ],
    "logger": ["abc", "[1]", "{class_path: WandbLogger}", "{class_path: CSVLogger, init_args: {x: 1}}", "3"],
    "default_root_dir": ["/dev/null", "/proc/x"],
}


def trainer_flag(rng: random.Random, base: str) -> Case:
    name = rng.choice(sorted(TRAINER))
    value = rng.choice(TRAINER[name])
    config = recipe(base)
    config["trainer"].pop(name, None)
    mild = (name, value) in {
        ("callbacks", "[{init_args: {}}]"),  # the recipe's first callback, without the others
        ("strategy", "7"),
        ("default_root_dir", "/dev/null"),
        ("default_root_dir", "/proc/x"),
    }
    return Case(
        "flag of the Trainer",
        ["fit", "-c", "a.yaml", f"--trainer.{name}={value}"],
        {"a.yaml": dumped(config)},
        not mild,
        f"{name}={value}",
    )


def command(rng: random.Random, base: str) -> Case:
    files = {"a.yaml": dumped(recipe(base))}
    words = rng.choice(
        [
            [],
            ["fitt", "-c", "a.yaml"],
            ["-c", "a.yaml", "fit"],
            ["--config=a.yaml", "fit"],
            ["fit"],
            ["fit", "fit", "-c", "a.yaml"],
            ["", "-c", "a.yaml"],
            ["--trainer.max_steps", "3", "fit"],
            ["recipes", "--all"],
            ["fit", "--model", base],
            ["fit", "--print_config=abc", "-c", "a.yaml"],
        ]
    )
    return Case("command", words, files, words != ["fit", "--model", base], " ".join(words))


# Other commands, after a training whose run lies in the working folder.

EVALUATED: dict[str, list[list[str]]] = {
    "validate": [["--trainer.limit_val_batches", "0.00001"], ["--model.projector", "[4]"], ["--data.batch_size", "0"]],
    "test": [["--trainer.limit_test_batches", "-3"], ["--model", "Nobody"], ["--data.dataset", "nobody"]],
    "predict": [["--output", "/proc/none/x.npz"], ["--output", ""], ["--output"], ["--data.image_size", "-8"]],
}


def evaluation(rng: random.Random, base: str) -> Case:
    name = rng.choice(sorted(EVALUATED))
    some = rng.choice(
        [
            *EVALUATED[name],
            *(["--ckpt_path", bad] for bad in ("none", ".", "a.yaml", "/dev/null", "")),
            *(["--nokey", "3"], ["--data.num_workers", "-1"], ["--data.mean", "[1,2,3,4]"], ["--data.std", "[0]"]),
            *(["--trainer.devices", "0"], ["--data", "3"], ["--model.in_channels", "3"], ["--data.views", "nobody"]),
        ]
    )
    words = [name, "--ckpt_path", "RUN/last.ckpt", "--trainer.accelerator", "cpu", *some]
    return Case(name, words, {"a.yaml": "trainer: {max_steps: 1}\n"}, True, " ".join(some))


def sweep(rng: random.Random, base: str) -> Case:
    config = recipe(base)
    config["trainer"].update(callbacks=[], limit_val_batches=0)
    words = rng.choice(
        [
            [],
            ["--sweep"],
            ["--sweep", ""],
            ["--sweep", "="],
            ["--sweep", "model.optimizer.lr"],
            ["--sweep", "model.optimizer.lr="],
            ["--sweep", "model.optimizer.lr=.1,"],
            ["--sweep", "model.optimizer.lr=abc"],
            ["--sweep", "model.optimizer.lr=-1"],
            ["--sweep", "model.optimizer.lr=nan"],
            ["--sweep", "model.optimzer.lr=.1"],
            ["--sweep", "model.projector=[4"],
            ["--sweep", "model.projector=[0],[-4]"],
            ["--sweep", "data.batch_size=0"],
            ["--sweep", "data.batch_size=16,100000"],
            ["--sweep", "trainer.logger=false"],
            ["--sweep", "model=Nobody"],
            ["--sweep", "data.views={}"],
            ["--seeds"],
            ["--seeds", "-1", "--sweep", "data.batch_size=256"],
            ["--seeds", "abc", "--sweep", "data.batch_size=256"],
            ["--seeds", "1.5", "--sweep", "data.batch_size=256"],
            ["--beta", "abc"],
            ["--out", "/proc/x", "--sweep", "data.batch_size=256"],
            ["--out", "a.yaml", "--sweep", "data.batch_size=256"],
            ["--ckpt_path", "last", "--sweep", "data.batch_size=256"],
        ]
    )
    return Case("sweep", ["sweep", "-c", "a.yaml", *words], {"a.yaml": dumped(config)}, True, " ".join(words))


OTHERS = [
    key_twice,
    broken_yaml,
    alias_bomb,
    deep,
    flag,
    flag,
    trainer_flag,
    trainer_flag,
    command,
    evaluation,
    evaluation,
    sweep,
]


def cases(count: int, seed: int) -> list[Case]:
    """So many cases; the same for the same seed."""
    rng = random.Random(seed)
    made = [Case("untouched", ["fit", "-c", "a.yaml"], {"a.yaml": dumped(recipe(model))}) for model in MODELS]
    while len(made) < count + len(MODELS):
        base = rng.choice(sorted(MODELS))
        if rng.random() < 0.35:
            made.append(rng.choice(OTHERS)(rng, base))
            continue
        kind = rng.choice(sorted(STRUCTURED))
        written = kind not in ("misspelt key", "wrong nesting") and rng.random() < 0.4
        case = on_the_command_line(rng, kind, base) if written else in_a_file(rng, kind, base)
        made += [case] if case is not None else []
    return made


# Running them


def _child(case: Case, folder: Path, run: Path) -> None:
    """Run one case in this process, which ends with it."""
    os.setsid()
    os.chdir(folder)
    output = os.open("output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.argv = ["sslinfo"]
    finished = []
    original = sslinfo.cli.main

    def main(*args: Any, **kwargs: Any) -> Any:
        finished.append(original(*args, **kwargs))
        return finished[-1]

    sslinfo.cli.main = main
    code = 0
    try:
        console([word.replace("RUN", str(run)) for word in case.words])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    for cli in finished:
        if not all(parameter.isfinite().all() for parameter in cli.model.parameters()):
            print("WEIGHTS ARE NOT FINITE", flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_case(case: Case, folder: Path, run: Path, limit: float) -> Outcome:
    """Run a case in a process made for it, and judge it."""
    for name, text in case.files.items():
        (folder / name).write_text(text)
    start = time.monotonic()
    process = os.fork()
    if not process:
        _child(case, folder, run)
    code = None
    while time.monotonic() - start < limit:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.005)
    else:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
    file = folder / "output"
    text = file.read_text(errors="replace") if file.exists() else ""
    return Outcome(_fault(case, code, text), code, text, time.monotonic() - start)


def _fault(case: Case, code: int | None, text: str) -> str:
    """What is wrong with how a case ended; empty where nothing is."""
    message = text[text.rindex("sslinfo: ") :] if "sslinfo: " in text else ""
    if code is None:
        return "hangs"
    if "Traceback (most recent call last)" in text:
        return "traceback"
    if code == 0:
        if "WEIGHTS ARE NOT FINITE" in text:
            return "trains on NaN"
        return "silent" if case.nonsense else ""
    if code != 2:
        return f"exit code {code}"
    if case.kind == "untouched":
        return "refused"
    own = message.partition(" do not fit ")[0]  # what follows is a library's word on an option that is named
    if len(message.strip()) < 15 or len(message) > LONGEST or UNREADABLE.search(own):
        return "unreadable"
    return ""


def train(folder: Path) -> Path:
    """A run to evaluate: the folder of its checkpoints."""
    case = Case("", ["fit", "-c", "a.yaml"], {"a.yaml": dumped(recipe("VICReg"))})
    outcome = run_case(case, folder, folder, 300)
    found = sorted(folder.rglob("last.ckpt"))
    if outcome.code != 0 or not found:
        raise SystemExit(f"the training that is evaluated ended with {outcome.code}: {outcome.text}")
    return found[0].parent


def run(count: int, seed: int, limit: float, only: str = "") -> dict[str, Counter[str]]:
    """Run the cases; how they ended, by kind."""
    torch.set_num_threads(1)
    table: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as place:
        Path(place, "trained").mkdir()
        trained = train(Path(place, "trained"))
        for number, case in enumerate(cases(count, seed)):
            if only and only not in case.kind:
                continue
            folder = Path(place, str(number))
            folder.mkdir()
            outcome = run_case(case, folder, trained, limit)
            ended = "trains" if outcome.code == 0 else "refused"
            table.setdefault(case.kind, Counter())[outcome.fault or ended] += 1
            if outcome.fault:
                said = outcome.text[-600:] if outcome.fault == "traceback" else outcome.text[-400:]
                command = shlex.join(case.words)
                print(
                    f"{outcome.fault}: {case.kind}: {case.what}\n  sslinfo {command[:300]}\n  {said.strip()}\n",
                    flush=True,
                )
                if os.environ.get("KEEP"):
                    shown = Path(os.environ["KEEP"]) / str(number)
                    shown.mkdir(parents=True, exist_ok=True)
                    for name, text in case.files.items():
                        (shown / name).write_text(text)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of one case")
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    arguments = parser.parse_args()
    start = time.monotonic()
    table = run(arguments.count, arguments.seed, arguments.limit, arguments.only)
    ends = ["trains", "refused", *sorted({end for row in table.values() for end in row} - {"trains", "refused"})]
    print(f"{'kind':24}{'cases':>7}" + "".join(f"{end:>15}" for end in ends))
    for kind, row in [*sorted(table.items()), ("all", sum(table.values(), Counter()))]:
        print(f"{kind:24}{sum(row.values()):7}" + "".join(f"{row[end]:15}" for end in ends))
    print(f"seed {arguments.seed}, {time.monotonic() - start:.0f} s")
    sys.exit(any(set(row) - {"trains", "refused"} for kind, row in table.items() if kind != "untouched"))


if __name__ == "__main__":
    main()
