"""A signal ends a training after its step, with a file from which it goes on, and with the shell's code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rank_trainer import QUIET

from sslinfo.callbacks import KNNProbe, StopOnSignal
from sslinfo.cli.arguments import with_checkpoint
from sslinfo.data import TwoViewDataModule
from sslinfo.objectives import LogDet, VICReg

EPOCH = 3  # batches


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Signals as a shell's own program has them: one that runs in the background ignores some."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Sends(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


class Validations(Callback):
    def __init__(self) -> None:
        self.after: list[int] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.after.append(trainer.global_step)


def train(
    folder: Path, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> tuple[dict[str, torch.Tensor], list[int]]:
    torch.manual_seed(0 if resume is None else 1)
    model = VICReg(LogDet(), backbone="conv4", backbone_options={"width": 2}, in_channels=1, projector=[8])
    validations = Validations()
    files = ModelCheckpoint(folder, save_top_k=0, save_on_exception=True)
    own = {"max_epochs": 3, "limit_train_batches": EPOCH, "limit_val_batches": 1, "enable_checkpointing": True}
    watching = [] if options.get("enable_checkpointing") is False else [files]
    trainer = Trainer(**{**QUIET, **own, **options}, callbacks=[StopOnSignal(), *callbacks, validations, *watching])
    try:
        trainer.fit(model, TwoViewDataModule("digits", batch_size=128, seed=0), ckpt_path=resume)
    except SystemExit as end:
        return {"code": torch.tensor(int(end.code or 0))}, validations.after
    return model.state_dict(), validations.after


# 1 is in the middle of an epoch, 3 and 6 are the last steps of one: the validation is then the resumed training's.
@pytest.mark.parametrize(("name", "step"), [("SIGTERM", 1), ("SIGINT", 3), ("SIGHUP", 4), ("SIGUSR1", 6)])
def test_it_stops_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, step: int) -> None:
    number = getattr(signal, name)
    handler = signal.getsignal(number)
    whole, validated = train(tmp_path)
    assert validated == [3, 6, 9]
    stopped, first = train(tmp_path, Sends(number, step))
    assert int(stopped["code"]) == 128 + number
    file = tmp_path / "stopped.ckpt"
    said = capsys.readouterr().err
    assert f"sslinfo: stopped by {name} after step {step}; saved {file}" in said
    assert f"--ckpt_path {file}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["stopped.ckpt"]  # save_on_exception saves no second one
    resumed, second = train(tmp_path, resume=file)
    assert first + second == validated
    assert all(torch.equal(whole[entry], resumed[entry]) for entry in whole)
    assert signal.getsignal(number) == handler


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _, validated = train(tmp_path, Sends(signal.SIGHUP, 2))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert validated == [3, 6, 9]


def test_without_checkpoints_nothing_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped, _ = train(tmp_path, Sends(signal.SIGTERM, 2), enable_checkpointing=False, default_root_dir=tmp_path)
    assert int(stopped["code"]) == 143
    assert "nothing is saved, since there is no ModelCheckpoint" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


class Twice(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        train(tmp_path, Twice())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert not list(tmp_path.iterdir())


class InValidation(Callback):
    """Sends a signal at the second batch of the validation after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *at: int) -> None:
        if trainer.global_step == self.step and at[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("step", "batches"), [(3, 2), (9, 2), (9, 1)])
def test_in_a_validation(tmp_path: Path, step: int, batches: int) -> None:
    whole, validated = train(tmp_path / "whole", limit_val_batches=batches)
    stopped, first = train(tmp_path, KNNProbe(k=1, bank_size=20), InValidation(step), limit_val_batches=batches)
    assert int(stopped["code"]) == 143
    # With one batch the signal came too late to break it off.
    assert first == [3, 6, 9][: step // 3 - (batches == 2)]
    resumed, second = train(
        tmp_path, KNNProbe(k=1, bank_size=20), resume=tmp_path / "stopped.ckpt", limit_val_batches=batches
    )
    assert first + second == validated
    assert all(torch.equal(whole[entry], resumed[entry]) for entry in whole)
    counted = torch.load(tmp_path / "stopped.ckpt", weights_only=True)["callbacks"]["KNNProbe"]["validations"]
    assert counted == len(first)


def test_a_requeued_slurm_job_goes_on_with_its_own_file(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = in_tmp / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" > {in_tmp}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(in_tmp), prepend=os.pathsep)
    names = {"NTASKS": "1", "JOB_ID": "77", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    whole, _ = train(in_tmp / "other")
    stopped, _ = train(in_tmp, Sends(signal.SIGUSR1, 2), default_root_dir=in_tmp, devices=1, num_nodes=1)
    assert int(stopped["code"]) == 128 + signal.SIGUSR1
    assert (in_tmp / "asked").read_text() == "requeue 77\n"
    assert "requeued SLURM job 77" in capfd.readouterr().err
    file = in_tmp / "requeued_77.ckpt"
    root = ["--trainer.default_root_dir", str(in_tmp)]
    args, stored = with_checkpoint(["fit", *root])  # the requeued job: the same command
    assert args[-2:] == ["--ckpt_path", str(file)]
    assert stored is not None
    assert stored.step == 2
    for other in ("validate", "fit"):  # another command, another job
        if other == "fit":
            monkeypatch.setenv("SLURM_JOB_ID", "78")
        assert with_checkpoint([other, *root]) == ([other, *root], None)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    resumed, validated = train(in_tmp, resume=file, default_root_dir=in_tmp, devices=1, num_nodes=1)
    assert validated == [3, 6, 9]
    assert all(torch.equal(whole[entry], resumed[entry]) for entry in whole)
    assert not file.exists()  # a job that starts anew under this number begins at the beginning
