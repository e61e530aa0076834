"""Networks and rows of earlier steps: the EMA target and the queue."""

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


class RingQueue(nn.Module):
    """The last ``size`` rows that were pushed, in the state dict, equal on all ranks when what is pushed is.

    Args:
        size: rows kept; need not be a multiple of the rows pushed at a time.
        dim: width of a row.
        dtype: of the rows.

    >>> queue = RingQueue(3, 1)
    >>> for value in (1.0, 2.0, 3.0, 4.0):
    ...     queue.push(torch.tensor([[value]]))
    >>> sorted(queue.contents().flatten().tolist())
    [2.0, 3.0, 4.0]
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Rows (n, dim), the oldest first; of more than ``size`` the last are kept."""
        size = len(self.rows)
        skipped = max(0, len(rows) - size)
        places = (self.pushed + torch.arange(skipped, len(rows), device=rows.device)) % size
        self.rows[places] = rows[skipped:].detach().to(self.rows)
        self.pushed += len(rows)

    def contents(self) -> Tensor:
        """A copy of the rows kept so far, (min(pushed, size), dim), in no order."""
        return self.rows[: int(self.pushed)].clone()
