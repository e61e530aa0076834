"""The command line, as a user meets it, and every trap of LightningCLI that it has to avoid."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits

from sslinfo.__main__ import console
from sslinfo.callbacks import KNNProbe, LinearProbe
from sslinfo.cli import Cli, main
from sslinfo.cli.results import results_table
from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.objectives import LogDet, VarianceCovariance, VICReg

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", *QUIET]
TINY = [
    *("--model.backbone", "conv4", "--model.backbone_options", '{"width": 2}', "--model.in_channels", "1"),
    *("--model.projector", "[16, 8]", "--data.dataset", "digits", "--data.batch_size", "256", *CPU),
]
DRY = ["--trainer.fast_dev_run", "true"]
SHORT = ["--trainer.logger", "false", "--trainer.max_steps", "4", "--trainer.limit_val_batches", "1"]

RECIPE = """
model:
  class_path: VICReg
  init_args:
    backbone: conv4
    backbone_options: {width: 2}
    in_channels: 1
    projector: [16, 8]
data: {init_args: {dataset: digits, batch_size: 256}}
trainer:
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: LinearProbe}]
"""

OBJECTIVE = '''
"""Aligns the views and whitens them softly."""

import torch

from sslinfo.objectives import JointEmbedding


class MyObjective(JointEmbedding):
    def __init__(self, weight: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight

    def loss(self, z1, z2):
        distance = (z1 - z2).square().mean()
        z = torch.cat([z1, z2])
        spread = (torch.cov(z.T) - torch.eye(z.shape[1])).square().mean()
        return {"loss": distance + self.weight * spread, "distance": distance, "spread": spread}
'''


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Lightning warns where both sys.argv and args hold arguments.
    monkeypatch.setattr(sys, "argv", ["sslinfo"])
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of a training of four steps, with a checkpoint every two; the first is the best."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    argv, sys.argv = sys.argv, ["sslinfo"]
    try:
        checkpoint = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=2"]
        best = ["--trainer.callbacks.monitor=step", "--trainer.callbacks.mode=min", "--trainer.callbacks.save_top_k=-1"]
        probes = ["--trainer.callbacks+=LinearProbe", "--trainer.callbacks+=KNNProbe", "--trainer.callbacks.k=5"]
        model = ["--model", "VICReg", "--model.entropy", "LogDet", "--model.invariance", "3"]
        main(["fit", *model, *TINY, *SHORT, *probes, *checkpoint, *best])
    finally:
        os.chdir(before)
        sys.argv = argv
    return folder


@pytest.fixture
def after_training(in_tmp: Path, trained: Path) -> Path:
    """The working folder after that training."""
    shutil.copytree(trained, in_tmp, dirs_exist_ok=True)
    for file in sorted(Path("runs").rglob("*.ckpt")):
        # copytree keeps times only as finely as the file system has them.
        os.utime(file, ns=(int(file.stem.split("=")[-1]),) * 2)
    return in_tmp


@pytest.fixture
def objective(in_tmp: Path) -> Iterator[Path]:
    """my_module.py in the working folder, importable there as for the console script."""
    Path("my_module.py").write_text(OBJECTIVE)
    before = list(sys.path)
    sys.path.insert(0, str(in_tmp))
    sys.modules.pop("my_module", None)
    yield in_tmp
    sys.path[:] = before
    sys.modules.pop("my_module", None)


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the console script prints for a user's mistake."""

    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sslinfo", *args])
        with pytest.raises(SystemExit) as stopped:
            console()
        assert stopped.value.code == 2
        error = capfd.readouterr().err
        assert "Traceback" not in error
        return error[error.index("sslinfo: ") :]

    return run


def checkpoint_of(step: int) -> str:
    return str(next(Path("runs").rglob(f"*step={step}.ckpt")))


def optimizer_of(cli: Cli) -> torch.optim.Optimizer:
    return cli.trainer.optimizers[0]


# Entry points


