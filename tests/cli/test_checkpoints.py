"""What a checkpoint says of itself, and which of it is believed."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import __version__ as version
from lightning.pytorch import Callback, Trainer
from torch.utils.data import TensorDataset

from sslinfo.cli import main
from sslinfo.cli.checkpoints import CALLBACKS_KEY, StoredConfig, check_same_classes, differences, resolve_checkpoint
from sslinfo.cli.run import CheckpointParser
from sslinfo.data import TwoViewDataModule, View
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
)
from sslinfo.optim import OptimizerConfig
from sslinfo.recipes import to_text


class Opened:
    """An object whose unpickling writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("opened", "w")


def write(path: str | Path = "x.ckpt", **parts: Any) -> Path:
    model = VICReg(LogDet(beta=3.0), backbone="conv4", backbone_options={"width": 2}, projector=[16, 8])
    data = TwoViewDataModule("digits", batch_size=64)
    checkpoint = {
        "state_dict": model.state_dict(),
        "pytorch-lightning_version": version,
        "hyper_parameters": {**model.hparams, **parts.pop("model", {})},
        "datamodule_hyper_parameters": {**data.hparams, **parts.pop("data", {})},
        **parts,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return Path(path)


def test_round_trip_of_plain_values(in_tmp: Path) -> None:
    probe = {"class_path": "sslinfo.callbacks.KNNProbe", "init_args": {"k": 3}}
    config = StoredConfig.read(write(**{CALLBACKS_KEY: [probe]}), set()).config
    assert config["model"]["class_path"] == "sslinfo.objectives.VICReg"
    arguments = config["model"]["init_args"]
    half = {"weight": 25.0, "beta": 3.0, "normalize": True}
    assert arguments["entropy"] == {"class_path": "sslinfo.objectives.LogDet", "init_args": half}
    assert arguments["projector"] == [16, 8]
    assert config["data"]["class_path"] == "sslinfo.data.TwoViewDataModule"
    assert config["data"]["init_args"]["batch_size"] == 64
    assert config["trainer"]["callbacks"] == [probe]


def test_weights_of_the_backbone_are_the_checkpoint_s_own(in_tmp: Path) -> None:
    config = StoredConfig.read(write(model={"weights": "gone.safetensors"}), set()).config
    assert "weights" not in config["model"]["init_args"]


REFUSED = {
    "class of the model": {"model": {"_class_path": "os.system"}},
    "class of the data": {"data": {"_class_path": "subprocess.Popen"}},
    "nested class": {"model": {"entropy": {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}}},
    "class as a dotted path": {"model": {"entropy": "subprocess.Popen"}},
    "class in a string of YAML": {"model": {"entropy": "{class_path: subprocess.Popen}"}},
    "class in a string of JSON": {"model": {"entropy": '{"class_path": "subprocess.Popen"}'}},
    "network": {"model": {"backbone": "torch.nn.Identity"}},
    "option of the backbone": {"model": {"backbone_options": {"act_layer": "torch.nn.ReLU"}}},
    "data set": {"data": {"dataset": {"class_path": "torchvision.datasets.FakeData"}}},
    "data set as a dotted path": {"data": {"dataset": "torchvision.datasets.FakeData"}},
    "function": {"data": {"transform": "os.system"}},
    "function through a module of sslinfo": {"data": {"transform": "sslinfo.data.datamodule.os.system"}},
    "class through a module of sslinfo": {"model": {"entropy": {"class_path": "sslinfo.data.datamodule.Dataset"}}},
    "function of sslinfo": {"data": {"transform": "sslinfo.cli.main"}},
    "program of sslinfo": {"data": {"transform": "sslinfo.__main__.console"}},
    "entry of a list": {"data": {"views": [{"class_path": "subprocess.Popen"}]}},
    "main module": {"data": {"transform": "__main__.run"}},
    "short name": {"model": {"entropy": {"class_path": "Popen"}}},
    "class path that is no string": {"model": {"entropy": {"class_path": ["subprocess.Popen"]}}},
    "address": {"model": {"entropy": "http://localhost/entropy.yaml"}},
}


@pytest.mark.parametrize("change", REFUSED)
def test_foreign_classes_are_refused_wherever_they_stand(in_tmp: Path, change: str) -> None:
    with pytest.raises(UserError, match="is not sslinfo's: if you trust it, name it on the command line"):
        StoredConfig.read(write(**REFUSED[change]), set())


def test_file_of_a_configuration_is_refused(in_tmp: Path) -> None:
    Path("half.yaml").write_text("class_path: subprocess.Popen\n")
    with pytest.raises(UserError, match=r"--model\.entropy half\.yaml"):
        StoredConfig.read(write(model={"entropy": "half.yaml"}), set())


OBJECTIVES = [VICReg, SimCLR, BarlowTwins, BYOL, SimSiam, MoCo, SwAV, WMSE]
CALLBACKS = [
    {"class_path": "sslinfo.callbacks.InformationMonitor", "init_args": {"every_n_steps": 5, "modules": ["backbone"]}},
    {"class_path": "sslinfo.callbacks.LinearProbe", "init_args": {"lr": 0.1}},
]
# A list that stands for 9^12 others.
BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghijklm")
)
HOSTILE = [
    *("ent.yaml", " ent.yaml", "ent.yaml ", "\tent.yaml", "\nent.yaml", "./ent.yaml", "'ent.yaml'", "digits", "conv4"),
    *("file://{cwd}/ent.yaml", "{cwd}/ent.yaml", "http://localhost/ent.yaml", "-", "--config ent.yaml"),
    *("evil.Half", " evil.Half", "evil.Data", "evil.function", "evil_net.a1_in1k", "os.system", "builtins.eval"),
    *("sslinfo.data.datamodule.os.system", "sslinfo.objectives.base.torch", "sslinfo.cli.main", "Popen", "FakeData"),
    *("{class_path: evil.Half}", "class_path: evil.Half", "[evil.Half]", '[{"class_path": "evil.Half"}]', BOMB),
    *("!!python/object/apply:os.mkdir [imported]", "!!python/name:evil.Half", "", "null", "\x00", "\ud800"),
]


