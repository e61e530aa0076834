"""``sslinfo sweep``: trainings over values of any option of ``sslinfo fit``, and what came of them."""

from __future__ import annotations

import argparse
import contextlib
import copy
import difflib
import gc
import io
import itertools
import json
import math
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from sslinfo.cli.errors import explain
from sslinfo.cli.faults import told
from sslinfo.cli.run import Cli, main
from sslinfo.cli.sweep_folder import Row, check_folder, new_folder, read, settings, write
from sslinfo.cli.sweep_options import (
    HALF,
    OPTIONS,
    Axis,
    cell,
    explained,
    find,
    is_number,
    lookup,
    read_axis,
    short_names,
    shown,
)
from sslinfo.cli.sweep_report import report
from sslinfo.cli.words import say
from sslinfo.distributed import world_size
from sslinfo.errors import UserError

DESCRIPTION = """\
Runs `sslinfo fit` for every combination of the values, one after another, and compares what came of them.

  sslinfo sweep -c vicreg_logdet --beta 1 10 --sweep model.optimizer.lr=.1,.3 --seeds 0 1 2
  sslinfo sweep -c vicreg --sweep model.entropy=LogDet,PairDist --sweep 'model.projector=[512,512],[2048]'

KEY is any option of `sslinfo fit` (`sslinfo fit --help`, `sslinfo fit --model.help VICReg`); its values stand between
commas that are outside of brackets, braces and quotes. All configurations are read before the first run starts.
Every other option is one of `sslinfo fit` and holds for all runs. The folder --out takes
  beta=10_lr=0.1_seed=0/   logs and checkpoints of a run, and traceback.txt where it failed
  runs.csv                 a row for each run: the last values of probe/*, train/entropy and train/loss, and seconds
  sweep.csv, sweep.png     mean and standard error over the seeds, as a table and a figure
An interrupted sweep goes on when its command is repeated: what is in runs.csv is not run again, a failed run is.
"""
# What each run has of its own, or what changes nothing of a training, and what to write in place of sweeping it.
NOT_SWEPT = {
    "seed_everything": "every combination is run with each of --seeds 0 1 2",
    "trainer.default_root_dir": "every run has a folder of its own in --out FOLDER",
    "trainer.logger": "every run is logged in a folder of its own in --out FOLDER",
    "trainer.enable_progress_bar": "it changes nothing of a training; give it once, beside --sweep",
    "trainer.enable_model_summary": "it changes nothing of a training; give it once, beside --sweep",
    "ckpt_path": "a sweep trains each run from its start",
    "weights_only": "a sweep trains each run from its start",
    "config": "a recipe holds for all runs: -c RECIPE",
    "print_config": "it is no option of a training",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(explain(message))


class _Reading(Cli):
    """Reads the options of a ``fit`` without running it."""

    def instantiate_classes(self) -> None:
        pass

    def run_subcommand(self, subcommand: str) -> None:
        pass


def sweep(args: Sequence[str] | None = None) -> None:
    """Run the sweep of ``args``, which begin with ``sweep`` (``sys.argv`` without them).

    Raises:
        UserError: for a mistake in the arguments; or, when all runs are done, because some of them failed.
    """
    axes, seeds, out, rest = _arguments((sys.argv[1:] if args is None else args)[1:])
    base = _base(rest, axes)
    if base.get("ckpt_path") is not None:
        raise UserError(f"ckpt_path={base['ckpt_path']!r}: a sweep trains each run from its start: leave it out")
    if seeds is None and isinstance(base["seed_everything"], bool):
        raise UserError(f"seed_everything={base['seed_everything']}: a run is named after its seed: --seeds 0 1 2")
    columns = _columns(base, axes)
    out = out or Path(base["trainer"]["default_root_dir"]) / "sweep"
    file = out / "runs.csv"
    rows = read(file)
    done = [name for name, row in rows.items() if not row["error"]]
    if done:
        check_folder(out, base, columns.values(), rows[done[0]])
    runs = [
        ({**values, "seed": seed}, config)
        for values, config in _combinations(rest, axes, base, columns)
        for seed in seeds or [base["seed_everything"]]
    ]
    if not done:
        rows = {}  # failures, perhaps of other settings
        if _writes():
            new_folder(out, base, columns.values())
    if already := sum(_name(run) in done for run, _ in runs):
        say(f"{already} of {len(runs)} runs are in {file} already and are skipped")
    for number, (run, config) in enumerate(runs, start=1):
        name = _name(run)
        if name in done:
            continue
        say(f"\nrun {number} of {len(runs)}: {name}")
        if _writes() and (out / name).exists():
            say(f"{out / name} is of a run that did not finish: it is replaced")
            shutil.rmtree(out / name)
        try:
            rows[name] = {"run": name, **run, **_fit(_configured(config, run, out), out / name)}
        except (KeyboardInterrupt, SystemExit):  # Lightning answers an interruption by leaving the program
            say(f"interrupted in {name}: the same command goes on with this run")
            raise
        if _writes():
            write(file, list(rows.values()), ["run", *columns, "seed"], ["seconds", "error"])
        if rows[name]["error"]:
            reason = rows[name]["error"]
            say(f"{name} failed: {reason}\n(the traceback: {out / name / 'traceback.txt'})")
            if world_size() > 1:
                # The other processes may wait for this one in a collective of the run that failed.
                raise UserError(f"{name} failed, and with several processes the sweep ends there: {reason}")
    if not _writes():
        return  # with no error: Lightning would end the process that still writes
    ours = _of_the_half(axes)
    subject = lookup(base, f"{HALF}.class_path" if ours else "model.class_path").split(".")[-1]
    if any(axis.key == "model" for axis in axes):
        subject = ""
    report(list(rows.values()), {name: name if ours else key for name, key in columns.items()}, subject, out)
    failed = [name for run, _ in runs if rows[name := _name(run)]["error"]]
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed, as said above: the same command tries them again")


# What is asked for


def _arguments(args: Sequence[str]) -> tuple[list[Axis], list[int] | None, Path | None, list[str]]:
    """The swept options by name, seeds, folder, and the arguments for ``fit``."""
    parser = _Parser(
        prog="sslinfo sweep",
        description=DESCRIPTION,
        usage="sslinfo sweep -c RECIPE [--sweep KEY=V1,V2,... ...] [--beta B ...] [--variance V ...] [--weight W ...] "
        "[options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    text = "values of an option; give --sweep again for another one"
    parser.add_argument("--sweep", action="append", default=[], metavar="KEY=V1,V2,...", help=text)
    for name in OPTIONS:
        text = f"values of the {name} of the recipe's entropy half, in short for --sweep {HALF}.{name}=..."
        parser.add_argument(f"--{name}", type=_number, nargs="+", action="extend", metavar=name[0].upper(), help=text)
    text = "seeds of each combination (default: the recipe's)"
    parser.add_argument("--seeds", type=_seed, nargs="+", action="extend", metavar="SEED", help=text)
    text = "folder of the sweep (default: sweep in --trainer.default_root_dir)"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=text)
    parser.add_argument_group(
        "any option of sslinfo fit", "-c RECIPE, --trainer.max_epochs N, ...: see sslinfo fit --help"
    )
    known, rest = parser.parse_known_args(list(args))
    for argument in rest:
        option = argument.split("=")[0].removeprefix("--")
        close = difflib.get_close_matches(option, [*OPTIONS, "sweep", "seeds", "out"], n=1, cutoff=0.7)
        if argument.startswith("--") and close:
            raise UserError(f"there is no option --{option}: did you mean --{close[0]}?")
    axes = [read_axis(text) for text in known.sweep]
    for name in OPTIONS:
        if values := getattr(known, name):
            axes.append(Axis(f"{HALF}.{name}", [repr(value) for value in dict.fromkeys(values)], f"--{name}"))
    if not axes:
        raise UserError(
            "there is nothing to sweep: give values of --beta, --variance or --weight, such as --beta 1 10, or of any "
            "option, such as --sweep model.optimizer.lr=.1,.3"
        )
    for number, axis in enumerate(axes):
        if axis.key in [other.key for other in axes[:number]]:
            raise UserError(f"{axis.key} is swept twice: give its values once, --sweep {axis.key}=V1,V2,...")
        for key, reason in NOT_SWEPT.items():
            if f"{axis.key}.".startswith(f"{key}."):
                raise UserError(f"{axis.given}: {reason}")
        if axis.key.endswith(".help"):
            raise UserError(f"{axis.given}: it is no option of a training")
    # By name, so that a command with its options in another order is the same sweep; a class comes before its options.
    axes.sort(key=lambda axis: axis.key)
    return axes, list(dict.fromkeys(known.seeds)) if known.seeds else None, known.out, rest


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; several stand apart: 1 10 100")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0; several stand apart: 0 1 2")
    return int(text)


