"""EMATarget: a network that follows another as a moving average."""

from __future__ import annotations

import copy
import math

import torch
from timm.layers import DropPath
from torch import Tensor, nn


def ema_momentum(step: int, total: float, base: float, final: float = 1.0) -> float:
    """Momentum after optimizer step ``step`` (from 0) of ``total``: half a cosine from ``base`` to ``final``.

    final - (final - base) (1 + cos(pi step / total)) / 2 (arXiv:2006.07733, section 3.3); ``base`` throughout when the
    training has no end.

    >>> [round(ema_momentum(step, 100, 0.99), 4) for step in (0, 50, 100)]
    [0.99, 0.995, 1.0]
    """
    return final - (final - base) * (1 + math.cos(math.pi * min(1.0, step / total))) / 2


class EMATarget(nn.Module):
    """A copy of a chain of modules that follows their parameters as an exponential moving average, without gradient.

    Buffers are the copy's own: its batch norms see the target's activations. Dropout and dropped paths are off.

    Args:
        *modules: applied one after the other, a backbone and a projector.

    >>> online = nn.Linear(1, 1, bias=False)
    >>> target = EMATarget(online)
    >>> with torch.no_grad():
    ...     start = online.weight.item()
    ...     _ = online.weight.add_(1.0)
    >>> target.update(0.75, online)
    >>> round(target(torch.ones(1, 1)).item() - start, 4)
    0.25
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(nn.Sequential(*modules)).requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            elif isinstance(module, DropPath):
                module.drop_prob = 0.0

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    @torch.no_grad()
    def update(self, momentum: float, *modules: nn.Module) -> None:
        """target <- momentum * target + (1 - momentum) * online, for every parameter of the modules copied."""
        online = nn.Sequential(*modules).parameters()
        for own, other in zip(self.network.parameters(), online, strict=True):
            own.lerp_(other, 1 - momentum)
