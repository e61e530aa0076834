"""What of Lightning's Trainer an objective can be trained with: asked once, when the two first meet."""

from __future__ import annotations

import difflib
import math
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Checkpoint,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy

from sslinfo.errors import UserError
from sslinfo.lightning_compat import begins_inside_epoch, is_dry_run

# Callbacks that cannot work, why, and what to do in their place.
REFUSED: dict[type, str] = {
    BatchSizeFinder: (
        "it changes the batch behind the learning rate, the schedule and the order of the images: give data.batch_size"
    ),
    GradientAccumulationScheduler: (
        "it changes the batch that the learning rate and the schedule were made for: give one number as "
        "trainer.accumulate_grad_batches"
    ),
    LearningRateFinder: (
        "the loss of an objective at small rates does not say how good its representations get: compare the probes of "
        "short trainings with sslinfo sweep --sweep model.optimizer.lr=.1,.3,1"
    ),
    ModelPruning: (
        "it puts masked copies in place of the weights, which moving averages and checkpoints would not know: prune "
        "the network after its training"
    ),
    SpikeDetection: (
        "a checkpoint of a training with it cannot be loaded again, which is a fault of Lightning's: CollapseAlarm and "
        "EarlyStopping watch a training too"
    ),
    BackboneFinetuning: (
        "its parameters join the optimizer late, without the schedule and the weight decay of the others: start from "
        "trained weights with model.weights"
    ),
}
# The smallest value of each flag of the Trainer that Lightning does not check, or that would train nothing.
SMALLEST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 0,
    "gradient_clip_val": 0,
    "min_epochs": 0,
    "min_steps": 0,
}
NAMED = 5  # logged names that a message gives
NOT_ZERO = ("max_epochs", "max_steps", "limit_train_batches", "val_check_interval")


def check_trainer(trainer: Trainer, stage: str) -> None:
    """See that an objective can be run by a Trainer as it is.

    Args:
        trainer: the Trainer, with its callbacks.
        stage: ``fit`` or another; what only training needs is asked for ``fit`` alone.

    Raises:
        UserError: a flag or callback that cannot work; the message says why and what to do.
    """
    if stage == "fit":
        _check_numbers(trainer)
        for callback in getattr(trainer, "callbacks", []):
            for kind, reason in REFUSED.items():
                if isinstance(callback, kind):
                    raise UserError(f"the callback {type(callback).__name__} cannot be used: {reason}")
    precision = getattr(trainer, "precision", None)
    if precision in ("bf16-true", "16-true"):
        raise UserError(
            f"precision={precision} would train weights, targets and queues in half precision: set "
            f"--trainer.precision {precision.replace('true', 'mixed')}"
        )
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise UserError(
            f"strategy={type(trainer.strategy).__name__} is not supported on several devices, since the "
            "objectives' exactness is proved for DDP: set --trainer.strategy ddp"
        )


def check_resumed(trainer: Trainer) -> None:
    """See that a training can go on where it stands.

    Raises:
        UserError: it stands inside an epoch, and averages weights in a way that begins with an epoch.
    """
    averaging = any(isinstance(callback, StochasticWeightAveraging) for callback in getattr(trainer, "callbacks", []))
    if averaging and begins_inside_epoch(trainer):
        raise UserError(
            "a training with StochasticWeightAveraging cannot go on inside an epoch, where it sets up neither its rate "
            "nor its average: take a checkpoint of an epoch's end"
        )


def _check_numbers(trainer: Trainer) -> None:
    for name, smallest in SMALLEST.items():
        value: Any = getattr(trainer, name, None)
        if isinstance(value, int | float) and not value >= smallest:
            raise UserError(f"trainer.{name}={value} must be {smallest} or more")
    accumulate: Any = getattr(trainer, "accumulate_grad_batches", 1)
    if isinstance(accumulate, float) and not (math.isfinite(accumulate) and accumulate.is_integer()):
        raise UserError(f"trainer.accumulate_grad_batches={accumulate} must be a whole number")
    if is_dry_run(trainer):
        return
    for name in NOT_ZERO:
        if getattr(trainer, name, None) == 0:
            raise UserError(f"trainer.{name}=0 leaves nothing to train on: give a number above 0")


def unlogged_monitors(trainer: Trainer) -> list[str]:
    """A line for each callback whose ``monitor`` nobody has logged by the end of a training, so that it did nothing."""
    logged = list(trainer.callback_metrics)
    lines = []
    for callback in getattr(trainer, "callbacks", []):
        monitor = getattr(callback, "monitor", None)
        own = ("epoch", "step") if isinstance(callback, Checkpoint) else ()  # known without being logged
        if not isinstance(monitor, str) or monitor in (*logged, *own):
            continue
        near = difflib.get_close_matches(monitor, logged, n=NAMED, cutoff=0.0)
        names = ", ".join(near) + (f" and {len(logged) - NAMED} more" if len(logged) > NAMED else "")
        lines.append(
            f"{type(callback).__name__} watched monitor={monitor}, which nobody logged in this training, so it did not "
            f"act on it; logged were {names or 'no names'} (those of val/ need a validation)"
        )
    return lines
