"""Every flag of Lightning's Trainer and every callback that it ships, tried once with each kind of objective."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.objectives import BYOL, JointEmbedding, LogDet, MoCo, SwAV, VICReg

SMALL: dict[str, Any] = {"backbone": "conv4", "in_channels": 1, "backbone_options": {"width": 2}, "projector": [8]}
KINDS: dict[str, Callable[[], JointEmbedding]] = {
    "entropy": lambda: VICReg(entropy=LogDet(), **SMALL),
    "moving average": lambda: BYOL(predictor=[8], **SMALL),
    "queue": lambda: MoCo(queue=768, predictor=None, **SMALL),
    "prototypes and queue": lambda: SwAV(prototypes=12, queue=512, queue_start_epoch=0, **SMALL),
}
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "moving average" else pytest.mark.slow) for kind in KINDS]
)
OURS = (UserError,)
LIGHTNINGS = (ValueError, TypeError, RuntimeError, MisconfigurationException, ModuleNotFoundError)


def data() -> TwoViewDataModule:
    return TwoViewDataModule("digits", batch_size=256, seed=0)


def train(model: JointEmbedding, **flags: Any) -> Trainer:
    """Three epochs of two steps, unless the flags say otherwise."""
    own = [] if flags.get("barebones") else [CSVLogger(".")]
    settings: dict[str, Any] = {"logger": own, "log_every_n_steps": 1, "num_sanity_val_steps": 1}
    settings = {"enable_model_summary": False, "enable_checkpointing": False, "enable_progress_bar": False, **settings}
    if flags.get("barebones"):
        settings = {}
    settings = {"max_epochs": 3, "limit_train_batches": 2, "limit_val_batches": 1, **settings, **flags}
    settings = {"accelerator": "cpu", "devices": 1, **settings}
    trainer = Trainer(**settings)
    trainer.fit(model, data())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return trainer


class FrozenHead(callbacks.BaseFinetuning):
    """Freezes, and adds nothing to the optimizer."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.projector)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        pass


# By name: how it is made, and a part of the message where it is refused.
CALLBACKS: dict[str, tuple[Callable[[], Any], str]] = {
    "BackboneFinetuning": (lambda: callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1), "model.weights"),
    "BaseFinetuning": (FrozenHead, ""),
    "BasePredictionWriter": (lambda: callbacks.BasePredictionWriter(), ""),
    "BatchSizeFinder": (lambda: callbacks.BatchSizeFinder(max_trials=1), "give data.batch_size"),
    "Callback": (lambda: callbacks.Callback(), ""),
    "Checkpoint": (lambda: callbacks.Checkpoint(), ""),
    "DeviceStatsMonitor": (lambda: callbacks.DeviceStatsMonitor(), ""),
    "EarlyStopping": (lambda: callbacks.EarlyStopping("val/loss"), ""),
    "GradientAccumulationScheduler": (
        lambda: callbacks.GradientAccumulationScheduler({1: 2}),
        "trainer.accumulate_grad_batches",
    ),
    "LambdaCallback": (lambda: callbacks.LambdaCallback(on_train_start=lambda trainer, model: None), ""),
    "LearningRateFinder": (lambda: callbacks.LearningRateFinder(), "--sweep model.optimizer.lr"),
    "LearningRateMonitor": (lambda: callbacks.LearningRateMonitor(), ""),
    "ModelCheckpoint": (lambda: callbacks.ModelCheckpoint(monitor="val/loss"), ""),
    "ModelPruning": (lambda: callbacks.ModelPruning("l1_unstructured", amount=0.5), "after its training"),
    "ModelSummary": (lambda: callbacks.ModelSummary(), ""),
    "OnExceptionCheckpoint": (lambda: callbacks.OnExceptionCheckpoint("."), ""),
    "ProgressBar": (lambda: callbacks.ProgressBar(), ""),
    "RichModelSummary": (lambda: callbacks.RichModelSummary(), ""),
    "RichProgressBar": (lambda: callbacks.RichProgressBar(), ""),
    "StochasticWeightAveraging": (lambda: callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1), ""),
    "SpikeDetection": (lambda: callbacks.SpikeDetection(), "CollapseAlarm and EarlyStopping"),
    "ThroughputMonitor": (lambda: callbacks.ThroughputMonitor(lambda batch: len(batch["index"]), window_size=2), ""),
    "Timer": (lambda: callbacks.Timer("00:01:00:00"), ""),
    "TQDMProgressBar": (lambda: callbacks.TQDMProgressBar(), ""),
    "EMAWeightAveraging": (lambda: callbacks.EMAWeightAveraging(), ""),
    "WeightAveraging": (lambda: callbacks.WeightAveraging(), ""),
}


def test_the_callbacks_are_those_that_lightning_ships() -> None:
    assert set(CALLBACKS) == set(callbacks.__all__)


