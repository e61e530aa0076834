"""What a resume changes is taken, kept or refused by a rule: the numbers that are used, and the words."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rank_trainer import QUIET, SmallNet, rank_trainer
from torch.utils.data import DataLoader, TensorDataset

from sslinfo.callbacks import KNNProbe, LinearProbe
from sslinfo.data import TwoViewDataModule, View
from sslinfo.errors import UserError
from sslinfo.objectives import BarlowTwins, JointEmbedding, LogDet, MoCo, VICReg
from sslinfo.optim import OptimizerConfig

# 1617 training digits in batches of 256: 6 steps an epoch, 4 epochs.
EPOCH, LAST = 6, 24
SGD = {"name": "sgd", "lr": 0.02, "weight_decay": 0.01, "options": {"momentum": 0.9}}


class Steps(Callback):
    """What the optimizer is told at each step, and the loss."""

    def __init__(self) -> None:
        self.groups: dict[int, list[dict[str, Any]]] = {}
        self.losses: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        told = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        self.groups[trainer.global_step] = told

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses[trainer.global_step] = float(outputs["loss"])

    def rates(self) -> dict[int, float]:
        return {step: groups[-1]["lr"] for step, groups in self.groups.items()}


def train(
    folder: Path,
    resume: Path | None = None,
    *,
    objective: Callable[..., JointEmbedding] = VICReg,
    optimizer: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    callbacks: tuple[Callback, ...] = (),
    ranks: tuple[int, int] = (0, 1),
    every: int = 3,
    **options: Any,
) -> Steps:
    torch.manual_seed(0)
    steps = Steps()
    model_options = {name: options.pop(name) for name in list(options) if name in MODEL}
    model = objective(
        **{"backbone": SmallNet(1), "in_channels": 1, "projector": [8, 4], "projector_norm": "none", **model_options},
        optimizer=OptimizerConfig(**{**SGD, **(optimizer or {})}),
    )
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=every)
    settings = {"max_epochs": 4, "limit_val_batches": 0, "enable_checkpointing": True, **options}
    trainer = rank_trainer(*ranks, **settings, callbacks=[steps, keep, *callbacks])
    loaders = TwoViewDataModule("digits", **{"batch_size": 256, **(data or {})})
    trainer.fit(model, datamodule=loaders, ckpt_path=resume, weights_only=None if resume is None else True)
    return steps


MODEL = ("backbone", "backbone_options", "projector", "projector_norm", "invariance", "entropy", "in_channels")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Steps]:
    """The folder of a training of four epochs, and its steps."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


@pytest.fixture
def at(whole: tuple[Path, Steps], tmp_path: Path) -> Callable[[int], Path]:
    """The checkpoint of a step; what goes on from it writes elsewhere."""
    return lambda step: Path(shutil.copy(whole[0] / f"step={step}.ckpt", tmp_path / "from.ckpt"))


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.removeprefix("note: ") for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]


def cosine(step: int, total: int, lr: float = 0.02) -> float:
    return lr * 0.5 * (1 + math.cos(math.pi * step / total))


