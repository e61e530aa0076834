"""Which images make which batch: samplers that share one global order over ranks and resume in the middle of an epoch.

The order of an epoch is a function of (seed, epoch) alone. Global batch b of W ranks with B images each is the slice
[b W B, (b + 1) W B) of it, rank r taking the r-th block of B: the same images as one process with batch W B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from sslinfo.distributed import rank, world_size
from sslinfo.errors import UserError


@dataclass(frozen=True)
class Request:
    """One rank's batch: positions in the data set, which of them count, and the place in training."""

    positions: torch.Tensor
    keep: torch.Tensor
    epoch: int
    batch: int


@dataclass(frozen=True)
class Failure:
    """What a worker process met in place of a batch: torch would hand on an error as the text of its traceback."""

    kind: type[Exception]
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, error: UserError | OSError) -> Failure:
        """What can be sent to another process of a user's mistake, or of the system's error with its file."""
        if isinstance(error, UserError):
            return cls(UserError, (str(error),))
        return cls(OSError, (error.errno, error.strerror, error.filename))

    def error(self) -> Exception:
        """The error, to be raised in the process that trains."""
        return self.kind(*self.arguments)


@dataclass
class Progress:
    """How far training is: ``batches`` of ``epoch`` were trained on.

    The batches themselves tell it. Lightning has a count of its own, which it hands to ``set_epoch``. That one is too
    high by one after a resume from the end of an epoch in which ``max_steps`` ended the training.
    """

    epoch: int = 0
    batches: int = 0
    moved: bool = False

    def trained_on(self, epoch: int, batch: int) -> None:
        """Note a batch of training, by its number in the epoch."""
        self.epoch, self.batches, self.moved = epoch, batch + 1, True

    def resume(self, epoch: int, batches: int) -> None:
        """Go on from a checkpoint."""
        self.epoch, self.batches, self.moved = epoch, batches, False

    def next_start(self) -> tuple[int, int]:
        """(epoch, batch) at which an iterator made now begins: an iterator is made for each epoch, and on a resume."""
        return (self.epoch + 1, 0) if self.moved else (self.epoch, self.batches)


class BatchSampler(DistributedSampler, SequentialSampler):
    """Yields this rank's :class:`Request` for each batch of an epoch.

    It inherits ``DistributedSampler``, so Lightning does not replace it, and ``SequentialSampler``, so it does not
    under ``overfit_batches`` either. The number of ranks is read when an epoch starts.

    Args:
        size: number of images.
        batch_size: images per rank and batch.
        shuffle: give each epoch a new order, and only whole global batches, so that all ranks have equally many images.
            Without it every image comes once, and repeats whose ``keep`` is False fill the last batch.
        seed: of the order.
        progress: where to start. Without it each epoch starts at its first batch.
        fixed: every epoch has the order of the first, as ``overfit_batches`` asks for.

    >>> [request.positions.tolist() for request in BatchSampler(5, 2, shuffle=False)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        progress: Progress | None = None,
        fixed: bool = False,
    ) -> None:
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.epoch = 0
        self.progress, self.fixed = progress, fixed

    def __len__(self) -> int:
        whole = self.batch_size * world_size()
        if not self.shuffle:
            return math.ceil(self.size / whole)
        if self.size < whole:
            raise UserError(
                f"batch_size={self.batch_size} on {world_size()} rank(s) is more than the {self.size} training images: "
                "lower data.batch_size"
            )
        return self.size // whole

    def __iter__(self) -> Iterator[Request]:  # type: ignore[override]
        epoch, first = self._start()
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + (0 if self.fixed else epoch)) % 2**63)
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        ranks, batch_size = world_size(), self.batch_size
        for batch in range(first, len(self)):
            rows = order[batch * batch_size * ranks : (batch + 1) * batch_size * ranks]
            block = math.ceil(len(rows) / ranks)
            mine = torch.arange(rank() * block, (rank() + 1) * block)
            keep = mine < len(rows)
            yield Request(rows[mine.clamp(max=len(rows) - 1)], keep, epoch, batch)

    def _start(self) -> tuple[int, int]:
        epoch, first = (self.epoch, 0) if self.progress is None else self.progress.next_start()
        return (epoch, first) if first < len(self) else (epoch + 1, 0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class ResumableLoader(DataLoader):
    """A DataLoader that Lightning regards as resumable. Its state is empty, since the data module keeps the place.

    Lightning would restore a loader's own state only if nothing had asked for the number of training steps before. A
    learning-rate schedule asks for it. A :class:`Failure` of a worker process is raised here.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return _unless_failed(super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _unless_failed(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, Failure):
            raise batch.error()
        yield batch
