"""Optimizers by name from timm, with a learning rate that follows the effective batch size, warm-up and cosine."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import timm.optim
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sslinfo.errors import UserError
from sslinfo.ranges import check_range

# Of options that optimizers have in common; all others are finite.
OPTIONS = {
    "momentum": "[0, 1]",
    "dampening": "[0, 1]",
    "betas": "[0, 1)",
    "alpha": "[0, 1]",
    "rho": "[0, 1)",
    "eps": ">= 0",
    "trust_coeff": "> 0",
}
# What the optimizer takes too, by the names under which it is given here.
_NOT_OPTIONS = {"lr": "lr", "weight_decay": "weight_decay", "opt": "name"}


@dataclass
class OptimizerConfig:
    """How an objective is optimized.

    Args:
        name: an optimizer of timm's factory: lars, sgd, adamw, ...
        lr: learning rate, in (0, 1e30], for an effective batch of ``batch_size_of_lr`` samples. The rate in use is
            lr * effective batch / batch_size_of_lr, with effective batch = batch size per device x devices x nodes x
            accumulated batches.
        weight_decay: in [0, 1e30], for weights of two dimensions or more; norms and biases have none (and LARS does not
            adapt them).
        batch_size_of_lr: the batch size that ``lr`` is stated for, in [1, 1e9].
        warmup_epochs: length of the linear warm-up, in epochs, in [0, 1e9]; counted in optimizer steps.
        warmup_steps: the same in optimizer steps, in [0, 1e9]; when given, warmup_epochs is not used.
        warmup_start: first learning rate as a fraction of the full one, in [0, 1].
        schedule: cosine decay to ``final`` or constant, after the warm-up.
        final: last learning rate of the cosine as a fraction of the full one, in [0, 1].
        options: further arguments of the optimizer ({momentum: .9, trust_coeff: .02, trust_clip: true, ...}).

    Raises:
        UserError: a number out of its range.

    >>> OptimizerConfig(final=2.0)
    Traceback (most recent call last):
    sslinfo.errors.UserError: optimizer.final must be in [0, 1], got 2.0
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch_size_of_lr: int = 256
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None
    warmup_start: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    final: float = 0.0
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_range("optimizer.lr", self.lr, "(0, 1e30]")
        check_range("optimizer.weight_decay", self.weight_decay, "[0, 1e30]")
        check_range("optimizer.batch_size_of_lr", self.batch_size_of_lr, "[1, 1e9]", whole=True)
        check_range("optimizer.warmup_epochs", self.warmup_epochs, "[0, 1e9]")
        if self.warmup_steps is not None:
            check_range("optimizer.warmup_steps", self.warmup_steps, "[0, 1e9]", whole=True)
        check_range("optimizer.warmup_start", self.warmup_start, "[0, 1]")
        check_range("optimizer.final", self.final, "[0, 1]")
        if self.schedule not in ("cosine", "constant"):
            raise UserError(f"optimizer.schedule={self.schedule!r} is not known: choose cosine or constant")
        for name, own in _NOT_OPTIONS.items():
            if name in (self.options or {}):
                raise UserError(f"optimizer.options holds {name}, which is not one of them: give it as optimizer.{own}")
        for name, value in (self.options or {}).items():
            for number in value if isinstance(value, list | tuple) else [value]:
                if isinstance(number, int | float) and not isinstance(number, bool):
                    check_range(f"optimizer.options.{name}", number, OPTIONS.get(name, "[-1e9, 1e9]"))


