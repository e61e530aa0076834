"""Every recipe and overlay runs, on generated data in the data set's layout; recipes say what is published, once."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake
import pytest
import torch
import yaml

from sslinfo import recipes
from sslinfo.cli import main
from sslinfo.recipes import Recipe, merge

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.y*ml"))
# Few training images, since probes read them all; many where a batch has to be whitened.
WRITERS: dict[str, Callable[[Path, bool], Any]] = {
    "digits": lambda root, many: None,
    "cifar10": lambda root, many: fake.write_cifar(root, 10, per_batch=28 if many else 4),
    "cifar100": lambda root, many: fake.write_cifar(root, 100, per_batch=140 if many else 20),
    "tinyimagenet": lambda root, many: fake.write_tinyimagenet(root, 4, 18 if many else 3, 70 if many else 8),
    "imagefolder": lambda root, many: fake.write_imagefolder(root, per_class=75 if many else 4),
}
# What an overlay is laid over, each with the options that it needs there.
OVER: dict[str, dict[str, list[str]]] = {
    "data/cifar10": {"quickstart": ["--model.in_channels", "3"]},
    "data/cifar100": {"vicreg_logdet": [], "swav": [], "wmse": []},
    "data/tinyimagenet": {"simsiam": [], "byol_pairdist": [], "wmse": []},
    "data/imagefolder": {
        "vicreg_logdet": [],
        "moco_v2plus": [],
        "wmse": ["--model.projector", "[1024, 64]"],
    },
    "trainer/cpu5min": {
        "vicreg": [],
        "simclr": [],
        "barlow_twins": [],
        "byol_logdet": [],
        "simsiam": [],
        "moco_v2plus": ["--model.queue", "4096"],
        "moco_v3": [],
        "swav": [],
        "wmse": ["--model.projector", "[512, 64]"],
    },
    "backbone/convnext": {"simclr data/cifar100": [], "vicreg_pairdist data/tinyimagenet": []},
    "backbone/vit": {
        "byol_logdet data/cifar100": [],
        "moco_v3 data/tinyimagenet": ["--model.freeze_patch_embedding", "true"],
    },
    "diagnostics": {"quickstart": []},
}
SHARED = [name for name in FILES if name.startswith("shared/")]
QUICK = {"--data.batch_size": "4", "--data.val_fraction": "0.5"}
WHITENING = {"--data.batch_size": "70", "--data.val_fraction": "0.5"}  # more images than dimensions
SMALL_IMAGES = {"--data.image_size": "8"}  # for ResNets; other backbones run at the recipe's own size


def compose(name: str) -> dict[str, Any]:
    return Recipe.read(str(CONFIGS / f"{name}.yaml")).settings


def written(name: str) -> dict[str, Any]:
    """What a file says itself."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by the option that they belong to; a class by the last part of its name."""
    if not isinstance(value, dict):
        return {prefix: str(value).rpartition(".")[2] if prefix.endswith("class_path") else value}
    out: dict[str, Any] = {}
    for name, entry in value.items():
        out |= flat(entry, prefix if name == "init_args" else f"{prefix}.{name}".lstrip("."))
    return out


def differences(settings: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The settings that the other ones do not have so, with the other's values."""
    mine, theirs = flat(settings), flat(other)
    return {name: theirs.get(name) for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)}


