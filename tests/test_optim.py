"""Parameter groups, optimizers by name, and the learning rate of every step."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rank_trainer import QUIET, SmallNet
from torch import nn

from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.objectives import JointEmbedding, VICReg
from sslinfo.optim import OptimizerConfig, Schedule, build_optimizer, build_scheduler, learning_rate_factor


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)
    )


def test_norms_and_biases_have_no_decay() -> None:
    model = network()
    optimizer = build_optimizer(model, OptimizerConfig("adamw", weight_decay=0.3), 256)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    weights = {"0.weight", "3.weight", "5.weight"}
    assert found == {name: 0.3 if name in weights else 0.0 for name, _ in model.named_parameters()}


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig("sgd"), 256)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for name, parameter in model.named_parameters() if name != "0.weight"}


@pytest.mark.parametrize(("effective", "rate"), [(256, 0.2), (1024, 0.8), (64, 0.05)])
def test_learning_rate_follows_the_effective_batch(effective: int, rate: float) -> None:
    optimizer = build_optimizer(network(), OptimizerConfig("sgd", lr=0.2), effective)
    assert all(group["lr"] == pytest.approx(rate, rel=1e-12) for group in optimizer.param_groups)
    stated_for_one = build_optimizer(network(), OptimizerConfig("sgd", lr=0.1, batch_size_of_lr=1), effective)
    assert stated_for_one.param_groups[0]["lr"] == pytest.approx(0.1 * effective)


def test_a_step_of_lars_is_the_published_one() -> None:
    """arXiv:1708.03888: rate lr * trust * ||w|| / (||g|| + decay ||w||) for weights; biases take plain steps."""
    lr, decay, trust = 0.5, 0.01, 0.02
    model = nn.Linear(4, 3)
    config = OptimizerConfig("LARS", lr=lr, weight_decay=decay, options={"momentum": 0.0, "trust_coeff": trust})
    optimizer = build_optimizer(model, config, 256)
    assert isinstance(optimizer, timm.optim.Lars)
    weight, bias = (parameter.detach().clone().double() for parameter in (model.weight, model.bias))
    model(torch.randn(8, 4)).square().sum().backward()
    g, g_bias = model.weight.grad.double(), model.bias.grad.double()
    optimizer.step()
    rate = trust * weight.norm() / (g.norm() + decay * weight.norm())
    torch.testing.assert_close(model.weight.double(), weight - lr * rate * (g + decay * weight), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bias.double(), bias - lr * g_bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "said"), [("lasr", "lars"), ("adamww", "adamw"), ("SGDD", "sgd")])
def test_a_misspelt_name_is_told_the_right_one(name: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"optimizer.name='{name}' is not known: did you mean .*\b{said}\b"):
        build_optimizer(network(), OptimizerConfig(name), 256)


def test_a_name_like_no_other_lists_them() -> None:
    with pytest.raises(UserError, match=r"timm knows .*adamw"):
        build_optimizer(network(), OptimizerConfig("qqqqqqqq"), 256)


def test_an_option_that_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"optimizer.options=\{'momentun': 0.9\} do not fit sgd"):
        build_optimizer(network(), OptimizerConfig("sgd", options={"momentun": 0.9}), 256)


def written_out(step: int, total: int, warmup: int, start: float, final: float) -> float:
    if step < warmup:
        return start + step * (1 - start) / warmup
    angle = math.pi * (step - warmup) / (total - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(angle))


@pytest.mark.parametrize(("warmup", "start", "final"), [(0, 0.0, 0.0), (5, 0.0, 0.0), (7, 0.1, 0.002)])
def test_every_rate_of_the_cosine(warmup: int, start: float, final: float) -> None:
    total = 30
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=3.0)
    config = OptimizerConfig(warmup_steps=warmup, warmup_start=start, final=final)
    scheduler = build_scheduler(optimizer, config, total, steps_per_epoch=10)
    for step in range(total + 1):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(3 * written_out(step, total, warmup, start, final))
        optimizer.step()
        scheduler.step()
    assert learning_rate_factor(total + 50, total, warmup, start, final=final) == pytest.approx(final)


def test_warm_up_in_epochs_is_counted_in_steps() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler = build_scheduler(optimizer, OptimizerConfig(warmup_epochs=1.5), 100, steps_per_epoch=4)
    rates = []
    for _ in range(8):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:7] == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert rates[7] < 1


def test_constant_schedule_needs_no_end() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler = build_scheduler(optimizer, OptimizerConfig(schedule="constant", warmup_steps=2), math.inf, 10)
    rates = []
    for _ in range(5):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == [0, 0.5, 1, 1, 1]


def test_a_cosine_without_an_end_is_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    with pytest.raises(UserError, match=r"trainer.max_epochs or trainer.max_steps"):
        build_scheduler(optimizer, OptimizerConfig(), math.inf, 10)


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    with pytest.raises(UserError, match=r"warm-up of 100 steps is longer than the training of 50"):
        build_scheduler(optimizer, OptimizerConfig(warmup_epochs=10), 50, 10)


class Rates(Callback):
    """Learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen[trainer.global_step] = optimizer.param_groups[0]["lr"]


