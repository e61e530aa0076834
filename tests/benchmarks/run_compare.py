"""The paper's ten methods on CIFAR-10, side by side: ``make compare ROOT=FOLDER``.

Trains their recipes under trainer/cpu5min (conv4, AdamW, a projector of three layers of 512) for so many steps on
several seeds, and measures the representation of the clean images: a linear probe to convergence and k-NN (k = 20,
temperature .07) fitted on the training images and scored on the test images; log-det entropy (beta 10), pairwise
entropy above that of one component (upper bound, variance .1 a dimension, at most log N), both of the test images on
the sphere of radius sqrt(d), and effective rank. Views are each recipe's own, so a row is a method with its
augmentations. Every run leaves a file in the output folder, named after its options and recipe, and is not repeated;
what has changed in the code is not seen: use a new folder then.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from run_cifar_cpu5min import QUIET, calibrate

from sslinfo.cli import main as sslinfo
from sslinfo.cli.arguments import values_of
from sslinfo.evaluation.features import clean_features
from sslinfo.evaluation.probes import fit_linear, knn_scores
from sslinfo.information import effective_rank, logdet_entropy, pairwise_entropy, pairwise_entropy_cap
from sslinfo.recipes import Recipe, to_text

# Predictors are as wide as the overlay's projector. 300 steps are fewer than SwAV's frozen epochs and its queue's
# start, and at its published epsilon of .05 the loss stays at log(prototypes) here: collapse, against which its authors
# advise .03. What a recipe says besides (views, temperature, momentum, weights of entropy) is left alone.
PREDICTOR = {"--model.predictor": "[512]"}
SWAV = {
    "--model.prototypes": 300,
    "--model.epsilon": 0.03,
    "--model.queue": 0,
    "--model.freeze_prototypes_epochs": 0,
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "vicreg": ("VICReg", {}),
    "vicreg_logdet": ("VICReg + LogDet", {}),
    "vicreg_pairdist": ("VICReg + PairDist", {}),
    "byol": ("BYOL", PREDICTOR),
    "byol_logdet": ("BYOL + LogDet", PREDICTOR),
    "byol_pairdist": ("BYOL + PairDist", PREDICTOR),
    "simclr": ("SimCLR", {}),
    "barlow_twins": ("Barlow Twins", {}),
    "swav": ("SwAV", SWAV),
    "moco_v3": ("MoCo v3", PREDICTOR),
}
UNTRAINED = "untrained"
COLUMNS = {
    "linear": "linear top-1, %",
    "knn": "k-NN top-1, %",
    "logdet": "log-det entropy, nats",
    "pairwise": "pairwise entropy above one component, nats",
    "rank": "effective rank",
    "seconds": "training, s",
}


def command(method: str, seed: int, steps: int, root: str) -> list[str]:
    given = {
        "-c": "trainer/cpu5min",
        "--seed_everything": seed,
        **METHODS[method][1],
        "--data.dataset": "imagefolder",
        "--data.root": root,
        "--data.download": "false",
        "--data.mean": "[0.4914,0.4822,0.4465]",
        "--data.std": "[0.2470,0.2435,0.2616]",
        "--trainer.max_steps": steps,
        "--model.optimizer.warmup_steps": min(100, steps // 6),
        "--trainer.callbacks": "[]",
        "--trainer.limit_val_batches": 0,
        **dict.fromkeys(QUIET, "false"),
    }
    return ["-c", method, *(str(word) for option in given.items() for word in option)]


@functools.cache
def settings(recipe: str) -> str:
    return to_text(Recipe.read(recipe).settings)


def place(folder: Path, method: str, seed: int, arguments: argparse.Namespace) -> Path:
    """The file of a run, which another recipe, folder of images or option would not have."""
    options = command("vicreg" if method == UNTRAINED else method, seed, arguments.steps, arguments.root)
    recipes = [settings(recipe) for recipe in values_of(options, "-c")]
    digest = hashlib.sha256("\0".join([*options, *recipes]).encode()).hexdigest()[:8]
    return folder / f"{method}-{arguments.steps}-seed{seed}-{digest}.json"


def measure(model: Any, data: Any) -> dict[str, float]:
    bank, labels = clean_features(data, model, "train")
    features, truth = clean_features(data, model, "test")
    votes = torch.cat([knn_scores(part, bank, labels, 10).argmax(1) for part in features.split(1000)])
    linear = fit_linear(bank, labels).predict(features)
    d = features.shape[1]
    sphere, component = F.normalize(features, dim=1) * d**0.5, 0.1 * d
    return {
        "linear": 100 * float((linear == truth).double().mean()),
        "knn": 100 * float((votes == truth).double().mean()),
        "logdet": float(logdet_entropy(sphere, beta=10.0)),
        "pairwise": float(pairwise_entropy(sphere, component, bound="upper") - pairwise_entropy_cap(1, d, component)),
        "rank": float(effective_rank(features)),
    }


def one(method: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    if method == UNTRAINED:
        cli = sslinfo(["validate", *command("vicreg", seed, 1, arguments.root)])  # of no batches
        calibrate(cli.model, cli.datamodule)
        return {**measure(cli.model, cli.datamodule), "seconds": 0.0}
    start = time.perf_counter()
    cli = sslinfo(["fit", *command(method, seed, arguments.steps, arguments.root)])
    seconds = time.perf_counter() - start
    return {**measure(cli.model, cli.datamodule), "seconds": seconds}


def seed_of(file: Path) -> int:
    return int(file.stem.split("-seed")[1].split("-")[0])


def collect(folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    """name -> column -> one value a seed, of every run with these options in the folder."""
    found = {}
    for method, name in [(UNTRAINED, "untrained"), *((method, name) for method, (name, _) in METHODS.items())]:
        files = sorted(folder.glob(f"{method}-{arguments.steps}-seed*-*.json"), key=seed_of)
        ours = [file for file in files if file == place(folder, method, seed_of(file), arguments)]
        runs = [json.loads(file.read_text()) for file in ours]
        if runs:
            found[name] = {column: np.array([run[column] for run in runs]) for column in COLUMNS}
    return found


def mean_and_error(values: np.ndarray, digits: int) -> str:
    if len(values) < 2:
        return f"{values.mean():.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}"


def table(found: dict[str, dict[str, np.ndarray]]) -> str:
    digits = {"seconds": 0, "logdet": 1, "pairwise": 2, "rank": 1}
    lines = ["| | " + " | ".join(COLUMNS.values()) + " | seeds |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, columns in found.items():
        cells = [mean_and_error(values, digits.get(column, 2)) for column, values in columns.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(columns['linear'])} |")
    return "\n".join(lines)


def draw(found: dict[str, dict[str, np.ndarray]], steps: int, file: Path) -> None:
    names = sorted(found, key=lambda name: found[name]["linear"].mean())
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), constrained_layout=True)
    for place, name in enumerate(names):
        for column, colour, marker in (("linear", "C0", "o"), ("knn", "C1", "s")):
            values = found[name][column]
            left.plot(values, [place] * len(values), marker, color=colour, alpha=0.35, markersize=5)
            left.plot(values.mean(), place, marker, color=colour, markersize=9, label=column if place == 0 else None)
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("top-1 on the test images, %")
    left.set_title(f"CIFAR-10, conv4, {steps} steps: each seed, and their mean")
    left.legend(["linear probe, a seed", "linear probe, mean", "k-NN, a seed", "k-NN, mean"], loc="upper left")
    left.grid(axis="x", alpha=0.3)
    for place, name in enumerate(names):
        x, y = found[name]["logdet"], found[name]["linear"]
        xerr, yerr = (v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else None for v in (x, y))
        right.errorbar(x.mean(), y.mean(), xerr=xerr, yerr=yerr, fmt="o", capsize=3)
        # Neighbours have their names on opposite sides.
        side = {"xytext": (7, -11), "ha": "left"} if place % 2 else {"xytext": (-7, 5), "ha": "right"}
        right.annotate(name, (x.mean(), y.mean()), textcoords="offset points", fontsize=9, **side)
    right.margins(x=0.2)
    right.set_xlabel("log-det entropy of the representation, nats (beta 10)")
    right.set_ylabel("linear probe top-1, %")
    right.set_title("Entropy and accuracy: mean and standard error over seeds")
    right.grid(alpha=0.3)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", default=os.environ.get("SSLINFO_CIFAR10"), required="SSLINFO_CIFAR10" not in os.environ
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--methods", nargs="+", default=[UNTRAINED, *METHODS], choices=[UNTRAINED, *METHODS])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for method in arguments.methods:
            file = place(arguments.out, method, seed, arguments)
            if not file.exists():
                result = one(method, seed, arguments)
                file.with_suffix(".new").write_text(json.dumps(result))
                file.with_suffix(".new").replace(file)
                figures = "  ".join(f"{column} {value:.2f}" for column, value in result.items())
                print(f"seed {seed}  {method:16s} {figures}", flush=True)
    found = collect(arguments.out, arguments)
    text = table(found)
    (arguments.out / "comparison.md").write_text(text + "\n")
    draw(found, arguments.steps, arguments.out / "comparison.png")
    print(f"{arguments.steps} steps of 256 images, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(text)
    print(f"figure: {arguments.out / 'comparison.png'}")


if __name__ == "__main__":
    main()
