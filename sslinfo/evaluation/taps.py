"""Tap: what a module returns, collected while somebody asks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Tap:
    """Collects what a module returns, while asked to."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] | None = None
        self.hook: Any = None

    def attach(self, module: nn.Module) -> None:
        self.detach()
        self.hook = module.register_forward_hook(self._note)

    def detach(self) -> None:
        if self.hook is not None:
            self.hook.remove()
        self.hook = None

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.outputs is not None and isinstance(output, Tensor):
            rows = output.detach()
            if rows.dim() > 2:  # (N, C, H, W) maps, or (N, tokens, C) of a transformer
                rows = rows.flatten(2).mean(2) if rows.dim() == 4 else rows.flatten(1, -2).mean(1)
            self.outputs.append(rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows)

    def take(self, views: int, images: int) -> list[Tensor]:
        """(images, d) of each of so many views, which were the last to pass, one by one or all in one batch."""
        outputs, self.outputs = self.outputs or [], None
        if outputs and views > 1 and len(outputs[-1]) == views * images:
            return list(outputs[-1].chunk(views))
        return outputs[-views:]
