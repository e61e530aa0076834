"""The command line: ``sslinfo fit|validate|test|predict``, LightningCLI in subclass mode."""

from __future__ import annotations

import argparse
import enum
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
import yaml
from jsonargparse import DefaultHelpFormatter, Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sslinfo import __version__
from sslinfo.callbacks import InformationMonitor, KNNProbe, LinearProbe, RankWatch, StopOnSignal
from sslinfo.callbacks.prediction_writer import PredictionWriter
from sslinfo.cli.arguments import (
    CONFIG,
    RUNS,
    ActionRecipe,
    folders_of_files,
    recipe_name,
    values_of,
    with_checkpoint,
)
from sslinfo.cli.checkpoints import CALLBACKS_KEY, StoredConfig, check_same_classes, differences
from sslinfo.cli.checks import check_devices, check_empty, check_nulls, empty_options
from sslinfo.cli.errors import explain
from sslinfo.cli.faults import told
from sslinfo.cli.results import results_table
from sslinfo.cli.words import say
from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.lightning_compat import CommandLine, DataParser, is_dry_run, keep_logs
from sslinfo.objectives import JointEmbedding
from sslinfo.recipes import Recipe

# What Lightning's callbacks have as defaults is written into config.yaml as it is read: devices, and words of a set.
register_type(torch.device)
yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, word: dumper.represent_data(word.value))


class Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description; names sslinfo's classes for an option, not every class that fits its type."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return re.sub(r"known subclasses: ([^()]*)", _ours_among, super()._get_help_string(action) or "")


def _ours_among(known: re.Match[str]) -> str:
    names = known[1].split(", ")
    ours = [name for name in names if name.startswith("sslinfo.")]
    if len(names) <= 40 and not ours:
        return known[0]
    # A type as wide as any network's would offer objectives as backbones.
    return "sslinfo's: " + ", ".join(ours) if ours and len(names) <= 200 else "any class by its dotted path"


