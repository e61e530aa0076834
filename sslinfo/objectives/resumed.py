"""What a resumed training takes from its new options, what it keeps of its checkpoint, and what it refuses.

docs/commands.md has the rules in words. An option that is not among those below is taken: it counts from the next step
on, and a line says so. Here all of that is checked and said. It is done by the classes whose options they are: for the
optimizer and its schedule by :class:`~sslinfo.optim.Schedule`.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from sslinfo.errors import UserError
from sslinfo.hyperparameters import HYPERPARAMETERS, to_plain
from sslinfo.lightning_compat import datamodule_of, is_dry_run
from sslinfo.optim import OptimizerConfig, Schedule, build_optimizer, build_scheduler
from sslinfo.stored import current_paths

TRAINING_KEY = "sslinfo_training"  # where a checkpoint says what its Trainer and its data made of a step and an epoch
# Options of the Trainer that change a training.
TRAINER = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "overfit_batches",
)

_IMAGES = "the images of a training stay the same"
_HELD_OUT = "images that were held out would be trained on, and scores on the held-out ones would promise too much"
# Another value of these is refused, for this reason.
REFUSED = {
    "model.optimizer.name": "the state of one optimizer does not fit another",
    "data.dataset": _IMAGES,
    "data.train_on": _IMAGES,
    "data.val_fraction": _HELD_OUT,
    "data.split_seed": _HELD_OUT,
    "data.seed": "the order of the images and their augmentations are drawn from it",
}
# Of another value of these nothing is said: the checkpoint's weights follow; and the rest says where a run is, not what
# it is.
UNSAID = ("model.weights", "data.root", "data.download", "data.num_workers", "data.in_memory", "data.compile_views")
# Said with what they make of a batch and of the training.
_COUNTED = ("data.batch_size", "trainer.max_epochs", "trainer.max_steps")
_ANEW = "or begin a new training (--model.weights PATH takes over the weights of a checkpoint's backbone)"


def size_of(trainer: Trainer, batch_size: int | None) -> dict[str, Any]:
    """What the options of a Trainer and its data make of a training, as plain values.

    Args:
        trainer: with its training data set up.
        batch_size: images per device and batch, None where that is unknown.
    """
    size: dict[str, Any] = {f"trainer.{name}": getattr(trainer, name) for name in TRAINER}
    algorithm = size["trainer.gradient_clip_algorithm"]
    size["trainer.gradient_clip_algorithm"] = getattr(algorithm, "value", algorithm)
    images = getattr(datamodule_of(trainer), "stores", {}).get("pretrain")
    batches = trainer.num_training_batches
    return {
        **size,
        "data.batch_size": batch_size,
        "ranks": trainer.world_size,
        "images": None if images is None else len(images),
        "steps_per_epoch": math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else batches,
        "steps": trainer.estimated_stepping_batches,
    }


def options_of(model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of an objective and of its data by the options that they belong to.

    >>> options_of({"_class_path": "sslinfo.objectives.VICReg", "invariance": 25.0, "entropy": None}, {})
    {'model': 'VICReg', 'model.invariance': 25.0, 'model.entropy': None}
    """
    out: dict[str, Any] = {}
    for part, values in (("model", model), ("data", data)):
        if isinstance(values, Mapping) and "_class_path" in values:
            plain = {str(name): value for name, value in values.items() if not str(name).startswith("_")}
            if part == "model" and "optimizer" in plain:
                given = plain.pop("optimizer")
                optimizer = given if isinstance(given, Mapping) else to_plain(OptimizerConfig())
                plain |= {f"optimizer.{name}": value for name, value in optimizer.items()}
            out |= _by_option(part, str(values["_class_path"]), plain)
    return out


def _by_option(option: str, class_path: str, init_args: Mapping[str, Any]) -> dict[str, Any]:
    """A class and its arguments; of the class the name alone, since a script's own stands in ``__main__``."""
    out: dict[str, Any] = {option: class_path.rpartition(".")[2]}
    for name, value in init_args.items():
        if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
            arguments = value.get("init_args")
            inner = arguments if isinstance(arguments, Mapping) else {}
            out |= _by_option(f"{option}.{name}", value["class_path"], inner)
        else:
            out[f"{option}.{name}"] = value
    return out


