"""Cost of InformationMonitor in training: ``python tests/benchmarks/bench_monitor.py [--root FOLDER]``.

conv4 at batch 256 on CIFAR-10, with and without the monitor, in one training: blocks of as many steps as the cadence
take turns, and each block that is watched holds one measurement. The ratio is of total times. Where the cadence tried
is shorter than the default one, the overhead at the default follows from the cost of one measurement, the copies of the
window's steps included: 1 + cost / (cadence x step). FOLDER is CIFAR-10 as an image folder (train/<class>/*,
test/<class>/*); without it, random images of that size in memory.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import TensorDataset

from sslinfo.callbacks import InformationMonitor
from sslinfo.data import TwoViewDataModule
from sslinfo.objectives import LogDet, VICReg
from sslinfo.optim import OptimizerConfig

BATCH = 256
DEFAULT = inspect.signature(InformationMonitor).parameters["every_n_steps"].default


class TimedMonitor(InformationMonitor):
    """Seconds in its own hook: less exact than the blocks' difference, since logging is not in it, but steadier."""

    seconds = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        start = time.perf_counter()
        super().on_train_batch_end(*args)
        self.seconds += time.perf_counter() - start


class Turns(Callback):
    """Seconds of each block of steps, of which every other one is watched; the first two are to warm up.

    It stands before the monitor among the callbacks: what the monitor does at the end of a step is in the block whose
    last step that is, since a block ends where the next one's first batch starts.
    """

    def __init__(self, monitor: InformationMonitor, cadence: int) -> None:
        self.monitor, self.cadence = monitor, cadence
        self.start = 0.0
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        block, place = divmod(trainer.global_step, self.cadence)
        if place:
            return
        now = time.perf_counter()
        if block > 2:
            self.seconds[(block - 1) % 2 == 1].append(now - self.start)
        self.start = now
        self.monitor.every_n_steps = self.cadence if block % 2 == 1 else 0


def train(data: TwoViewDataModule, width: int, cadence: int, events: int) -> tuple[dict[bool, list[float]], float]:
    """Seconds of the blocks that are watched (True) and of those that are not; seconds in the hook for one event."""
    config = OptimizerConfig("adamw", lr=1e-3, schedule="constant")
    model = VICReg(LogDet(), backbone="conv4", projector=[width] * 3, optimizer=config)
    monitor = TimedMonitor(every_n_steps=cadence)
    turns = Turns(monitor, cadence)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=cadence * (2 + 2 * events) + 1,  # one step more: a block ends with the start of the next
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            callbacks=[turns, monitor],
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            limit_val_batches=0,
        )
        trainer.fit(model, datamodule=data)
    found = monitor.reports["train_info/embedding"]["effective_rank"]
    print(f"projector {width}, cadence {cadence}: last report of {found.n} samples, {found.settings}", flush=True)
    return turns.seconds, monitor.seconds / (events + 1)  # one is in the warm-up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=os.environ.get("SSLINFO_CIFAR10"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--cadences", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--events", type=int, default=10, help="measurements that are timed")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.root:
        data = TwoViewDataModule("imagefolder", arguments.root, BATCH, views="vicreg")
    else:
        images = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8)
        labels = torch.randint(0, 10, (20_000,))
        data = TwoViewDataModule(TensorDataset(images, labels), batch_size=BATCH, views="vicreg")
    data.setup("fit")
    rows = []
    for width in arguments.widths:
        for cadence in arguments.cadences:
            seconds, hook = train(data, width, cadence, arguments.events)
            watched, bare = (sum(seconds[kind]) for kind in (True, False))
            assert len(seconds[True]) == len(seconds[False]) == arguments.events
            step = bare / (cadence * arguments.events)
            event = (watched - bare) / arguments.events
            pairs = [one - other for one, other in zip(seconds[True], seconds[False], strict=True)]
            error = statistics.stdev(pairs) / len(pairs) ** 0.5
            rows.append((width, cadence, step, event, error, hook, watched / bare, 1 + event / (DEFAULT * step)))
    print(
        f"\ntorch {torch.__version__}, {arguments.threads} threads, batch {BATCH}, {arguments.events} measurements each"
    )
    print(f"projector  cadence   step/ms  measurement/ms  in the hook/ms  with / without  implied at {DEFAULT}")
    for width, cadence, step, event, error, hook, ratio, implied in rows:
        cost = f"{1e3 * event:.0f} ± {1e3 * error:.0f}"
        costs = f"{cost:>14s}  {1e3 * hook:14.0f}"
        print(f"{width:9d}  {cadence:7d}  {1e3 * step:8.0f}  {costs}  {ratio:14.3f}  {implied:14.4f}")


if __name__ == "__main__":
    main()
