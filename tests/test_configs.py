"""Every YAML file of the repository runs, on generated data in the data set's own layout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake
import pytest
import torch
import yaml

from sslinfo.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.y*ml"))
WRITERS: dict[str, Callable[[Path], Any]] = {
    "digits": lambda root: None,
    "cifar10": lambda root: fake.write_cifar(root, 10),
    "cifar100": lambda root: fake.write_cifar(root, 100, per_batch=100),
    "stl10": fake.write_stl10,
    "tinyimagenet": fake.write_tinyimagenet,
    "imagefolder": fake.write_imagefolder,
}
# What an overlay is laid over; any other lies over the quickstart.
BASES = {"trainer/cpu5min.yaml": "cifar10/vicreg.yaml"}
DEFAULT_BASE = "quickstart.yaml"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / name).read_text())


def is_recipe(name: str) -> bool:
    return "class_path" in read(name).get("model", {})


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["sslinfo"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_files_are_found() -> None:
    assert "quickstart.yaml" in FILES
    assert set(BASES) | set(BASES.values()) <= set(FILES)
    assert all(is_recipe(base) for base in {*BASES.values(), DEFAULT_BASE})


@pytest.mark.parametrize("name", FILES)
def test_runs(in_tmp: Path, name: str) -> None:
    files = [name] if is_recipe(name) else [BASES.get(name, DEFAULT_BASE), name]
    dataset = next(data for file in files if (data := read(file).get("data", {}).get("init_args", {}).get("dataset")))
    WRITERS[dataset](in_tmp / "data")
    configs = [part for file in files for part in ("-c", str(CONFIGS / file))]
    cli = main(
        [
            *("fit", *configs, "--data.root", "data", "--data.download", "false", "--data.batch_size", "20"),
            *(
                "--data.num_workers",
                "0",
                "--data.compile_views",
                "false",
                "--trainer.accelerator",
                "cpu",
                "--trainer.devices",
                "1",
            ),
            *("--trainer.enable_progress_bar", "false", "--trainer.fast_dev_run", "true"),
        ]
    )
    assert cli.trainer.global_step == 1
    metrics = cli.trainer.callback_metrics
    assert torch.isfinite(metrics["train/loss"])
    assert torch.isfinite(metrics["val/loss"])
    # What the recipe states is what runs.
    for file in files:
        for option, value in read(file).get("model", {}).get("init_args", {}).items():
            if isinstance(value, bool | int | float | str):
                assert cli.config["fit"]["model"]["init_args"][option] == value or file != files[-1]


@pytest.mark.parametrize("name", [name for name in FILES if is_recipe(name)])
def test_recipe_states_everything(name: str) -> None:
    recipe = read(name)
    assert isinstance(recipe["seed_everything"], int)
    assert {"backbone", "in_channels", "projector", "optimizer"} <= set(recipe["model"]["init_args"])
    assert {"name", "lr", "weight_decay"} <= set(recipe["model"]["init_args"]["optimizer"])
    assert {"dataset", "views", "batch_size"} <= set(recipe["data"]["init_args"])
    assert {"max_epochs", "max_steps"} & set(recipe["trainer"])
    assert (CONFIGS / name).read_text().startswith("#"), "says where it comes from"
