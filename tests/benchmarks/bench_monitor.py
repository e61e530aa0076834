"""Cost of the diagnostics in training: ``python tests/benchmarks/bench_monitor.py [--root FOLDER] [--cadences 250]``.

conv4 at batch 256 on CIFAR-10, with and without InformationMonitor and CollapseAlarm, in one training: blocks that are
watched, as long as the monitor's cadence and with one measurement each, stand between bare ones of at most ``--rest``
steps. A ratio is of the mean seconds of a step of a watched block, all steps between two measurements included, over
those of the two bare blocks around it; what is printed is the mean of the ratios and its standard error. For a cadence
below the default, the overhead at the default follows from the cost of one measurement, the copies of the window's
steps included: 1 + cost / (cadence x step). FOLDER is CIFAR-10 as an image folder (train/<class>/*, test/<class>/*);
without it, random images of that size in memory.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
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

from sslinfo.callbacks import CollapseAlarm, InformationMonitor
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
    """Seconds of each block of steps: watched ones take turns with bare ones; the first of both are to warm up.

    It stands before the diagnostics among the callbacks: what they do at the end of a step is in the block whose last
    step that is, since a block ends where the next one's first batch starts.
    """

    def __init__(self, monitor: InformationMonitor, alarm: CollapseAlarm, cadence: int, rest: int) -> None:
        self.monitor, self.alarm, self.cadence, self.rest = monitor, alarm, cadence, rest
        self.checks = alarm.every_n_steps
        self.start = 0.0
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        turn, place = divmod(trainer.global_step, self.rest + self.cadence)  # a turn is a bare block and a watched one
        if place not in (0, self.rest):
            return
        now, watched = time.perf_counter(), place == self.rest
        if turn > 1 or (turn == 1 and watched):
            self.seconds[not watched].append(now - self.start)
        self.start = now
        self.monitor.every_n_steps = trainer.global_step + self.cadence if watched else 0
        self.alarm.every_n_steps = self.checks if watched else 10**9


def train(
    data: TwoViewDataModule, width: int, cadence: int, rest: int, events: int
) -> tuple[dict[bool, list[float]], float]:
    """Seconds of the blocks that are watched (True) and of those that are not; seconds in the hook for one event."""
    config = OptimizerConfig("adamw", lr=1e-3, schedule="constant")
    model = VICReg(LogDet(), backbone="conv4", projector=[width] * 3, optimizer=config)
    monitor, alarm = TimedMonitor(every_n_steps=cadence), CollapseAlarm()
    turns = Turns(monitor, alarm, cadence, rest)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            # The last block is a bare one, and ends with the start of another step.
            max_steps=(rest + cadence) * (1 + events) + rest + 1,
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            callbacks=[turns, monitor, alarm],
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


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=os.environ.get("SSLINFO_CIFAR10"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--cadences", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--rest", type=int, default=50, help="longest block without diagnostics")
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
    rows: list[tuple[float, ...]] = []
    for width in arguments.widths:
        for cadence in arguments.cadences:
            rest = min(cadence, arguments.rest)
            seconds, hook = train(data, width, cadence, rest, arguments.events)
            watched, bare = seconds[True], [block / rest for block in seconds[False]]
            assert len(watched) == len(bare) - 1 == arguments.events
            steps = [(before + after) / 2 for before, after in itertools.pairwise(bare)]
            step = statistics.mean(steps)
            event, error = mean_and_error([block - cadence * own for block, own in zip(watched, steps, strict=True)])
            ratio, off = mean_and_error([block / cadence / own for block, own in zip(watched, steps, strict=True)])
            rows.append((width, cadence, step, event, error, hook, ratio, off, 1 + event / (DEFAULT * step)))
    print(
        f"\ntorch {torch.__version__}, {arguments.threads} threads, batch {BATCH}, {arguments.events} measurements each"
    )
    print(f"projector  cadence   step/ms  measurement/ms  in the hook/ms   with / without  implied at {DEFAULT}")
    for width, cadence, step, event, error, hook, ratio, off, implied in rows:
        cost, both = f"{1e3 * event:.0f} ± {1e3 * error:.0f}", f"{ratio:.4f} ± {off:.4f}"
        shown = f"{width:9d}  {cadence:7d}  {1e3 * step:8.0f}  {cost:>14s}  {1e3 * hook:14.0f}"
        print(f"{shown}  {both:>15s}  {implied:14.4f}")


if __name__ == "__main__":
    main()
