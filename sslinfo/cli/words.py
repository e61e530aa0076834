"""What the command line says beside a run's own output."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only


def say(message: str) -> None:
    """Print a line, on one process of several."""
    rank_zero_only(print)(message, flush=True)