RECIPES = [name for name in FILES if "class_path" in compose(name).get("model", {})]
METHODS = [name for name in RECIPES if name != "quickstart"]
RUNS: list[tuple[list[str], list[str]]] = [([name], []) for name in RECIPES] + [
    ([*base.split(), name], options) for name, over in OVER.items() for base, options in over.items()
]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["sslinfo"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def root_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """The folder of a data set of few or many images, written once."""
    roots: dict[tuple[str, bool], Path] = {}

    def root(dataset: str, many: bool) -> Path:
        key = dataset, many
        if key not in roots:
            roots[key] = tmp_path_factory.mktemp(dataset)
            WRITERS[dataset](roots[key], many)
        return roots[key]

    return root


def test_every_file_is_a_recipe_an_overlay_or_shared() -> None:
    assert {"quickstart", "vicreg_logdet"} <= set(RECIPES)
    assert sorted([*RECIPES, *OVER, *SHARED]) == FILES
    assert all((CONFIGS / f"{name}.yaml").read_text().startswith("# ") for name in FILES)


@pytest.mark.parametrize(("files", "options"), RUNS, ids=["+".join(files) for files, _ in RUNS])
def test_runs(in_tmp: Path, root_of: Callable[[str, bool], Path], files: list[str], options: list[str]) -> None:
    stated: dict[str, Any] = {}
    for file in files:
        stated = merge(stated, compose(file))
    dataset = stated["data"]["init_args"]["dataset"]
    whitening = stated["model"]["class_path"] == "WMSE"
    small = stated["model"]["init_args"]["backbone"] == "resnet18"
    given = {
        **(WHITENING if whitening else QUICK),
        **(SMALL_IMAGES if small else {}),
        **dict(zip(options[::2], options[1::2], strict=True)),
        "--data.root": str(root_of(dataset, whitening)),
        "--data.download": "false",
        "--data.num_workers": "0",
        "--data.compile_views": "false",
        "--trainer.accelerator": "cpu",
        "--trainer.devices": "1",
        "--trainer.enable_progress_bar": "false",
        "--trainer.enable_model_summary": "false",
        "--trainer.fast_dev_run": "true",
    }
    words = [word for file in files for word in ("-c", file)] + [word for option in given.items() for word in option]
    cli = main(["fit", *words])
    assert cli.trainer.global_step == 1
    metrics = cli.trainer.callback_metrics
    assert torch.isfinite(metrics["train/loss"])
    assert torch.isfinite(metrics["val/loss"])
    # What the files state is what runs: a later one over an earlier one, the options over all.
    runs = cli.plain_options()
    callbacks, stated_callbacks = (
        {flat(callback)["class_path"]: flat(callback) for callback in settings["trainer"].pop("callbacks")}
        for settings in (runs, stated)
    )
    for option, value in flat(stated).items():
        if f"--{option}" not in given:
            assert flat(runs)[option] == value, option
    assert set(callbacks) == set(stated_callbacks)
    assert all(stated_callbacks[name].items() <= callbacks[name].items() for name in callbacks)
    for option, value in stated["model"]["init_args"]["optimizer"].items():
        assert getattr(cli.model.optimizer_config, option) == value
    if "--model.freeze_patch_embedding" in options:
        assert not any(parameter.requires_grad for parameter in cli.model.backbone.patch_embed.parameters())
    # A run is named after data set and recipe; the quickstart has its own name.
    name = "quickstart" if files[0] == "quickstart" else f"{dataset}-{files[0]}".replace("_", "-")
    assert flat(runs)["trainer.logger.name"] == name


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_states_everything(name: str) -> None:
    recipe = compose(name)
    assert isinstance(recipe["seed_everything"], int)
    assert {"backbone", "in_channels", "projector", "optimizer"} <= set(recipe["model"]["init_args"])
    assert {"name", "lr", "weight_decay"} <= set(recipe["model"]["init_args"]["optimizer"])
    assert {"dataset", "views", "batch_size"} <= set(recipe["data"]["init_args"])
    assert {"max_epochs", "max_steps"} & set(recipe["trainer"])


# A setting is written once


def parents(name: str) -> list[str]:
    extended = written(name).get("extends", [])
    return [extended] if isinstance(extended, str) else extended


@pytest.mark.parametrize("name", [name for name in FILES if parents(name)])
def test_a_file_says_nothing_that_it_extends(name: str) -> None:
    below: dict[str, Any] = {}
    for parent in parents(name):
        below = merge(below, compose(parent))
    before = flat(below)
    assert not [option for option, value in flat(written(name)).items() if before.get(option, ...) == value]


@pytest.mark.parametrize("parent", FILES)
def test_what_all_would_say_stands_in_what_they_extend(parent: str) -> None:
    children = [name for name in FILES if parent in parents(name) and name != "quickstart"]
    counts = Counter((option, repr(value)) for name in children for option, value in flat(written(name)).items())
    said_by_all = {option for (option, _), count in counts.items() if count == len(children)}
    # An entropy half has its options for itself: another class would take nothing over.
    said_by_all -= {"extends"} | {option for option in said_by_all if option.startswith("model.entropy.")}
    assert len(children) < 2 or not said_by_all


@pytest.mark.parametrize(
    ("line", "changed", "option", "value", "touched"),
    [
        ("max_epochs: 1000", "max_epochs: 7", "trainer.max_epochs", 7, set(METHODS)),
        ("save_dir: runs", "save_dir: logs", "trainer.logger.save_dir", "logs", set(RECIPES)),
        ("off_diagonal: 0.0051", "off_diagonal: 1", "model.off_diagonal", 1, {"barlow_twins", "barlow_twins_pairdist"}),
        ("dataset: cifar100", "dataset: cifar20", "data.dataset", "cifar20", {"data/cifar100"}),
    ],
)
def test_one_changed_setting_is_one_changed_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, changed: str, option: str, value: Any, touched: set[str]
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path / "configs")
    (file,) = [file for file in recipes.FOLDER.rglob("*.yaml") if line in file.read_text()]
    assert file.read_text().count(line) == 1
    file.write_text(file.read_text().replace(line, changed))
    found = {name: flat(Recipe.read(str(recipes.FOLDER / f"{name}.yaml")).settings) for name in [*RECIPES, *OVER]}
    assert {name for name, settings in found.items() if settings.get(option) == value} == touched