def learning_rate_factor(
    step: int, total: float, warmup: float, start: float = 0.0, schedule: str = "cosine", final: float = 0.0
) -> float:
    """Learning rate of optimizer step ``step`` (from 0) as a fraction of the full one.

    Linear from ``start`` over ``warmup`` steps, then half a cosine from 1 to ``final`` at step ``total``, or 1.

    >>> [round(learning_rate_factor(s, total=10, warmup=2), 3) for s in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return start + (1 - start) * step / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, effective_batch: int, constant: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """The optimizer for a module's trainable parameters; norms, biases and what timm names are without weight decay.

    The parameters of the modules in ``constant`` are in groups of their own, marked ``constant``: their learning rate
    follows no schedule.

    Raises:
        UserError: a name or an option that timm's factory does not take.

    >>> optimizer = build_optimizer(nn.Linear(4, 2), OptimizerConfig("sgd", lr=0.1, weight_decay=1e-4), 512)
    >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    [(0.2, 0.0), (0.2, 0.0001)]
    """
    known = [str(name) for name in timm.optim.list_optimizers()]
    if config.name.lower() not in known:
        close = difflib.get_close_matches(config.name.lower(), known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"timm knows {', '.join(known)}"
        raise UserError(f"optimizer.name={config.name!r} is not known: {hint}")
    apart = {parameter for part in constant for parameter in part.parameters()}
    groups = []
    named = [
        f"{place}.{name}" if place else name
        for place, part in module.named_modules()
        for name in getattr(part, "no_weight_decay", set)()  # a timm network's position embeddings and tokens
    ]
    # The same groups whatever the decay, 0 too: a training can be resumed with another.
    for group in timm.optim.param_groups_weight_decay(module, 1.0, no_weight_decay_list=named):
        decay = config.weight_decay if group["weight_decay"] else 0.0
        for mark in (False, True):
            some = [parameter for parameter in group["params"] if (parameter in apart) == mark]
            if some or not mark:
                groups.append({"params": some, "weight_decay": decay, "constant": mark})
    try:
        return timm.optim.create_optimizer_v2(
            groups,
            opt=config.name.lower(),
            lr=config.lr * effective_batch / config.batch_size_of_lr,
            weight_decay=config.weight_decay,
            **(config.options or {}),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.options={config.options} do not fit {config.name}: {error}") from error


_PLAIN = (bool, int, float, str, type(None))


class Schedule(LambdaLR):
    """The learning rate of every step, which after a resume is that of the configuration in use.

    A checkpoint brings back what the optimizer and the schedule were given. What is configured otherwise by now counts
    from the next step on: rates, weight decay, options of the optimizer, and the schedule's shape and length. What is
    configured alike stays bit for bit, and so does what an optimizer has changed in its groups by itself.

    Args:
        optimizer: as it was built, before its first step.
        config: the shape of the schedule.
        steps: optimizer steps of the whole training.
        warmup: optimizer steps of the warm-up.

    >>> def scheduler(lr, steps):
    ...     return Schedule(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=lr), OptimizerConfig(), steps, 0)
    >>> ended, longer = scheduler(1.0, steps=1), scheduler(3.0, steps=2)
    >>> ended.optimizer.step(), ended.step(), ended.get_last_lr()
    (None, None, [0.0])
    >>> longer.optimizer.load_state_dict(ended.optimizer.state_dict())
    >>> longer.load_state_dict(ended.state_dict())
    >>> longer.get_last_lr(), longer.optimizer.param_groups[0]["lr"]
    ([1.5], 1.5)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: float, warmup: float) -> None:
        # In the state dict with the rest, so that a checkpoint says what its training was configured with.
        self.configured: dict[str, Any] = {
            "steps": steps,
            "warmup": warmup,
            "start": config.warmup_start,
            "schedule": config.schedule,
            "final": config.final,
            "groups": [_settings(group) for group in optimizer.param_groups],
        }
        factor: Callable[[int], float] = lambda step: learning_rate_factor(  # noqa: E731
            step, steps, warmup, config.warmup_start, config.schedule, config.final
        )
        full: Callable[[int], float] = lambda step: 1.0  # noqa: E731
        super().__init__(optimizer, [full if group.get("constant") else factor for group in optimizer.param_groups])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        now = self.configured
        # A file that does not say what it was configured with is taken to have been so with what it holds.
        before = state_dict.get("configured", {"groups": [_settings(group) for group in self.optimizer.param_groups]})
        super().load_state_dict(state_dict)
        self.configured = now
        if before == now:
            return
        groups = self.optimizer.param_groups
        for group, was, new in zip(groups, before["groups"], now["groups"], strict=True):
            restored = _settings(group)
            for name, value in new.items():
                if was.get(name) != value and restored.get(name) == was.get(name):
                    group[name] = value
            group["initial_lr"] = new["lr"]
        self.base_lrs = [new["lr"] for new in now["groups"]]
        self.go_to(self.last_epoch)

    def go_to(self, step: int) -> None:
        """Stand at an optimizer step, counted from 0: its rates are those of the next step."""
        self.last_epoch = step
        self._last_lr = [base * factor(step) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """What a parameter group is told, without the parameters; lists as tuples, which nothing changes in place."""
    out: dict[str, Any] = {}
    for name, value in group.items():
        value = tuple(value) if isinstance(value, list) else value
        if name != "params" and all(isinstance(part, _PLAIN) for part in _parts(value)):
            out[name] = value
    return out


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, total_steps: float, steps_per_epoch: float
) -> Schedule:
    """The per-step schedule of ``config`` over ``total_steps`` optimizer steps.

    Raises:
        UserError: a cosine without an end, or a warm-up that is longer than the training.

    >>> optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    >>> build_scheduler(optimizer, OptimizerConfig(warmup_steps=4), 20, 10).get_last_lr()
    [0.0]
    """
    if config.warmup_steps is not None:
        warmup = float(config.warmup_steps)
    else:
        warmup = config.warmup_epochs * steps_per_epoch if config.warmup_epochs else 0.0
    if config.schedule == "cosine" and not math.isfinite(total_steps):
        raise UserError("schedule='cosine' needs an end: set trainer.max_epochs or trainer.max_steps, or constant")
    if warmup > total_steps:
        raise UserError(
            f"the warm-up of {warmup:.0f} steps is longer than the training of {total_steps:.0f}: lower "
            "optimizer.warmup_epochs, or set optimizer.warmup_steps"
        )
    return Schedule(optimizer, config, total_steps, warmup)