@each_kind
@pytest.mark.parametrize("name", CALLBACKS)
def test_callback(in_tmp: Path, name: str, kind: str) -> None:
    make, refused = CALLBACKS[name]
    callback = make()
    flags = {
        "callbacks": [callback],
        "enable_checkpointing": isinstance(callback, callbacks.Checkpoint),
        "enable_progress_bar": isinstance(callback, callbacks.ProgressBar),
        "enable_model_summary": isinstance(callback, callbacks.ModelSummary),
        "max_epochs": 3 if "Averaging" in name else 1,
    }
    if refused:
        with pytest.raises(UserError, match=f"the callback {name} .*{refused}"):
            train(KINDS[kind](), **flags)
    else:
        assert train(KINDS[kind](), **flags).global_step >= 2


@pytest.mark.parametrize("search", ["lr_find", "scale_batch_size"])
def test_what_the_tuner_changes_is_refused_too(in_tmp: Path, search: str) -> None:
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=r"LearningRateFinder|BatchSizeFinder"):
        getattr(Tuner(trainer), search)(KINDS["entropy"](), data())


# By name: values with the optimizer steps that they come to, or what raises and a part of the message.
Steps = int | tuple[tuple[type[Exception], ...], str]
FLAGS: dict[str, list[tuple[Any, Steps]]] = {
    "accelerator": [("auto", 6), ("cuda", (LIGHTNINGS, "cuda|CUDA"))],
    "strategy": [("ddp", 6), ("fsdp", (LIGHTNINGS, "GPU"))],
    "devices": [("auto", 6), (0, (LIGHTNINGS, "devices")), ("abc", (LIGHTNINGS, "devices"))],
    "num_nodes": [(1, 6)],
    "precision": [
        *(("64-true", 6), ("bf16-mixed", 6), ("16-mixed", 6), ("bf16-true", (OURS, "bf16-mixed"))),
        *(("16-true", (OURS, "16-mixed")), ("transformer-engine", (LIGHTNINGS, "transformer_engine"))),
    ],
    "logger": [(False, 6), (True, 6)],
    "callbacks": [(None, 6), ([], 6)],
    "fast_dev_run": [(True, 1), (2, 2)],
    "max_epochs": [
        (2, 4),
        (-1, (OURS, "needs an end")),
        (0, (OURS, "leaves nothing")),
        (-2, (LIGHTNINGS, "max_epochs")),
    ],
    "min_epochs": [(2, 6), (-1, (OURS, "min_epochs=-1 must be 0 or more"))],
    "max_steps": [(3, 3), (0, (OURS, "max_steps=0 leaves nothing")), (-2, (LIGHTNINGS, "max_steps"))],
    "min_steps": [(3, 6), (-1, (OURS, "min_steps=-1 must be 0 or more"))],
    "max_time": [("00:00:10:00", 6), (timedelta(minutes=10), 6)],
    "limit_train_batches": [
        *((0.5, 9), (1, 3), (0, (OURS, "limit_train_batches=0"))),
        *((1e-3, (LIGHTNINGS, "limit_train_batches")), (-1, (LIGHTNINGS, "limit_train_batches"))),
    ],
    "limit_val_batches": [(0, 6), (1.0, 6), (1e-3, (LIGHTNINGS, "limit_val_batches"))],
    "limit_test_batches": [(2, 6), (-1, (LIGHTNINGS, "limit_test_batches"))],
    "limit_predict_batches": [(2, 6), (-1, (LIGHTNINGS, "limit_predict_batches"))],
    "overfit_batches": [(2, 6), (1, 3), (0.5, (LIGHTNINGS, "limit_val_batches"))],
    "val_check_interval": [
        *((1, 6), (0.5, 6), (50, (LIGHTNINGS, "val_check_interval"))),
        *((0, (OURS, "val_check_interval=0")), (-1, (LIGHTNINGS, "val_check_interval"))),
    ],
    "check_val_every_n_epoch": [
        *((2, 6), (0, (OURS, "check_val_every_n_epoch=0 must be 1 or more"))),
        (-1, (OURS, "check_val_every_n_epoch=-1 must be 1 or more")),
    ],
    "num_sanity_val_steps": [(0, 6), (-1, 6), (-2, (OURS, "num_sanity_val_steps=-2 must be -1 or more"))],
    "log_every_n_steps": [(3, 6), (0, 6), (-1, (OURS, "log_every_n_steps=-1"))],
    "enable_checkpointing": [(False, 6), (True, 6)],
    "enable_progress_bar": [(False, 6), (True, 6)],
    "enable_model_summary": [(False, 6), (True, 6)],
    "accumulate_grad_batches": [
        *((2, 3), (0, (OURS, "accumulate_grad_batches=0")), (-1, (OURS, "accumulate_grad_batches=-1"))),
        (1.5, (OURS, "must be a whole number")),
    ],
    "gradient_clip_val": [
        *((1.0, 6), (0, 6), (-1.0, (OURS, "gradient_clip_val=-1.0 must be 0 or more"))),
        (float("nan"), (OURS, "gradient_clip_val=nan must be 0 or more")),
    ],
    "gradient_clip_algorithm": [("norm", 6), ("value", 6), ("abc", (LIGHTNINGS, "abc"))],
    "deterministic": [(True, 6), ("warn", 6)],
    "benchmark": [(True, 6)],
    "inference_mode": [(False, 6)],
    "use_distributed_sampler": [(False, 6)],
    "profiler": [("simple", 6), ("advanced", 6), ("abc", (LIGHTNINGS, "profiler"))],
    "detect_anomaly": [(True, 6)],
    "barebones": [(True, 6)],
    "plugins": [([], 6)],
    "sync_batchnorm": [(True, 6)],
    "reload_dataloaders_every_n_epochs": [(1, 6), (-1, (LIGHTNINGS, "reload_dataloaders_every_n_epochs"))],
    "default_root_dir": [("elsewhere", 6)],
    "enable_autolog_hparams": [(False, 6)],
    "model_registry": [(None, 6)],
}