@dataclass
class Resumed:
    """What a training that goes on knows of the one in its checkpoint.

    Attributes:
        step: optimizer steps that were done.
        options: what it was configured with, by option.
        size: what that made of a step and an epoch; empty in a file that does not say it.
        seed: of the order and the augmentations.
    """

    step: int
    options: dict[str, Any]
    size: dict[str, Any]
    seed: int | None

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], module: LightningModule) -> Resumed:
        """Read a checkpoint that a training is about to go on from.

        Raises:
            UserError: it holds weights alone, or weights of another network.
        """
        if "optimizer_states" not in checkpoint:
            raise UserError(
                "ckpt_path: this checkpoint holds weights alone (save_weights_only), and no training can go on from "
                f"it: take one with the optimizer's state, {_ANEW}"
            )
        stored = (current_paths(checkpoint.get(name) or {}) for name in HYPERPARAMETERS)
        size = checkpoint.get(TRAINING_KEY)
        before = cls(
            step=int(checkpoint.get("global_step", 0)),
            options=options_of(*stored),
            size=size if isinstance(size, dict) else {},
            seed=checkpoint.get("sslinfo_seed"),
        )
        before._check_weights(checkpoint.get("state_dict", {}), module)
        before._say_what_is_left_out(checkpoint.get("callbacks"), module)
        return before

    def check(self, size: Mapping[str, Any] | None, module: LightningModule) -> None:
        """Say what is taken; see that nothing is changed that cannot be.

        Args:
            size: what is configured now makes of a step and an epoch, where that is known.
            module: the objective.

        Raises:
            UserError: it is refused; the message names the option and the way out.
        """
        now = _options_now(module)
        changed = self._changed(now)
        for name in changed:
            is_class = any(_is_class(name, options) for options in (self.options, now))
            reason = "a training goes on with the parts that it began with" if is_class else REFUSED.get(name)
            if reason is not None:
                raise UserError(_refusal([name], now, self.options, reason))
        if size is not None and self.size.keys() >= size.keys():  # fewer in a file of another version
            self._check_size(self.size, size)
        schedules = [config.scheduler for config in module.trainer.lr_scheduler_configs]
        if not any(isinstance(schedule, Schedule) for schedule in schedules):
            # An objective with a configure_optimizers of its own: what it makes of these is not known here.
            changed = [name for name in changed if not name.startswith("model.optimizer.")]
        if "model.optimizer.options" in changed:
            self._check_optimizer(now)
        for name in changed:
            if name not in _COUNTED:
                self._say(name, now[name], self.options[name])
        if size is not None and self.size.keys() >= size.keys():
            self._say_size(self.size, size)
        seed = os.environ.get("PL_GLOBAL_SEED")
        if self.seed is not None and seed is not None and int(seed) != self.seed:
            _note(f"seed_everything is {seed} as you say; the training goes on with its own, {self.seed}")

    def say_nothing_left(self, size: Mapping[str, Any] | None, is_dry_run: bool) -> None:
        """Say why the training ended before its first step."""
        if is_dry_run:
            _note(
                "a dry run ends at step 1: it tries nothing of a training that goes on; leave out ckpt_path to try it"
            )
        else:
            end = "trainer.max_epochs or trainer.max_steps" if size is None else _end(size)
            _note(
                f"nothing is left to train: the checkpoint is of step {self.step}, where {end} ends the training; to "
                "go on, set more"
            )

    def _changed(self, now: Mapping[str, Any]) -> list[str]:
        return [
            name for name, before in self.options.items() if name in now and now[name] != before and name not in UNSAID
        ]

    def _say(self, name: str, now: Any, before: Any, more: str = "") -> None:
        if len(f"{now}{before}") > 200:  # lists of views
            now, before = "another", "its own"
        _note(f"{name} is {now} as you say, from step {self.step} on; the checkpoint was trained with {before}{more}")

    def _check_weights(self, weights: Mapping[str, Any], module: LightningModule) -> None:
        now = _options_now(module)
        changed = [
            name for name in self._changed(now) if name.startswith("model.") and not name.startswith("model.optimizer.")
        ]
        own = {name: getattr(value, "shape", None) for name, value in module.state_dict().items()}
        stored = {name: getattr(value, "shape", None) for name, value in weights.items()}
        wrong = [
            name for name in {**own, **stored} if name not in own or name not in stored or own[name] != stored[name]
        ]
        if changed and wrong:
            reason = f"the weights do not fit ({wrong[0]} is the first)"
            raise UserError(_refusal(changed, now, self.options, reason))

    def _say_what_is_left_out(self, states: Any, module: LightningModule) -> None:
        # Lightning's own words name the states' keys; they are said here in ours.
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        here = {callback.state_key for callback in module.trainer.callbacks}  # type: ignore[attr-defined]
        if isinstance(states, Mapping) and not is_dry_run(module.trainer):
            for name in sorted({str(key).partition("{")[0] for key in states if key not in here}):
                _note(
                    f"the checkpoint holds the state of {name}, which is not among the callbacks here with the same "
                    "options: it is left out"
                )

    def _check_size(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """An optimizer step and an epoch are what they were: the schedule counts in them."""
        if before["images"] != now["images"] and before["images"] is not None and now["images"] is not None:
            raise UserError(
                f"there are {now['images']} training images here, and {before['images']} in the checkpoint: {_IMAGES}; "
                f"check data.root, {_ANEW}"
            )
        if _batch(before) != _batch(now):
            raise UserError(
                f"data.batch_size={now['data.batch_size']} on {now['ranks']} device(s) makes batches of {_batch(now)} "
                f"images, and the checkpoint's were of {_batch(before)} ({before['data.batch_size']} on "
                f"{before['ranks']}): losses, learning rate and schedule would be of another training; set "
                f"data.batch_size and trainer.devices to as many images, {_ANEW}"
            )
        name = "trainer.accumulate_grad_batches"
        if before[name] != now[name]:
            reason = "learning rate and schedule, or else the losses of smaller batches, would be of another training"
            raise UserError(_refusal([name], now, before, reason))
        if before["steps_per_epoch"] != now["steps_per_epoch"]:
            names = ("trainer.limit_train_batches", "trainer.overfit_batches")
            values = [f"{name} is {now[name]}, was {before[name]}" for name in names if before[name] != now[name]]
            raise UserError(
                f"an epoch has {now['steps_per_epoch']} optimizer steps here, and {before['steps_per_epoch']} in the "
                f"checkpoint ({'; '.join(values) or 'the data are others'}): the schedule would end elsewhere; leave "
                f"that as it was, {_ANEW}"
            )
        if 0 <= now["steps"] < self.step:
            raise UserError(
                f"{_end(now)} ends the training at step {now['steps']}, and the checkpoint is of step {self.step}: "
                "nothing is left to train; set more"
            )

    def _check_optimizer(self, now: Mapping[str, Any]) -> None:
        """See on four weights whether an optimizer of the new options goes on from the state of the old ones."""
        before, after = (_optimizer_config(options) for options in (self.options, now))
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            network = nn.Linear(2, 2)
            try:
                old = build_optimizer(network, before, before.batch_size_of_lr)
                schedule = build_scheduler(old, before, 10, 1)
                network(torch.ones(1, 2)).square().sum().backward()
                old.step()
            except Exception:  # an optimizer that does not run here, or on so little, cannot be tried
                return
            try:
                new = build_optimizer(network, after, after.batch_size_of_lr)
                new_schedule = build_scheduler(new, after, 10, 1)
                new.load_state_dict(old.state_dict())
                new_schedule.load_state_dict(schedule.state_dict())
                new.step()
            except Exception as error:
                reason = f"the optimizer cannot go on from what it has kept ({type(error).__name__}: {error})"
                raise UserError(_refusal(["model.optimizer.options"], now, self.options, reason)) from error

    def _say_size(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        changed = [name for name in before if name.startswith("trainer.") and before[name] != now[name]]
        for name in changed:
            if name not in _COUNTED:
                self._say(name, now[name], before[name])
        ends = [name for name in ("trainer.max_epochs", "trainer.max_steps") if name in changed]
        for name in ends:
            is_last = name == ends[-1] and before["steps"] != now["steps"]
            more = f": the training and its schedule are of {now['steps']} steps, not of {before['steps']}"
            self._say(name, now[name], before[name], more if is_last else "")
        if before["ranks"] != now["ranks"]:
            more = ": batch norm that is not synchronised and random numbers inside the network are others"
            self._say("the number of devices", now["ranks"], before["ranks"], more)


def _refusal(names: Sequence[str], now: Mapping[str, Any], before: Mapping[str, Any], reason: str) -> str:
    values = [f"{name} is {now[name]} here, and {before[name]} in the checkpoint" for name in names]
    return f"{'; '.join(values)}: {reason}; leave that as it was, {_ANEW}"


def _options_now(module: LightningModule) -> dict[str, Any]:
    data = datamodule_of(module.trainer)
    options = options_of(module.hparams, getattr(data, "hparams", {}))
    if not getattr(data, "seed_is_given", True):
        options.pop("data.seed", None)  # the checkpoint's is taken
    return options


def _is_class(name: str, options: Mapping[str, Any]) -> bool:
    """Whether an option's value is a class, with options of its own."""
    return name == "model.entropy" or any(other.startswith(f"{name}.") for other in options)


def _batch(size: Mapping[str, Any]) -> int | None:
    """Images of a batch over all devices."""
    return size["data.batch_size"] and size["data.batch_size"] * size["ranks"]


def _end(size: Mapping[str, Any]) -> str:
    """What ends a training."""
    names = [name for name in ("trainer.max_epochs", "trainer.max_steps") if size[name] != -1]
    return " or ".join(f"{name}={size[name]}" for name in names)


def _optimizer_config(options: Mapping[str, Any]) -> OptimizerConfig:
    """The optimizer, without its schedule."""
    names = [field.name for field in fields(OptimizerConfig)]
    given = {name: options[f"model.optimizer.{name}"] for name in names if f"model.optimizer.{name}" in options}
    return replace(OptimizerConfig(**given), schedule="constant", warmup_steps=0)


def _note(message: str) -> None:
    rank_zero_only(print)(f"note: {message}", flush=True)
