"""Checkpoints that are broken off or of something else: one line that says why, and `last` and `best` go on."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sslinfo.__main__ import console
from sslinfo.callbacks import InformationMonitor
from sslinfo.cli.checkpoints import resolve_checkpoint
from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.objectives import LogDet, VICReg

QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two steps, with the states of a monitor and a ModelCheckpoint."""
    folder = tmp_path_factory.mktemp("whole")
    tiny: dict[str, Any] = {"backbone": "conv4", "backbone_options": {"width": 2}, "in_channels": 1}
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[InformationMonitor(), ModelCheckpoint(folder)],
    )
    trainer.fit(VICReg(LogDet(), projector=[8, 4], **tiny), datamodule=TwoViewDataModule("digits"))
    trainer.save_checkpoint(folder / "whole.ckpt")
    return folder / "whole.ckpt"


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that the console script prints for a file that it does not take."""

    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sslinfo", *args])
        with pytest.raises(SystemExit) as stopped:
            console()
        assert stopped.value.code == 2
        error = capfd.readouterr().err
        assert "Traceback" not in error
        said = error[error.index("sslinfo: ") :]
        assert said.splitlines()[1:] in ([], ["(the traceback: add --debug)"])
        return said

    return run


def changed(whole: Path, **parts: Any) -> str:
    """The checkpoint with other parts; without those that are ``...``."""
    content = {**torch.load(whole, weights_only=True), **parts}
    torch.save({name: value for name, value in content.items() if value is not ...}, "x.ckpt")
    return "x.ckpt"


PARTS = {
    "hyper_parameters is None": {"hyper_parameters": None},
    "hyper_parameters is of type list": {"hyper_parameters": [1]},
    "datamodule_hyper_parameters is None": {"datamodule_hyper_parameters": None},
    "pytorch-lightning_version is None": {"pytorch-lightning_version": ...},
    "pytorch-lightning_version is 3": {"pytorch-lightning_version": 3},
    "callbacks is of type list": {"callbacks": [1]},
    "callbacks is None": {"callbacks": None},
    "sslinfo_callbacks is no list": {"sslinfo_callbacks": {"a": 1}},
    "sslinfo_left_out is of type int": {"sslinfo_left_out": 3},
    "sslinfo_seed is of type str": {"sslinfo_seed": "0"},
    "seed_everything was, is -4 and not in [0, 4294967295]": {"sslinfo_seed": -4},
    "state_dict is of type list": {"state_dict": [1]},
    "state_dict holds of type str under a": {"state_dict": {"a": "b"}},
    "loops is None": {"loops": None},
    "epoch is of type str": {"epoch": "1"},
    "global_step is None": {"global_step": None},
    "optimizer_states is of type int": {"optimizer_states": 3},
    "hyper_parameters has a Tensor in it": {
        "hyper_parameters": {"_class_path": "sslinfo.objectives.VICReg", "invariance": torch.zeros(1)}
    },
    "does not say which model it is of": {"hyper_parameters": ...},
    "no checkpoint of a training: weights alone go to model.weights": {"state_dict": ...},
    "holds weights that are not finite (w, and 0 more)": {"state_dict": {"w": torch.tensor(torch.nan)}},
}


@pytest.mark.parametrize("said", PARTS)
def test_a_part_of_another_kind(in_tmp: Path, whole: Path, message: Callable[..., str], said: str) -> None:
    path = changed(whole, **PARTS[said])  # type: ignore[arg-type]
    for command in ("fit", "validate", "test", "predict"):
        error = message(command, "--ckpt_path", path, *QUIET)
        assert said in error
        assert "ckpt_path='x.ckpt'" in error


def test_a_file_that_is_no_checkpoint(in_tmp: Path, whole: Path, message: Callable[..., str]) -> None:
    content = whole.read_bytes()
    Path("early.ckpt").write_bytes(content[: len(content) // 2])
    Path("empty.ckpt").write_bytes(b"")
    Path("text.ckpt").write_text("hello")
    torch.save(torch.zeros(3), "tensor.ckpt")
    torch.save({**torch.load(whole, weights_only=True), "more": Runs()}, "runs.ckpt")
    Path("folder.ckpt").mkdir()
    Path("link.ckpt").symlink_to("gone")
    os.mkfifo("pipe.ckpt")
    expected = {
        "early": "it ends early",
        "empty": "it is empty",
        "text": "it was not written by torch.save",
        "tensor": "weights alone go to model.weights",
        "runs": "which could run code. sslinfo reads numbers and text alone. If you trust the file,",
        "folder": "it is a folder",
        "link": "it is a link to gone, which is not there",
        "pipe": "it is no ordinary file",
    }
    for name, said in expected.items():
        for command in ("fit", "validate", "test", "predict"):
            error = message(command, "--ckpt_path", f"{name}.ckpt", *QUIET)
            assert f"ckpt_path='{name}.ckpt'" in error
            assert said in error
    assert not Path("ran").exists()
    assert "could run code" in message("validate", "--model", "Frozen", "--model.weights", "runs.ckpt", *QUIET)
    assert "could run code" in message("sweep", "--ckpt_path", "runs.ckpt", "--beta", "1", "--model", "VICReg", *QUIET)
    assert "sslinfo reads checkpoints as data" in message(
        "validate", "--ckpt_path", str(whole), "--weights_only", "false", *QUIET
    )


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"loops": {"fit_loop": 3}}, "AttributeError"),
        ({"lr_schedulers": [{}]}, "KeyError: 'lr_lambdas'"),
        ({"optimizer_states": [{}]}, "KeyError: 'param_groups'"),
        ({"TwoViewDataModule": {}}, "KeyError: 'global_batch'"),
    ],
)
def test_a_state_that_cannot_be_restored(
    in_tmp: Path, whole: Path, message: Callable[..., str], parts: dict[str, Any], said: str
) -> None:
    error = message("fit", "--ckpt_path", changed(whole, **parts), "--trainer.max_epochs", "2", *QUIET)
    assert "the checkpoint 'x.ckpt' is no whole checkpoint of this training: restoring it ends in " in error
    assert said in error


def test_a_mismatch_blames_what_was_given(
    in_tmp: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sslinfo"])
        with pytest.raises(SystemExit):
            console(["validate", "--ckpt_path", *args, *QUIET])
        return capfd.readouterr().err

    assert "leave out --model and its options" in said(str(whole), "--model.projector", "[8, 6]")
    error = said(changed(whole, state_dict={"w": torch.zeros(1)}))
    assert "does not fit the model that it describes" in error
    assert "leave out" not in error


def test_weights_alone_are_looked_at_and_not_resumed(
    in_tmp: Path, whole: Path, message: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    """What ModelCheckpoint(save_weights_only=True) writes."""
    path = changed(whole, optimizer_states=..., lr_schedulers=..., callbacks=...)
    error = message("fit", "--ckpt_path", path, *QUIET)
    assert "holds weights alone" in error
    assert f"--model.weights {path}" in error
    console(["validate", "--ckpt_path", path, *QUIET, "--trainer.limit_val_batches", "1"])
    assert "val/loss" in capfd.readouterr().out


def test_an_untrained_network_is_refused_or_said(
    in_tmp: Path, message: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "Frozen", "--model.backbone", "conv4", "--model.in_channels", "1", "--data.dataset", "digits"]
    for command in ("test", "predict"):
        assert "network that was never trained: give a checkpoint with --ckpt_path last" in message(command, *model)
    console(["validate", *model, *QUIET, "--trainer.fast_dev_run", "true"])
    assert "note: this network was never trained" in capfd.readouterr().out


# last and best


def run_of(folder: str, whole: Path, count: int = 3, best: int = 1) -> list[str]:
    """Checkpoints of a run, the oldest first, of which ModelCheckpoint kept all."""
    names = [f"{folder}/step={step}.ckpt" for step in range(count)]
    content = torch.load(whole, weights_only=True)
    scores = {name: torch.tensor(float(abs(step - best))) for step, name in enumerate(names)}
    state = {"monitor": "val/loss", "best_model_path": names[best], "best_k_models": scores, "dirpath": folder}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for step, name in enumerate(names):
        torch.save(
            {**content, "global_step": step, "callbacks": {"ModelCheckpoint{'monitor': 'val/loss'}": state}}, name
        )
        os.utime(name, (10**9 + step, 10**9 + step))
    return names


def set_newest(path: str) -> None:
    os.utime(path, (2 * 10**9, 2 * 10**9))


def broken(path: str, kind: str) -> None:
    content = torch.load(path, weights_only=True)
    time = os.stat(path).st_mtime_ns
    if kind == "early":
        Path(path).write_bytes(Path(path).read_bytes()[:5000])
    elif kind == "empty":
        Path(path).write_bytes(b"")
    elif kind == "diverged":
        content["state_dict"]["backbone.layers.0.weight"][0] = torch.nan
        torch.save(content, path)
    elif kind == "malformed":
        torch.save({**content, "hyper_parameters": None}, path)
    os.utime(path, ns=(time, time))


BROKEN = {
    "early": "it ends early",
    "empty": "it is empty",
    "diverged": "not finite (backbone.layers.0.weight",
    "malformed": "its hyper_parameters is None",
}


def test_last_of_a_training_that_goes_on_is_no_file_of_weights_alone(
    in_tmp: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_of("runs/a", whole)
    content = torch.load(names[2], weights_only=True)
    torch.save({name: value for name, value in content.items() if name != "optimizer_states"}, names[2])
    set_newest(names[2])
    assert resolve_checkpoint("last", "runs") == names[2]  # its weights can be looked at
    assert resolve_checkpoint("last", "runs", resumes=True) == names[1]
    assert f"'{names[2]}' is passed over: holds weights alone" in capsys.readouterr().out
    for name in names[:2]:
        Path(name).unlink()
    with pytest.raises(UserError, match=r"can be gone on from \(the newest, .*: holds weights alone"):
        resolve_checkpoint("last", "runs", resumes=True)


@pytest.mark.parametrize("kind", BROKEN)
def test_last_passes_over_what_cannot_be_used(
    in_tmp: Path, whole: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_of("runs/a", whole)
    assert resolve_checkpoint("last", "runs") == names[2]
    assert capsys.readouterr().out == ""
    broken(names[2], kind)
    assert resolve_checkpoint("last", "runs") == names[1]
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"note: ckpt_path='last': below 'runs', {names[2]!r} is passed over: ")
    assert BROKEN[kind] in said
    broken(names[1], "early")
    broken(names[0], kind)
    with pytest.raises(
        UserError, match="there is no checkpoint below 'runs' that can be read .the newest, .*: give its path"
    ):
        resolve_checkpoint("last", "runs")


def test_last_opens_the_newest_alone(in_tmp: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_of("runs/a", whole, count=40)
    opened: list[str] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: opened.append(str(path)) or load(path, **options))
    assert resolve_checkpoint("last", "runs") == names[-1]
    assert set(opened) == {names[-1]}


def test_of_files_of_one_time_the_later_step_is_the_last(in_tmp: Path, whole: Path) -> None:
    """Copies may all have the time of the copying."""
    names = run_of("runs/a", whole, count=11)
    for name in names:
        os.utime(name, (10**9, 10**9))
    assert resolve_checkpoint("last", "runs") == names[10]  # the alphabet ends with step=9


def test_what_is_no_file_is_not_the_last(in_tmp: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_of("runs/a", whole)
    Path("runs/a/folder.ckpt").mkdir()
    Path("runs/a/link.ckpt").symlink_to("gone.ckpt")
    os.mkfifo("runs/a/pipe.ckpt")
    Path("runs/a/.step=9.ckpt.123.tmp").write_bytes(b"half")
    Path("runs/a/good_link.ckpt").symlink_to("step=2.ckpt")
    assert Path(resolve_checkpoint("last", "runs")).samefile(names[2])
    said = capsys.readouterr().out
    assert "link.ckpt' is passed over: cannot be read as a checkpoint: it is a link to gone.ckpt" in said
    assert "pipe.ckpt' is passed over: cannot be read as a checkpoint: it is no ordinary file" in said


@pytest.mark.parametrize("kind", BROKEN)
def test_best_passes_over_what_cannot_be_used(
    in_tmp: Path, whole: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_of("runs/a", whole, count=4, best=1)
    assert resolve_checkpoint("best", "runs") == names[1]
    broken(names[1], kind)
    broken(names[3], "early")  # the newest, which would say which is best
    assert resolve_checkpoint("best", "runs") == names[0]  # as good as step 2, and kept before it
    assert BROKEN[kind] in capsys.readouterr().out
    for name in (names[0], names[2]):
        Path(name).unlink()
    run_of("runs/b", whole, count=1, best=0)
    assert resolve_checkpoint("best", "runs") == "runs/b/step=0.ckpt"


def test_best_where_the_best_is_gone(in_tmp: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_of("runs/a", whole, best=1)
    Path(names[1]).unlink()
    assert resolve_checkpoint("best", "runs") == names[0]
    assert f"{names[1]!r} is passed over: there is no such file below 'runs'" in capsys.readouterr().out
    content = torch.load(names[2], weights_only=True)
    state = {"monitor": "val/loss", "best_model_path": "gone.ckpt"}
    torch.save({**content, "callbacks": {"ModelCheckpoint{}": state}}, names[2])
    set_newest(names[2])
    with pytest.raises(UserError, match=r"no checkpoint with a val/loss can be read: give the path of a file"):
        resolve_checkpoint("best", "runs")


def test_best_of_a_run_that_was_moved(in_tmp: Path, whole: Path) -> None:
    """With a quantity such as val/loss in the file's name, whose slash makes a folder."""
    folder = "runs/a/checkpoints"
    run_of(folder, whole, count=1, best=0)
    content = torch.load(f"{folder}/step=0.ckpt", weights_only=True)
    best = f"{in_tmp}/{folder}/epoch=0-val/loss=0.50.ckpt"
    state = {"monitor": "val/loss", "best_model_path": best, "dirpath": f"{in_tmp}/{folder}"}
    for name in ("epoch=0-val/loss=0.50.ckpt", "epoch=1-val/loss=0.70.ckpt"):
        Path(f"{folder}/{name}").parent.mkdir()
        torch.save({**content, "callbacks": {"ModelCheckpoint{}": state}}, f"{folder}/{name}")
    set_newest(f"{folder}/epoch=1-val/loss=0.70.ckpt")
    assert resolve_checkpoint("best", "runs") == best
    shutil.move("runs", "moved")
    assert resolve_checkpoint("best", "moved") == "moved/a/checkpoints/epoch=0-val/loss=0.50.ckpt"