@pytest.fixture
def evil(in_tmp: Path) -> Iterator[list[str]]:
    """Modules in the working folder that leave a file where they are imported, and files that name their classes.

    Gives the files of the folder that were opened, to which a file that was found there belongs.
    """
    text = (
        "open('imported', 'w').close()\nimport torch\nfrom sslinfo.objectives import EntropyHalf\n"
        "class Half(EntropyHalf): pass\nclass Data(torch.utils.data.Dataset): pass\ndef function(image): return image\n"
    )
    for name in ("evil.py", "evil_net.py"):
        Path(name).write_text(text)
    names = ["ent.yaml", " ent.yaml", "ent.yaml ", "\tent.yaml", "\nent.yaml", "digits", "conv4", "Half", "Popen"]
    for name in names:
        Path(name).write_text("class_path: evil.Half\n")
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str) and Path(arguments[0]).name in names:
            opened.append(arguments[0])

    sys.addaudithook(watch)
    sys.path.insert(0, str(in_tmp))
    yield opened
    watching = False
    sys.path.remove(str(in_tmp))
    assert opened == []
    assert not Path("imported").exists()
    assert not {"evil", "evil_net"} & set(sys.modules)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every entry of a configuration, by its names and numbers."""
    for name, entry in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield (*place, name)
        yield from places(entry, (*place, name))


def with_text(value: Any, place: tuple[Any, ...], text: str) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = text
    return changed


class Brief(CheckpointParser):
    """A parser that looks for no suggestion where a value is wrong."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        raise UserError(message) from ex


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_no_text_is_a_file_or_a_class(evil: list[str], kind: type[JointEmbedding]) -> None:
    """Hostile text in every hyper-parameter: it is refused, or means itself to the parser and the constructors."""
    tiny = {"backbone": "conv4", "backbone_options": {"width": 2}, "in_channels": 1, "projector": [4, 4]}
    model = kind(entropy=LogDet(), optimizer=OptimizerConfig(options={"eps": 1e-8}), **tiny)  # type: ignore[arg-type]
    data = TwoViewDataModule("digits", views=[View(flip=0.5)])
    parts = {"hyper_parameters": dict(model.hparams), "datamodule_hyper_parameters": dict(data.hparams)}
    if kind is VICReg:
        parts[CALLBACKS_KEY] = CALLBACKS  # type: ignore[assignment]
    parser = Brief()
    parser.add_lightning_class_args(JointEmbedding, "model", subclass_mode=True)
    parser.add_lightning_class_args(TwoViewDataModule, "data", subclass_mode=True)
    parser.add_argument("--trainer.callbacks", type=list[Callback])
    parser.instantiate_classes(parser.parse_string(to_text(StoredConfig.of(parts, "x.ckpt", set()).config)))  # as it is
    cases = [
        (part, place, text.replace("{cwd}", os.getcwd()))
        for part in parts
        if kind is VICReg or part == "hyper_parameters"
        for place in places(parts[part])
        for text in HOSTILE[:: 1 if kind is VICReg else 6]
    ]
    parsed = 0
    for number, (part, place, text) in enumerate(cases):
        with contextlib.suppress(UserError):
            config = StoredConfig.of({**parts, part: with_text(parts[part], place, text)}, "x.ckpt", set()).config
            # The parser takes a while: every other text where an object may stand too, and a sample of the rest.
            if (kind is VICReg and place[0] in ("backbone", "dataset", "views") and number % 2) or number % 29 == 0:
                parsed += 1
                with contextlib.suppress(ValueError):
                    parser.instantiate_classes(parser.parse_string(to_text(config)))
    assert parsed > 3


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"entropy": " ent.yaml"}},
        {"model": {"backbone": " ent.yaml"}},
        {"model": {"optimizer": "ent.yaml"}},
        {"data": {"views": " ent.yaml"}},
        {"data": {"dataset": " ent.yaml"}},
        {"data": {"transform": " ent.yaml"}},
        {"model": {"entropy.class_path": "evil.Half"}},
        {"model": {"entropy": {"class_path": "sslinfo.objectives.LogDet", "init_args": " ent.yaml"}}},
        {"model": {"entropy": {"class_path": " sslinfo.objectives.LogDet"}}},
    ],
)
def test_the_whole_command_takes_no_text_for_a_file(evil: list[str], changed: dict[str, Any]) -> None:
    path = write(callbacks={}, **changed)
    with pytest.raises(ValueError, match="not sslinfo's|neither conv4|unknown name ' ent|no preset ' ent"):
        main(["validate", "--ckpt_path", str(path), "--trainer.accelerator", "cpu"])


