"""A loss, gradient or weight that is not finite: what is said and written, and what the training holds afterwards."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from PIL import Image
from rank_trainer import QUIET, SmallNet, rank_trainer
from torch import Tensor, nn

from sslinfo.callbacks import InformationMonitor, KNNProbe, LinearProbe, PredictionWriter
from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.objectives import (
    BYOL,
    WMSE,
    BarlowTwins,
    JointEmbedding,
    LogDet,
    MoCo,
    SimCLR,
    SimSiam,
    SwAV,
    VICReg,
    VonNeumann,
)
from sslinfo.optim import OptimizerConfig

SMALL: dict[str, Any] = {
    "backbone": "conv4",
    "backbone_options": {"width": 2},
    "in_channels": 1,
    "projector": [16, 8],
}
OBJECTIVES: dict[str, Callable[..., JointEmbedding]] = {
    "vicreg": VICReg,
    "vicreg and logdet": lambda **options: VICReg(entropy=LogDet(), **options),
    "simclr and vonneumann": lambda **options: SimCLR(entropy=VonNeumann(), **options),
    "barlow twins": BarlowTwins,
    "byol": lambda **options: BYOL(predictor=[8], **options),
    "simsiam": lambda **options: SimSiam(predictor=[8], **options),
    "moco": lambda **options: MoCo(queue=50, predictor=None, **options),
    "swav": lambda **options: SwAV(prototypes=5, queue=50, **options),
    "w-mse": lambda **options: WMSE(slice_size=32, **options),
}


def at_step(step: int, what: str, kind: type = VICReg) -> type:
    """The objective, whose loss or gradient is not finite at one optimizer step."""

    class Broken(kind):  # type: ignore[misc]
        def loss(self, **embeddings: Tensor) -> dict[str, Tensor]:
            terms = super().loss(**embeddings)
            if not self.training or self.trainer.global_step != step:
                return terms
            if what == "nan":
                return {**terms, "loss": terms["loss"] * math.nan, "invariance": terms["loss"].detach() * math.inf}
            if what == "inf":
                return {**terms, "loss": terms["loss"] + math.inf}  # its gradient is finite
            # d sqrt(u) / du is infinite at u = 0, times du / dz = 0: a gradient of NaN, with a finite loss
            return {**terms, "loss": terms["loss"] + (embeddings["z1"] * 0).sum().abs().sqrt()}

    Broken.__name__ = kind.__name__
    return Broken


def digits(batch_size: int = 64) -> TwoViewDataModule:
    return TwoViewDataModule("digits", batch_size=batch_size)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    default = {"max_epochs": 1, "limit_train_batches": 6, "limit_val_batches": 1, "default_root_dir": folder}
    return Trainer(**{**QUIET, **default, **options}, callbacks=list(callbacks))


class Seen(Callback):
    """Indices of the images of each optimizer step, and the module's state before each batch."""

    def __init__(self) -> None:
        self.indices: dict[int, list[int]] = {}
        self.states: dict[int, dict[str, Tensor]] = {}
        self.optimizers: dict[int, Any] = {}
        self.rates: dict[int, float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        self.indices.setdefault(step, []).extend(batch["index"].tolist())
        if step not in self.states:
            self.states[step] = copy.deepcopy(pl_module.state_dict())
            self.optimizers[step] = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])
            self.rates[step] = trainer.optimizers[0].param_groups[0]["lr"]


def listed(folder: Path) -> list[list[int]]:
    """Indices in the file, one list for each report."""
    blocks = (folder / "non_finite.txt").read_text().strip().split("\n\n")
    return [[int(line.split()[0]) for line in block.splitlines()[2:]] for block in blocks]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


# What is said and written


class NaNOutsideTraining(VICReg):
    """Its loss and one term are NaN in validation alone; its embeddings are finite."""

    def loss(self, **embeddings: Tensor) -> dict[str, Tensor]:
        terms = super().loss(**embeddings)
        bad = {name: terms[name] * math.nan for name in ("loss", "invariance")}
        return terms if self.training else {**terms, **bad}


