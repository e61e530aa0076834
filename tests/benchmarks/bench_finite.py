"""What looking at loss, gradient and weights costs a training step: ``python tests/benchmarks/bench_finite.py``.

In one training the steps take turns: every other one is not looked at. The ratio is of the time of the steps that are
over that of the others, each with the one after it as a pair; its error is that of the mean over pairs.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sslinfo.data import TwoViewDataModule
from sslinfo.objectives import JointEmbedding, MoCo, VICReg
from sslinfo.objectives.finite import StepGuard
from sslinfo.optim import OptimizerConfig

WARM_UP = 6


class EveryOther(StepGuard):
    """Looks at every other step."""

    looks = True

    def begin_batch(self, module: nn.Module, index: Tensor | None) -> None:
        if self.looks:
            super().begin_batch(module, index)

    def note_terms(self, terms: Mapping[str, Tensor]) -> None:
        if self.looks:
            super().note_terms(terms)

    def watching(self, module: LightningModule, optimizer: Any, closure: Callable[[], Any]) -> Callable[[], Any]:
        return super().watching(module, optimizer, closure) if self.looks else closure


class Turns(Callback):
    """Seconds of each step, all between two steps included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.before = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.before)
        self.before = now
        pl_module._guard.looks = len(self.seconds) % 2 == 0


def digits() -> TwoViewDataModule:
    return TwoViewDataModule("digits", batch_size=64)


def coloured(batch_size: int) -> TwoViewDataModule:
    images = torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8)
    data = TensorDataset(images, torch.randint(0, 10, (4096,)))
    return TwoViewDataModule(data, batch_size=batch_size, views="vicreg")


CONV4 = {"backbone": "conv4", "optimizer": OptimizerConfig("adamw", lr=1e-3, schedule="constant")}
RESNET = {**CONV4, "backbone": "resnet18", "stem": "cifar"}
WHAT: dict[str, tuple[Callable[[], JointEmbedding], Callable[[], TwoViewDataModule], int]] = {
    "digits, conv4 of width 4, batch 64": (
        lambda: VICReg(**CONV4, backbone_options={"width": 4}, in_channels=1, projector=[64, 32]),
        digits,
        1200,
    ),
    "32 x 32, conv4 of width 16, batch 256": (lambda: VICReg(**CONV4, projector=[512] * 3), lambda: coloured(256), 120),
    "32 x 32, ResNet-18, batch 32": (lambda: VICReg(**RESNET, projector=[2048] * 3), lambda: coloured(32), 40),
    "32 x 32, conv4 of width 16, queue of 32768, batch 256": (
        lambda: MoCo(**CONV4, queue=32768, predictor=None, projector=[512, 128]),
        lambda: coloured(256),
        120,
    ),
}


def ratio(model: JointEmbedding, data: TwoViewDataModule, steps: int) -> tuple[float, float, float]:
    """Milliseconds of a step that is not looked at, and the ratio with its standard error."""
    model._guard = EveryOther("stop")
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_steps=WARM_UP + steps,
            accelerator="cpu",
            devices=1,
            callbacks=[turns],
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            limit_val_batches=0,
        ).fit(model, datamodule=data)
    pairs = np.array(turns.seconds[WARM_UP:]).reshape(-1, 2)
    found = pairs[:, 0].mean() / pairs[:, 1].mean()
    # of a ratio of means: the spread of what is left of each pair
    rest = pairs[:, 0] - found * pairs[:, 1]
    return 1e3 * pairs[:, 1].mean(), found, rest.std(ddof=1) / len(pairs) ** 0.5 / pairs[:, 1].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads")
    for name, (make, data, steps) in WHAT.items():
        torch.manual_seed(0)
        milliseconds, found, error = ratio(make(), data(), steps)
        print(f"{name:56s} {milliseconds:8.1f} ms a step   ratio {found:.4f} ± {error:.4f}", flush=True)


if __name__ == "__main__":
    main()
