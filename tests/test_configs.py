"""Every YAML file of the repository runs, on generated data in the data set's layout; recipes say what is published."""

from __future__ import annotations

import copy
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
# Few training images, since probes read them all; many where a batch has to be whitened.
WRITERS: dict[str, Callable[[Path, bool], Any]] = {
    "digits": lambda root, many: None,
    "cifar10": lambda root, many: fake.write_cifar(root, 10, per_batch=28 if many else 4),
    "cifar100": lambda root, many: fake.write_cifar(root, 100, per_batch=140 if many else 20),
    "stl10": lambda root, many: fake.write_stl10(root),
    "tinyimagenet": lambda root, many: fake.write_tinyimagenet(root, 4, 18 if many else 3, 70 if many else 8),
    "imagefolder": lambda root, many: fake.write_imagefolder(root),
}
# What an overlay is laid over, each with the options that it needs there; any other lies over the quickstart.
BASES: dict[str, dict[str, list[str]]] = {
    "trainer/cpu5min.yaml": {
        "cifar10/vicreg.yaml": [],
        "cifar10/simclr.yaml": [],
        "cifar10/barlow_twins.yaml": [],
        "cifar10/byol_logdet.yaml": [],
        "cifar10/simsiam.yaml": [],
        "cifar10/moco_v2plus.yaml": ["--model.queue", "4096"],
        "cifar10/moco_v3.yaml": [],
        "cifar10/swav.yaml": [],
        "cifar10/wmse.yaml": ["--model.projector", "[512, 64]"],
    },
    "backbone/convnext.yaml": {"cifar100/simclr.yaml": [], "tinyimagenet/vicreg_pairdist.yaml": []},
    "backbone/vit.yaml": {
        "cifar100/byol_logdet.yaml": [],
        "tinyimagenet/moco_v3.yaml": ["--model.freeze_patch_embedding", "true"],
    },
}
DEFAULT_BASES: dict[str, list[str]] = {"quickstart.yaml": []}
QUICK = ["--data.batch_size", "4", "--data.val_fraction", "0.5"]
WHITENING = ["--data.batch_size", "70", "--data.val_fraction", "0.5"]  # more images than dimensions
SMALL_IMAGES = ["--data.image_size", "8"]  # for ResNets; overlays run at the recipe's own size


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / name).read_text())


def is_recipe(name: str) -> bool:
    return "class_path" in read(name).get("model", {})


