"""RingQueue: rows of earlier steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslinfo.ranges import check_range


class RingQueue(nn.Module):
    """The last ``size`` rows that were pushed, in the state dict, equal on all ranks when what is pushed is.

    Args:
        size: rows kept, in [1, 1e8]; need not be a multiple of the rows pushed at a time.
        dim: width of a row, in [1, 1e5].
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
        check_range("size", size, "[1, 1e8]", whole=True)
        check_range("dim", dim, "[1, 1e5]", whole=True)
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