def _of_the_half(axes: Sequence[Axis]) -> bool:
    """Whether nothing but beta, variance and weight is swept."""
    return all(axis.key in [f"{HALF}.{name}" for name in OPTIONS] for axis in axes)


def _columns(base: dict[str, Any], axes: Sequence[Axis]) -> dict[str, str]:
    """The options that name a run, by their short names."""
    keys = [axis.key for axis in axes]
    if _of_the_half(axes):
        # Those that are fixed name a run too: values of them can be added to the folder later.
        half = [f"{HALF}.{name}" for name in OPTIONS]
        keys = [key for key in half if key in keys or is_number(lookup(base, key))]
    return dict(zip(short_names(keys), keys, strict=True))


def _name(run: Row) -> str:
    return "_".join(f"{name}={shown(value)}" for name, value in run.items())


# Configurations


def _options(args: Sequence[str]) -> dict[str, Any]:
    """The configuration that ``sslinfo fit`` would run."""
    return main(["fit", *args], _Reading).plain_options()


def _base(rest: Sequence[str], axes: Sequence[Axis]) -> dict[str, Any]:
    """The configuration that all runs start from."""
    try:
        return _options(rest)
    except UserError:
        # No recipe names a model where the sweep does.
        models = [axis.words()[0] for axis in axes if axis.key == "model"]
        if not models:
            raise
        return _options([*rest, *models])


