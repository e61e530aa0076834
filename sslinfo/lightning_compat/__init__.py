"""What is used of Lightning beyond its public and typed interface, all of it here.

``PRIVATE`` lists the names; a test of them says which release of Lightning took one away.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from sslinfo.lightning_compat import loops
from sslinfo.lightning_compat.loops import make_exact as make_exact
from sslinfo.lightning_compat.storage import write_atomically as write_atomically

PRIVATE: tuple[tuple[type, str], ...] = (
    *loops.PRIVATE,
    (LightningCLI, "_prepare_subcommand_parser"),
    (LightningCLI, "_parse_ckpt_path"),
    (LightningCLI, "_run_subcommand"),
    (LightningCLI, "_parser"),
    (HyperparametersMixin, "_set_hparams"),
    (_ChildProcessObserver, "_terminate_all"),
    (LightningArgumentParser, "_add_signature_parameter"),
)


class DataParser(LightningArgumentParser):
    """Takes a value for what it says: jsonargparse takes text for a file with the value in it where there is one."""

    def _add_signature_parameter(self, *args: Any, **kwargs: Any) -> Any:
        return super()._add_signature_parameter(*args, **{**kwargs, "sub_configs": False})


class CommandLine(LightningCLI):
    """LightningCLI with names for what it keeps private; a checkpoint's configuration overrules nothing."""

    def add_subcommand_arguments(self, parser: LightningArgumentParser, subcommand: str) -> None:
        """Add arguments that one subcommand alone has."""

    def run_subcommand(self, subcommand: str) -> None:
        """Do what was asked for."""
        super()._run_subcommand(subcommand)

    def parser_of(self, subcommand: str | None) -> LightningArgumentParser:
        """The parser of a subcommand."""
        return self._parser(subcommand)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self.add_subcommand_arguments(parser, subcommand)
        return parser

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyper-parameters overrule the command line here."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_subcommand(subcommand)


def replace_hyperparameters(module: HyperparametersMixin, values: dict[str, Any]) -> None:
    """Make these the hyper-parameters that checkpoints and loggers take, in place of what was collected."""
    module.hparams.clear()  # _set_hparams alone would keep what the new values lack
    module._set_hparams(values)
    setattr(module, "_hparams_initial", dict(module._hparams))  # noqa: B010  it declares no such attribute


def has_trainer(module: LightningModule) -> bool:
    """Whether the module is attached to a Trainer; asking for ``module.trainer`` raises where it is not."""
    return module._trainer is not None


def is_dry_run(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which writes nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def datamodule_of(trainer: Trainer) -> LightningDataModule | None:
    """The data module in use, None with loaders alone."""
    found: LightningDataModule | None = getattr(trainer, "datamodule", None)
    return found


def prepare_train_data(trainer: Trainer) -> None:
    """Set the training's loader up: without ``max_epochs`` Lightning would not know the length of an epoch yet."""
    trainer.fit_loop.setup_data()


def no_batch_yet(trainer: Trainer) -> bool:
    """Whether the training has not asked for any batch so far, in this process or before its checkpoint."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready == 0


def batch_in_work(trainer: Trainer) -> bool:
    """Whether a batch of this epoch was handed out and is not trained on yet."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.ready > progress.processed


def stop_here(trainer: Trainer) -> None:
    """Somebody stops the training at signals, on all ranks: Lightning need not ask its ranks at each batch."""
    steps: Any = trainer.fit_loop.epoch_loop
    steps.stops_itself = True


def requeues_on(trainer: Trainer) -> tuple[signal.Signals, ...]:
    """The signal at which a SLURM job is saved and requeued; none elsewhere."""
    connector: Any = trainer._accelerator_connector
    environment = connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
        return (environment.requeue_signal,)
    return ()


def leave_children_alone() -> None:
    """Somebody else ends the others when one rank has failed, and says why: Lightning kills them without a word."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


def keep_logs(trainer: Trainer, step: int) -> None:
    """Before a training goes on from a step: what its loggers have where they write again is not lost, nor read twice.

    A logger without a version of its own writes into a new folder, and there is nothing to do.
    """
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and trainer.is_global_zero:
            file = Path(logger.log_dir) / "metrics.csv"  # which Lightning would remove
            if file.is_file():
                kept = next(
                    path
                    for number in itertools.count()
                    if not (path := file.with_name(f"metrics_before_{number}.csv")).exists()
                )
                os.replace(file, kept)
        elif isinstance(logger, TensorBoardLogger):
            logger._kwargs.setdefault("purge_step", step)  # TensorBoard passes over later steps of files from before


def begins_inside_epoch(trainer: Trainer) -> bool:
    """Whether a resumed training is about to go on inside an epoch."""
    steps: Any = trainer.fit_loop.epoch_loop
    return bool(getattr(steps, "inside", False))
