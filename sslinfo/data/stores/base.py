"""The interface of all stores: a batch of indices in, a batch of images out."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslinfo.errors import UserError

OnBadImage = Literal["error", "skip"]
Shape = tuple[int, int, int]


class BadImage(UserError):
    """A file or an item that cannot be decoded into an image. ``fault`` says why, without the way out.

    >>> error = BadImage("a.png is a folder")
    >>> error.fault, str(error)
    ('a.png is a folder', 'a.png is a folder: repair or remove it, or set data.on_bad_image: skip')
    """

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return f"{self.fault}: repair or remove it, or set data.on_bad_image: skip"


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
        files: the file of each image before any `subset`, as bytes, or None where images are no files.
    """

    where: str
    classes: list[str] | None
    channels: int
    index: Tensor
    total: int
    files: NDArray[np.bytes_] | None
    _rows: Tensor
    _bad: set[int]

    def __init__(self, length: int, classes: Sequence[str] | None, where: str) -> None:
        self.where = where
        self.classes = None if classes is None else list(classes)
        self.index = torch.arange(length)
        self.total = length
        self.files = None
        self._rows = torch.arange(length)
        self._bad = set()

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """int64 (len,), -1 where there is none."""

    @property
    def labels_are_known(self) -> bool:
        """Whether `labels` costs nothing, where it might take a pass over all images."""
        return True

    @property
    @abstractmethod
    def shape(self) -> Shape | None:
        """(C, H, W) of every image, or None where sizes are mixed."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Fetched:
        """The images at these positions, less those that cannot be decoded where the store skips them."""

    @abstractmethod
    def relabel(self, ids: Tensor) -> None:
        """From now on a label is the place of what it was in `ids`, int64 (K,) in rising order; -1 stays -1."""

    @abstractmethod
    def __getitem__(self, position: int) -> tuple[Any, int]:
        """One image and its label, as map-style datasets have it: PIL for 1 and 3 channels, or else uint8 (C, H, W)."""

    def __getitems__(self, indices: Sequence[int]) -> Fetched:
        """How torch's DataLoader asks for a batch: :meth:`read`."""
        return self.read(indices)

    def __len__(self) -> int:
        return len(self.index)

    def file_of(self, identity: int) -> str | None:
        """The file of the image with this `index`, None where images are no files."""
        return None if self.files is None else os.fsdecode(self.files[identity])

    def name_of(self, identity: int) -> str:
        """What a message calls the image with this `index`: its file, or its place."""
        file = self.file_of(identity)
        return f"image {identity} of {self.where}" if file is None else shown(file)

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
            raise UserError(f"indices must have one dimension, got shape {tuple(positions.shape)}")
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


def shown(path: str) -> str:
    r"""A path or name as it can be printed anywhere: bytes that are not UTF-8 are written out.

    >>> shown("caf\udce9.png")
    'caf\\xe9.png'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def checked_labels(labels: Tensor | None, length: int, classes: list[str] | None, where: str) -> Tensor:
    """The labels as int64, -1 for None; UserError where they do not fit."""
    if labels is None:
        return torch.full((length,), -1)
    if labels.shape != (length,) or labels.is_floating_point():
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise UserError(f"labels of {where} must be integers of shape ({length},), got {got}")
    got = f"{int(labels.min())} ... {int(labels.max())}" if length else ""
    if length and int(labels.min()) < -1:
        raise UserError(
            f"labels of {where} must be at least -1, got {got}: -1 says that there is none, and image "
            f"{int(labels.argmin())} has {int(labels.min())}"
        )
    if length and classes is not None and int(labels.max()) >= len(classes):
        raise UserError(f"labels of {where} must be below {len(classes)}, the number of classes, got {got}")
    return labels.to(torch.int64)


def places_of(labels: Tensor, ids: Tensor, where: str) -> Tensor:
    """The place in `ids`, which rises, of each label; -1 for -1.

    Raises:
        UserError: a label is not among them.

    Example:
        >>> places_of(torch.tensor([7, -1, 3]), torch.tensor([3, 5, 7]), "a set").tolist()
        [2, -1, 0]
    """
    places = torch.searchsorted(ids, labels).clamp(max=len(ids) - 1)
    wrong = (ids[places] != labels) & (labels != -1)
    if bool(wrong.any()):
        raise UserError(
            f"{where} has the label {int(labels[wrong][0])}, which no training image has: "
            "add such images to the training set, or set the label to None or -1"
        )
    return torch.where(labels == -1, -1, places)