def test_entry_points_are_the_same_program(objective: Path) -> None:
    script = str(Path(sys.executable).with_name("sslinfo"))
    # The console script finds a module of the working folder, which is on no path of this process.
    commands = [
        [sys.executable, "-m", "sslinfo", "--help"],
        [script, "fit", "--model", "my_module.MyObjective", *TINY, *DRY],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    running = [
        subprocess.Popen(c, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for c in commands
    ]
    answers = [process.communicate(timeout=120) for process in running]
    for process, (_, error) in zip(running, answers, strict=True):
        assert process.returncode == 0, error
    for subcommand in ("fit", "validate", "test", "predict"):
        assert f"sslinfo {subcommand}" in answers[0][0]
    assert "max_steps=1" in answers[1][1]


# Configurations


def test_short_names_of_classes(in_tmp: Path) -> None:
    entropy = ["--model.entropy", "LogDet", "--model.entropy.beta", "4"]
    cli = main(["fit", "--model", "VICReg", *entropy, *TINY, *DRY, "--trainer.callbacks+=KNNProbe"])
    assert type(cli.model) is VICReg
    assert type(cli.datamodule) is TwoViewDataModule
    assert type(cli.model.entropy) is LogDet
    assert cli.model.entropy.beta == 4
    assert [type(callback) for callback in cli.trainer.callbacks if type(callback) is KNNProbe] == [KNNProbe]


def test_files_compose(in_tmp: Path) -> None:
    Path("a.yaml").write_text(RECIPE)
    Path("b.yaml").write_text("model: {init_args: {invariance: 9.0, entropy: {class_path: LogDet}}}\n")
    Path("c.yaml").write_text("model: {init_args: {entropy: {init_args: {beta: 3.0}}}}\ntrainer: {max_epochs: 7}\n")
    cli = main(["fit", "-c", "a.yaml", "-c", "b.yaml", "--config", "c.yaml", *DRY, "--data.batch_size", "300"])
    model: Any = cli.model
    assert (model.invariance, model.embedding_dim, model.num_features) == (9.0, 8, 16)
    assert (type(model.entropy), model.entropy.beta, model.entropy.weight) == (LogDet, 3.0, 25.0)
    assert cli.config["fit"]["trainer"]["max_epochs"] == 7
    assert cli.datamodule.batch_size == 300


def test_overlay_appends_or_replaces_callbacks(in_tmp: Path) -> None:
    Path("a.yaml").write_text(RECIPE)
    Path("more.yaml").write_text("trainer:\n  callbacks+:\n    - class_path: KNNProbe\n      init_args: {k: 3}\n")
    Path("other.yaml").write_text("trainer:\n  callbacks:\n    - class_path: KNNProbe\n")

    def probes(*files: str) -> list[Any]:
        cli = main(["fit", *(part for file in files for part in ("-c", file)), *DRY])
        return [callback for callback in cli.trainer.callbacks if isinstance(callback, LinearProbe | KNNProbe)]

    assert [type(probe) for probe in probes("a.yaml")] == [LinearProbe]
    more = probes("a.yaml", "more.yaml")
    assert [type(probe) for probe in more] == [LinearProbe, KNNProbe]
    assert more[1].k == 3
    assert [type(probe) for probe in probes("a.yaml", "other.yaml")] == [KNNProbe]


def test_printed_configuration_runs(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(RECIPE)

    def printed(*args: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["fit", *args, "--print_config=skip_null"])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    text = printed("-c", "a.yaml", "--model.invariance", "4", *DRY)
    Path("b.yaml").write_text(text)
    assert yaml.safe_load(text)["model"]["init_args"]["invariance"] == 4
    assert printed("-c", "b.yaml") == text
    assert main(["fit", "-c", "b.yaml"]).model.invariance == 4


def test_file_elsewhere_names_a_class_of_the_working_folder(objective: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("recipes").mkdir()
    Path("recipes/a.yaml").write_text(RECIPE.replace("VICReg", "my_module.MyObjective"))
    sys.path.remove(str(objective))
    monkeypatch.setattr(sys, "argv", ["sslinfo", "fit", "-c", "recipes/a.yaml", *DRY])
    console()
    assert sys.modules["my_module"].__file__ == str(objective / "my_module.py")


# Mistakes

FIT = ["fit", "--model", "VICReg"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "class of the model": (["fit", "--model", "VICRegg", *TINY], "VICRegg: did you mean VICReg?"),
    "dotted class": (["fit", "--model", "sslinfo.objectives.VICRegg", *TINY], "did you mean VICReg?"),
    "class of the data": ([*FIT, "--data", "TwoViewDataModul", *TINY], "did you mean TwoViewDataModule?"),
    "nested class": ([*FIT, "--model.entropy", "LogDett", *TINY], "did you mean LogDet?"),
    "class of a callback": ([*FIT, "--trainer.callbacks+=LinearProb", *TINY], "did you mean LinearProbe?"),
    "option of the model": ([*FIT, "--model.invarianc", "3", *TINY], "did you mean invariance"),
    "option of the data": ([*FIT, "--data.batchsize", "3", *TINY], "did you mean batch_size"),
    "option of the trainer": ([*FIT, "--trainer.max_epoch", "3", *TINY], "did you mean max_epochs?"),
    "nested option": ([*FIT, "--model.optimizer.wieght_decay", "0", *TINY], "did you mean weight_decay"),
    "option of a half": ([*FIT, "--model.entropy", "LogDet", "--model.entropy.bet", "3"], "did you mean beta"),
    "option of a callback": (
        [*FIT, "--trainer.callbacks+=KNNProbe", "--trainer.callbacks.temprature=1", *TINY],
        "did you mean temperature",
    ),
    "group of options": ([*FIT, "--modell.invariance", "3", *TINY], "did you mean model"),
    "option of a subcommand": (["validate", "--ckpt", "last"], "did you mean ckpt_path?"),
    "subcommand": (["fitt", *FIT[1:], *TINY], "did you mean fit?"),
    "data set": ([*FIT, *TINY, "--data.dataset", "cifar-10"], "did you mean 'cifar10'?"),
    "backbone": ([*FIT, *TINY, "--model.backbone", "resnet8"], "did you mean resnet18"),
    "views": ([*FIT, *TINY, "--data.views", "simclrr"], "did you mean simclr?"),
    "optimizer": ([*FIT, *TINY, "--model.optimizer.name", "addamw"], "did you mean adamw"),
    "option of the optimizer": ([*FIT, *TINY, "--model.optimizer.options", '{"momentun": 1}'], "momentun"),
    "choice": ([*FIT, *TINY, "--data.on_bad_image", "skp"], "'skip'"),
    "number": ([*FIT, *TINY, "--model.invariance", "much"], "model.invariance: expected float, got 'much'"),
    "nested number": ([*FIT, *TINY, "--model.optimizer.lr", "abc"], "model.optimizer.lr: expected float, got 'abc'"),
    "number or nothing": ([*FIT, *TINY, "--trainer.max_epochs", "ten"], "trainer.max_epochs: expected int, got 'ten'"),
    "nested choice": (
        [*FIT, *TINY, "--model.entropy", "VarianceCovariance", "--model.entropy.convention", "papre"],
        "model.entropy.convention: expected 'paper' or 'code', got 'papre'",
    ),
    "option of another half": (
        [*FIT, *TINY, "--model.entropy", "PairDist", "--model.entropy.convention", "paper"],
        "--model.entropy VarianceCovariance",
    ),
    "callback twice": (
        [*FIT, *TINY, "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks+=ModelCheckpoint"],
        "ModelCheckpoint stands there twice",
    ),
    "module": (["fit", "--model", "my_modul.Mine", *TINY], "is my_modul.py in the working folder?"),
    "no model": (["fit"], "--model VICReg"),
    "nothing": ([], "fit"),
    "file": (["fit", "-c", "quickstrat.yaml"], "quickstrat.yaml"),
    "checkpoint": (["validate", "--ckpt_path", "lost.ckpt"], "last or best"),
    "batch size": ([*FIT, *TINY, "--data.batch_size", "5000"], "lower data.batch_size"),
    "channels": ([*FIT, *TINY, "--model.in_channels", "3"], "--model.in_channels 1"),
    "folder": ([*FIT, *TINY, "--data.dataset", "cifar10", "--data.root", "nowhere"], "data.download"),
    "order": (["fit", "--model.invariance", "3", "--model", "VICReg", *TINY], "named first: --model CLASS"),
    "value of a view": ([*FIT, *TINY, "--data.views", "[{flip: 7}]"], "flip must be in [0, 1], got 7"),
    "value of a view's form": (
        [*FIT, *TINY, "--data.views", "[{flip: a}]"],
        "data.views.flip: expected float, got 'a'",
    ),
    "value of a half": (
        [*FIT, *TINY, "--model.entropy", "{class_path: LogDet, init_args: {beta: -1}}"],
        "beta must be in [1e-9, 1e9], got -1",
    ),
    "option beside class_path": (
        [*FIT, *TINY, "--model.entropy", "{class_path: LogDet, beta: 3}"],
        "model.entropy: beta stands beside class_path: options of the class stand in init_args",
    ),
    "option of a word": (
        [*FIT, *TINY, "--data.views", "digits", "--data.views.flip", "3"],
        "there is no option data.views.flip",
    ),
    "list for a class": (
        [*FIT, *TINY, "--trainer.callbacks", "[{class_path: [3]}]"],
        "class_path is the name of a class",
    ),
    "null for a class": ([*FIT, *TINY, "--trainer.logger.class_path=null"], "class_path is the name of a class"),
    "number for options": (
        [*FIT, *TINY, "--trainer.callbacks", "[{class_path: KNNProbe, init_args: 3}]"],
        "init_args holds options by name",
    ),
    "key twice": ([*FIT, *TINY, "--model.optimizer", "{lr: 1, lr: 2}"], "lr stands there twice"),
    "null added": (
        [*FIT, "-c", "quickstart", "--trainer.callbacks+", "null"],
        "trainer.callbacks+: null adds nothing",
    ),
    "null for options": (["fit", "--model.init_args", "null"], "model: init_args holds options by name"),
    "empty word for a class": (["fit", "--model", ""], "model: expected the name of a class, got an empty word"),
    "empty word for a half": ([*FIT, *TINY, "--model.entropy", ""], "model.entropy: expected the name of a class"),
    "seed below zero": ([*FIT, *TINY, "--seed_everything", "-4"], "seed_everything must be a whole number in [0, 4294"),
    "seed beyond 32 bits": (
        [*FIT, "-c", "{seed_everything: 1208925819614629174706176}", *TINY],
        "seed_everything must be a whole number in [0, 4294967295]",
    ),
    "rate among the options": (
        [*FIT, *TINY, "--model.optimizer.options", "{lr: 3}"],
        "optimizer.options holds lr, which is not one of them: give it as optimizer.lr",
    ),
    "null": ([*FIT, *TINY, "--model.projector", "null"], "model.projector: null is no value that it can have"),
    "option that is missing": ([*FIT, *TINY, "--trainer.callbacks+=EarlyStopping"], "monitor is missing"),
    "devices by name": ([*FIT, *TINY, "--trainer.devices", "abc"], "trainer.devices='abc' does not fit"),
    "no devices": ([*FIT, *TINY, "--trainer.devices", "null"], "trainer.devices='null' does not fit"),
    "devices below one": ([*FIT, *TINY, "--trainer.devices", "-1"], "trainer.devices='-1' does not fit"),
    "devices without end": ([*FIT, *TINY, "--trainer.devices", "1000000"], "trainer.devices=1000000 is more than"),
    "machines that nothing started": ([*FIT, *TINY, "--trainer.num_nodes", "2"], "torchrun"),
    "precision of a library": ([*FIT, *TINY, "--trainer.precision", "transformer-engine"], "transformer_engine"),
    "recipe before the command": (["-c", "a.yaml", "fit"], "sslinfo fit -c a.yaml"),
    "option of recipes": (["recipes", "--all"], "takes no arguments, got --all"),
    "long word": ([*FIT, *TINY, "--model.backbone", "x" * 5000], "xxx..."),
    "optimizer as LightningCLI has it": ([*FIT, *TINY, "--optimizer", "Adam"], "no option --optimizer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_gets_a_short_message_with_the_way_out(in_tmp: Path, message: Callable[..., str], mistake: str) -> None:
    args, suggestion = MISTAKES[mistake]
    error = message(*args, *(DRY if args and args[0] == "fit" else []))
    assert suggestion in error
    assert len(error) <= 320
    assert error.count("\n") <= 3


FILES = {
    "option of the model": ("model: {class_path: VICReg, init_args: {invarience: 3}}", "did you mean invariance"),
    "group": ("trainr: {max_epochs: 3}", "did you mean trainer"),
    "option of the trainer": ("trainer: {max_epoch: 3}", "did you mean max_epochs"),
    "class of a callback": ("trainer: {callbacks: [{class_path: KNNProb}]}", "did you mean KNNProbe?"),
    "option of a callback": (
        "trainer: {callbacks: [{class_path: KNNProbe, init_args: {bank_sice: 3}}]}",
        "did you mean bank_size",
    ),
    "option of the optimizer": ("model: {class_path: VICReg, init_args: {optimizer: {nme: sgd}}}", "did you mean name"),
    "option of the data": ("data: {init_args: {batchsize: 3}}", "did you mean batch_size"),
    "no yaml": ("trainer: [3", "line"),
    "key twice": ("seed_everything: 1\nseed_everything: 2", "line 2: seed_everything stands there twice"),
    "null": ("model: {class_path: VICReg, init_args: {invariance: null}}", "model.invariance: null is no value"),
    "null of the optimizer": (
        "model: {class_path: VICReg, init_args: {optimizer: {name: null}}}",
        "model.optimizer.name: null is no value",
    ),
    "null in a view": ("data: {init_args: {views: [{flip: null}]}}", "data.views.flip: null is no value"),
    "empty option": ("trainer: {nokey: {}}", "there is no option nokey"),
    "empty option in a list": (
        "trainer: {callbacks: [{class_path: KNNProbe, init_args: {nokey: {}}}]}",
        "there is no option nokey",
    ),
    "trainer of nothing": ("trainer: 0", "trainer: expected options by name"),
}


@pytest.mark.parametrize("mistake", FILES)
def test_mistake_in_a_file(in_tmp: Path, message: Callable[..., str], mistake: str) -> None:
    text, suggestion = FILES[mistake]
    Path("a.yaml").write_text(RECIPE)
    Path("b.yaml").write_text(text)
    error = message("fit", "-c", "a.yaml", "-c", "b.yaml", *DRY)
    assert suggestion in error
    assert len(error) <= 320


def test_traceback_with_debug(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sslinfo", "fit", "--model", "VICRegg", "--debug"])
    with pytest.raises(UserError, match="did you mean VICReg"):
        console()


def test_views_with_every_default_take_the_place_of_a_preset(in_tmp: Path) -> None:
    Path("a.yaml").write_text(RECIPE.replace("batch_size: 256", "batch_size: 256, views: digits"))
    Path("b.yaml").write_text("data: {init_args: {views: [{}, {flip: 0.5}]}}")
    for args, flips in (
        (["--data.views", "[{}, {}]"], [0, 0]),
        (["--data.views=[{flip: 1}, {}]"], [1, 0]),
        (["-c", "b.yaml"], [0, 0.5]),
    ):
        views = main(["fit", "-c", "a.yaml", *args, "--trainer.fast_dev_run", "true"]).datamodule.views
        assert [view.flip for view in views] == flips


def test_defaults_of_callbacks_are_written_so_that_they_can_be_read(in_tmp: Path) -> None:
    Path("a.yaml").write_text(RECIPE)
    added = ["Timer", "EMAWeightAveraging", "StochasticWeightAveraging"]
    callbacks = [word for name in added for word in ("--trainer.callbacks+", name)]
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs", "--trainer.max_epochs", "1"]
    swa = ["--trainer.callbacks.swa_lrs", "0.001", "--trainer.callbacks.swa_epoch_start", "1"]
    main(["fit", "-c", "a.yaml", *callbacks, *swa, *logger, "--trainer.limit_val_batches", "0"])
    written = next(Path("logs").rglob("config.yaml"))
    entries = {
        entry["class_path"].rpartition(".")[2]: entry["init_args"]
        for entry in yaml.safe_load(written.read_text())["trainer"]["callbacks"]
    }
    assert entries["Timer"]["interval"] == "step"
    assert entries["StochasticWeightAveraging"]["device"] == "cpu"
    assert main(["fit", "-c", str(written), *DRY]).trainer.max_steps == 1


def test_fault_in_a_class_of_ones_own_is_told_by_its_place(objective: Path, message: Callable[..., str]) -> None:
    text = OBJECTIVE.replace("distance = (z1", "distance = undefined * (z1")
    Path("my_module.py").write_text(text)
    line = next(number for number, line in enumerate(text.splitlines(), start=1) if "undefined" in line)
    error = message("fit", "--model", "my_module.MyObjective", *TINY, *DRY)
    assert f"my_module.py, line {line}: NameError: name 'undefined' is not defined" in error
    assert "runs/traceback.txt" in error
    assert Path("runs/traceback.txt").read_text().startswith("Traceback (most recent call last)")


# The traps, in the order of the list


def test_trap_1_no_default_of_another_optimizer_leaks(in_tmp: Path) -> None:
    Path("a.yaml").write_text(RECIPE)
    recipe = {"name": "lars", "lr": 0.3, "weight_decay": 1e-6, "options": {"momentum": 0.8, "trust_coeff": 0.02}}
    Path("lars.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"optimizer": recipe}}}))

    def groups(*args: str) -> tuple[str, list[dict[str, Any]]]:
        optimizer = optimizer_of(main(["fit", "-c", "a.yaml", *args, *DRY]))
        return type(optimizer).__name__, optimizer.param_groups

    name, (free, decayed) = groups("--model.optimizer.name", "adamw", "--model.optimizer.schedule", "constant")
    # The values that `--model.optimizer.help` states; 256 samples a batch are the ones that lr is for.
    assert name == "AdamW"
    assert (free["weight_decay"], decayed["weight_decay"], decayed["lr"]) == (0.0, 1e-4, 1e-3)
    reference = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (decayed["betas"], decayed["eps"]) == (reference["betas"], reference["eps"])
    name, (_, decayed) = groups("-c", "lars.yaml", "--model.optimizer.schedule", "constant")
    assert (name, decayed["lr"], decayed["momentum"], decayed["weight_decay"]) == ("Lars", 0.3, 0.8, 1e-6)
    # What was meant for LARS is neither handed on nor dropped in silence.
    with pytest.raises(UserError, match="trust_coeff"):
        groups("-c", "lars.yaml", "--model.optimizer.name", "adamw")


def test_trap_2_the_command_line_overrules_a_checkpoint_and_says_so(
    after_training: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = torch.load(checkpoint_of(4), weights_only=True)["state_dict"]
    cli = main(["validate", "--ckpt_path", checkpoint_of(4), "--model.invariance", "99", *CPU, *DRY])
    assert cli.model.invariance == 99
    assert type(cli.model.entropy) is LogDet
    assert "note: model.invariance is 99.0 as you say; the checkpoint was trained with 3.0" in capsys.readouterr().out
    assert all(torch.equal(value, stored[name]) for name, value in cli.model.state_dict().items())
    main(["validate", "--ckpt_path", checkpoint_of(4), *CPU, *DRY])
    assert "note: model" not in capsys.readouterr().out


def test_trap_2_another_class_is_not_exchanged_for_the_checkpoint_s(
    objective: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", "runs")
    cli = main(["validate", "--model", "my_module.MyObjective", "--ckpt_path", checkpoint_of(4), *CPU, *DRY])
    assert type(cli.model).__name__ == "MyObjective"
    assert cli.model.embedding_dim == 8
    assert "model.class_path is my_module.MyObjective as you say" in capsys.readouterr().out


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_trap_3_a_checkpoint_needs_nothing_else(
    after_training: Path, subcommand: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = main([subcommand, "--ckpt_path", checkpoint_of(4), *CPU, "--trainer.logger", "false"])
    stored = torch.load(checkpoint_of(4), weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[name]) for name, value in cli.model.state_dict().items())
    assert (type(cli.model), type(cli.model.entropy), cli.model.invariance) == (VICReg, LogDet, 3.0)
    assert (cli.datamodule.dataset, cli.datamodule.batch_size) == ("digits", 256)
    probes = [callback for callback in cli.trainer.callbacks if isinstance(callback, KNNProbe)]
    assert [probe.k for probe in probes] == [5]
    logged = set(cli.trainer.callback_metrics)
    shown = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name in logged:
        if name.startswith("info/"):
            assert name.split("/")[-1] in shown
            continue
        assert float(shown[name]) == pytest.approx(float(cli.trainer.callback_metrics[name]), rel=1e-4)
    if subcommand == "validate":
        assert {"val/loss", "probe/linear_top1", "probe/knn_top1"} <= logged
    elif subcommand == "test":
        fractions = {"probe/linear_top1", "probe/linear_top1_10pct", "probe/linear_top1_1pct"}
        assert fractions | {"probe/knn_top1"} <= logged


def test_trap_4_the_module_s_own_optimizer_and_schedule(in_tmp: Path) -> None:
    optimizer = ["--model.optimizer.name", "sgd", "--model.optimizer.warmup_steps", "8"]
    cli = main([*FIT, *optimizer, *TINY, *SHORT, "--trainer.max_steps", "9", "--trainer.limit_train_batches", "2"])
    (schedule,) = cli.trainer.lr_scheduler_configs
    assert (schedule.interval, schedule.frequency) == ("step", 1)
    assert type(optimizer_of(cli)).__name__ == "SGD"
    # One step after the warm-up, which took four and a half epochs: the whole rate, then the end of the cosine.
    assert schedule.scheduler.lr_lambdas[1](8) == 1
    assert optimizer_of(cli).param_groups[1]["lr"] == pytest.approx(0, abs=1e-9)
    assert schedule.scheduler.last_epoch == 9


def test_trap_5_explicit_values_are_used_and_written_down(in_tmp: Path) -> None:
    options = ["--model.in_channels", "1", "--data.batch_size", "200", "--model.stem_padding", "2"]
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.max_steps", "1"]
    cli = main([*FIT, *TINY, *options, *logger, "--trainer.limit_val_batches", "0"])
    config = yaml.safe_load(next(Path("runs").rglob("config.yaml")).read_text())
    assert config["model"]["class_path"] == "sslinfo.objectives.VICReg"
    assert config["model"]["init_args"]["in_channels"] == cli.model.in_channels == 1
    assert config["model"]["init_args"]["stem_padding"] == 2
    assert config["data"]["init_args"]["batch_size"] == cli.datamodule.batch_size == 200
    assert config["seed_everything"] == 0


def test_trap_6_configuration_is_saved_by_fit_alone_and_overwritten(after_training: Path) -> None:
    args = [*FIT, *TINY, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs", "--trainer.logger.version", "one"]
    main([*args, *logger])
    main([*args, *logger, "--model.invariance", "8"])
    (config,) = Path("logs").rglob("config.yaml")
    assert yaml.safe_load(config.read_text())["model"]["init_args"]["invariance"] == 8
    before = {file for file in Path().rglob("*") if file.suffix != ".ckpt"}
    for subcommand in ("validate", "test", "predict"):
        main([subcommand, "--ckpt_path", checkpoint_of(2), *CPU, "--trainer.logger", "false"])
    assert {file for file in Path().rglob("*") if file.suffix != ".ckpt"} - before == {
        Path("representations.npz"),
        *(Path("runs", f"information{layer}") for layer in (".txt", "_representation.png", "_embedding.png")),
    }


def test_trap_6_without_a_logger_only_checkpoints_are_written_below_runs(in_tmp: Path) -> None:
    for _ in range(2):
        main([*FIT, *TINY, *SHORT])
    files = [file for file in Path().rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".ckpt"}
    assert {file.parts[0] for file in files} == {"runs"}


def test_trap_8_callbacks_of_the_configuration_stay(in_tmp: Path) -> None:
    Path("a.yaml").write_text(RECIPE)
    args = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=mine"]
    cli = main(["fit", "-c", "a.yaml", *args, *SHORT])
    (checkpoint,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, ModelCheckpoint)]
    assert checkpoint.filename == "mine"
    assert next(Path("runs").rglob("*.ckpt")).name == "mine.ckpt"


def test_trap_8_the_seed_is_fixed(in_tmp: Path) -> None:
    def weights(*args: str) -> torch.Tensor:
        torch.seed()
        return main([*FIT, *TINY, *SHORT, *args]).model.projector[0].weight

    first = weights()
    assert torch.equal(first, weights())
    assert torch.equal(first, weights("--seed_everything", "0"))
    assert not torch.equal(first, weights("--seed_everything", "1"))


# Checkpoints


def test_last_and_best(after_training: Path) -> None:
    for name, step in (("last", 4), ("best", 2)):
        stored = torch.load(checkpoint_of(step), weights_only=True)["state_dict"]
        for argument in (["--ckpt_path", name], [f"--ckpt_path={name}"]):
            cli = main(["validate", *argument, *CPU, *DRY])
            assert all(torch.equal(value, stored[key]) for key, value in cli.model.state_dict().items())


def test_best_needs_a_monitored_quantity(in_tmp: Path, message: Callable[..., str]) -> None:
    main([*FIT, *TINY, *SHORT])
    assert "monitored no quantity: say last, or train with a second ModelCheckpoint" in message(
        "validate", "--ckpt_path", "best", *CPU
    )


@pytest.mark.parametrize("which", ["last", "best"])
def test_no_checkpoint_at_all(in_tmp: Path, message: Callable[..., str], which: str) -> None:
    error = message("validate", "--ckpt_path", which, *CPU)
    assert "there is no checkpoint below 'runs'" in error
    assert "--trainer.default_root_dir" in error
    assert "below 'other'" in message("test", "--ckpt_path", which, "--trainer.default_root_dir", "other")


def test_checkpoint_that_does_not_fit(after_training: Path, message: Callable[..., str]) -> None:
    error = message("validate", "--ckpt_path", "last", "--model.projector", "[12, 8]", *CPU, *DRY)
    assert f"{checkpoint_of(4)!r} does not fit the model of this command line: leave out --model and" in error
    assert error.count("size mismatch") == 1


def test_a_trial_leaves_no_checkpoint(in_tmp: Path) -> None:
    callback = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last=true"]
    main([*FIT, *TINY, *DRY, *callback])
    assert not list(Path().rglob("*.ckpt"))
    main([*FIT, *TINY, *SHORT, *callback])
    assert "last.ckpt" in {file.name for file in Path().rglob("*.ckpt")}


def test_a_training_goes_on_with_its_own_objective(
    after_training: Path, message: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("a.yaml").write_text(RECIPE.replace("[16, 8]", "[16, 8]\n    invariance: 3\n    entropy: PairDist"))
    error = message("fit", "-c", "a.yaml", "--ckpt_path", "last")
    assert "model.entropy is sslinfo.objectives.entropy.PairDist on this command line; in the checkpoint" in error
    assert f"{checkpoint_of(4)!r} it is sslinfo.objectives.entropy.LogDet: give the path of the run to resume" in error
    Path("a.yaml").write_text(Path("a.yaml").read_text().replace("PairDist", "LogDet"))
    capfd.readouterr()
    more = ["--trainer.logger", "false", "--trainer.max_steps", "5", "--trainer.limit_val_batches", "0"]
    assert main(["fit", "-c", "a.yaml", "--ckpt_path", "last", *more]).trainer.global_step == 5
    left_out = "the checkpoint holds the state of {}, which is not among the callbacks here with the same options"
    assert [line.partition(": it is")[0] for line in notes(capfd)] == [
        left_out.format("KNNProbe"),
        left_out.format("ModelCheckpoint"),
        "trainer.max_steps is 5 as you say, from step 4 on; the checkpoint was trained with 4: the training and its "
        "schedule are of 5 steps, not of 4",
    ]


def notes(capfd: pytest.CaptureFixture[str]) -> list[str]:
    lines = capfd.readouterr().out.splitlines()
    return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


def test_a_resume_without_a_recipe_is_as_long_and_of_the_seed_that_it_was(
    in_tmp: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """1617 images in batches of 256: 6 steps an epoch. Of the callbacks ours alone are taken over from a file."""
    others = (
        "the checkpoint holds the state of ModelCheckpoint, which is not among the callbacks here with the same "
        "options: it is left out"
    )
    keep = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=3"]
    given = ["--seed_everything", "5", "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "2"]
    quiet = ["--trainer.logger", "false", "--trainer.limit_val_batches", "0", *CPU]
    main([*FIT, *TINY, *keep, "--trainer.callbacks.save_top_k=-1", *given, *quiet])
    start, end = (Path(shutil.copy(checkpoint_of(step), f"{step}.ckpt")) for step in (3, 12))
    notes(capfd)
    cli = main(["fit", "--ckpt_path", str(start), *quiet])
    assert cli.trainer.global_step == 12
    assert cli.trainer.precision == "bf16-mixed"
    assert os.environ["PL_GLOBAL_SEED"] == "5"
    assert notes(capfd) == [others]
    assert main(["fit", "--ckpt_path", str(end), *quiet]).trainer.global_step == 12
    said = "nothing is left to train: the checkpoint is of step 12, where trainer.max_epochs=2 ends the training"
    assert notes(capfd) == [others, f"{said}; to go on, set more"]
    changed = ["--seed_everything", "6", "--trainer.precision", "32-true", "--model.optimizer.lr", "0.5"]
    cli = main(["fit", "--ckpt_path", str(start), *quiet, *changed, "--trainer.max_epochs", "1"])
    # The cosine of 6 steps, after the last of them.
    assert cli.trainer.global_step == 6
    assert optimizer_of(cli).param_groups[0]["initial_lr"] == 0.5
    assert optimizer_of(cli).param_groups[0]["lr"] == 0.0
    assert notes(capfd) == [
        others,
        "model.optimizer.lr is 0.5 as you say, from step 3 on; the checkpoint was trained with 0.001",
        "trainer.precision is 32-true as you say, from step 3 on; the checkpoint was trained with bf16-mixed",
        "trainer.max_epochs is 1 as you say, from step 3 on; the checkpoint was trained with 2: the training and its "
        "schedule are of 6 steps, not of 12",
        "seed_everything is 6 as you say; the training goes on with its own, 5",
    ]


def test_a_refused_change_is_one_message(after_training: Path, message: Callable[..., str]) -> None:
    error = message("fit", "--ckpt_path", "last", "--data.split_seed", "3", *CPU)
    assert error.startswith("sslinfo: data.split_seed is 3 here, and 0 in the checkpoint: images that were held out")


def test_predictions_are_the_network_s_outputs(after_training: Path) -> None:
    cli = main(["predict", "--ckpt_path", "last", "--output", "out/features.npz", *CPU, "--trainer.logger", "false"])
    found = np.load("out/features.npz")
    digits = load_digits()
    model = cli.model.eval()
    mean, std = cli.datamodule.pipeline.mean[0], cli.datamodule.pipeline.std[0]
    seen = []
    assert not any(name.startswith("test_") for name in found), "the digits have no test images"
    for split in ("train", "val"):
        index = found[f"{split}_index"]
        assert np.all(np.diff(index) > 0)
        assert np.array_equal(found[f"{split}_label"], digits.target[index])
        # Pixels of 0 to 16 in 8 bits, in [0, 1], normalised.
        pixels = torch.from_numpy(np.round(digits.images[index] * 255 / 16) / 255)[:, None]
        with torch.no_grad():
            expected = model.backbone(((pixels - mean) / std).float())
        np.testing.assert_allclose(found[f"{split}_representation"], expected.numpy(), rtol=1e-4, atol=1e-5)
        seen.append(index)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(len(digits.target)))


# An objective of the user's


def test_objective_of_thirty_lines_in_the_working_folder(objective: Path, message: Callable[..., str]) -> None:
    assert len(OBJECTIVE.strip().splitlines()) <= 30
    probes = ["--trainer.callbacks+=LinearProbe", "--trainer.callbacks.lr=0.05", "--trainer.callbacks+=KNNProbe"]
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.log_every_n_steps", "1"]
    args = ["--model", "my_module.MyObjective", "--model.weight", "0.5", *TINY, "--trainer.max_epochs", "2"]
    cli = main(["fit", *args, *probes, *logger])
    metrics = cli.trainer.callback_metrics
    for name in ("loss", "distance", "spread"):
        assert {f"train/{name}", f"val/{name}"} <= set(metrics)
    distance, spread = (float(metrics[f"train/{name}"]) for name in ("distance", "spread"))
    assert float(metrics["train/loss"]) == pytest.approx(distance + 0.5 * spread, rel=1e-5)
    header = next(Path("runs").rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/spread", "val/distance", "probe/linear_top1", "probe/knn_top1"} <= set(header)
    for name in ("linear", "knn"):
        # Chance is one in ten; 180 images: 21 % lies five standard deviations above.
        assert metrics[f"probe/{name}_top1"] > 0.21

    # The checkpoint cannot choose what code runs; the user can.
    sys.modules.pop("my_module")
    refused = message("validate", "--ckpt_path", "last", *CPU, *DRY)
    assert "my_module.MyObjective, which is not sslinfo's" in refused
    assert "--model my_module.MyObjective" in refused
    assert "my_module" not in sys.modules
    again = main(["validate", "--ckpt_path", "last", "--model", "my_module.MyObjective", *CPU, *DRY])
    assert (again.model.weight, again.model.embedding_dim) == (0.5, 8)
    Path("named.yaml").write_text("model: {class_path: my_module.MyObjective}\n")
    again = main(["validate", "--ckpt_path", "last", "-c", "named.yaml", *CPU, *DRY])
    assert (again.model.weight, again.model.embedding_dim) == (0.5, 8)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("hyper_parameters", {"_class_path": "evil.Thing"}),
        ("hyper_parameters", {"_instantiator": "evil.function"}),
        ("hyper_parameters", {"entropy": {"class_path": "evil.Thing", "init_args": {}}}),
        ("datamodule_hyper_parameters", {"dataset": {"class_path": "evil.Thing"}}),
        ("datamodule_hyper_parameters", {"transform": "evil.function"}),
        ("sslinfo_callbacks", [{"class_path": "evil.Thing"}]),
    ],
)
def test_checkpoint_from_elsewhere_runs_nothing(after_training: Path, part: str, change: Any) -> None:
    Path("evil.py").write_text("open('owned', 'w')\nclass Thing: pass\ndef function(x): return x\n")
    checkpoint = torch.load(checkpoint_of(4), weights_only=True)
    checkpoint[part] = change if isinstance(change, list) else {**checkpoint[part], **change}
    torch.save(checkpoint, "bad.ckpt")
    sys.path.insert(0, str(after_training))
    harmless = "_instantiator" in change or isinstance(change, list)  # left out, so that the rest is of use
    try:
        if harmless:
            assert type(main(["validate", "--ckpt_path", "bad.ckpt", *CPU, *DRY]).model.entropy) is LogDet
        else:
            with pytest.raises(UserError, match=r"evil\.\w+, which is not sslinfo's: if you trust it"):
                main(["validate", "--ckpt_path", "bad.ckpt", *CPU, *DRY])
    finally:
        sys.path.remove(str(after_training))
        sys.modules.pop("evil", None)
    assert not Path("owned").exists()


def test_default_half_is_the_published_one(in_tmp: Path) -> None:
    assert type(main([*FIT, *TINY, *DRY]).model.entropy) is VarianceCovariance


def test_of_one_of_our_callbacks_the_last_one_counts(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = ["--trainer.callbacks+=KNNProbe", "--trainer.callbacks+=KNNProbe", "--trainer.callbacks.k", "3"]
    cli = main(["fit", "--model", "VICReg", *TINY, *DRY, *twice])
    assert [c.k for c in cli.trainer.callbacks if type(c).__name__ == "KNNProbe"] == [3]
    assert "KNNProbe is given more than once: the options of the last one count" in capsys.readouterr().out


def test_results_are_silent_on_request(after_training: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["validate", "--ckpt_path", checkpoint_of(4), "--verbose", "false", *CPU, *DRY])
    assert "val/loss" not in capsys.readouterr().out


def test_results_of_many_layers_keep_their_names() -> None:
    """No name is cut or folded whatever the terminal's width, and a quantity that a layer lacks is a dash."""
    layers = ["representation", "embedding", "backbone.layers.6.a.module.with.a.long.name"]
    results = {f"info/{layer}/pairwise_entropy_lower_below_cap": 10.0**i for i, layer in enumerate(layers)}
    lines = results_table({**results, f"info/{layers[1]}/lidar": -2.5, "probe/knn_top1": 0.25}).splitlines()
    assert lines[0].split() == ["probe/knn_top1", "0.25"]
    assert lines[2].split() == ["info", *layers]
    assert lines[3].split() == ["pairwise_entropy_lower_below_cap", "1", "10", "100"]
    assert lines[4].split() == ["lidar", "-", "-2.5", "-"]
    assert len({len(line) for line in lines[2:]}) == 1