def test_a_validation_that_is_not_finite_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = NaNOutsideTraining(**SMALL)
    found = r"note: the validation( at step \d+)? is not finite: (.*)\. The weights are finite: look at (\w+)\.loss"
    trainer(tmp_path, max_epochs=2, num_sanity_val_steps=1).fit(model, datamodule=digits())
    terms = "val/loss=nan, val/invariance=nan"
    assert re.findall(found, capsys.readouterr().out) == [(" at step 6", terms, "NaNOutsideTraining")]
    trainer(tmp_path).validate(model, datamodule=digits(), verbose=False)
    assert re.findall(found, capsys.readouterr().out) == [("", terms, "NaNOutsideTraining")]
    trainer(tmp_path).validate(VICReg(**SMALL), datamodule=digits(), verbose=False)
    assert "not finite" not in capsys.readouterr().out


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nan", "the loss is not finite at step 2: loss=nan, invariance=inf;"),
        ("inf", "the loss is not finite at step 2: loss=inf;"),
        ("gradient", "the loss is finite and its gradient is not at step 2: backbone.layers.0.weight, "),
    ],
)
def test_term_step_and_images_are_named(what: str, said: str, accumulate: int, tmp_path: Path) -> None:
    model, seen = at_step(2, what)(**SMALL), Seen()
    with pytest.raises(UserError, match=said) as caught:
        trainer(tmp_path, seen, accumulate_grad_batches=accumulate).fit(model, datamodule=digits())
    assert listed(tmp_path) == [seen.indices[2]]
    assert len(seen.indices[2]) == 64 * accumulate
    if what == "gradient":
        head = (tmp_path / "non_finite.txt").read_text().splitlines()[0]
        assert all(name in head for name, _ in model.named_parameters())
    assert str(seen.indices[2][0]) in str(caught.value)
    assert str(tmp_path / "non_finite.txt") in str(caught.value)
    # In memory is what was there before the step: weights, batch-norm statistics, and the optimizer's state.
    assert same(dict(model.state_dict()), dict(seen.states[2]))
    assert same(model.trainer.optimizers[0].state_dict()["state"], seen.optimizers[2])