# The CIFAR-10 settings published by solo-learn (arXiv:2108.01775), a second time and by hand, so that an edit of a
# recipe has to be made here too. Optimizer, learning rate, weight decay, first learning rate of the warm-up; projector
# and the norms within it and after it; views; and what the method has of its own.
LARS, PLAIN_SGD, ADAM = "lars", "momentum", "adam"  # timm's "sgd" would be Nesterov's
BETWEEN, BOTH, NEITHER = ("batch", False), ("batch", True), ("none", False)
PUBLISHED: dict[str, tuple[str, tuple[str, float, float, float], list[int], tuple[str, bool], str, dict[str, Any]]] = {
    "simclr": ("SimCLR", (LARS, 0.4, 1e-4, 3e-5), [2048, 256], NEITHER, "simclr", {"temperature": 0.2}),
    "vicreg": (
        "VICReg",
        (LARS, 0.3, 1e-4, 3e-5),
        [2048, 2048, 2048],
        BETWEEN,
        "vicreg",
        {
            "invariance": 25,
            "entropy": {
                "class_path": "VarianceCovariance",
                "init_args": {"variance": 25, "covariance": 1, "convention": "paper"},
            },
        },
    ),
    "barlow_twins": (
        "BarlowTwins",
        (LARS, 0.3, 1e-4, 3e-5),
        [2048, 2048, 2048],
        BETWEEN,
        "barlow_twins",
        {"off_diagonal": 0.0051, "scale": 0.1},
    ),
    "byol": (
        "BYOL",
        (LARS, 1.0, 1e-5, 3e-5),
        [4096, 256],
        BETWEEN,
        "byol",
        {"predictor": [4096], "predictor_norm": "batch", "momentum": 0.99, "final_momentum": 1},
    ),
    "moco_v2plus": (
        "MoCo",
        (PLAIN_SGD, 0.3, 1e-4, 3e-5),
        [2048, 256],
        NEITHER,
        "moco",
        {"queue": 32768, "predictor": None, "temperature": 0.2, "momentum": 0.99, "final_momentum": 0.999},
    ),
    "moco_v3": (
        "MoCo",
        (LARS, 0.3, 1e-6, 3e-5),
        [4096, 256],
        BOTH,
        "mocov3",
        {
            "queue": 0,
            "predictor": [4096],
            "predictor_norm": "batch",
            "temperature": 0.2,
            "momentum": 0.99,
            "final_momentum": 1,
        },
    ),
    "swav": (
        "SwAV",
        (LARS, 0.6, 1e-6, 3e-5),
        [2048, 128],
        BETWEEN,
        "swav",
        {
            "prototypes": 3000,
            "temperature": 0.1,
            "epsilon": 0.05,
            "iterations": 3,
            "queue": 3840,
            "queue_start_epoch": 50,
            "freeze_prototypes_epochs": 2,
        },
    ),
    "simsiam": (
        "SimSiam",
        (PLAIN_SGD, 0.5, 1e-5, 3e-5),
        [2048, 2048, 2048],
        BOTH,
        "simsiam",
        {"predictor": [512], "predictor_norm": "batch", "constant_predictor_lr": True},
    ),
    "wmse": ("WMSE", (ADAM, 0.002, 1e-6, 0), [1024, 64], BETWEEN, "wmse", {"slice_size": 128, "eps": 0}),
}
OPTIMIZER_OPTIONS = {
    LARS: {"momentum": 0.9, "trust_coeff": 0.02, "trust_clip": True},
    PLAIN_SGD: {"momentum": 0.9},
    ADAM: None,
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_settings_are_the_published_ones(method: str) -> None:
    class_path, (name, lr, decay, first_lr), projector, (norm, last_norm), views, own = PUBLISHED[method]
    recipe = compose(method)
    assert recipe["model"]["class_path"] == class_path
    arguments = recipe["model"]["init_args"]
    optimizer = arguments.pop("optimizer")
    assert optimizer.pop("warmup_start") * lr == pytest.approx(first_lr)
    assert optimizer.pop("options", None) == OPTIMIZER_OPTIONS[name]
    shared = {"batch_size_of_lr": 256, "warmup_epochs": 10, "schedule": "cosine"}
    assert optimizer == {"name": name, "lr": lr, "weight_decay": decay, **shared}
    assert arguments.pop("projector_last_norm", False) == last_norm
    shared = {"backbone": "resnet18", "in_channels": 3, "stem": "cifar", "stem_padding": 1}
    assert arguments == {"projector": projector, "projector_norm": norm, **shared, **own}
    data = {"dataset": "cifar10", "root": "data", "download": True, "batch_size": 256, "val_fraction": 0.1}
    assert recipe["data"]["init_args"] == {"views": views, **data}
    assert recipe["trainer"]["max_epochs"] == 1000


HALVES = {"_logdet": "LogDet", "_pairdist": "PairDist", "_vonneumann": "VonNeumann", "_sigreg": "SIGReg"}


@pytest.mark.parametrize("name", [name for name in METHODS if any(half in name for half in HALVES)])
def test_entropy_is_all_that_differs_from_the_host(name: str) -> None:
    half = next(half for half in HALVES if half in name)
    recipe, host = compose(name), compose(name.replace(half, ""))
    assert recipe["model"]["init_args"].pop("entropy")["class_path"] == HALVES[half]
    host["model"]["init_args"].pop("entropy", None)
    assert recipe == host


DATA: dict[str, dict[str, Any]] = {
    "cifar10": {},
    "cifar100": {"data.dataset": "cifar100"},
    "tinyimagenet": {
        "data.dataset": "tinyimagenet",
        "data.image_size": 64,
        "data.download": False,
        "trainer.max_epochs": 400,
    },
}


@pytest.mark.parametrize("dataset", DATA)
@pytest.mark.parametrize("method", METHODS)
def test_other_data_take_the_settings_of_cifar10(method: str, dataset: str) -> None:
    recipe = compose(method)
    assert differences(recipe, merge(recipe, compose(f"data/{dataset}"))) == DATA[dataset]


@pytest.mark.parametrize(
    ("dataset", "batch", "slice_size", "validation_images"),
    [("cifar10", 256, 128, 5000), ("cifar100", 256, 128, 5000), ("tinyimagenet", 250, 125, 10_000)],
)
def test_every_batch_can_be_whitened(dataset: str, batch: int, slice_size: int, validation_images: int) -> None:
    recipe = merge(compose("wmse"), compose(f"data/{dataset}"))
    advised = f"--data.batch_size {batch} --model.slice_size {slice_size}"
    if advised not in (CONFIGS / "data" / f"{dataset}.yaml").read_text():
        assert recipe["data"]["init_args"]["batch_size"] == batch
        assert recipe["model"]["init_args"]["slice_size"] == slice_size
    width = recipe["model"]["init_args"]["projector"][-1]
    for size in {batch, validation_images % batch or batch}:
        assert size // max(1, size // slice_size) > width
