"""Where images come from: one interface, a batch of indices in and a batch of images out.

`MemoryStore` holds one uint8 tensor, `FileStore` decodes image files, `WrappedStore` puts the interface over any
map-style dataset. A store knows nothing of views or augmentation.
"""

import copy
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sslinfo.errors import UserError

OnBadImage = Literal["error", "skip"]
Shape = tuple[int, int, int]
T = TypeVar("T")

_GREY_MODES = ("1", "L", "LA", "La")
_WAY_OUT = "repair or remove it, or set data.on_bad_image: skip"
_PROBES = 16
_CHUNK = 256
# Below this many pixels the interpreter's work on an image outweighs the decoder's, which alone runs outside the
# interpreter lock: threads then only wait for one another.
_PIXELS_WORTH_A_THREAD = 96 * 96


class BadImage(UserError):
    """A file or an item that cannot be decoded into an image."""


@dataclass
class Fetched:
    """What a store returns for a list of indices.

    Attributes:
        images: uint8 (N, C, H, W), or a list of N uint8 (C, H_i, W_i) where sizes are mixed; float32 in [0, 1] where a
            user's dataset gives that, and whatever float32 a user's transform returns.
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
    """

    where: str
    classes: list[str] | None
    channels: int
    index: Tensor
    _rows: Tensor
    _bad: set[int]

    def __init__(self, length: int, classes: Sequence[str] | None, where: str) -> None:
        self.where = where
        self.classes = None if classes is None else list(classes)
        self.index = torch.arange(length)
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
        self._labels = _checked_labels(labels, len(images), self.classes, where)
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
        return _presented(batch.images[0]), int(batch.labels[0])


class _PerImageStore(ImageStore):
    """Stores that make one image at a time."""

    on_bad_image: OnBadImage

    @abstractmethod
    def _read(self, row: int) -> tuple[Tensor, int]:
        """The image (C, H, W) and the label of a row; `BadImage` where it cannot be decoded."""

    def __getitems__(self, indices: Sequence[int]) -> Fetched:
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
        return _presented(image), label

    def _stacked(self, images: list[Tensor]) -> Tensor | list[Tensor]:
        shape = self.shape
        if shape is None or any(tuple(image.shape) != shape for image in images):
            return images
        if not images:
            return torch.empty(0, *shape, dtype=torch.uint8)
        if len({image.dtype for image in images}) > 1:
            raise UserError(f"{self.where} mixes uint8 and float images in a batch: return one of the two")
        return torch.stack(images)

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
            warnings.warn(f"Skipped: {error}. Further ones are counted without a message.", stacklevel=2)
        self._bad.add(identity)

    def _probes(self) -> list[int]:
        """A few positions spread over the store."""
        return torch.linspace(0, len(self) - 1, min(_PROBES, len(self))).round().long().tolist()

    def _probed(self) -> list[Tensor]:
        """The images there, at least one."""
        images = [item[0] for item in map(self._read_or_skip, self._probes()) if item is not None]
        if not images:
            raise UserError(f"none of {len(self._probes())} images tried in {self.where} can be decoded")
        return images

    def to_memory(self, progress: bool = True, limit: int | None = None) -> ImageStore:
        """Decode everything into a `MemoryStore`, where all images are uint8 and of one size; else return self.

        Images that are skipped as undecodable are left out; the others keep their `index`.

        Args:
            progress: show a bar, in a terminal.
            limit: return self where the images take more bytes than this.

        Raises:
            BadImage: at the first undecodable image, unless `on_bad_image` is "skip".
        """
        first, *others = self._probed()
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
        store = MemoryStore(images, labels, self.classes, self.where)
        store.index, store._bad = self.index[good], set(self._bad)
        return store

    def _threads(self, pixels: int) -> int:
        return 1


