"""What stores share that make one image at a time: skipping undecodable ones, decoding everything into memory."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from sslinfo.data.stores.base import BadImage, Fetched, ImageStore, OnBadImage
from sslinfo.data.stores.memory import MemoryStore
from sslinfo.data.stores.pixels import presented
from sslinfo.errors import UserError

_PROBES = 16
_CHUNK = 256


class PerImageStore(ImageStore):
    """Stores that make one image at a time."""

    def __init__(self, length: int, classes: Sequence[str] | None, where: str, on_bad_image: OnBadImage) -> None:
        if on_bad_image not in get_args(OnBadImage):
            raise UserError(f"on_bad_image must be one of {get_args(OnBadImage)}, got {on_bad_image!r}")
        super().__init__(length, classes, where)
        self.on_bad_image = on_bad_image

    @abstractmethod
    def _read(self, row: int) -> tuple[Tensor, int]:
        """The image (C, H, W) and the label of a row; `BadImage` where it cannot be decoded."""

    def read(self, indices: Sequence[int]) -> Fetched:
        positions = torch.as_tensor(indices, dtype=torch.int64)
        self._check(positions)
        images, labels, kept = [], [], []
        for position in positions.tolist():
            item = self._read_or_skip(position)
            if item is not None:
                images.append(item[0])
                labels.append(item[1])
                kept.append(position)
        batch = self._stacked(images)
        found = torch.tensor(kept, dtype=torch.int64)
        return Fetched(batch, torch.tensor(labels, dtype=torch.int64), self.index[found])

    def __getitem__(self, position: int) -> tuple[Any, int]:
        image, label = self._read(int(self._rows[position]))
        return presented(image), label

    def _read_or_skip(self, position: int) -> tuple[Tensor, int] | None:
        identity = int(self.index[position])
        if identity in self._bad:
            return None
        try:
            return self._read(int(self._rows[position]))
        except BadImage as error:
            self._skip(identity, error)
            return None

    def _skip(self, identity: int, error: BadImage) -> None:
        """Count a bad image, or raise where the store does not skip."""
        if self.on_bad_image == "error":
            raise error
        if not self._bad:
            warnings.warn(f"Skipped: {error.fault}. Further ones are counted without a message.", stacklevel=2)
        self._bad.add(identity)

    def _probes(self) -> list[int]:
        """A few positions spread over the store."""
        return torch.linspace(0, len(self) - 1, min(_PROBES, len(self))).round().long().tolist()

    def _probed(self) -> dict[int, tuple[Tensor, int]]:
        """Images and labels there by position, at least one."""
        found = dict(self._good(self._probes()))
        # A whole folder may be bad, and the next one good.
        found = found or dict(islice(self._good(range(len(self))), 1))
        if not found:
            raise UserError(f"none of {len(self)} images tried in {self.where} can be decoded: check data.root")
        return found

    def _good(self, positions: Iterable[int]) -> Iterator[tuple[int, tuple[Tensor, int]]]:
        for position in positions:
            item = self._read_or_skip(position)
            if item is not None:
                yield position, item

    def to_memory(self, progress: bool = True, limit: int | None = None) -> ImageStore:
        """Decode everything into a `MemoryStore`, where all images are uint8 and of one size; else return self.

        Images that are skipped as undecodable are left out; the others keep their `index`.

        Args:
            progress: show a bar, in a terminal.
            limit: return self where the images take more bytes than this.

        Raises:
            BadImage: at the first undecodable image, unless `on_bad_image` is "skip".
        """
        first, *others = [image for image, _ in self._probed().values()]
        if first.dtype != torch.uint8 or any(image.shape != first.shape for image in others):
            return self
        if limit is not None and len(self) * first.numel() > limit:
            return self
        images = torch.empty(len(self), *first.shape, dtype=torch.uint8)
        labels = torch.full((len(self),), -1)
        good = torch.zeros(len(self), dtype=torch.bool)

        def fill(start: int) -> bool:
            for position in range(start, min(start + _CHUNK, len(self))):
                item = self._read_or_skip(position)
                if item is None:
                    continue
                if item[0].shape != first.shape or item[0].dtype != first.dtype:
                    return False
                images[position], labels[position], good[position] = item[0], item[1], True
            return True

        starts = range(0, len(self), _CHUNK)
        threads = self._threads(first.shape[1] * first.shape[2])
        text = f"decoding {self.where}"
        for same in tqdm(_in_threads(fill, starts, threads), text, len(starts), disable=None if progress else True):
            if not same:
                return self
        if not bool(good.all()):
            images, labels = images[good], labels[good]
        named = self.classes is None or not len(labels) or int(labels.max()) < len(self.classes)
        store = MemoryStore(images, labels, self.classes if named else None, self.where)
        store.index, store.total, store._bad = self.index[good], self.total, set(self._bad)
        store.files = self.files
        return store

    def _threads(self, pixels: int) -> int:
        return 1


def _in_threads(work: Callable[[int], bool], starts: Iterable[int], threads: int) -> Iterator[bool]:
    if threads == 1:
        yield from map(work, starts)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(work, starts)
    finally:
        pool.shutdown(cancel_futures=True)