def test_a_folder_s_files_do_not_stand_in_for_names(evil: list[str]) -> None:
    """Files called digits and conv4 lie in the working folder."""
    path = str(write(callbacks={}))
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.fast_dev_run", "true"]
    with pytest.raises(UserError, match="in_channels=3, but the images have 1"):
        main(["validate", "--ckpt_path", path, *quiet])


def test_the_message_names_the_option_that_would_allow_it(in_tmp: Path) -> None:
    path = write(data={"transform": "my_module.transform", "root": "data.v2"})
    Path("my_module.py").write_text("")
    os.sys.path.insert(0, "")  # type: ignore[attr-defined]
    try:
        with pytest.raises(UserError, match=r"--data\.transform my_module\.transform"):
            StoredConfig.read(path, set())
        config = StoredConfig.read(path, {"my_module.transform"}).config
    finally:
        os.sys.path.remove("")  # type: ignore[attr-defined]
    assert config["data"]["init_args"]["transform"] == "my_module.transform"


def test_names_that_only_look_like_classes_are_kept(in_tmp: Path) -> None:
    path = write(model={"backbone": "vit_base_patch16_224.mae"}, data={"root": "os.path"})
    config = StoredConfig.read(path, set()).config
    assert config["model"]["init_args"]["backbone"] == "vit_base_patch16_224.mae"
    assert config["data"]["init_args"]["root"] == "os.path"