class FileStore(_PerImageStore):
    """Image files, decoded by PIL whenever they are asked for.

    Args:
        paths: the files.
        labels: int64 (N,), -1 where there is none; None for no labels at all.
        classes: class names in the order of the labels.
        channels: 1 (converted to grey) or 3 (converted to RGB). 16-bit grey is scaled to 8 bits.
        on_bad_image: what to do with a file that cannot be decoded: "error", or "skip" (counted in `skipped`, the first
            one is named in a warning).
        where: a short string for error messages; by default the folder that all files share.

    Raises:
        UserError: where there are no files, or lengths do not fit.
        BadImage: (a UserError, on reading) naming the file that cannot be decoded. A file that cannot be *read* (gone,
            no permission, a failing disk) is an OSError in either mode.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, size in [("a.png", (4, 3)), ("b.png", (5, 5))]:
        ...     Image.new("RGB", size, (10, 20, 30)).save(folder / name)
        >>> store = FileStore([folder / "a.png", folder / "b.png"])
        >>> store.shape is None, [tuple(image.shape) for image in store.__getitems__([0, 1]).images]
        (True, [(3, 3, 4), (3, 5, 5)])
        >>> store.subset(torch.tensor([0])).to_memory().__getitems__([0]).images[0, :, 0, 0].tolist()
        [10, 20, 30]
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        *,
        channels: int = 3,
        on_bad_image: OnBadImage = "error",
        where: str | None = None,
    ) -> None:
        if not paths:
            raise UserError(f"there are no image files in {where or 'an empty list of paths'}: check data.root")
        if channels not in (1, 3):
            raise UserError(f"channels must be 1 or 3 for image files, got {channels}: write a dataset class for more")
        # One array of bytes: worker processes share it, where a list of a million strings would be copied to each as
        # its reference counts are touched.
        self._paths = np.array([os.fsencode(path) for path in paths])
        if where is None:
            where = os.path.commonpath([os.path.dirname(path) for path in paths])
        super().__init__(len(paths), classes, where)
        self._labels = _checked_labels(labels, len(paths), self.classes, where)
        self.channels = channels
        self.on_bad_image = _checked_policy(on_bad_image)

    @property
    def labels(self) -> Tensor:
        return self._labels[self._rows]

    @cached_property
    def shape(self) -> Shape | None:  # type: ignore[override]
        """(C, H, W) where all files have one size, else None. Reads headers: a few, or all where those agree."""
        sizes = {size for size in map(self._header, self._probes()) if size is not None}
        if len(sizes) == 1:
            for position in tqdm(range(len(self)), f"sizes in {self.where}", leave=False, disable=None):
                size = self._header(position)
                if size is not None and size not in sizes:
                    return None
        return (self.channels, *sizes.pop()) if len(sizes) == 1 else None

    def path(self, position: int) -> str:
        """The file at this position."""
        return os.fsdecode(self._paths[int(self._rows[position])])

    def _read(self, row: int) -> tuple[Tensor, int]:
        path = os.fsdecode(self._paths[row])
        return _decoded(path, lambda image: _pil_to_tensor(_converted(image, self.channels))), int(self._labels[row])

    def _header(self, position: int) -> tuple[int, int] | None:
        identity = int(self.index[position])
        if identity in self._bad:
            return None
        try:
            return _decoded(self.path(position), lambda image: (image.height, image.width))
        except BadImage as error:
            self._skip(identity, error)
            return None

    def _threads(self, pixels: int) -> int:
        return 1 if pixels < _PIXELS_WORTH_A_THREAD else min(16, os.cpu_count() or 1)


class WrappedStore(_PerImageStore):
    """Any map-style dataset.

    An item is an image, `(image, label, ...)`, or a dict with "image" and perhaps "label"; an image is a PIL image, a
    uint8 or float tensor (C, H, W), or a uint8 or float numpy array (H, W) or (H, W, C). Floats lie in [0, 1], unless a
    `transform` has the last word. Labels are taken from `dataset.targets` or `dataset.labels`, where those say what
    the items say; else one pass over all items finds them, when `labels` is first asked for.

    Args:
        dataset: has `__len__` and `__getitem__`.
        transform: the user's callable on one image, as the dataset returns it, to a tensor (C, H, W) or a PIL image.
        channels: 1 or 3 converts; None takes what the items have.
        on_bad_image: "error", or "skip" for items that PIL cannot decode.
        where: a short string for error messages; by default the class name of the dataset.

    Raises:
        TypeError: where the dataset has no length or no `__getitem__`.
        UserError: where an item or the result of the transform is not an image of the kinds above, naming the item.

    Example:
        >>> store = WrappedStore([(np.full((2, 2), 7, dtype=np.uint8), 1), (np.zeros((2, 2), dtype=np.uint8), 0)])
        >>> store.shape, store.labels.tolist(), store.__getitems__([0]).images.tolist()
        ((1, 2, 2), [1, 0], [[[[7, 7], [7, 7]]]])
    """

    def __init__(
        self,
        dataset: Any,
        transform: Callable[[Any], Any] | None = None,
        *,
        channels: int | None = None,
        on_bad_image: OnBadImage = "error",
        where: str | None = None,
    ) -> None:
        where = where or (dataset.where if isinstance(dataset, ImageStore) else type(dataset).__name__)
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"{where} is no map-style dataset: it needs __len__ and __getitem__")
        if len(dataset) == 0:
            raise UserError(f"the dataset {where} is empty: check its root and split")
        names = getattr(dataset, "classes", None)
        classes = [str(name) for name in names] if isinstance(names, list | tuple) else None
        super().__init__(len(dataset), classes, where)
        if isinstance(dataset, ImageStore):
            self.index = dataset.index.clone()
        self.dataset = dataset
        self.transform = transform
        self.on_bad_image = _checked_policy(on_bad_image)
        self._wanted_channels = channels
        self.channels = channels or 0
        # Shared by all subsets, so that the labels are looked for once.
        self._label_cache: dict[str, Tensor] = {}
        probed = self._probed()
        self.channels = max(image.shape[0] for image in probed)
        shapes = {(self.channels, image.shape[1], image.shape[2]) for image in probed}
        self._shape = shapes.pop() if len(shapes) == 1 else None
        # Grey images among coloured ones become RGB; the other way round would lose what the user did not offer.
        self._wanted_channels = self.channels if self.channels == 3 else channels

    @property
    def shape(self) -> Shape | None:
        """(C, H, W) where the images that were tried have one size, else None; a batch with another size is a list."""
        return self._shape

    @property
    def labels(self) -> Tensor:
        if "labels" not in self._label_cache:
            known = _known_labels(self.dataset)
            self._label_cache["labels"] = self._labels_from_items() if known is None else known
        return self._label_cache["labels"][self._rows]

    def to_memory(self, progress: bool = True, limit: int | None = None) -> ImageStore:
        """As for other stores; with a `transform`, which may be random, return self."""
        return self if self.transform is not None else super().to_memory(progress, limit)

    def _labels_from_items(self) -> Tensor:
        labels = torch.full((len(self.dataset),), -1)
        for row in tqdm(range(len(self.dataset)), f"labels of {self.where}", disable=None):
            try:
                labels[row] = self._item(row)[1]
            except BadImage as error:
                if self.on_bad_image == "error":
                    raise error
        return labels

    def _item(self, row: int) -> tuple[Any, int]:
        where = f"item {row} of {self.where}"
        try:
            image, label = _image_and_label(self.dataset[row], where)
            if isinstance(image, Image.Image):
                # PIL decodes late: a truncated file must show itself here.
                image.load()
        except OSError as error:
            if error.errno is not None:
                raise
            raise BadImage(f"{where} cannot be decoded ({error}): {_WAY_OUT}") from error
        return image, label

    def _read(self, row: int) -> tuple[Tensor, int]:
        image, label = self._item(row)
        where = f"item {row} of {self.where}"
        if self.transform is not None:
            image, where = self.transform(image), f"what the transform returned for {where}"
        try:
            tensor = _to_tensor(image, self._wanted_channels)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        if self.channels and len(tensor) != self.channels:
            raise UserError(
                f"{where} has {len(tensor)} channels, the images tried first have {self.channels}: "
                "set data.channels, or let the dataset convert its images"
            )
        if self.transform is None and tensor.is_floating_point():
            low, high = tensor.aminmax()
            if not (float(low) >= 0 and float(high) <= 1):
                raise UserError(
                    f"{where} has values from {float(low):.3g} to {float(high):.3g}: float images lie in [0, 1]; "
                    "take the normalisation out of the dataset"
                )
        return tensor, label


def match_channels(images: Tensor, channels: int | None) -> Tensor:
    """Images (..., C, H, W) with this many channels: grey is repeated to 3, RGB is weighed to grey; None leaves them.

    Raises:
        UserError: where the numbers are others than 1 and 3 and differ.

    Example:
        >>> match_channels(torch.full((1, 1, 1), 9, dtype=torch.uint8), 3).flatten().tolist()
        [9, 9, 9]
    """
    have = images.shape[-3]
    if channels is None or have == channels:
        return images
    if (have, channels) == (1, 3):
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:]).contiguous()
    if (have, channels) == (3, 1):
        # PIL's integers for 0.299 R + 0.587 G + 0.114 B, so that a data set is the same in memory and in files.
        luma = torch.tensor([19595, 38470, 7471]).view(3, 1, 1)
        if images.is_floating_point():
            return (images * luma / 65536).sum(-3, keepdim=True)
        return (((images * luma).sum(-3, keepdim=True) + 32768) >> 16).to(images.dtype)
    raise UserError(f"images with {have} channels cannot become images with {channels}: set data.channels to {have}")


def _decoded(path: str, use: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(path) as image:
            return use(image)
    except Exception as error:
        # PIL reports broken files by many kinds of exception; errno is only set by the operating system.
        if (isinstance(error, OSError) and error.errno is not None) or isinstance(error, MemoryError):
            raise
        raise BadImage(f"{path} cannot be decoded ({error}): {_WAY_OUT}") from error


def _converted(image: Image.Image, channels: int | None) -> Image.Image:
    """The image as "L" or "RGB"; with None, grey stays grey."""
    if channels not in (None, 1, 3):
        raise ValueError(f"PIL images have 1 or 3 channels here, not {channels}: return a tensor (C, H, W) for more")
    if image.mode.startswith("I;16"):
        # PIL would clip at 255.
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"PIL mode {image.mode} has no fixed range; convert it to 8 or 16 bits")
    if channels is None:
        channels = 1 if image.mode in _GREY_MODES else 3
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _pil_to_tensor(image: Image.Image) -> Tensor:
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _to_tensor(image: object, channels: int | None) -> Tensor:
    """uint8 or float32 (C, H, W) of what a dataset or a transform may return; ValueError says what is wrong with it."""
    if isinstance(image, Image.Image):
        return _pil_to_tensor(_converted(image, channels))
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
            raise ValueError(f"a numpy image is read as (H, W, C), got shape {image.shape}: transpose it")
        if image.ndim == 3:
            image = image.transpose(2, 0, 1)
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, Tensor):
        raise ValueError(f"an image is a PIL image, a tensor or a numpy array, got {type(image).__name__}")
    tensor = image.detach().as_subclass(Tensor)
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3 or tensor.numel() == 0:
        raise ValueError(f"an image has shape (C, H, W), got {tuple(tensor.shape)}")
    if tensor.is_floating_point():
        tensor = tensor.float()
    elif tensor.dtype != torch.uint8:
        raise ValueError(f"an image is uint8, or float in [0, 1], got {tensor.dtype}")
    return match_channels(tensor, channels)


def _presented(image: Tensor) -> Image.Image | Tensor:
    """An image as per-image transforms know it."""
    if image.dtype != torch.uint8 or image.shape[0] not in (1, 3):
        return image
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def _image_and_label(item: Any, where: str) -> tuple[Any, int]:
    label: Any = None
    if isinstance(item, dict):
        if "image" not in item:
            raise UserError(f'{where} is a dict without "image": it has {sorted(map(str, item))}')
        image, label = item["image"], item.get("label")
    elif isinstance(item, tuple | list):
        if not item:
            raise UserError(f"{where} is empty")
        image, label = item[0], item[1] if len(item) > 1 else None
    else:
        image = item
    if label is None:
        return image, -1
    try:
        return image, index(label)
    except TypeError:
        raise UserError(
            f"the label of {where} must be an integer or None, got {type(label).__name__}: "
            "items are image, (image, label) or a dict with image and label"
        ) from None


def _known_labels(dataset: Any) -> Tensor | None:
    """Labels that a dataset lists, where its items are sure to have the same."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels"):
        listed = getattr(dataset, name, None)
        if isinstance(listed, list | tuple | np.ndarray | Tensor) and len(listed) == len(dataset):
            values = np.asarray(listed)
            if values.ndim == 1 and np.issubdtype(values.dtype, np.integer):
                return torch.from_numpy(values.astype(np.int64))
    return None


def _checked_labels(labels: Tensor | None, length: int, classes: list[str] | None, where: str) -> Tensor:
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


def _checked_policy(on_bad_image: OnBadImage) -> OnBadImage:
    if on_bad_image not in get_args(OnBadImage):
        raise UserError(f"on_bad_image must be one of {get_args(OnBadImage)}, got {on_bad_image!r}")
    return on_bad_image


def _in_threads(work: Callable[[int], bool], starts: Iterable[int], threads: int) -> Iterator[bool]:
    if threads == 1:
        yield from map(work, starts)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(work, starts)
    finally:
        pool.shutdown(cancel_futures=True)
