"""Memory over a training with all diagnostics: ``python tests/benchmarks/bench_memory.py [--steps 2000]``.

Resident memory (Linux) every 50 steps, of VICReg on digits bare and with InformationMonitor (every 10 steps, window of
4, and every 10 epochs in validation, with its figures) and CollapseAlarm (every 5). Prints the least-squares slope over
the second half with its standard error, in kB a measurement: a report kept would be some tens, a batch of both layers
300.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import tempfile
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from scipy.stats import linregress

from sslinfo.callbacks import CollapseAlarm, InformationMonitor
from sslinfo.experiments import build, digits

EVERY = 10


class Resident(L.Callback):
    """Resident memory in kB by optimizer step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % 50 == 25:
            gc.collect()
            with open("/proc/self/statm") as file:
                self.seen.append((trainer.global_step, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name, diagnostics in (
        ("bare", []),
        ("with diagnostics", [InformationMonitor(every_n_steps=EVERY, window=4), CollapseAlarm(every_n_steps=5)]),
    ):
        resident = Resident()
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                accelerator="cpu",
                devices=1,
                max_steps=arguments.steps,
                max_epochs=-1,
                check_val_every_n_epoch=10,
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[*diagnostics, resident],
            )
            trainer.fit(build("VICReg"), digits())
        half = resident.seen[len(resident.seen) // 2 :]
        fit = linregress(*zip(*half, strict=True))
        slope, error = EVERY * fit.slope, EVERY * fit.stderr
        first, last = resident.seen[0][1] / 1024, resident.seen[-1][1] / 1024
        print(
            f"{name:16s} {slope:7.2f} +- {error:.2f} kB a measurement; {first:.0f} MB at first, {last:.0f} MB at last"
        )


if __name__ == "__main__":
    main()
