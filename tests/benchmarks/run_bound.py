"""The tightest certificate on real images: ``python tests/benchmarks/run_bound.py [--root FOLDER] [--seeds 0 1 2]``.

Trains VICReg without labels on a part of the images, then computes the generalization bound of linear classification on
the others, for several features of the frozen network: the representation on the sphere or clipped, shares of k-means
clusters (no label seen), probabilities of a linear probe (fitted on the labels of the training images). Each is divided
once for each seed into labelled images, pairs and held-out images on which risk and error are measured. delta is .05
over the number of features that are compared, so that all bounds of one task and seed hold at once with 95%; that these
features and temperatures are the ones compared was chosen on other divisions of the same images. The trivial value is
the risk of the best constant. Digits; with FOLDER, CIFAR-10 as an image folder, half of its training images for the
network (conv4, trainer/cpu5min), the others and the test images for the bound; all ten classes, animals against
vehicles, and some pairs of classes.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslinfo.cli import main as sslinfo
from sslinfo.data import TwoViewDataModule
from sslinfo.evaluation.features import clean_features
from sslinfo.experiments import build, certify, cluster_shares, pretrain, probe_shares

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PAIRS = [("automobile", "frog"), ("airplane", "frog"), ("ship", "horse"), ("truck", "deer"), ("airplane", "automobile")]
QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
Labelled = tuple[Tensor, Tensor]


def digits(seed: int) -> tuple[Labelled, Labelled]:
    """Features and labels of the images that the network was trained on, and of the others."""
    data = TwoViewDataModule("digits", views="digits", batch_size=128, val_fraction=0.7, seed=seed)
    model = build("VICReg", seed)
    pretrain(model, data, 200, seed=seed, limit_val_batches=0)
    return clean_features(data, model, "train"), clean_features(data, model, "val")


def cifar(root: str, seed: int, steps: int) -> tuple[Labelled, Labelled]:
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "-c": "trainer/cpu5min",
            "--seed_everything": seed,
            "--data.dataset": "imagefolder",
            "--data.root": root,
            "--data.download": "false",
            "--data.mean": "[0.4914,0.4822,0.4465]",
            "--data.std": "[0.2470,0.2435,0.2616]",
            "--data.val_fraction": 0.5,
            "--trainer.max_steps": steps,
            "--trainer.limit_val_batches": 0,
            "--trainer.callbacks": "[]",
            "--trainer.default_root_dir": folder,
            **{f"--trainer.{part}": "false" for part in QUIET},
        }
        words = [str(word) for option in options.items() for word in option]
        cli = sslinfo(["fit", "-c", "vicreg_logdet", *words])
    of = {split: clean_features(cli.datamodule, cli.model, split) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    others = [torch.cat(parts) for parts in zip(of["val"], of["test"], strict=True)]
    return of["train"], (others[0], others[1])


def tasks(train: Labelled, others: Labelled) -> Iterator[tuple[str, int, Labelled, Labelled]]:
    """Name, number of classes, and both sets with their labels."""
    yield "ten classes", 10, train, others
    if len(others[0]) < 10_000:
        return
    vehicle = torch.tensor([name in ("airplane", "automobile", "ship", "truck") for name in CLASSES]).long()
    yield "animals, vehicles", 2, (train[0], vehicle[train[1]]), (others[0], vehicle[others[1]])
    for names in PAIRS:
        numbers = [CLASSES.index(name) for name in names]
        rows = [torch.isin(labels, torch.tensor(numbers)) for _, labels in (train, others)]
        both = [
            (z[own], (labels[own] == numbers[1]).long()) for (z, labels), own in zip((train, others), rows, strict=True)
        ]
        yield ", ".join(names), 2, both[0], both[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="CIFAR-10 as an image folder; digits without it")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training on digits, of the division"
    )
    parser.add_argument("--steps", type=int, default=1500, help="of the training on CIFAR-10")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    found: dict[tuple[str, str], list[Any]] = {}
    network = cifar(arguments.root, 0, arguments.steps) if arguments.root else None
    for seed in arguments.seeds:
        train, others = network or digits(seed)
        for task, classes, own, rest in tasks(train, others):
            features: dict[str, tuple[Any, Any]] = {
                "on the sphere": (lambda z: z, "normalize"),
                "clipped": (lambda z: z, "clip"),
                f"{classes} cluster shares, t .05": (cluster_shares(own[0], classes, 0.05), "simplex"),
                f"{classes} cluster shares, t .02": (cluster_shares(own[0], classes, 0.02), "simplex"),
                "probe's probabilities, t 1": (probe_shares(*own, temperature=1.0), "simplex"),
                "probe's probabilities, t .3": (probe_shares(*own, temperature=0.3), "simplex"),
            }
            for name, (of, treatment) in features.items():
                one = certify(of(rest[0]), rest[1], treatment, 0.05 / len(features), seed)
                found.setdefault((task, name), []).append(one)
    print(f"{'task':22s} {'features':28s} {'n':>6s} {'m':>5s}  sharp            corollary  risk   trivial  verdicts")
    for (task, name), certificates in found.items():
        bounds = [one.bound for one in certificates]
        sharp = [bound.sharp for bound in bounds]
        error = np.std(sharp, ddof=1) / len(sharp) ** 0.5 if len(sharp) > 1 else 0.0
        corollary, risk = np.mean([bound.corollary for bound in bounds]), np.mean([one.risk for one in certificates])
        trivial = np.mean([bound.best_constant for bound in bounds])
        verdicts = ", ".join(bound.verdicts["sharp"] for bound in bounds)
        print(
            f"{task:22s} {name:28s} {bounds[0].n:6d} {bounds[0].m:5d}  {np.mean(sharp):6.3f} +- {error:.3f}  "
            f"{corollary:9.3f}  {risk:.3f}  {trivial:7.3f}  {verdicts}"
        )
    best = min(found, key=lambda key: np.mean([one.bound.sharp / one.bound.best_constant for one in found[key]]))
    print(f"\ntightest against its trivial value: {best[0]}, {best[1]}, first seed:\n{found[best][0].bound}")
    print(f"measured top-1 error {100 * np.mean([one.error for one in found[best]]):.1f} %")


if __name__ == "__main__":
    main()