class Parser(LightningArgumentParser):
    """Says what is wrong with the command line in a few lines, with a suggestion."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An option's beginning is a mistake like any other: --ckpt_path is looked for by its whole name. The parsers of
        # subcommands are made of this class, without the options that the command line gives to the outer parser.
        super().__init__(*args, **{"formatter_class": Help, "allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        raise UserError(message) from ex  # explained where the outermost parser's message arrives


class CheckpointParser(Parser, DataParser):
    """That of a command whose values come from a checkpoint too."""


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml beside a training run's logs, and the callbacks' configuration into its checkpoints."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.loggers:
            super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        callbacks = dumped["trainer"].get("callbacks") or []
        checkpoint[CALLBACKS_KEY] = callbacks if isinstance(callbacks, list) else [callbacks]


class Cli(CommandLine):
    """LightningCLI whose checkpoints inform the command line instead of overruling it."""

    def __init__(
        self,
        *args: Any,
        stored: StoredConfig | None = None,
        recipe: str | None = None,
        empty: Sequence[tuple[str, ...]] = (),
        **kwargs: Any,
    ) -> None:
        self.stored, self.recipe, self.empty = stored, recipe, empty
        self.asked = next(iter(kwargs.get("args") or []), None)
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for: to make the parsers of all takes as long as to read a recipe."""
        every = super().subcommands()
        return {self.asked: every[self.asked]} if self.asked in every else every

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault("dump_header", [f"sslinfo=={__version__}"])
        parser = self.parser_class(**kwargs)
        parser.add_argument(*CONFIG, action=ActionRecipe, help="a recipe: its name (see `sslinfo recipes`) or a file")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"data": {"class_path": "sslinfo.data.TwoViewDataModule"}})

    def add_subcommand_arguments(self, parser: LightningArgumentParser, subcommand: str) -> None:
        if subcommand == "predict":
            parser.add_argument(
                "--output",
                type=str,
                default="representations.npz",
                help="file that takes the representations, labels and indices of each split",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        check_nulls(self._options())
        check_devices(self._options())
        check_empty(self._options(), self.empty)
        self._keep_last_of_each_callback()
        self._name_run()
        if self._options().get("weights_only") is False:
            raise UserError("weights_only=False: sslinfo reads checkpoints as data alone: leave it out")
        self._look_for_weights()
        if self.stored is not None:
            plain = self.plain_options()
            if self.subcommand == "fit":
                check_same_classes(self.stored, plain)  # the objective says what else is changed
                return
            for line in differences(self.stored, plain):
                say(f"note: {line}")

    def _look_for_weights(self) -> None:
        """Random weights are looked at only where that is said."""
        options = self._options()
        model = options["model"]
        named = isinstance(model, Namespace) and isinstance(model.get("init_args.backbone"), str)
        if self.subcommand == "fit" or not named or options["ckpt_path"] or model.get("init_args.weights"):
            return  # a backbone of the user's own may bring its weights
        way = "a checkpoint with --ckpt_path last (or its path), or weights with --model.weights FILE"
        if self.subcommand != "validate":
            raise UserError(f"{self.subcommand} of a network that was never trained: give {way}")
        say(f"note: this network was never trained, its weights are random: give {way}")

    def instantiate_classes(self) -> None:
        """Whatever is wrong while the classes are made is wrong with what the user gave."""
        try:
            super().instantiate_classes()
        except (UserError, MisconfigurationException):
            raise
        except Exception as error:
            if twice := re.search(r"more than one stateful callback of type `(\w+)`", str(error)):
                raise UserError(
                    f"trainer.callbacks: {twice[1]} stands there twice: callbacks+ adds to those of the recipe or the "
                    f"checkpoint; give the options of the one {twice[1]} in a recipe"
                ) from error
            fault = told(error, of_user=True)
            hint = "" if fault.understood else "\n(the traceback: add --debug)"
            raise UserError(f"{explain(fault.message)}{hint}") from error

    def _keep_last_of_each_callback(self) -> None:
        """Of one of our callbacks that a recipe, an overlay and the command line name, the last word counts."""
        trainer = self._options()["trainer"]
        callbacks = trainer["callbacks"]
        if not isinstance(callbacks, list):
            return
        paths = [str(entry.get("class_path", "")) if isinstance(entry, Namespace) else "" for entry in callbacks]
        kept = []
        for number, (path, entry) in enumerate(zip(paths, callbacks, strict=True)):
            if path.startswith("sslinfo.") and path in paths[number + 1 :]:
                say(f"note: {path.rpartition('.')[2]} is given more than once: the options of the last one count")
            else:
                kept.append(entry)
        trainer["callbacks"] = kept

    def _name_run(self) -> None:
        """A logger that was given no name has that of the data set and the first recipe."""
        options = self._options()
        loggers = options["trainer"]["logger"]
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if self.recipe is None or not isinstance(logger, Namespace):
                continue
            module, _, name = logger["class_path"].rpartition(".")
            parameter = inspect.signature(getattr(importlib.import_module(module), name)).parameters.get("name")
            if parameter is not None and logger["init_args"].get("name") == parameter.default:
                data = options.get("data.init_args.dataset")
                data = data["class_path"] if isinstance(data, Namespace) else data
                parts = [str(data).rpartition(".")[2], self.recipe] if data else [self.recipe]
                logger["init_args"]["name"] = "-".join(parts).replace("_", "-")

    def plain_options(self) -> dict[str, Any]:
        """The subcommand's configuration as strings, numbers, lists and dicts."""
        return yaml.safe_load(self.parser_of(self.subcommand).dump(self._options(), skip_none=False))

    def _options(self) -> Namespace:
        assert self.subcommand is not None
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        devices = self._options()["trainer"]["devices"]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, MisconfigurationException) as error:
            if "devices" not in str(error):
                raise
            raise UserError(
                f"trainer.devices={devices!r} does not fit: give a number above 0 or auto, GPUs also by their numbers, "
                f"as [0, 1] ({str(error).partition('. ')[0]})"
            ) from error
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        # Before all others: what goes wrong in them is told to the other ranks too.
        watch = RankWatch(describe=lambda error: told(error).message)
        watching = [StopOnSignal(), watch] if self.subcommand == "fit" else [watch]
        callbacks[:0] = [own for own in watching if not any(isinstance(callback, type(own)) for callback in callbacks)]
        if is_dry_run(trainer):
            # save_last writes a file even then, and `--ckpt_path last` would find the trial instead of the training.
            callbacks[:] = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
        if self.subcommand == "test" and not any(isinstance(c, LinearProbe) for c in callbacks):
            callbacks.append(LinearProbe())
        if self.subcommand == "test" and not any(isinstance(c, KNNProbe) for c in callbacks):
            callbacks.append(KNNProbe())
        if self.subcommand == "validate" and not any(isinstance(c, InformationMonitor) for c in callbacks):
            callbacks.append(InformationMonitor())
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self._options()["output"]))
        return trainer

    def fit(self, **kwargs: Any) -> None:
        if self.stored is not None:
            keep_logs(self.trainer, self.stored.step)
        self.trainer.fit(**{**kwargs, "weights_only": True})

    def validate(self, **kwargs: Any) -> None:
        self._evaluate(self.trainer.validate, **kwargs)

    def test(self, **kwargs: Any) -> None:
        self._evaluate(self.trainer.test, **kwargs)

    def _evaluate(self, run: Callable[..., Any], verbose: bool = True, **kwargs: Any) -> None:
        """Lightning's table cuts long names at half of the terminal's width."""
        results = run(**{**kwargs, "verbose": False, "weights_only": True})
        if verbose and results and results[0]:
            say(results_table(results[0]))

    def predict(self, **kwargs: Any) -> None:
        self.trainer.predict(**{**kwargs, "return_predictions": False, "weights_only": True})


