"""The data sets that have a name: one table, a row each. `load` returns a store for every split of one."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100, STL10

from sslinfo.data.normalization import Normalization
from sslinfo.data.readers import Reader, ReadOptions, Splits, archives, arrays, folders
from sslinfo.data.readers.base import InMemory
from sslinfo.data.stores import ImageStore, MemoryStore, OnBadImage
from sslinfo.data.stores.pixels import match_channels
from sslinfo.data.views import Preset
from sslinfo.errors import UserError

DEFAULT_VIEWS: Preset = "vicreg"


@dataclass(frozen=True)
class DataSet:
    """One row of the table.

    Attributes:
        name: the value of ``data.dataset`` that asks for it.
        layout: what the folder ``data.root`` is or contains.
        splits: which splits that gives.
        read: the reader of that layout, from (folder, options) to the splits: ``train`` and what there is of ``val``,
            ``test`` and ``unlabelled``.
        normalization: published mean and standard deviation of the training images, channel by channel, for pixels in
            [0, 1]; None to measure them.
        download: fetches what is missing into a folder; None where a user has to do that.
        views: the preset that is used where a user names no views.
        needs_root: False for data that come with a library.
    """

    name: str
    layout: str
    splits: str
    read: Reader
    normalization: Normalization | None = None
    download: Callable[[Path], None] | None = None
    views: Preset = DEFAULT_VIEWS
    needs_root: bool = True


TABLE = (
    DataSet(
        "digits",
        layout="nothing: 1797 grey images of 8 x 8 pixels come with scikit-learn",
        splits="train",
        read=arrays.digits,
        views="digits",
        needs_root=False,
    ),
    DataSet(
        "cifar10",
        layout="`cifar-10-batches-py`, the original pickles",
        splits="train, test",
        read=partial(arrays.cifar, CIFAR10),
        normalization=Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        download=partial(archives.download, CIFAR10),
    ),
    DataSet(
        "cifar100",
        layout="`cifar-100-python`, the original pickles",
        splits="train, test",
        read=partial(arrays.cifar, CIFAR100),
        normalization=Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        download=partial(archives.download, CIFAR100),
    ),
    DataSet(
        "stl10",
        layout="`stl10_binary`, the original binary files",
        splits="train, test, unlabelled",
        read=arrays.stl10,
        download=partial(archives.download, STL10),
    ),
    DataSet(
        "tinyimagenet",
        layout="`tiny-imagenet-200`, the original layout",
        splits="train, val",
        read=folders.tinyimagenet,
    ),
    DataSet(
        "imagefolder",
        layout="`train/`, and perhaps `val/` and `test/`; or class folders; or images without labels",
        splits="those; train",
        read=folders.imagefolder,
    ),
)


def names() -> str:
    """The names of the table, for a sentence.

    >>> names().split(", ")[:3]
    ['digits', 'cifar10', 'cifar100']
    """
    return ", ".join(row.name for row in TABLE)


def named(name: str) -> DataSet:
    """The row of this name.

    Raises:
        UserError: there is none; the message has the nearest name.

    Example:
        >>> named("cifar100").normalization.mean
        (0.5071, 0.4865, 0.4409)
        >>> named("cifar-10")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        sslinfo.errors.UserError: data.dataset: unknown name 'cifar-10', did you mean 'cifar10'? Known: digits, ...
    """
    rows = {row.name: row for row in TABLE}
    if name not in rows:
        near = difflib.get_close_matches(name.lower(), rows, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise UserError(f"data.dataset: unknown name {name!r}{hint} Known: {names()}, or any map-style dataset class")
    return rows[name]


def fetch(name: str, root: str | Path) -> None:
    """Download what is missing of a data set into `root`; nothing happens where its row has no download.

    Raises:
        UserError: the name is unknown, or the download fails.
    """
    row = named(name)
    if row.download is not None:
        row.download(Path(root).expanduser())


def load(
    name: str,
    root: str | Path | None = None,
    *,
    download: bool = False,
    on_bad_image: OnBadImage = "error",
    in_memory: InMemory = "auto",
    channels: int | None = None,
) -> Splits:
    """The splits of a data set, each an `ImageStore`.

    Args:
        name: a name of ``TABLE``, whose rows say what `root` has to contain.
        root: the folder.
        download: fetch what is missing, where the row has a download.
        on_bad_image: "error", or "skip" for image files that cannot be decoded.
        in_memory: whether a split is held as one uint8 tensor. True holds it, False leaves files where they are. "auto"
            holds it where all images have one size and take 2 GiB or less. Larger binary files are then mapped into
            memory, and image files are decoded when they are asked for.
        channels: 1 or 3 converts; None takes 3 for image files, and what there is for the others.

    Raises:
        UserError: (a ValueError) an unknown name, an empty class, an undecodable file, classes that the training split
            lacks, images of mixed sizes with `in_memory=True`.
        MissingData: (a FileNotFoundError and a UserError) a missing file or folder.

    Example:
        >>> digits = load("digits")["train"]
        >>> len(digits), digits.shape, digits.labels[:5].tolist(), digits.read([0]).images[0, 0, 1].tolist()
        (1797, (1, 8, 8), [0, 1, 2, 3, 4], [0, 0, 207, 239, 159, 239, 80, 0])
    """
    row = named(name)
    options = ReadOptions(on_bad_image, in_memory, channels)
    if root is None and row.needs_root:
        raise UserError(f"{name} needs data.root, the folder that holds it")
    folder = Path(root or "").expanduser()
    if download:
        fetch(name, folder)
    splits = row.read(folder, options)
    return splits if channels is None else {split: _converted(store, channels) for split, store in splits.items()}


def _converted(store: ImageStore, channels: int) -> ImageStore:
    if store.channels == channels or not isinstance(store, MemoryStore):
        return store
    images = torch.cat([match_channels(part, channels) for part in store.images.split(4096)])
    return MemoryStore(images, store.labels, store.classes, store.where)
