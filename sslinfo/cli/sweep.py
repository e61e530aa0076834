"""``sslinfo sweep``: trainings over values of an entropy half's beta, variance and weight, and what came of them."""

from __future__ import annotations

import argparse
import copy
import csv
import difflib
import gc
import itertools
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
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sslinfo.cli.errors import explain
from sslinfo.cli.run import Cli, main
from sslinfo.cli.sweep_report import Row, report, short, write
from sslinfo.distributed import world_size
from sslinfo.errors import UserError

OPTIONS = ("beta", "variance", "weight")
DESCRIPTION = """\
Runs `sslinfo fit` for every combination of the values, one after another, and compares what came of them.

  sslinfo sweep -c configs/cifar10/vicreg_logdet.yaml --beta 1 10 100 --weight 5 25 --seeds 0 1 2

Every other option is one of `sslinfo fit` and holds for all runs. The folder --out takes
  beta=10_weight=25_seed=0/   logs and checkpoints of a run, and traceback.txt where it failed
  runs.csv                    a row for each run: the last values of probe/*, train/entropy and train/loss, and seconds
  sweep.csv, sweep.png        mean and standard error over the seeds, as a table and a figure
An interrupted sweep goes on when its command is repeated: what is in runs.csv is not run again, a failed run is.
"""


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
    swept, seeds, out, rest = _arguments((sys.argv[1:] if args is None else args)[1:])
    base = main(["fit", *rest], _Reading).plain_options()
    if base.get("ckpt_path") is not None:
        raise UserError(f"ckpt_path={base['ckpt_path']!r}: a sweep trains each run from its start: leave it out")
    half = _entropy_half(base, swept)
    names = [name for name in OPTIONS if name in swept or _is_number(half["init_args"].get(name))]
    fixed = {name: [float(half["init_args"][name])] for name in names if name not in swept}
    if seeds is None and isinstance(base["seed_everything"], bool):
        raise UserError(f"seed_everything={base['seed_everything']}: a run is named after its seed: --seeds 0 1 2")
    grid = {**fixed, **swept}
    axes: dict[str, list[Any]] = {**{name: grid[name] for name in names}, "seed": seeds or [base["seed_everything"]]}
    runs = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    out = out or Path(base["trainer"]["default_root_dir"]) / "sweep"
    file = out / "runs.csv"
    rows = _read(file)
    done = {name for name, row in rows.items() if not row["error"]}
    _check_settings(out, base, names, new=not done)
    if not done:
        rows = {}  # failures, perhaps of other settings
    if already := sum(_name(run) in done for run in runs):
        _say(f"{already} of {len(runs)} runs are in {file} already and are skipped")
    for number, run in enumerate(runs, start=1):
        name = _name(run)
        if name in done:
            continue
        _say(f"\nrun {number} of {len(runs)}: {name}")
        if _writes() and (out / name).exists():
            _say(f"{out / name} is of a run that did not finish: it is replaced")
            shutil.rmtree(out / name)
        try:
            rows[name] = {"run": name, **run, **_fit(_configured(base, run, out), out / name)}
        except (KeyboardInterrupt, SystemExit):  # Lightning answers an interruption by leaving the program
            _say(f"interrupted in {name}: the same command goes on with this run")
            raise
        if _writes():
            write(file, list(rows.values()), ["run", *names, "seed"], ["seconds", "error"])
        if rows[name]["error"]:
            reason = rows[name]["error"]
            _say(f"{name} failed: {reason}\n(the traceback: {out / name / 'traceback.txt'})")
            if world_size() > 1:
                # The other processes may wait for this one in a collective of the run that failed.
                raise UserError(f"{name} failed, and with several processes the sweep ends there: {reason}")
    if not _writes():
        return  # with no error: Lightning would end the process that still writes
    report(list(rows.values()), names, str(half["class_path"]).split(".")[-1], out)
    failed = [name for name in map(_name, runs) if rows[name]["error"]]
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed, as said above: the same command tries them again")


# What is asked for