def test_what_nobody_changed_is_what_it_was_and_unsaid(
    whole: tuple[Path, Steps], at: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (9, 12):
        again = train(tmp_path, at(step))
        assert again.groups == {number: told for number, told in whole[1].groups.items() if number >= step}
        assert again.losses == {number: loss for number, loss in whole[1].losses.items() if number > step}
        assert notes(capsys) == []


# (what is given, what the rate of the first step is then, and of the last)
SCHEDULES: dict[str, tuple[dict[str, Any], float, float]] = {
    "lr": ({"optimizer": {"lr": 0.004}}, cosine(9, 24, 0.004), cosine(23, 24, 0.004)),
    "batch_size_of_lr": ({"optimizer": {"batch_size_of_lr": 512}}, cosine(9, 24, 0.01), cosine(23, 24, 0.01)),
    "schedule": ({"optimizer": {"schedule": "constant"}}, 0.02, 0.02),
    "final": ({"optimizer": {"final": 1.0}}, 0.02, 0.02),
    # Half way up a warm-up of 18 steps, then 6 steps down.
    "warmup_steps": ({"optimizer": {"warmup_steps": 18}}, 0.01, cosine(5, 6)),
    "warmup_epochs": ({"optimizer": {"warmup_epochs": 3}}, 0.01, cosine(5, 6)),
    "longer": ({"max_epochs": 6}, cosine(9, 36), cosine(35, 36)),
    "shorter": ({"max_epochs": 3}, cosine(9, 18), cosine(17, 18)),
    "in steps": ({"max_epochs": -1, "max_steps": 15}, cosine(9, 15), cosine(14, 15)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_is_that_of_the_new_schedule_from_the_next_step_on(
    at: Callable[[int], Path], tmp_path: Path, name: str
) -> None:
    given, first, last = SCHEDULES[name]
    rates = train(tmp_path, at(9), **given).rates()
    assert min(rates) == 9
    assert rates[9] == pytest.approx(first, rel=1e-12)
    assert rates[max(rates)] == pytest.approx(last, rel=1e-9)


def test_a_finished_training_goes_on_when_it_is_longer(
    at: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = train(tmp_path, at(LAST), max_epochs=5).rates()
    assert rates == pytest.approx({step: cosine(step, 30) for step in range(24, 30)}, rel=1e-12)
    assert notes(capsys) == [
        "trainer.max_epochs is 5 as you say, from step 24 on; the checkpoint was trained with 4: the training and its "
        "schedule are of 30 steps, not of 24"
    ]


def test_a_second_fit_of_one_trainer_goes_on_with_the_longer_schedule() -> None:
    steps = Steps()
    model = VICReg(
        backbone=SmallNet(1), in_channels=1, projector=[8, 4], projector_norm="none", optimizer=OptimizerConfig(**SGD)
    )
    data = TwoViewDataModule("digits", batch_size=256)
    trainer = Trainer(**QUIET, max_epochs=2, limit_val_batches=0, callbacks=[steps])
    trainer.fit(model, datamodule=data)
    assert steps.rates() == pytest.approx({step: cosine(step, 12) for step in range(12)})
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, datamodule=data)
    assert sorted(steps.rates()) == list(range(24))
    later = {step: rate for step, rate in steps.rates().items() if step >= 12}
    assert later == pytest.approx({step: cosine(step, 24) for step in range(12, 24)})


def test_a_resume_of_a_changed_resume_keeps_the_change(
    at: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(tmp_path, at(9), optimizer={"lr": 0.004}, max_epochs=6)
    assert notes(capsys) != []
    second = train(tmp_path / "second", tmp_path / "step=15.ckpt", optimizer={"lr": 0.004}, max_epochs=6)
    assert second.groups == {step: told for step, told in first.groups.items() if step >= 15}
    assert notes(capsys) == []


@pytest.mark.parametrize("before", [0.01, 0.0])
def test_weight_decay_is_taken_where_weights_have_any(tmp_path: Path, before: float) -> None:
    train(tmp_path, optimizer={"weight_decay": before}, max_steps=3)
    for decay in (0.2, 0.0):
        given = {"weight_decay": decay}
        told = train(tmp_path / "more", tmp_path / "step=3.ckpt", optimizer=given, max_steps=4).groups[3]
        assert [group["weight_decay"] for group in told] == [0.0, decay]  # biases, then weights


def test_weight_decay_is_what_the_step_does(tmp_path: Path) -> None:
    """SGD without momentum: of two steps that differ in decay alone, weights differ by lr times decay times weight."""
    plain = {"options": {"momentum": 0.0, "nesterov": False}, "schedule": "constant"}
    train(tmp_path, optimizer=plain, max_steps=3)
    weights = []
    for decay in (0.01, 0.21):
        folder = tmp_path / str(decay)
        given = {**plain, "weight_decay": decay}
        train(folder, tmp_path / "step=3.ckpt", optimizer=given, max_steps=4, every=1)
        weights.append(torch.load(folder / "step=4.ckpt", weights_only=True)["state_dict"])
    start = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["state_dict"]
    name, bias = "backbone.layers.0.weight", "backbone.layers.0.bias"
    torch.testing.assert_close(weights[0][name] - weights[1][name], 0.02 * 0.2 * start[name], rtol=1e-3, atol=1e-6)
    assert torch.equal(weights[0][bias], weights[1][bias])


def test_options_of_the_optimizer_are_taken(at: Callable[[int], Path], tmp_path: Path) -> None:
    told = train(tmp_path, at(9), optimizer={"options": {"momentum": 0.5}}, max_steps=10).groups[9]
    assert [group["momentum"] for group in told] == [0.5, 0.5]
    assert [group["lr"] for group in told] == pytest.approx([cosine(9, 10)] * 2)


def test_options_that_the_kept_state_does_not_fit_are_refused(tmp_path: Path) -> None:
    """amsgrad needs the largest square of every step so far."""
    adamw = {"name": "adamw", "lr": 1e-3, "options": {"betas": [0.9, 0.99]}}
    train(tmp_path, optimizer=adamw, max_steps=3)
    path = tmp_path / "step=3.ckpt"
    with pytest.raises(UserError, match=r"model\.optimizer\.options is \{'amsgrad': True\} here.*max_exp_avg_sq"):
        train(tmp_path / "more", path, optimizer={**adamw, "options": {"amsgrad": True}}, max_steps=4)
    told = train(tmp_path / "more", path, optimizer={**adamw, "options": {"betas": [0.8, 0.9]}}, max_steps=4)
    assert [tuple(group["betas"]) for group in told.groups[3]] == [(0.8, 0.9)] * 2


def test_a_rate_that_follows_no_schedule_is_taken_too(tmp_path: Path) -> None:
    """SimSiam's predictor keeps the full rate."""
    from sslinfo.objectives import SimSiam

    objective = partial(SimSiam, predictor=[4])
    train(tmp_path, objective=objective, max_steps=3)
    given: dict[str, Any] = {"objective": objective, "optimizer": {"lr": 0.004}, "max_steps": 5}
    told = train(tmp_path / "more", tmp_path / "step=3.ckpt", **given).groups[3]
    assert {group["constant"]: group["lr"] for group in told} == pytest.approx(
        {False: cosine(3, 5, 0.004), True: 0.004}
    )


def test_another_optimizer_is_refused(at: Callable[[int], Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"model\.optimizer\.name is adamw here, and sgd in the checkpoint.*does not fit"
    ):
        train(tmp_path, at(9), optimizer={"name": "adamw", "options": None})


# (what is given, what is said; the training trains on)
TAKEN: dict[str, tuple[dict[str, Any], str]] = {
    "loss": ({"invariance": 9.0}, "model.invariance is 9.0 as you say, from step 12 on; .* trained with 25.0"),
    "rate": (
        {"optimizer": {"lr": 0.004}},
        "model.optimizer.lr is 0.004 as you say, from step 12 on; .* trained with 0.02",
    ),
    "precision": ({"precision": "bf16-mixed"}, "trainer.precision is bf16-mixed as you say.* with 32-true"),
    "clipping": ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val is 1.0 as you say.* with None"),
    "image size": ({"data": {"image_size": 16}}, "data.image_size is 16 as you say"),
    "views": ({"data": {"views": [View(), View(flip=0.3)]}}, "data.views is another as you say"),
    "channels": ({"data": {"channels": 1}}, "data.channels is 1 as you say"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_is_said(
    at: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    given, said = TAKEN[name]
    assert max(train(tmp_path, at(12), **given).losses) == LAST
    found = notes(capsys)
    assert len(found) == 1
    assert re.match(said, found[0])


def test_the_loss_is_the_new_one(at: Callable[[int], Path], tmp_path: Path) -> None:
    """It is linear in the weight of the invariance."""
    before, after = (train(tmp_path, at(12), invariance=weight, max_steps=13).losses[13] for weight in (25.0, 0.0))
    doubled = train(tmp_path, at(12), invariance=50.0, max_steps=13).losses[13]
    assert doubled - before == pytest.approx(before - after, rel=1e-4)
    assert before - after > 1e-3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "batch size": ({"data": {"batch_size": 512}}, "data.batch_size=512 on 1 device.* batches of 512 .* were of 256"),
    "accumulation": ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches is 2 here, and 1 in"),
    "both": ({"data": {"batch_size": 128}, "accumulate_grad_batches": 2}, "data.batch_size=128"),
    "fewer batches": ({"limit_train_batches": 3}, "3 optimizer steps here, and 6 .*limit_train_batches is 3, was 1.0"),
    "overfit_batches": ({"overfit_batches": 2}, "2 optimizer steps here, and 6 .*overfit_batches is 2, was 0.0"),
    "val_fraction": ({"data": {"val_fraction": 0.2}}, "data.val_fraction is 0.2 here, and 0.1.*held out"),
    "split_seed": ({"data": {"split_seed": 1}}, "data.split_seed is 1 here, and 0.*held out"),
    "seed": ({"data": {"seed": 4}}, "data.seed is 4 here, and 0.*order"),
    "entropy": ({"entropy": LogDet()}, "model.entropy is LogDet here, and None in the checkpoint"),
    "projector": ({"projector": [8, 6]}, r"model.projector is \[8, 6\] here, and \[8, 4\].*weights do not fit"),
    "two of them": (
        {"projector": [8, 6], "invariance": 9.0},
        r"model.projector is \[8, 6\] here, and \[8, 4\] in the checkpoint; model.invariance is 9.0 here, and 25.0 in",
    ),
    "norm": ({"projector_norm": "batch"}, "model.projector_norm is batch here, and none.*weights do not fit"),
    "objective": ({"objective": BarlowTwins}, "model is BarlowTwins here, and VICReg in the checkpoint"),
    "end": ({"max_epochs": 1}, "trainer.max_epochs=1 ends .* at step 6, .* of step 12: nothing is left to train"),
    "last step": ({"max_steps": 11}, "trainer.max_epochs=4 or trainer.max_steps=11 ends .* at step 11"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_and_the_way_out(at: Callable[[int], Path], tmp_path: Path, name: str) -> None:
    given, said = REFUSED[name]
    with pytest.raises(UserError, match=said) as error:
        train(tmp_path, at(12), **given)
    assert re.search(r"or begin a new training \(--model\.weights PATH|set more$", str(error.value))


def test_other_images_are_refused(tmp_path: Path) -> None:
    def fit(count: int, resume: Path | None = None) -> None:
        images = torch.arange(count * 64, dtype=torch.uint8).view(count, 1, 8, 8)
        data = TwoViewDataModule(TensorDataset(images, torch.arange(count) % 3), batch_size=16, views="digits")
        model = VICReg(backbone=SmallNet(1), in_channels=1, projector=[8, 4], projector_norm="none")
        trainer = Trainer(**QUIET, max_epochs=2, limit_val_batches=0)
        trainer.fit(model, datamodule=data, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / "end.ckpt")

    fit(60)  # 54 of them to train on: three batches of 16, as of the 49 of 54
    with pytest.raises(UserError, match=r"there are 49 training images here, and 54 in the checkpoint"):
        fit(54, tmp_path / "end.ckpt")


def test_where_a_run_is_needs_no_word(
    at: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, at(12), data={"root": "elsewhere", "in_memory": True, "download": True}, log_every_n_steps=3)
    assert notes(capsys) == []


def test_the_seed_of_a_training_stays(
    whole: tuple[Path, Steps],
    at: Callable[[int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    again = train(tmp_path, at(9))
    assert again.losses == {step: loss for step, loss in whole[1].losses.items() if step > 9}
    assert notes(capsys) == ["seed_everything is 7 as you say; the training goes on with its own, 0"]


def test_nothing_left_to_train_is_said(
    at: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "nothing is left to train: the checkpoint is of step {}, where {} ends the training; to go on, set more"
    assert train(tmp_path, at(LAST)).losses == {}
    assert notes(capsys) == [said.format(24, "trainer.max_epochs=4")]
    assert train(tmp_path, at(12), max_steps=12).losses == {}
    assert notes(capsys)[-1] == said.format(12, "trainer.max_epochs=4 or trainer.max_steps=12")
    assert train(tmp_path, at(12), fast_dev_run=True).losses == {}
    assert notes(capsys) == [
        "a dry run ends at step 1: it tries nothing of a training that goes on; leave out ckpt_path to try it"
    ]


def test_callbacks_are_those_of_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, callbacks=(LinearProbe(lr=0.01), KNNProbe(k=1)), max_steps=3)
    probe = LinearProbe(lr=0.02)
    train(tmp_path / "more", tmp_path / "step=3.ckpt", callbacks=(probe,), max_steps=4)
    assert probe.optimizer is not None
    assert probe.optimizer.param_groups[0]["lr"] == 0.02
    assert int(next(iter(probe.optimizer.state.values()))["step"]) == 4  # of the checkpoint's three and one more
    assert [line for line in notes(capsys) if "trainer" not in line] == [
        "the checkpoint holds the state of KNNProbe, which is not among the callbacks here with the same options: it "
        "is left out"
    ]


def test_weights_alone_are_no_training(tmp_path: Path) -> None:
    trainer = Trainer(**QUIET, max_steps=1)
    trainer.fit(VICReg(backbone=SmallNet(1), in_channels=1, projector=[8, 4]), TwoViewDataModule("digits"))
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(UserError, match="weights alone"):
        train(tmp_path, tmp_path / "weights.ckpt")


def test_a_queue_of_another_size_is_refused(tmp_path: Path) -> None:
    moco = partial(MoCo, predictor=None, momentum=0.9)
    train(tmp_path, objective=partial(moco, queue=300), max_steps=3)
    with pytest.raises(UserError, match=r"model\.queue is 500 here, and 300 in the checkpoint: the weights do not fit"):
        train(tmp_path, tmp_path / "step=3.ckpt", objective=partial(moco, queue=500), max_steps=4)


def test_an_objective_with_an_optimizer_of_its_own_is_not_spoken_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Own(VICReg):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    train(tmp_path, objective=Own, max_steps=3)
    rates = train(tmp_path, tmp_path / "step=3.ckpt", objective=Own, optimizer={"lr": 0.3}, max_steps=4).rates()
    assert rates == {3: 0.1}
    assert not any("optimizer" in note for note in notes(capsys))


def test_loaders_alone_know_their_batch(tmp_path: Path) -> None:
    def fit(batch_size: int, resume: Path | None = None) -> None:
        rows = [{"image": torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(n))} for n in range(32)]

        class Pairs(VICReg):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return self.loss(*self.embed([batch["image"], batch["image"].flip(3)]).values())

        model = Pairs(backbone=SmallNet(1), in_channels=1, projector=[8, 4], projector_norm="none")
        trainer = Trainer(**QUIET, max_epochs=2)
        trainer.fit(model, DataLoader(rows, batch_size), ckpt_path=resume)  # type: ignore[arg-type]
        trainer.save_checkpoint(tmp_path / "end.ckpt")

    fit(8)
    with pytest.raises(UserError, match="batches of 16 images, and the checkpoint's were of 8"):
        fit(16, tmp_path / "end.ckpt")


def _on_two_ranks(rank: int, world_size: int, folder: str) -> dict[int, float]:
    place = (rank, world_size)
    data = {"batch_size": 128}
    return train(Path(folder), Path(folder) / "from.ckpt", ranks=place, data=data).losses


def test_the_same_batch_on_more_devices_is_the_same_training(
    whole: tuple[Path, Steps], at: Callable[[int], Path], tmp_path: Path, ranks: Any
) -> None:
    """The network has neither batch norm nor dropout: losses differ by rounding alone."""
    at(9)
    first, second = ranks(2, _on_two_ranks, str(tmp_path))
    assert first == second
    assert first == pytest.approx({step: loss for step, loss in whole[1].losses.items() if step > 9}, rel=1e-3)