def test_foreign_callbacks_and_writers_are_left_out(in_tmp: Path) -> None:
    ours = {"class_path": "sslinfo.callbacks.LinearProbe", "init_args": {"lr": 0.1}}
    theirs = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "elsewhere"}}
    writer = {"class_path": "sslinfo.callbacks.PredictionWriter", "init_args": {"path": "elsewhere.npz"}}
    path = write(**{CALLBACKS_KEY: [theirs, "os.system", ours, writer]})
    assert StoredConfig.read(path, set()).config["trainer"]["callbacks"] == [ours]
    named = StoredConfig.read(path, {theirs["class_path"]}).config["trainer"]["callbacks"]  # type: ignore[arg-type]
    assert named == [theirs, ours]


def test_pickled_object_is_refused_and_not_run(in_tmp: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        StoredConfig.read(write(extra=Opened()), set())
    assert not Path("opened").exists()


def test_file_that_is_no_checkpoint(in_tmp: Path) -> None:
    Path("text.ckpt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.ckpt.*cannot be read as a checkpoint"):
        StoredConfig.read("text.ckpt", set())
    torch.save(torch.zeros(3), "tensor.ckpt")
    with pytest.raises(UserError, match="is no checkpoint of a training"):
        StoredConfig.read("tensor.ckpt", set())


def test_differences_are_named_by_option() -> None:
    def config(beta: float, lr: float, root: str) -> dict[str, Any]:
        half = {"class_path": "LogDet", "init_args": {"beta": beta}}
        model = {"class_path": "VICReg", "init_args": {"entropy": half, "optimizer": {"lr": lr}}}
        return {"model": model, "data": {"class_path": "D", "init_args": {"root": root, "batch_size": 8}}}

    stored = StoredConfig(config(1.0, 0.1, "here"))
    assert differences(stored, config(1.0, 0.1, "there")) == []
    # config.yaml says null, and the checkpoint the seed that this came to.
    seeds = [{"model": {}, "data": {"class_path": "D", "init_args": {"seed": seed}}} for seed in (0, None, 3)]
    assert differences(StoredConfig(seeds[0]), seeds[1]) == []
    assert differences(StoredConfig(seeds[0]), seeds[2]) == [
        "data.seed is 3 as you say; the checkpoint was trained with 0"
    ]
    assert differences(stored, config(2.0, 0.3, "here")) == [
        "model.entropy.beta is 2.0 as you say; the checkpoint was trained with 1.0",
        "model.optimizer.lr is 0.3 as you say; the checkpoint was trained with 0.1",
    ]


def test_a_seed_that_is_left_to_the_run_is_the_run_s() -> None:
    def config(seed: int | None, run: int = 0) -> dict[str, Any]:
        return {"model": {}, "data": {"class_path": "D", "init_args": {"seed": seed}}, "seed_everything": run}

    stored = StoredConfig(config(4))
    assert differences(stored, config(None, run=4)) == []
    assert differences(stored, config(None, run=5)) == ["data.seed is 5 as you say; the checkpoint was trained with 4"]


def config_of(model: str, half: str | None = None) -> dict[str, Any]:
    entropy = None if half is None else {"class_path": half, "init_args": {}}
    return {"model": {"class_path": model, "init_args": {"entropy": entropy}}, "data": {}}


def test_a_class_is_the_same_by_each_of_its_names() -> None:
    stored = StoredConfig(config_of("sslinfo.objectives.VICReg", "sslinfo.objectives.entropy.LogDet"))
    same = config_of("sslinfo.objectives.VICReg", "sslinfo.objectives.LogDet")
    assert differences(stored, same) == []
    check_same_classes(stored, same)
    # A class of others is what its name says: nothing is imported to look.
    assert len(differences(StoredConfig(config_of("a.b.C")), config_of("a.C"))) == 1
    assert "a" not in sys.modules


def test_a_training_of_other_classes_is_not_gone_on_with() -> None:
    stored = StoredConfig(config_of("sslinfo.objectives.VICReg", "sslinfo.objectives.entropy.LogDet"), path="x")
    for half in ("sslinfo.objectives.PairDist", None):
        with pytest.raises(UserError, match=r"model\.entropy is .*(PairDist|left out) .* 'x' it is .*LogDet: give"):
            check_same_classes(stored, config_of("sslinfo.objectives.VICReg", half))
    with pytest.raises(UserError, match=r"model is my_module\.Mine .*VICReg: give the path of the run to resume"):
        check_same_classes(stored, config_of("my_module.Mine", "sslinfo.objectives.LogDet"))


def saved(path: str, age: int, callbacks: dict[str, Any] | None = None) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "callbacks": callbacks or {}}, path)
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def test_last_is_the_newest_and_best_that_run_s_best(in_tmp: Path) -> None:
    state = {"monitor": "val/loss", "best_model_path": "runs/b/best.ckpt"}
    saved("runs/a/old.ckpt", 30)
    saved("runs/b/best.ckpt", 20)
    # The name comes last in time, and not in the alphabet.
    newest = saved("runs/b/a.ckpt", 10, {"ModelCheckpoint{'monitor': 'val/loss'}": state})
    assert resolve_checkpoint("last", "runs") == newest
    assert resolve_checkpoint("best", "runs") == "runs/b/best.ckpt"
    assert resolve_checkpoint("runs/a/old.ckpt", "runs") == "runs/a/old.ckpt"