@pytest.mark.parametrize("in_memory", [True, False])
def test_files_are_named(tmp_path: Path, in_memory: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("train/a", "train/b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = torch.randint(0, 256, (8, 8), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / "images" / name / f"{number} x.png")
    data = TwoViewDataModule(
        "imagefolder", str(tmp_path / "images"), 8, views="digits", channels=1, in_memory=in_memory, val_fraction=0.2
    )
    seen = Seen()
    with pytest.raises(UserError, match="not finite at step 1"):
        trainer(tmp_path, seen).fit(at_step(1, "nan")(**SMALL), datamodule=data)
    files = sorted(str(path) for path in (tmp_path / "images").rglob("*.png"))  # the order in which the set has them
    lines = (tmp_path / "non_finite.txt").read_text().strip().splitlines()[2:]
    assert lines == [f"{index} {files[index]}" for index in seen.indices[1]]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite at step 0"):
        trainer(tmp_path, fast_dev_run=True).fit(at_step(0, "nan")(**SMALL), datamodule=digits())
    assert not (tmp_path / "non_finite.txt").exists()


def test_a_training_step_of_its_own_is_watched_too(tmp_path: Path) -> None:
    class Own(at_step(2, "nan")):  # type: ignore[misc]
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            return self.objective(batch["views"])[0]["loss"]

        def configure_optimizers(self) -> Any:
            groups = [{"params": self.backbone.parameters()}, {"params": self.projector.parameters(), "lr": 0.1}]
            return torch.optim.SGD(groups, lr=0.01, momentum=0.9)

    seen = Seen()
    with pytest.raises(UserError, match="the loss is not finite at step 2: loss=nan"):
        trainer(tmp_path, seen).fit(Own(**SMALL), datamodule=digits())
    assert listed(tmp_path) == [seen.indices[2]]


class Refusing(VICReg):
    """Its loss raises where it is given NaN, as a decomposition does."""

    def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        z = super().embed(views)
        return {**z, "z2": z["z2"] * (math.nan if self.training and self.trainer.global_step == 2 else 1)}

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        return {"loss": -torch.linalg.eigvalsh(z2.T @ z2 + torch.eye(z2.shape[1])).log().mean()}


def test_a_loss_that_refuses_such_embeddings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss is not finite at step 2: loss=nan, z2=nan"):
        trainer(tmp_path).fit(Refusing(**SMALL), datamodule=digits())
    run = trainer(tmp_path)
    run.fit(Refusing(**SMALL, non_finite="skip"), datamodule=digits())
    assert float(run.callback_metrics["train/skipped_steps"]) == 1


def test_what_a_loss_raises_for_other_reasons_stays(tmp_path: Path) -> None:
    class Wrong(VICReg):
        def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
            raise ValueError("a mistake of its own")

    with pytest.raises(ValueError, match="a mistake of its own"):
        trainer(tmp_path).fit(Wrong(**SMALL), datamodule=digits())


def test_what_is_saved_on_the_exception_is_where_to_go_on(tmp_path: Path) -> None:
    """Resumed without the fault, the training ends as one that never had it: the queue and the optimizer too."""

    def run(step: int, folder: Path, resume: Path | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = at_step(step, "nan", MoCo)(**SMALL, queue=100, predictor=None)
        saves = ModelCheckpoint(folder, save_last=True, save_on_exception=True)
        trained = trainer(folder, saves, enable_checkpointing=True)
        trained.fit(model, datamodule=digits(), ckpt_path=resume, weights_only=True)
        return dict(model.state_dict())

    with pytest.raises(UserError, match="not finite at step 3"):
        run(3, tmp_path / "stopped")
    whole = run(-1, tmp_path / "whole")
    assert same(run(-1, tmp_path / "resumed", tmp_path / "stopped" / "last.ckpt"), whole)


# Steps that are left out


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("objective", [VICReg, MoCo, SwAV, BYOL], ids=lambda kind: kind.__name__)
def test_a_skipped_step_changes_nothing(objective: type, what: str, tmp_path: Path) -> None:
    """Weights, momentum, batch norm, EMA target, queue: all as before; schedule and step count go on."""
    extra = {
        "MoCo": {"queue": 100, "predictor": None},
        "SwAV": {"queue": 100, "prototypes": 5},
        "BYOL": {"predictor": [8]},
    }
    optimizer = OptimizerConfig("sgd", lr=0.1, weight_decay=0.1, options={"momentum": 0.9})
    model = at_step(2, what, objective)(
        **SMALL, **extra.get(objective.__name__, {}), optimizer=optimizer, non_finite="skip"
    )
    seen = Seen()
    run = trainer(tmp_path, seen, gradient_clip_val=1.0, accumulate_grad_batches=2, limit_train_batches=12)
    run.fit(model, datamodule=digits())
    assert run.global_step == 6
    assert same(dict(seen.states[3]), dict(seen.states[2]))
    assert same(seen.optimizers[3], seen.optimizers[2])
    assert not same(dict(seen.states[2]), dict(seen.states[1]))
    assert not same(dict(seen.states[4]), dict(seen.states[3]))
    # half a cosine over the 6 steps, none of them left out of the count
    assert seen.rates == pytest.approx({s: seen.rates[0] * (1 + math.cos(math.pi * s / 6)) / 2 for s in range(6)})
    assert float(run.callback_metrics["train/skipped_steps"]) == 1
    assert listed(tmp_path) == [seen.indices[2]]


def test_the_rest_of_the_training_is_that_without_the_step(tmp_path: Path) -> None:
    """With plain SGD at a constant rate, leaving a step out is never having seen its batch."""

    class WithoutBatch(VICReg):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if batch_idx == 2:
                before = copy.deepcopy(self.state_dict())
                optimizer_closure()
                self.load_state_dict(before)
                self._guard.end_step()
            else:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    options = {**SMALL, "optimizer": OptimizerConfig("sgd", lr=0.1, schedule="constant")}
    results = []
    for kind, more in ((at_step(2, "nan"), {"non_finite": "skip"}), (WithoutBatch, {})):
        torch.manual_seed(0)
        model = kind(**options, **more)
        trainer(tmp_path).fit(model, datamodule=digits())
        results.append(dict(model.state_dict()))
    assert same(*results)


def test_skipped_steps_are_counted_over_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = at_step(1, "nan")
    first = trainer(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    first.fit(kind(**SMALL, non_finite="skip"), datamodule=digits())
    assert capsys.readouterr().out.count("note: the loss is not finite at step 1") == 1
    rows = (Path(str(first.log_dir)) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/skipped_steps")
    assert [row.split(",")[column] for row in rows[1:7]] == ["0.0", "1.0", "1.0", "1.0", "1.0", "1.0"]
    first.save_checkpoint(tmp_path / "at.ckpt")
    second = trainer(tmp_path, max_epochs=2)
    second.fit(at_step(7, "nan")(**SMALL, non_finite="skip"), datamodule=digits(), ckpt_path=tmp_path / "at.ckpt")
    assert float(second.callback_metrics["train/skipped_steps"]) == 2


def test_a_training_that_skips_every_step_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslinfo.objectives.finite.MOST_IN_A_ROW", 4)

    class Never(VICReg):
        def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
            return {"loss": (z1 - z2).sum() * math.nan}

    model = Never(**SMALL, non_finite="skip")
    with pytest.raises(UserError, match="4 steps in a row were skipped"):
        trainer(tmp_path).fit(model, datamodule=digits())
    assert len(listed(tmp_path)) == 5


def test_what_else_there_is_is_refused() -> None:
    with pytest.raises(UserError, match="non_finite='go on' is not known: choose stop or skip"):
        VICReg(**SMALL, non_finite="go on")  # type: ignore[arg-type]


# Several ranks


def train_on_ranks(rank: int, world_size: int, folder: str, action: str, where: str) -> dict[str, Any]:
    class OnOneRank(VICReg):
        def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
            z = super().embed(views)
            if self.training and self.trainer.global_step == 2 and rank == 1 and where == "embedding":
                z["z1"] = z["z1"] * torch.where(torch.arange(len(z["z1"])) == 3, math.nan, 1.0)[:, None]
            return z

        def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
            terms = super().loss(z1, z2)
            if self.training and self.trainer.global_step == 2 and rank == 1 and where == "loss":
                terms["loss"] = terms["loss"] + math.inf  # a loss that is not the same on all ranks
            return terms

    torch.manual_seed(0)
    model = OnOneRank(
        backbone=SmallNet(1),
        in_channels=1,
        projector=[8],
        projector_norm="none",
        non_finite=action,
        optimizer=OptimizerConfig("sgd", lr=0.1),
    )
    seen = Seen()
    options: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 8, "limit_val_batches": 0}
    with torch.random.fork_rng():
        run = rank_trainer(
            rank, world_size, callbacks=[seen], default_root_dir=folder, accumulate_grad_batches=2, **options
        )
        message = ""
        try:
            run.fit(model, datamodule=digits(32))
        except UserError as error:
            message = str(error)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {"message": message, "indices": seen.indices, "step": run.global_step, "weights": weights}


@pytest.mark.parametrize("where", ["embedding", "loss"])
@pytest.mark.parametrize("action", ["stop", "skip"])
def test_all_ranks_decide_alike(ranks: Any, tmp_path: Path, action: str, where: str) -> None:
    results = ranks(2, train_on_ranks, str(tmp_path), action, where)
    assert results[0]["message"] == results[1]["message"]
    assert bool(results[0]["message"]) == (action == "stop")
    assert [result["step"] for result in results] == ([2, 2] if action == "stop" else [4, 4])
    for name, weight in results[0]["weights"].items():
        assert (weight == results[1]["weights"][name]).all()
    (images,) = listed(tmp_path)
    parts = [[result["indices"][2][part : part + 32] for result in results] for part in (0, 32)]
    assert images == [index for part in parts for block in part for index in block]


# fp16


def scaled(folder: Path, scale: float, **options: Any) -> tuple[Trainer, torch.amp.GradScaler]:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trainer(folder, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], **options), scaler


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_an_overflow_of_the_loss_scale_is_left_to_the_scaler(tmp_path: Path, action: str) -> None:
    run, scaler = scaled(tmp_path, 2.0**80, max_steps=3)  # beyond fp16's 65504 and far beyond
    model = VICReg(**SMALL, non_finite=action)
    before = [weight.clone() for weight in model.parameters()]
    run.fit(model, datamodule=digits())
    assert scaler.get_scale() == 2.0**77  # halved three times: three overflows
    assert not (tmp_path / "non_finite.txt").exists()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("what", "step"), [("nan", 1), ("gradient", 3)])
def test_under_fp16_a_real_fault_is_found(tmp_path: Path, what: str, step: int) -> None:
    """A gradient that is not finite at a scale of 1 is no overflow: 4 is halved at steps 1 and 2."""

    class Broken(VICReg):
        def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
            terms = super().loss(z1, z2)
            if self.training and self.trainer.global_step >= 1:
                terms["loss"] = terms["loss"] + (math.nan if what == "nan" else (z1 * 0).sum().abs().sqrt())
            return terms

    run, _ = scaled(tmp_path, 4.0)
    with pytest.raises(UserError, match=f"not finite at step {step}|its gradient is not at step {step}"):
        run.fit(Broken(**SMALL), datamodule=digits())


# Weights


class WeightsBreak(VICReg):
    """The optimizer itself makes weights that are not finite."""

    def __init__(self, at: int, **options: Any) -> None:
        super().__init__(**options)
        self.at = at

    def configure_optimizers(self) -> Any:
        step = self

        class Breaking(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                found = super().step(closure)
                if step.trainer.global_step == step.at:
                    self.param_groups[0]["params"][0].data[0] = math.inf
                return found

        return Breaking(self.parameters(), lr=0.01)


@pytest.mark.parametrize("action", ["stop", "skip"])
@pytest.mark.parametrize("at", [2, 5])  # in the middle, and at the last step
def test_weights_that_an_optimizer_made_end_the_training(tmp_path: Path, at: int, action: str) -> None:
    with pytest.raises(UserError, match=rf"weights are not finite after step {at} .*: backbone.layers.0.weight"):
        trainer(tmp_path, limit_val_batches=0).fit(WeightsBreak(at, **SMALL, non_finite=action), datamodule=digits())


def test_they_are_saved_over_no_good_ones(tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=-1, save_on_exception=True)
    with pytest.raises(UserError, match="weights are not finite after step 3"):
        trainer(tmp_path, saves, enable_checkpointing=True).fit(WeightsBreak(3, **SMALL), datamodule=digits())
    files = sorted(tmp_path.glob("*.ckpt"))
    assert {path.name for path in files} == {"last.ckpt", *(f"epoch=0-step={step}.ckpt" for step in (1, 2, 3))}
    for path in files:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("optimizer", [{}, {"name": "sgd"}, {"lr": 1.0, "weight_decay": 1e30}], ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_absurd_rate_ends_with_words(tmp_path: Path, name: str, optimizer: dict[str, Any]) -> None:
    config = OptimizerConfig(**{"lr": 1e30, "schedule": "constant", **optimizer})
    words = ["not finite at step", "gradient is not at step", "weights are not finite after step"]
    if name == "w-mse":  # it looks at what it divides by, which a network that gives one point makes 0
        words.append("covariance is singular")
    with pytest.raises(UserError, match="|".join(words)):
        trainer(tmp_path, max_epochs=2).fit(OBJECTIVES[name](**SMALL, optimizer=config), datamodule=digits())


def broken_network(where: str) -> VICReg:
    model = VICReg(**SMALL)
    tensor = model.get_buffer(where) if "running" in where else model.get_parameter(where)
    tensor.data.view(-1)[0] = math.nan
    return model


@pytest.mark.parametrize("where", ["backbone.layers.0.weight", "projector.0.weight", "backbone.layers.1.running_var"])
@pytest.mark.parametrize("task", ["fit", "validate", "test", "predict"])
def test_a_network_that_is_not_finite_is_refused_at_once(tmp_path: Path, task: str, where: str) -> None:
    run = trainer(tmp_path, KNNProbe(), LinearProbe())
    if task == "predict":
        run.callbacks.append(PredictionWriter(tmp_path / "out.npz"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=rf"the weights of this network are not finite \({re.escape(where)}\)"):
        getattr(run, task)(broken_network(where), datamodule=digits())
    assert not (tmp_path / "out.npz").exists()


# Representations


class Overflowing(nn.Module):
    """Divides by zero for dark images."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.layer(flat) / (flat.mean(1, keepdim=True) > -0.1)


@pytest.mark.parametrize("callbacks", [[], [KNNProbe], [LinearProbe], [InformationMonitor]], ids=str)
@pytest.mark.parametrize("task", ["validate", "test", "predict"])
def test_representations_that_are_not_finite_are_an_error(tmp_path: Path, task: str, callbacks: list[Any]) -> None:
    model = VICReg(backbone=Overflowing(), in_channels=1, projector=[8])
    run = trainer(tmp_path, *(callback() for callback in callbacks))
    with pytest.raises(UserError, match=r"the representations of \d+ .*images.* hold NaN or infinity"):
        getattr(run, task)(model, datamodule=digits())


def test_the_images_of_such_representations_are_named(tmp_path: Path) -> None:
    data = digits(100)
    data.setup("test")
    batch = data.to_batch(next(iter(data.test_dataloader())))
    dark = batch["index"][batch["clean"].flatten(1).mean(1) <= -0.1].tolist()
    shown = f"{', '.join(map(str, dark[:5]))} and {len(dark) - 5} more"
    with pytest.raises(UserError, match=rf"of {len(dark)} images of the test split .*: {shown}\."):
        trainer(tmp_path).test(VICReg(backbone=Overflowing(), in_channels=1, projector=[8]), datamodule=data)


def test_embeddings_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    model = VICReg(**SMALL)
    # 16 positive activations near 10, times weights that are finite: a sum beyond float32
    nn.init.constant_(model.projector[1].bias, 10.0)  # type: ignore[arg-type]
    nn.init.constant_(model.projector[-1].weight, 3e38)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the embeddings z1, z2 of this network hold NaN or infinity"):
        trainer(tmp_path).validate(model, datamodule=digits())


class OverflowsInEvaluation(nn.Module):
    """Is a network in training, and divides by zero in validation."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)) / torch.tensor(float(self.training))


def test_probes_of_a_training_leave_their_number_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = VICReg(backbone=OverflowsInEvaluation(), in_channels=1, projector=[8])
    run = trainer(tmp_path, LinearProbe(), KNNProbe())
    run.fit(model, datamodule=digits())
    assert run.global_step == 6
    assert not {name for name in run.callback_metrics if name.startswith("probe/") and name.endswith("top1")}
    said = capsys.readouterr().out
    assert "LinearProbe is left out at step 6: representations of the validation images hold NaN" in said
    assert "KNNProbe is left out at step 6: the representations of 1617 of 1617 train images" in said


def test_diagnostics_of_a_training_say_so_and_stop_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = LinearProbe()
    model = VICReg(backbone=Overflowing(), in_channels=1, projector=[8], non_finite="skip")
    trainer(tmp_path, probe, KNNProbe(), InformationMonitor(every_n_steps=2)).fit(model, datamodule=digits())
    said = capsys.readouterr().out
    assert "LinearProbe passes over batches whose representations hold NaN or infinity" in said
    assert re.search(r"KNNProbe is left out at step 6: the representations of \d+ of 1617 train images", said)
    assert re.search(r"InformationMonitor measures nothing of train_info/embedding at step 2: \d+ of 256 samples", said)
    assert probe.head is not None
    assert all(bool(weight.isfinite().all()) for weight in probe.head.state_dict().values())
