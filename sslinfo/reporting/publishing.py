"""How what a diagnostic found reaches people: numbers in the logs, notes in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer


def step_of(trainer: Trainer) -> int:
    """Optimizer steps behind the weights: of the training, or outside one of the checkpoint that was loaded."""
    return trainer.global_step or int(getattr(trainer.lightning_module, "loaded_step", 0))


def log_numbers(module: LightningModule, numbers: Mapping[str, float], logger: bool | None = None) -> None:
    """Log numbers that are the same on all ranks, in float64: of Python's own numbers Lightning keeps float32."""
    for name, number in numbers.items():
        module.log(name, torch.tensor(number, dtype=torch.float64), batch_size=1, logger=logger)


def note_once(module: LightningModule, message: str) -> None:
    """Print a note once for each module, on rank 0."""
    noted = module.__dict__.setdefault("_sslinfo_notes", set())
    if message not in noted:
        noted.add(message)
        if module.global_rank == 0:
            print(f"note: {message}")