def test_best_after_the_runs_were_moved(in_tmp: Path) -> None:
    state = {"monitor": "val/loss", "best_model_path": "/elsewhere/best.ckpt"}
    saved("moved/best.ckpt", 20)
    saved("moved/last.ckpt", 10, {"ModelCheckpoint{}": state})
    assert resolve_checkpoint("best", "moved") == "moved/best.ckpt"


def test_no_best_without_a_monitor(in_tmp: Path) -> None:
    saved("runs/last.ckpt", 0, {"ModelCheckpoint{}": {"monitor": None, "best_model_path": "runs/last.ckpt"}})
    with pytest.raises(UserError, match="monitored no quantity: say last, or train with a second ModelCheckpoint"):
        resolve_checkpoint("best", "runs")


@pytest.mark.parametrize("which", ["last", "best", "lost.ckpt"])
def test_nothing_there(in_tmp: Path, which: str) -> None:
    with pytest.raises(UserError, match=rf"ckpt_path='{which}'"):
        resolve_checkpoint(which, "runs")


def test_hyper_parameters_leave_out_what_has_no_plain_form(in_tmp: Path) -> None:
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    backbone.num_features = 4  # type: ignore[assignment]
    model = VICReg(backbone=backbone, in_channels=1, projector=(8,))
    assert "backbone" not in model.hparams
    assert model.hparams["projector"] == [8]
    torch.save(dict(model.hparams), "plain.pt")
    assert torch.load("plain.pt", weights_only=True) == dict(model.hparams)


def test_a_data_set_given_from_python_is_asked_for(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8)
    data = TwoViewDataModule(TensorDataset(images, torch.arange(24) % 3), batch_size=8, views="digits")
    model = VICReg(backbone="conv4", backbone_options={"width": 2}, in_channels=1, projector=[8, 4])
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    path = str(in_tmp / "run.ckpt")
    trainer.save_checkpoint(path)
    with pytest.raises(UserError, match="data.dataset of this run was an object"):
        main(["validate", "--ckpt_path", path])
    cli = main(["validate", "--ckpt_path", path, "--data.dataset", "digits", "--trainer.accelerator", "cpu"])
    assert "val/loss" in cli.trainer.callback_metrics


def test_a_seed_that_nobody_said_is_no_difference() -> None:
    data = {"class_path": "sslinfo.data.TwoViewDataModule", "init_args": {"seed": 0}}
    stored = StoredConfig({"model": {"class_path": "sslinfo.objectives.VICReg", "init_args": {}}, "data": data})
    now = {"model": stored.config["model"], "data": {**data, "init_args": {"seed": None}}}
    assert differences(stored, now) == []
    now["data"]["init_args"]["seed"] = 3
    assert differences(stored, now) == ["data.seed is 3 as you say; the checkpoint was trained with 0"]
