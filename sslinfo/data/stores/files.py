"""FileStore: image files, decoded whenever they are asked for."""

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from sslinfo.data.stores.base import BadImage, OnBadImage, Shape, checked_labels, places_of, shown
from sslinfo.data.stores.decoding import OWN_CLASS, pixels_of, size_of
from sslinfo.data.stores.per_image import PerImageStore
from sslinfo.errors import UserError

# Below this many pixels the interpreter's work on an image outweighs the decoder's, which alone runs outside the
# interpreter lock: threads then only wait for one another.
_PIXELS_WORTH_A_THREAD = 96 * 96


class FileStore(PerImageStore):
    """Image files, decoded by PIL whenever they are asked for.

    Of an animation it is the first picture. EXIF orientations are applied, and transparent pixels show white.

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
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, size in [("a.png", (4, 3)), ("b.png", (5, 5))]:
        ...     Image.new("RGB", size, (10, 20, 30)).save(folder / name)
        >>> store = FileStore([folder / "a.png", folder / "b.png"])
        >>> store.shape is None, [tuple(image.shape) for image in store.read([0, 1]).images]
        (True, [(3, 3, 4), (3, 5, 5)])
        >>> store.subset(torch.tensor([0])).to_memory().read([0]).images[0, :, 0, 0].tolist()
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
        super().__init__(len(paths), classes, where, on_bad_image)
        self.files = self._paths
        self._labels = checked_labels(labels, len(paths), self.classes, where)
        self.channels = channels
        self._said: list[str] = []  # shared by all subsets

    @property
    def labels(self) -> Tensor:
        return self._labels[self._rows]

    def relabel(self, ids: Tensor) -> None:
        self._labels = places_of(self._labels, ids, self.where)

    @cached_property
    def shape(self) -> Shape | None:  # type: ignore[override]
        """(C, H, W) where all files have one size, else None. Reads headers: a few, or all where those agree."""
        sizes = {size for size in map(self._header, self._probes()) if size is not None}
        if not sizes:  # a whole folder may be bad, and the next one good
            sizes = set(islice(filter(None, map(self._header, range(len(self)))), 1))
        if not sizes:
            raise UserError(f"none of {len(self)} images tried in {self.where} can be decoded: check data.root")
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
        pixels, scaled = pixels_of(path, self.channels)
        if scaled and not self._said:
            self._said.append(path)
            warnings.warn(f"{shown(path)} and further files of 16 bits are scaled to 8 bits; {OWN_CLASS}", stacklevel=2)
        return pixels, int(self._labels[row])

    def _header(self, position: int) -> tuple[int, int] | None:
        identity = int(self.index[position])
        if identity in self._bad:
            return None
        try:
            return size_of(self.path(position))
        except BadImage as error:
            self._skip(identity, error)
            return None

    def _threads(self, pixels: int) -> int:
        return 1 if pixels < _PIXELS_WORTH_A_THREAD else min(16, os.cpu_count() or 1)