RECIPES = [name for name in FILES if is_recipe(name)]
RUNS: list[tuple[list[str], list[str]]] = [([name], []) for name in RECIPES] + [
    ([base, name], options)
    for name in FILES
    if name not in RECIPES
    for base, options in BASES.get(name, DEFAULT_BASES).items()
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


def test_files_are_found() -> None:
    assert "quickstart.yaml" in FILES
    bases = {base for some in (*BASES.values(), DEFAULT_BASES) for base in some}
    assert set(BASES) | bases <= set(FILES)
    assert bases <= set(RECIPES)


@pytest.mark.parametrize(("files", "options"), RUNS, ids=["+".join(files) for files, _ in RUNS])
def test_runs(in_tmp: Path, root_of: Callable[[str, bool], Path], files: list[str], options: list[str]) -> None:
    recipe = read(files[0])
    dataset = recipe["data"]["init_args"]["dataset"]
    whitening = recipe["model"]["class_path"] == "WMSE"
    quick = WHITENING if whitening else QUICK
    if len(files) == 1 and recipe["model"]["init_args"]["backbone"] == "resnet18":
        quick = [*quick, *SMALL_IMAGES]
    configs = [part for file in files for part in ("-c", str(CONFIGS / file))]
    cli = main(
        [
            *("fit", *configs, *options, *quick),
            *("--data.root", str(root_of(dataset, whitening)), "--data.download", "false", "--data.num_workers", "0"),
            *("--data.compile_views", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "1"),
            *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
            *("--trainer.fast_dev_run", "true"),
        ]
    )
    assert cli.trainer.global_step == 1
    metrics = cli.trainer.callback_metrics
    assert torch.isfinite(metrics["train/loss"])
    assert torch.isfinite(metrics["val/loss"])
    # What the files state is what runs: a later one over an earlier one, the options over both.
    stated: dict[str, Any] = {}
    optimizer: dict[str, Any] = {}
    for file in files:
        arguments = read(file).get("model", {}).get("init_args", {})
        stated |= arguments
        optimizer |= arguments.get("optimizer", {})
    for option, value in stated.items():
        if f"--model.{option}" not in options and not isinstance(value, dict):
            assert cli.config["fit"]["model"]["init_args"][option] == value
    for option, value in optimizer.items():
        assert getattr(cli.model.optimizer_config, option) == value
    if "--model.freeze_patch_embedding" in options:
        assert not any(parameter.requires_grad for parameter in cli.model.backbone.patch_embed.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_states_everything(name: str) -> None:
    recipe = read(name)
    assert isinstance(recipe["seed_everything"], int)
    assert {"backbone", "in_channels", "projector", "optimizer"} <= set(recipe["model"]["init_args"])
    assert {"name", "lr", "weight_decay"} <= set(recipe["model"]["init_args"]["optimizer"])
    assert {"dataset", "views", "batch_size"} <= set(recipe["data"]["init_args"])
    assert {"max_epochs", "max_steps"} & set(recipe["trainer"])
    assert (CONFIGS / name).read_text().startswith("#"), "says where it comes from"


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
    recipe = read(f"cifar10/{method}.yaml")
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


def _without(recipe: dict[str, Any], *paths: str) -> dict[str, Any]:
    """A copy without the entries at these dotted paths."""
    left = copy.deepcopy(recipe)
    for path in paths:
        *parents, last = path.split(".")
        inner = left
        for parent in parents:
            inner = inner[parent]
        inner.pop(last, None)
    return left


RUN_NAME = "trainer.logger.init_args.name"
HALVES = {"_logdet": "LogDet", "_pairdist": "PairDist", "_vonneumann": "VonNeumann", "_sigreg": "SIGReg"}
ON_IMAGES = [name for name in RECIPES if name.split("/")[0] in ("cifar10", "cifar100", "tinyimagenet")]


@pytest.mark.parametrize("name", [name for name in ON_IMAGES if any(half in name for half in HALVES)])
def test_entropy_is_all_that_differs_from_the_host(name: str) -> None:
    half = next(half for half in HALVES if half in name)
    recipe, host = read(name), read(name.replace(half, ""))
    assert recipe["model"]["init_args"]["entropy"]["class_path"] == HALVES[half]
    entropy = "model.init_args.entropy"
    assert _without(recipe, entropy, RUN_NAME) == _without(host, entropy, RUN_NAME)


@pytest.mark.parametrize("name", [name for name in ON_IMAGES if not name.startswith("cifar10/")])
def test_other_data_take_the_settings_of_cifar10(name: str) -> None:
    dataset, file = name.split("/")
    recipe, cifar10 = read(name), read(f"cifar10/{file}")
    assert recipe["data"]["init_args"]["dataset"] == dataset
    differs = [RUN_NAME, "data.init_args.dataset"]
    if dataset == "tinyimagenet":
        assert recipe["trainer"]["max_epochs"] == 400
        assert recipe["data"]["init_args"]["image_size"] == 64
        differs += [
            "trainer.max_epochs",
            *(f"data.init_args.{key}" for key in ("image_size", "download", "val_fraction")),
        ]
        if file == "wmse.yaml":
            differs += ["model.init_args.slice_size", "data.init_args.batch_size"]
    assert _without(recipe, *differs) == _without(cifar10, *differs)


@pytest.mark.parametrize(
    ("name", "validation_images"),
    [("cifar10/wmse.yaml", 5000), ("cifar100/wmse.yaml", 5000), ("tinyimagenet/wmse.yaml", 10_000)],
)
def test_every_batch_can_be_whitened(name: str, validation_images: int) -> None:
    recipe = read(name)
    batch = recipe["data"]["init_args"]["batch_size"]
    slice_size = recipe["model"]["init_args"]["slice_size"]
    width = recipe["model"]["init_args"]["projector"][-1]
    for size in {batch, validation_images % batch or batch}:
        assert size // max(1, size // slice_size) > width


@pytest.mark.parametrize("name", ON_IMAGES)
def test_run_is_named_after_its_file(name: str) -> None:
    expected = name.removesuffix(".yaml").replace("/", "-").replace("_", "-")
    assert read(name)["trainer"]["logger"]["init_args"]["name"] == expected
