"""MemoryStore: all images in one uint8 tensor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslinfo.data.stores.base import Fetched, ImageStore, Shape, checked_labels, places_of
from sslinfo.data.stores.pixels import presented
from sslinfo.errors import UserError


class MemoryStore(ImageStore):
    """All images in one uint8 tensor; a batch is one indexing operation.

    Args:
        images: uint8 (N, C, H, W); a memory-mapped or strided tensor stays as it is.
        labels: int64 (N,), -1 where there is none; None for no labels at all.
        classes: class names in the order of the labels.
        where: a short string for error messages.

    Raises:
        UserError: where dtypes, dimensions or lengths do not fit.

    Example:
        >>> store = MemoryStore(torch.arange(8, dtype=torch.uint8).view(4, 1, 1, 2), torch.tensor([0, 1, 0, 1]))
        >>> batch = store.subset(torch.tensor([3, 1])).read([0])
        >>> batch.images.tolist(), batch.labels.tolist(), batch.index.tolist()
        ([[[[6, 7]]]], [1], [3])
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        where: str = "memory",
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise UserError(
                f"images of {where} must be uint8 (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}"
            )
        super().__init__(len(images), classes, where)
        self.images = images
        self._labels = checked_labels(labels, len(images), self.classes, where)
        self.channels = images.shape[1]

    @property
    def labels(self) -> Tensor:
        return self._labels[self._rows]

    @property
    def shape(self) -> Shape:
        _, c, h, w = self.images.shape
        return c, h, w

    def read(self, indices: Sequence[int]) -> Fetched:
        positions = torch.as_tensor(indices, dtype=torch.int64)
        self._check(positions)
        rows = self._rows[positions]
        return Fetched(self.images.index_select(0, rows).contiguous(), self._labels[rows], self.index[positions])

    def relabel(self, ids: Tensor) -> None:
        self._labels = places_of(self._labels, ids, self.where)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        batch = self.read([position])
        return presented(batch.images[0]), int(batch.labels[0])