def test_the_flags_are_those_of_the_trainer() -> None:
    assert set(FLAGS) == set(inspect.signature(Trainer).parameters)


@each_kind
@pytest.mark.parametrize("name", FLAGS)
def test_flag(in_tmp: Path, name: str, kind: str) -> None:
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        for value, expected in FLAGS[name]:
            if isinstance(expected, int):
                assert train(KINDS[kind](), **{name: value}).global_step == expected, value
            else:
                with pytest.raises(expected[0], match=expected[1]):
                    train(KINDS[kind](), **{name: value})
    finally:
        torch.use_deterministic_algorithms(deterministic)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_overfitting_sees_the_same_images_in_every_epoch(in_tmp: Path) -> None:
    class Seen(callbacks.Callback):
        def __init__(self) -> None:
            self.batches: list[list[int]] = []

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            self.batches.append(batch["index"].tolist())

    fixed, shuffled = Seen(), Seen()
    train(KINDS["entropy"](), overfit_batches=2, callbacks=[fixed])
    train(KINDS["entropy"](), callbacks=[shuffled])
    assert fixed.batches[0:2] == fixed.batches[2:4] == fixed.batches[4:6] == shuffled.batches[0:2]
    assert fixed.batches[0] != fixed.batches[1]
    assert shuffled.batches[0:2] != shuffled.batches[2:4]


def test_double_precision_is_double_all_the_way(in_tmp: Path) -> None:
    class Types(callbacks.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
            self.seen = {outputs["loss"].dtype, *(view.dtype for view in batch["views"])}
            self.seen |= {parameter.dtype for parameter in module.parameters()}

    types = Types()
    train(KINDS["moving average"](), precision="64-true", callbacks=[types], max_steps=1)
    assert types.seen == {torch.float64}


def test_a_transformer_of_another_size_names_the_option(in_tmp: Path) -> None:
    model = VICReg(backbone="vit_tiny_patch16_224", in_channels=1, projector=[8])
    with pytest.raises(UserError, match=r"takes images of 224 x 224 pixels, and data gives 8 x 8: .*img_size: 8"):
        train(model)
    options = {"img_size": 8, "patch_size": 4, "depth": 1}
    assert train(
        VICReg(backbone="vit_tiny_patch16_224", backbone_options=options, in_channels=1, projector=[8]), max_steps=1
    )


def test_averaged_weights_are_not_resumed_inside_an_epoch(in_tmp: Path) -> None:
    def averaged(**flags: Any) -> Trainer:
        files = callbacks.ModelCheckpoint(".", every_n_train_steps=1, save_top_k=-1, filename="{step}")
        own = [callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1), files]
        trainer = Trainer(
            accelerator="cpu", devices=1, max_epochs=3, limit_train_batches=2, limit_val_batches=0, callbacks=own,
            logger=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(VICReg(entropy=LogDet(), **SMALL), data(), **flags)
        return trainer

    averaged()
    with pytest.raises(UserError, match="StochasticWeightAveraging cannot go on inside an epoch"):
        averaged(ckpt_path="step=3.ckpt")


def test_a_monitor_that_nobody_logged(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watching = [
        callbacks.ModelCheckpoint(monitor="train/los", save_top_k=-1),
        callbacks.ModelCheckpoint(monitor="train/loss"),
        callbacks.ModelCheckpoint(monitor="step"),
        callbacks.EarlyStopping(monitor="nope"),  # which the Trainer puts before all checkpoints
    ]
    model = VICReg(**SMALL)
    # One epoch, and a validation after every second one.
    train(model, callbacks=watching, enable_checkpointing=True, check_val_every_n_epoch=2, max_epochs=1)
    second, first = (line for line in capsys.readouterr().out.splitlines() if "nobody logged" in line)
    assert first.startswith("note: ModelCheckpoint watched monitor=train/los, which nobody logged")
    assert "logged were train/loss, " in first  # the nearest first
    assert second.startswith("note: EarlyStopping watched monitor=nope, which nobody logged")