def test_best_names_no_file_elsewhere(in_tmp: Path, whole: Path) -> None:
    """A checkpoint's word does not make another file be read."""
    run_of("elsewhere", whole, count=1, best=0)
    names = run_of("runs/a", whole, count=1, best=0)
    content = torch.load(names[0], weights_only=True)
    state = {"monitor": "val/loss", "best_model_path": f"{in_tmp}/elsewhere/step=0.ckpt", "best_k_models": "no dict"}
    torch.save({**content, "callbacks": {"ModelCheckpoint{}": state}}, names[0])
    # A file of that name lies in the run's own folder: the run may have been moved.
    assert resolve_checkpoint("best", "runs") == names[0]
    Path(names[0]).rename("runs/a/other.ckpt")
    with pytest.raises(UserError, match="no checkpoint with a val/loss can be read"):
        resolve_checkpoint("best", "runs")


@pytest.mark.parametrize("state", [3, {"monitor": "val/loss", "best_model_path": 3}, {"monitor": None}, None])
def test_best_of_states_that_say_nothing(in_tmp: Path, whole: Path, state: Any) -> None:
    names = run_of("runs/a", whole, count=1, best=0)
    content = torch.load(names[0], weights_only=True)
    torch.save({**content, "callbacks": {"ModelCheckpoint{}": state}}, names[0])
    with pytest.raises(UserError, match="monitored no quantity: say last"):
        resolve_checkpoint("best", "runs")
    torch.save({name: value for name, value in content.items() if name != "callbacks"}, names[0])
    with pytest.raises(UserError, match="holds weights alone and does not say which was the best"):
        resolve_checkpoint("best", "runs")