def _arguments(args: Sequence[str]) -> tuple[dict[str, list[float]], list[int] | None, Path | None, list[str]]:
    """Values of each swept option, seeds, folder, and the arguments for ``fit``."""
    parser = _Parser(
        prog="sslinfo sweep",
        description=DESCRIPTION,
        usage="sslinfo sweep -c RECIPE [--beta B ...] [--variance V ...] [--weight W ...] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name in OPTIONS:
        text = f"values of the {name} of the recipe's entropy half"
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
        close = difflib.get_close_matches(option, [*OPTIONS, "seeds", "out"], n=1, cutoff=0.7)
        if argument.startswith("--") and close:
            raise UserError(f"there is no option --{option}: did you mean --{close[0]}?")
    swept = {name: list(dict.fromkeys(getattr(known, name))) for name in OPTIONS if getattr(known, name)}
    if not swept:
        raise UserError("there is nothing to sweep: give values of --beta, --variance or --weight, such as --beta 1 10")
    return swept, list(dict.fromkeys(known.seeds)) if known.seeds else None, known.out, rest


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


def _entropy_half(config: dict[str, Any], swept: dict[str, list[float]]) -> dict[str, Any]:
    """The configuration of the entropy half, which has the arguments that are swept."""
    model = config["model"]
    half = model["init_args"].get("entropy")
    if not isinstance(half, dict):
        raise UserError(
            f"{model['class_path'].split('.')[-1]} names no entropy half whose {' and '.join(swept)} could be swept: "
            "name one before the other options of the model, --model.entropy LogDet (or PairDist, ...)"
        )
    arguments = half.setdefault("init_args", {})
    has = [name for name, value in arguments.items() if name in OPTIONS or isinstance(value, float)]
    for name in swept:
        if name not in arguments:
            raise UserError(
                f"--{name}: {half['class_path'].split('.')[-1]} has no {name}; what it has is "
                f"{' and '.join(has) or 'no number'}"
            )
    return half


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(run: Row) -> str:
    return "_".join(f"{name}={short(value)}" for name, value in run.items())


# The runs


def _configured(base: dict[str, Any], run: Row, out: Path) -> dict[str, Any]:
    """The configuration of one run: its values, its seed, and all that it writes in its own folder."""
    config = copy.deepcopy(base)
    values = {name: value for name, value in run.items() if name != "seed"}
    config["model"]["init_args"]["entropy"]["init_args"].update(values)
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
        known = isinstance(error, ValueError | MisconfigurationException | FileNotFoundError)
        reason = " ".join((explain(str(error)) if known else f"{type(error).__name__}: {error}").split())
        if _writes():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "traceback.txt").write_text(traceback.format_exc())
    # What the run compiled counts towards a limit of the process, and its memory waits for the collector.
    torch.compiler.reset()
    gc.collect()
    return {**measured, "seconds": round(time.perf_counter() - start, 1), "error": reason}


def _check_settings(out: Path, base: dict[str, Any], names: Sequence[str], new: bool) -> None:
    """A folder holds runs of one configuration, which is written there, less the values of the half."""
    settings = {part: copy.deepcopy(base[part]) for part in ("model", "data", "trainer")}
    for name in names:
        settings["model"]["init_args"]["entropy"]["init_args"].pop(name)
    for name in ("logger", "default_root_dir", "enable_progress_bar"):
        settings["trainer"].pop(name, None)
    file = out / "sweep.yaml"
    if new and _writes():
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(settings))
    if new or not file.is_file():
        return
    before, now = _flat(yaml.safe_load(file.read_text()), ""), _flat(settings, "")
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        lines = "\n".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in changed[:5])
        raise UserError(f"out={str(out)!r} holds a sweep with other settings: choose another --out\n{lines}")


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        flat.update(_flat(entry, prefix if name == "init_args" else f"{prefix}.{name}".lstrip(".")))
    return flat


def _read(file: Path) -> dict[str, Row]:
    """Rows by the name of the run; without the file there are none."""
    if not file.is_file():
        return {}
    kinds = {"run": str, "seed": int, "error": str}
    with file.open(newline="") as lines:
        rows = [
            {name: kinds.get(name, float)(text) for name, text in row.items() if text or name == "error"}
            for row in csv.DictReader(lines)
        ]
    return {row["run"]: row for row in rows}


def _writes() -> bool:
    """Whether this is the one process that writes the files."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _say(message: str) -> None:
    rank_zero_only(print)(message, flush=True)