def _combinations(
    rest: Sequence[str], axes: Sequence[Axis], base: dict[str, Any], columns: dict[str, str]
) -> list[tuple[Row, dict[str, Any]]]:
    """Values and configuration of each combination.

    Raises:
        UserError: an option or a value does not exist, or two combinations are one training.
    """
    found: dict[str, tuple[Row, dict[str, Any]]] = {}
    trainings: dict[str, str] = {}
    for words in itertools.product(*(axis.words() for axis in axes)):
        config = _read_options(rest, words, axes, base)
        for axis in axes:
            if find(config, axis.key) is None:
                parent = axis.key.rpartition(".")[0]
                raise UserError(
                    f"{axis.given}: the configuration has no such entry: sweep {parent}, with all of its values"
                )
        written = {axis.key: word.partition("=")[2] for axis, word in zip(axes, words, strict=True)}
        values = {name: cell(lookup(config, key), written.get(key, "")) for name, key in columns.items()}
        name, training, said = _name(values), json.dumps(settings(config), sort_keys=True, default=str), " ".join(words)
        if name not in found and training in trainings:
            raise UserError(f"{trainings[training]} and {said} are the same training: leave one of them out")
        if name in found and training not in trainings:
            raise UserError(f"{said} and a value before it have the same name in files, {name}: leave one of them out")
        found.setdefault(name, (values, config))
        trainings.setdefault(training, said)
    return list(found.values())


def _read_options(
    rest: Sequence[str], words: Sequence[str], axes: Sequence[Axis], base: dict[str, Any]
) -> dict[str, Any]:
    """The configuration of one combination, whose arguments are ``words``.

    Raises:
        UserError: an option or a value does not exist; the message names the one of the sweep that is at fault.
    """
    quiet = ["--seed_everything=false"]  # no word on seeding for what is not run
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what there is to note was said of the base
            return _options([*rest, *words, *quiet])
    except UserError as error:
        before = base
        for number, axis in enumerate(axes):
            try:
                before = _options([*rest, *words[: number + 1], *quiet])
            except UserError as fault:
                said = explained(axis, words[number], words[:number], before, str(fault))
                raise UserError(said) from fault
        raise error


# The runs


def _configured(config: dict[str, Any], run: Row, out: Path) -> dict[str, Any]:
    """The configuration of one run: its seed, and all that it writes in its own folder."""
    config = copy.deepcopy(config)
    config["seed_everything"] = run["seed"]
    trainer, name = config["trainer"], _name(run)
    trainer["default_root_dir"] = str(out / name)
    for logger in trainer["logger"] if isinstance(trainer["logger"], list) else [trainer["logger"]]:
        if isinstance(logger, dict) and logger["class_path"].split(".")[-1] in ("TensorBoardLogger", "CSVLogger"):
            logger.setdefault("init_args", {}).update(save_dir=str(out), name="", version=name)
        elif isinstance(logger, dict) and "save_dir" in logger.get("init_args", {}):
            logger["init_args"]["save_dir"] = str(out / name)
    return config


def _fit(config: dict[str, Any], folder: Path) -> Row:
    """What a training measured last, its wall time in seconds, and why it failed if it did."""
    start = time.perf_counter()
    measured: Row = {}
    reason = ""
    try:
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "run.yaml"
            file.write_text(yaml.safe_dump(config))
            metrics = main(["fit", "--config", str(file)]).trainer.callback_metrics
        for name, value in metrics.items():
            if name.startswith("probe/") or name in ("train/entropy", "train/loss"):
                measured[name] = float(value)
    except Exception as error:
        reason = " ".join(told(error).message.split())
        if _writes():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "traceback.txt").write_text(traceback.format_exc())
    # What the run compiled counts towards a limit of the process, and its memory waits for the collector.
    torch.compiler.reset()
    gc.collect()
    return {**measured, "seconds": round(time.perf_counter() - start, 1), "error": reason}


def _writes() -> bool:
    """Whether this is the one process that writes the files."""
    return getattr(rank_zero_only, "rank", 0) == 0
