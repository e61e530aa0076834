"""A checkpoint of version 0.1.0, kept as it was written, loads on every path.

It is of VICReg + LogDet on digits after 3 steps of an epoch, from Python, with two views of one's own and the callbacks
below. Classes stand in it by the files that they were in then: ``sslinfo.data.view.View``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from rank_trainer import QUIET

from sslinfo.callbacks import CollapseAlarm, InformationMonitor, KNNProbe, LinearProbe, RunSummary
from sslinfo.cli import main
from sslinfo.cli.checkpoints import StoredConfig
from sslinfo.data import TwoViewDataModule, View
from sslinfo.objectives import LogDet, VICReg
from sslinfo.optim import OptimizerConfig

FILE = Path(__file__).parent / "files" / "version_0.1.0.ckpt"
# What version 0.1.0 printed of the second of two images whose pixels run from 0 to 1.
REPRESENTATION = [0.0, 0.780032, 4.175024, 0.802029, 0.0, 2.842246, 4.367061, 0.0]


def assert_same_network(model: VICReg) -> None:
    images = torch.linspace(0, 1, 2 * 64).view(2, 1, 8, 8)
    assert model.cpu().eval()(images)[1].tolist() == pytest.approx(REPRESENTATION, abs=2e-6)


def test_it_is_of_the_old_form() -> None:
    content = torch.load(FILE, weights_only=True)
    views = content["datamodule_hyper_parameters"]["views"]
    assert [view["class_path"] for view in views] == ["sslinfo.data.view.View"] * 2
    assert content["hyper_parameters"]["_class_path"] == "sslinfo.objectives.vicreg.VICReg"
    assert isinstance(content["callbacks"]["RunSummary"]["curves"], dict)


def test_its_classes_get_their_public_paths() -> None:
    config = StoredConfig.read(FILE, named=set()).config
    assert config["model"]["class_path"] == "sslinfo.objectives.VICReg"
    assert config["model"]["init_args"]["entropy"]["class_path"] == "sslinfo.objectives.LogDet"
    assert config["data"]["class_path"] == "sslinfo.data.TwoViewDataModule"
    assert [view["class_path"] for view in config["data"]["init_args"]["views"]] == ["sslinfo.data.View"] * 2


def test_validate_and_fit_of_the_command_line(in_tmp: Path) -> None:
    path = shutil.copy(FILE, in_tmp / "old.ckpt")
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    cli = main(["validate", "--ckpt_path", str(path), *quiet, "--trainer.limit_val_batches", "1"])
    assert cli.datamodule.views[0].degrees == 10.0
    assert cli.model.entropy.beta == 3.0
    assert_same_network(cli.model)
    limits = ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "0", "--trainer.max_epochs", "2"]
    cli = main(["fit", "--ckpt_path", str(path), *quiet, *limits, "--trainer.enable_model_summary", "false"])
    assert cli.trainer.global_step == 6


def test_states_of_its_callbacks_are_taken(tmp_path: Path) -> None:
    """A training of two epochs that goes on from it is one of three more steps, with the histories of both."""
    alarm, monitor = CollapseAlarm(every_n_steps=1), InformationMonitor(every_n_steps=2)
    summary, probe = RunSummary(labels_per_class=(1,), draws=2, limit=100), LinearProbe()
    callbacks: list[Callback] = [probe, KNNProbe(bank_size=100), monitor, alarm, summary]
    model = VICReg(
        entropy=LogDet(beta=3.0),
        backbone="conv4",
        backbone_options={"width": 1},
        in_channels=1,
        projector=[6, 4],
        optimizer=OptimizerConfig("sgd", lr=0.05, schedule="constant"),
    )
    data = TwoViewDataModule("digits", batch_size=256, views=[View(degrees=10.0), View(noise=0.05)])
    options = {**QUIET, "max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 1}
    trainer = Trainer(**options, default_root_dir=tmp_path, callbacks=callbacks)
    trainer.fit(model, datamodule=data, ckpt_path=FILE, weights_only=True)
    assert trainer.global_step == 6
    assert [step for step, _ in summary.curves["train/loss"]][-1] == 6
    assert [step for step, _ in monitor.spectra["embedding"]][-1] == 6


def test_load_from_checkpoint() -> None:
    model = VICReg.load_from_checkpoint(FILE, map_location="cpu", weights_only=True)
    assert isinstance(model.entropy, LogDet)
    assert model.entropy.beta == 3.0
    assert_same_network(model)
    data = TwoViewDataModule.load_from_checkpoint(FILE, weights_only=True)
    assert [view.degrees for view in data.views] == [10.0, 0.0]
