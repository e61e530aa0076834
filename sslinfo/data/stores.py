"""Where images come from: one interface, a batch of indices in and a batch of images out.

`MemoryStore` holds one uint8 tensor and `JoinedStore` puts two stores one behind the other; `FileStore` (file_store.py)
decodes image files, `WrappedStore` (wrapped_store.py) puts the interface over any map-style dataset. A store knows
nothing of views or augmentation.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from sslinfo.data.pixels import presented
from sslinfo.errors import UserError

OnBadImage = Literal["error", "skip"]
Shape = tuple[int, int, int]


class BadImage(UserError):
    """A file or an item that cannot be decoded into an image."""


@dataclass
class Fetched:
    """What a store returns for a list of indices.

    Attributes:
        images: uint8 (N, C, H, W), or a list of N uint8 (C, H_i, W_i) where sizes are mixed; float32 in [0, 1] where a
            user's dataset gives that.
        labels: int64 (N,), -1 where there is none.
        index: int64 (N,), which images these are: the position each has in the store before any `subset`. Images that
            were skipped as undecodable are missing here.
    """

    images: Tensor | list[Tensor]
    labels: Tensor
    index: Tensor


class ImageStore(ABC):
    """A finite set of images with labels, read a batch at a time.

    Attributes:
        where: a short string for error messages: a path or a name.
        classes: class names in the order of the labels, or None.
        channels: the number of channels of every image.
        index: int64 (len,), the position of each image in the store before any `subset`.
        total: how many images the store had before any `subset`; every `index` is below it.
    """

    where: str
    classes: list[str] | None
    channels: int
    index: Tensor
    total: int
    _rows: Tensor
    _bad: set[int]

    def __init__(self, length: int, classes: Sequence[str] | None, where: str) -> None:
        self.where = where
        self.classes = None if classes is None else list(classes)
        self.index = torch.arange(length)
        self.total = length
        self._rows = torch.arange(length)
        self._bad = set()

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """int64 (len,), -1 where there is none."""

    @property
    @abstractmethod
    def shape(self) -> Shape | None:
        """(C, H, W) of every image, or None where sizes are mixed."""

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Fetched:
        """The images at these positions, less those that cannot be decoded where the store skips them."""

    @abstractmethod
    def __getitem__(self, position: int) -> tuple[Any, int]:
        """One image and its label, as map-style datasets have it: PIL for 1 and 3 channels, or else uint8 (C, H, W)."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def skipped(self) -> int:
        """How many different images were skipped as undecodable so far, in this process."""
        return len(self._bad)

    def subset(self, indices: Tensor) -> Self:
        """The store of the images at these positions; nothing is copied and each image keeps its `index`."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        self._check(chosen)
        part = copy.copy(self)
        part.index, part._rows, part._bad = self.index[chosen], self._rows[chosen], set(self._bad)
        return part

    def _check(self, positions: Tensor) -> None:
        if positions.ndim != 1:
            raise ValueError(f"indices must have one dimension, got shape {tuple(positions.shape)}")
        if len(positions) and (int(positions.min()) < 0 or int(positions.max()) >= len(self)):
            raise IndexError(
                f"indices must lie in 0 ... {len(self) - 1}, the images of {self.where}; "
                f"got {int(positions.min())} ... {int(positions.max())}"
            )

    def _stacked(self, images: list[Tensor]) -> Tensor | list[Tensor]:
        """One tensor where the images of the store have one size, else the list."""
        shape = self.shape
        if shape is None or any(tuple(image.shape) != shape for image in images):
            return images
        if not images:
            return torch.empty(0, *shape, dtype=torch.uint8)
        if len({image.dtype for image in images}) > 1:
            raise UserError(f"{self.where} mixes uint8 and float images in a batch: return one of the two")
        return torch.stack(images)


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
        >>> batch = store.subset(torch.tensor([3, 1])).__getitems__([0])
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

    def __getitems__(self, indices: Sequence[int]) -> Fetched:
        positions = torch.as_tensor(indices, dtype=torch.int64)
        self._check(positions)
        rows = self._rows[positions]
        return Fetched(self.images.index_select(0, rows).contiguous(), self._labels[rows], self.index[positions])

    def __getitem__(self, position: int) -> tuple[Any, int]:
        batch = self.__getitems__([position])
        return presented(batch.images[0]), int(batch.labels[0])


class JoinedStore(ImageStore):
    """Two stores one behind the other; nothing is copied.

    The images of the second keep their `index` plus the `total` of the first, so that no two images share one. Class
    names are those of the first: labels of the second are taken to mean the same.

    Args:
        first, second: the stores, which may be subsets.

    Raises:
        UserError: where the numbers of channels differ, or one batch gets uint8 and float images.

    Example:
        >>> first = MemoryStore(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 0]))
        >>> second = MemoryStore(torch.ones(2, 1, 1, 1, dtype=torch.uint8))
        >>> store = JoinedStore(first.subset(torch.tensor([2, 0])), second)
        >>> batch = store.__getitems__([3, 0, 2])
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

    def __getitems__(self, indices: Sequence[int]) -> Fetched:
        positions = torch.as_tensor(indices, dtype=torch.int64)
        self._check(positions)
        rows = self._rows[positions]
        in_second = rows >= len(self.first)
        images: list[Tensor] = []
        labels, kept = [], []
        for store, asked, start in ((self.first, ~in_second, 0), (self.second, in_second, len(self.first))):
            within = rows[asked] - start
            fetched = store.__getitems__(within.tolist())
            images.extend(fetched.images)
            labels.append(fetched.labels)
            # An image that was skipped is missing wherever it was asked for.
            kept.append(asked.nonzero()[:, 0][torch.isin(store.index[within], fetched.index)])
        slots = torch.cat(kept)
        order = slots.argsort()
        batch = self._stacked([images[i] for i in order.tolist()])
        return Fetched(batch, torch.cat(labels)[order], self.index[positions[slots[order]]])

    def __getitem__(self, position: int) -> tuple[Any, int]:
        row = int(self._rows[position])
        return self.first[row] if row < len(self.first) else self.second[row - len(self.first)]


def checked_labels(labels: Tensor | None, length: int, classes: list[str] | None, where: str) -> Tensor:
    """The labels as int64, -1 for None; UserError where they do not fit."""
    if labels is None:
        return torch.full((length,), -1)
    if labels.shape != (length,) or labels.is_floating_point():
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise UserError(f"labels of {where} must be integers of shape ({length},), got {got}")
    if length and (int(labels.min()) < -1 or (classes is not None and int(labels.max()) >= len(classes))):
        most = "" if classes is None else f" and below {len(classes)}, the number of classes"
        got = f"{int(labels.min())} ... {int(labels.max())}"
        raise UserError(f"labels of {where} must be at least -1{most}, got {got}")
    return labels.to(torch.int64)
