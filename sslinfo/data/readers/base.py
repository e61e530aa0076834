"""What the readers share: their options, where a folder lies, and the store of a split of image files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from sslinfo.data.stores import FileStore, ImageStore, MemoryStore, OnBadImage
from sslinfo.data.stores.base import shown
from sslinfo.errors import UserError

MEMORY_LIMIT = 2 * 2**30  # bytes of a split that `in_memory: auto` holds

InMemory = bool | Literal["auto"]
Splits = dict[str, ImageStore]


class MissingData(FileNotFoundError, UserError):
    """A file or folder of a data set is not where it should be."""


@dataclass(frozen=True)
class ReadOptions:
    """What a user says of all data sets alike; `load` explains each."""

    on_bad_image: OnBadImage = "error"
    in_memory: InMemory = "auto"
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3) or isinstance(self.channels, bool):
            raise UserError(f"data.channels must be 1, 3 or null, got {self.channels!r}")
        if self.on_bad_image not in get_args(OnBadImage):
            raise UserError(f"data.on_bad_image must be one of {get_args(OnBadImage)}, got {self.on_bad_image!r}")
        if self.in_memory != "auto" and not isinstance(self.in_memory, bool):
            raise UserError(f'data.in_memory must be "auto", true or false, got {self.in_memory!r}')

    def holds(self, size: int) -> bool:
        """Whether a split of this many bytes is held in memory."""
        return self.in_memory is True or (self.in_memory == "auto" and size <= MEMORY_LIMIT)


Reader = Callable[[Path, ReadOptions], Splits]


def locate(root: Path, base: str) -> Path:
    """The folder `base`, where root may be that folder or hold it."""
    return root if root.name == base and not (root / base).is_dir() else root / base


def file_store(
    paths: Sequence[str], labels: Tensor, classes: list[str] | None, where: str, options: ReadOptions
) -> ImageStore:
    """A store of image files, decoded into memory where the options say so and all images have one size.

    Args:
        paths: the files.
        labels: int64 (N,), -1 where there is none.
        classes: class names in the order of the labels, or None.
        where: the folder, for error messages.
        options: what the user says; None for ``channels`` takes RGB.

    Raises:
        UserError: there are no files, a file cannot be decoded, or sizes are mixed with ``in_memory=True``.
    """
    channels = options.channels or 3
    store = FileStore(paths, labels, classes, channels=channels, on_bad_image=options.on_bad_image, where=where)
    if options.in_memory is not False:
        decoded = store.to_memory(limit=None if options.in_memory is True else MEMORY_LIMIT)
        if isinstance(decoded, MemoryStore):
            if decoded.skipped:
                rank_zero_only(print)(
                    f"note: {decoded.skipped} of {len(paths)} images in {shown(where)} are skipped as bad", flush=True
                )
            return decoded
        if options.in_memory is True:
            raise UserError(f"the images of {store.where} are not all of one size: set data.in_memory: false")
    # Asked for here, so that the headers are read once and not by every worker process.
    _ = store.shape
    return store
