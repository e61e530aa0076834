"""Trainings that diverge and numbers out of range, by the command line: one message, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslinfo.__main__ import console

TINY = [
    *("--model.backbone", "conv4", "--model.backbone_options", '{"width": 2}', "--model.in_channels", "1"),
    *("--model.projector", "[16, 8]", "--data.dataset", "digits", "--data.batch_size", "256"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.max_epochs", "1"),
]
SAVING = (
    "[{class_path: ModelCheckpoint, init_args: {save_last: true, save_on_exception: true, every_n_train_steps: 1}}]"
)


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command line that ends with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        console(arguments)
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text[text.index("sslinfo: ") :]


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_training_that_diverges(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rate = ["--model.optimizer.lr", "1e30", "--model.optimizer.schedule", "constant"]
    message = said(["fit", "--model", "VICReg", *TINY, *rate, "--trainer.callbacks", SAVING], capsys)
    assert message.startswith("sslinfo: the loss is not finite at step 1: loss=nan")
    (written,) = in_tmp.rglob("non_finite.txt")
    assert (written.parent / "config.yaml").exists()  # beside the log
    assert str(written.relative_to(in_tmp)) in message
    (last,) = in_tmp.rglob("last.ckpt")
    state = torch.load(last, weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_a_checkpoint_of_one_that_did(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console(["fit", "--model", "VICReg", *TINY])
    (path,) = in_tmp.rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["backbone.layers.0.weight"][0] = torch.nan
    torch.save(checkpoint, "bad.ckpt")
    for command in ("validate", "test", "predict"):
        message = said([command, "--ckpt_path", "bad.ckpt"], capsys)
        assert message.startswith("sslinfo: ckpt_path='bad.ckpt' holds weights that are not finite")
        assert "backbone.layers.0.weight" in message
    assert not Path("representations.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "SimCLR", "--model.temperature", ".nan"], "temperature must be in [1e-4, 1e4], got nan"),
        (["--model.optimizer.lr", "-1"], "optimizer.lr must be in (0, 1e30], got -1.0"),
        (
            ["--model.optimizer.batch_size_of_lr", "0"],
            "optimizer.batch_size_of_lr must be a whole number in [1, 1e9], got 0",
        ),
        (["--model.entropy", "LogDet", "--model.entropy.beta", "-1"], "beta must be in [1e-9, 1e9], got -1.0"),
        (
            ["--trainer.callbacks", "[{class_path: KNNProbe, init_args: {k: -1}}]"],
            "k must be a whole number in [1, 1e9], got -1",
        ),
    ],
)
def test_numbers_out_of_range(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in said(["fit", "--model", "VICReg", *TINY, *arguments], capsys)
    assert not list(in_tmp.rglob("*.ckpt"))
