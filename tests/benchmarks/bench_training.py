"""Training throughput over that of the bare network: ``python tests/benchmarks/bench_training.py [--root FOLDER]``.

Bare: the same conv4 of width 16, projector, loss and optimizer at batch 256, fed with random tensors that are already
in memory, in a plain loop. Ours: the Trainer with the data module's images and views, and logging. The two take turns,
and the ratio is of total times over the same number of steps. FOLDER is CIFAR-10 as an image folder (train/<class>/*,
test/<class>/*); without it, random images of that size in memory.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import TensorDataset

from sslinfo.callbacks import LinearProbe
from sslinfo.data import TwoViewDataModule
from sslinfo.objectives import LogDet, VICReg
from sslinfo.optim import OptimizerConfig, build_optimizer

BATCH, WARM_UP, STEPS, TURNS = 256, 3, 15, 10


class StepTimer(Callback):
    """Seconds that the steps after the warm-up take, all between two steps included."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == WARM_UP:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - getattr(self, "start", 0.0)


def model() -> VICReg:
    config = OptimizerConfig("adamw", lr=1e-3, schedule="constant")
    return VICReg(LogDet(), backbone="conv4", backbone_options={"width": 16}, projector=[512] * 3, optimizer=config)


def bare() -> float:
    network = model()
    optimizer = build_optimizer(network, network.optimizer_config, BATCH)
    views = [torch.randn(BATCH, 3, 32, 32) for _ in range(2)]
    start = 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            start = time.perf_counter()
        loss = network.loss(**network.embed(views))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def ours(data: TwoViewDataModule, callbacks: list[Callback]) -> float:
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=WARM_UP + STEPS,
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            callbacks=[*callbacks, timer],
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(model(), datamodule=data)
    return timer.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=os.environ.get("SSLINFO_CIFAR10"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.root:
        data = TwoViewDataModule("imagefolder", arguments.root, BATCH, views="vicreg")
    else:
        images = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8)
        data = TwoViewDataModule(
            TensorDataset(images, torch.randint(0, 10, (20_000,))), batch_size=BATCH, views="vicreg"
        )
    data.setup("fit")
    totals = {"bare network": 0.0, "sslinfo": 0.0, "sslinfo with LinearProbe": 0.0}
    for _ in range(TURNS):
        totals["bare network"] += bare()
        totals["sslinfo"] += ours(data, [])
        totals["sslinfo with LinearProbe"] += ours(data, [LinearProbe()])
    print(f"torch {torch.__version__}, {arguments.threads} threads, batch {BATCH}, {TURNS} turns of {STEPS} steps")
    for name, seconds in totals.items():
        rate = BATCH * STEPS * TURNS / seconds
        print(f"{name:26s} {rate:7.0f} images/s   ratio {totals['bare network'] / seconds:.2f}")


if __name__ == "__main__":
    main()