def small() -> JointEmbedding:
    config = OptimizerConfig("sgd", lr=0.5, warmup_steps=4)
    return VICReg(backbone=SmallNet(1), in_channels=1, projector=[8], projector_norm="none", optimizer=config)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rates_in_a_training(accumulate: int) -> None:
    rates = Rates()
    trainer = Trainer(
        **QUIET,
        max_epochs=2,
        limit_train_batches=6,
        limit_val_batches=0,
        accumulate_grad_batches=accumulate,
        callbacks=[rates],
    )
    trainer.fit(small(), datamodule=TwoViewDataModule("digits", batch_size=64))
    total = 12 // accumulate
    base = 0.5 * 64 * accumulate / 256
    assert rates.seen == pytest.approx({step: base * written_out(step, total, 4, 0, 0) for step in range(total)})


def test_a_resumed_schedule_goes_on(tmp_path: Path) -> None:
    def train(path: Path | None) -> dict[int, float]:
        rates = Rates()
        options = {**QUIET, "enable_checkpointing": True}
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
        trainer = Trainer(**options, max_epochs=2, limit_train_batches=6, limit_val_batches=0, callbacks=[rates, keep])
        data = TwoViewDataModule("digits", batch_size=64)
        trainer.fit(small(), datamodule=data, ckpt_path=path, weights_only=True)
        return rates.seen

    whole, resumed = train(None), train(tmp_path / "step=5.ckpt")
    assert sorted(resumed) == list(range(5, 12))
    assert resumed == {step: rate for step, rate in whole.items() if step >= 5}


def test_a_resume_leaves_alone_what_an_optimizer_has_found_out_itself() -> None:
    """As prodigy does with d, which starts at an option d0: another d0 does not throw the estimate away."""

    def made(lr: float, d0: float) -> Schedule:
        optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=lr)
        optimizer.param_groups[0] |= {"d0": d0, "d": d0, "betas": [0.9, d0], "seen": []}
        return Schedule(optimizer, OptimizerConfig(), 10, 0)

    before, after = made(1.0, d0=0.1), made(3.0, d0=0.2)
    before.optimizer.param_groups[0]["d"] = 7.0
    before.optimizer.param_groups[0]["seen"].append(1)
    for _ in range(5):
        before.optimizer.step()
        before.step()
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    after.load_state_dict(before.state_dict())
    group = after.optimizer.param_groups[0]
    assert [group[name] for name in ("d0", "d", "betas", "seen")] == [0.2, 7.0, (0.9, 0.2), [1]]
    assert [group["lr"], group["initial_lr"]] == pytest.approx([1.5, 3.0])
    assert after.get_last_lr() == [group["lr"]]
    # Half way at step 5 of 10; the next step's rate is of the same schedule.
    after.optimizer.step()
    after.step()
    assert group["lr"] == pytest.approx(3.0 * written_out(6, 10, 0, 0, 0))
    # And what is configured alike is not touched, whatever somebody has made of it.
    again = made(1.0, d0=0.1)
    before.optimizer.param_groups[0]["lr"] = 0.123
    again.optimizer.load_state_dict(before.optimizer.state_dict())
    again.load_state_dict(before.state_dict())
    assert again.optimizer.param_groups[0]["lr"] == 0.123
