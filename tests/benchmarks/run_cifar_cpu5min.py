"""CIFAR-10 in five minutes on two CPU cores: ``python tests/benchmarks/run_cifar_cpu5min.py --root FOLDER``.

Trains VICReg with each of the three entropies (their recipes under trainer/cpu5min) on several seeds, and prints k-NN
top-1 on the test images (k = 20, temperature .07, bank of all training images) beside that of the untrained network:
the same initialisation, batch-norm statistics calibrated on clean training images. FOLDER is CIFAR-10 as an image
folder.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings

import numpy as np
import torch

from sslinfo.cli import main as sslinfo
from sslinfo.data import TwoViewDataModule
from sslinfo.evaluation.calibration import averaging_batch_norm
from sslinfo.evaluation.features import clean_features
from sslinfo.evaluation.probes import knn_scores
from sslinfo.objectives import JointEmbedding

RECIPES = {"VarianceCovariance": "vicreg", "LogDet": "vicreg_logdet", "PairDist": "vicreg_pairdist"}
QUIET = [
    f"--trainer.{part}" for part in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
]


def knn(model: JointEmbedding, data: TwoViewDataModule) -> float:
    bank, labels = clean_features(data, model, "train")
    queries, truth = clean_features(data, model, "test")
    votes = torch.cat([knn_scores(part, bank, labels, 10).argmax(1) for part in queries.split(1000)])
    return 100 * float((votes == truth).double().mean())


@torch.no_grad()
def calibrate(model: JointEmbedding, data: TwoViewDataModule, batches: int = 40) -> None:
    """Batch-norm statistics of an untrained backbone: the average over clean training batches of mixed classes."""
    with averaging_batch_norm(model.backbone):
        for raw, _ in zip(data.train_dataloader(), range(batches), strict=False):
            model.backbone(data.pipeline.clean(raw["images"]))


def options(name: str, seed: int, arguments: argparse.Namespace) -> list[str]:
    """Command line of one run: the recipe under the overlay, quiet, writing nothing."""
    given = {
        "-c": "trainer/cpu5min",
        "--seed_everything": seed,
        "--data.dataset": "imagefolder",
        "--data.root": arguments.root,
        "--data.download": "false",
        "--data.mean": "[0.4914,0.4822,0.4465]",
        "--data.std": "[0.2470,0.2435,0.2616]",
        "--trainer.callbacks": "[]",
        "--trainer.limit_val_batches": 0,
        **dict.fromkeys(QUIET, "false"),
        **({"--trainer.max_steps": arguments.steps} if arguments.steps else {}),
    }
    return ["-c", RECIPES[name], *(str(word) for option in given.items() for word in option)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", default=os.environ.get("SSLINFO_CIFAR10"), required="SSLINFO_CIFAR10" not in os.environ
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--entropies", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--steps", type=int, help="in place of the overlay's")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    scores: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        untrained = sslinfo(["validate", *options("LogDet", seed, arguments)])  # of no batches: as `fit` would start it
        calibrate(untrained.model, untrained.datamodule)
        scores.setdefault("untrained", []).append(knn(untrained.model, untrained.datamodule))
        print(f"seed {seed}  untrained            k-NN {scores['untrained'][-1]:.2f} %", flush=True)
        for name in arguments.entropies:
            start = time.perf_counter()
            cli = sslinfo(["fit", *options(name, seed, arguments)])
            seconds = time.perf_counter() - start
            scores.setdefault(name, []).append(knn(cli.model, cli.datamodule))
            gain = scores[name][-1] - scores["untrained"][-1]
            print(f"seed {seed}  {name:20s} k-NN {scores[name][-1]:.2f} %  ({gain:+.2f})  {seconds:.0f} s", flush=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; mean over seeds {arguments.seeds}:")
    for name, values in scores.items():
        print(f"  {name:20s} {np.mean(values):.2f} %  ({np.mean(values) - np.mean(scores['untrained']):+.2f})")


if __name__ == "__main__":
    main()