def main(args: Sequence[str] | None = None, cli: type[Cli] = Cli) -> Cli:
    """Run the command line on ``args`` (``sys.argv`` without them) and return it, with its trainer, model and data.

    Args:
        args: the arguments, the subcommand first.
        cli: the class that is run.

    Raises:
        UserError: for a mistake in the arguments.
    """
    given = list(sys.argv[1:] if args is None else args)
    args, stored = with_checkpoint(given)
    return _run(
        cli,
        bool(values_of(given, *CONFIG)) or any(word.startswith("--model") for word in given),
        JointEmbedding,
        TwoViewDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_defaults={"default_root_dir": RUNS},
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        parser_class=Parser if stored is None or folders_of_files(given) else CheckpointParser,
        parser_kwargs={"prog": "sslinfo"},
        args=args,
        stored=stored,
        recipe=recipe_name(given),
        empty=[key for text in values_of(given, *CONFIG) for key in empty_options(Recipe.read(text).settings)],
    )


def _run(cli: type[Cli], model_given: bool, *args: Any, stored: StoredConfig | None, **kwargs: Any) -> Cli:
    """The command line, with the faults that Lightning finds late in the words of the command line."""
    try:
        return cli(*args, stored=stored, **kwargs)
    except (UserError, MisconfigurationException) as error:
        text = str(error)
        if stored is not None and not model_given and text.startswith('Parser key "config"'):
            raise UserError(f"ckpt_path={stored.path!r}: {explain(text.partition(': ')[2])}") from error
        raise UserError(explain(text)) from error
    except Exception as error:
        text = str(error)
        if stored is not None and "loading state_dict" in text:
            first = text.partition("\n")[2].strip().partition("\n")[0]
            way = (
                "of this command line: leave out --model and its options, and the recipe"
                if model_given
                else "that it describes: it was changed, or is of another version of its backbone"
            )
            raise UserError(f"the checkpoint {stored.path!r} does not fit the model {way}\n{first}") from error
        if stored is not None and _restoring(error):
            raise UserError(
                f"the checkpoint {stored.path!r} is no whole checkpoint of this training: restoring it ends in "
                f"{type(error).__name__}: {text}"
            ) from error
        raise


def _restoring(error: Exception) -> bool:
    """Whether it was raised while Lightning gave a checkpoint's parts back to those who had written them."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return any(file.endswith("checkpoint_connector.py") for file in files)
