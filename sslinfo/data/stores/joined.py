"""JoinedStore: two stores one behind the other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslinfo.data.stores.base import Fetched, ImageStore, Shape
from sslinfo.errors import UserError


class JoinedStore(ImageStore):
    """Two stores one behind the other; nothing is copied.

    An image of the second has its own `index` plus the `total` of the first, so no two images share an index. Class
    names are those of the first: labels of the second are taken to mean the same.

    Args:
        first, second: the stores, which may be subsets.

    Raises:
        UserError: where the numbers of channels differ, or one batch gets uint8 and float images.

    Example:
        >>> from sslinfo.data.stores import MemoryStore
        >>> first = MemoryStore(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 0]))
        >>> second = MemoryStore(torch.ones(2, 1, 1, 1, dtype=torch.uint8))
        >>> store = JoinedStore(first.subset(torch.tensor([2, 0])), second)
        >>> batch = store.read([3, 0, 2])
        >>> batch.images.flatten().tolist(), batch.labels.tolist(), batch.index.tolist(), len(store)
        ([1, 0, 1], [-1, 0, -1], [4, 2, 3], 4)
    """

    def __init__(self, first: ImageStore, second: ImageStore) -> None:
        if first.channels != second.channels:
            raise UserError(
                f"{first.where} has {first.channels} channels and {second.where} has {second.channels}: "
                "only stores with as many can be joined"
            )
        super().__init__(len(first) + len(second), first.classes, f"{first.where} and {second.where}")
        self.first, self.second = first, second
        self.channels = first.channels
        self.index = torch.cat([first.index, second.index + first.total])
        self.total = first.total + second.total

    @property
    def labels(self) -> Tensor:
        return torch.cat([self.first.labels, self.second.labels])[self._rows]

    @property
    def shape(self) -> Shape | None:
        shape = self.first.shape
        return shape if shape == self.second.shape else None

    @property
    def skipped(self) -> int:
        return self.first.skipped + self.second.skipped

    def read(self, indices: Sequence[int]) -> Fetched:
        positions = torch.as_tensor(indices, dtype=torch.int64)
        self._check(positions)
        rows = self._rows[positions]
        in_second = rows >= len(self.first)
        images: list[Tensor] = []
        labels, kept = [], []
        for store, asked, start in ((self.first, ~in_second, 0), (self.second, in_second, len(self.first))):
            within = rows[asked] - start
            fetched = store.read(within.tolist())
            images.extend(fetched.images)
            labels.append(fetched.labels)
            # An image that was skipped is missing wherever it was asked for.
            kept.append(asked.nonzero()[:, 0][torch.isin(store.index[within], fetched.index)])
        slots = torch.cat(kept)
        order = slots.argsort()
        batch = self._stacked([images[i] for i in order.tolist()])
        return Fetched(batch, torch.cat(labels)[order], self.index[positions[slots[order]]])

    def relabel(self, ids: Tensor) -> None:
        self.first.relabel(ids)
        self.second.relabel(ids)

    def file_of(self, identity: int) -> str | None:
        if identity < self.first.total:
            return self.first.file_of(identity)
        return self.second.file_of(identity - self.first.total)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        row = int(self._rows[position])
        return self.first[row] if row < len(self.first) else self.second[row - len(self.first)]
