"""WrappedStore: the interface of stores over any map-style dataset."""

import math
import sys
from operator import index
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sslinfo.data.stores.base import (
    BadImage,
    ImageStore,
    OnBadImage,
    Shape,
    checked_labels,
    places_of,
)
from sslinfo.data.stores.per_image import PerImageStore
from sslinfo.data.stores.pixels import to_tensor
from sslinfo.errors import UserError


class WrappedStore(PerImageStore):
    """Any map-style dataset.

    An item is an image, `(image, label, ...)`, or a dict with "image" and perhaps "label"; an image is a PIL image, a
    uint8 or float tensor (C, H, W), or a uint8 or float numpy array (H, W) or (H, W, C). Floats lie in [0, 1]. Labels
    come from `dataset.targets` or `dataset.labels`, unless the dataset has a `target_transform` or a few items that are
    tried say otherwise. Where they cannot, one pass over all items finds them, when `labels` is first asked for.

    Args:
        dataset: has `__len__` and `__getitem__`.
        channels: 1 or 3 converts; None takes what the items have.
        on_bad_image: "error", or "skip" for items that PIL cannot decode.
        where: a short string for error messages; by default the class name of the dataset.

    Raises:
        UserError: where the dataset has no length or no `__getitem__`, or where an item is not an image of the kinds
            above, naming the item.

    Example:
        >>> store = WrappedStore([(np.full((2, 2), 7, dtype=np.uint8), 1), (np.zeros((2, 2), dtype=np.uint8), 0)])
        >>> store.shape, store.labels.tolist(), store.read([0]).images.tolist()
        ((1, 2, 2), [1, 0], [[[[7, 7], [7, 7]]]])
    """

    def __init__(
        self,
        dataset: Any,
        *,
        channels: int | None = None,
        on_bad_image: OnBadImage = "error",
        where: str | None = None,
    ) -> None:
        where = where or (dataset.where if isinstance(dataset, ImageStore) else type(dataset).__name__)
        if not hasattr(type(dataset), "__len__") or not hasattr(type(dataset), "__getitem__"):
            raise UserError(f"{where} is no map-style dataset: it needs __len__ and __getitem__")
        length = _length(dataset, where)
        names = getattr(dataset, "classes", None)
        classes = [str(name) for name in names] if isinstance(names, list | tuple) else None
        super().__init__(length, classes, where, on_bad_image)
        if isinstance(dataset, ImageStore):
            self.index, self.total, self.files = dataset.index.clone(), dataset.total, dataset.files
        self.dataset = dataset
        self._wanted_channels = channels
        self.channels = channels or 0
        # Shared by all subsets, so that the labels are looked for once.
        self._label_cache: dict[str, Tensor] = {}
        self._ids: Tensor | None = None
        probed = self._probed()
        images = [image for image, _ in probed.values()]
        self.channels = max(image.shape[0] for image in images)
        shapes = {(self.channels, image.shape[1], image.shape[2]) for image in images}
        self._shape = shapes.pop() if len(shapes) == 1 else None
        self._listed = _listed_labels(dataset)
        tried = {row: label for row, (_, label) in probed.items()}
        if self._listed is not None and self._disagree(self._listed, tried):
            self._listed = None
        # Grey images among coloured ones become RGB. The other way round would lose colours without being asked to.
        self._wanted_channels = self.channels if self.channels == 3 else channels

    @property
    def shape(self) -> Shape | None:
        """(C, H, W) where the images that were tried have one size, else None; a batch with another size is a list."""
        return self._shape

    @property
    def labels(self) -> Tensor:
        if "labels" not in self._label_cache:
            found = self._labels_from_items() if self._listed is None else self._listed
            found = checked_labels(found, len(self.dataset), None, self.where)
            self._label_cache["labels"] = found if self._ids is None else places_of(found, self._ids, self.where)
        return self._label_cache["labels"][self._rows]

    @property
    def labels_are_known(self) -> bool:
        return self._listed is not None or "labels" in self._label_cache

    def relabel(self, ids: Tensor) -> None:
        if "labels" in self._label_cache:
            self._label_cache["labels"] = places_of(self._label_cache["labels"], ids, self.where)
        self._ids = ids

    def _disagree(self, listed: Tensor, tried: dict[int, int]) -> bool:
        """Whether items that were tried have other labels than the dataset lists; said where they have."""
        for row, label in tried.items():
            if label != int(listed[row]):
                rank_zero_warn(
                    f"{self.where} lists the label {int(listed[row])} for item {row}, and the item has "
                    f"{'none' if label == -1 else label}: the labels of the items are taken, in one pass over them"
                )
                return True
        return False

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
            raise BadImage(f"{where} cannot be decoded ({error})") from error
        return image, label

    def _read(self, row: int) -> tuple[Tensor, int]:
        image, label = self._item(row)
        where = f"item {row} of {self.where}"
        try:
            tensor = to_tensor(image, self._wanted_channels)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        if self.channels and len(tensor) != self.channels:
            raise UserError(
                f"{where} has {len(tensor)} channels, the images tried first have {self.channels}: "
                "set data.channels, or let the dataset convert its images"
            )
        if tensor.is_floating_point():
            low, high = (float(end) for end in tensor.aminmax())
            if not (low >= 0 and high <= 1):
                finite = math.isfinite(low) and math.isfinite(high)
                way_out = "take the normalisation out of the dataset" if finite else "mend what it is computed from"
                raise UserError(
                    f"{where} has values from {low:.3g} to {high:.3g}: float images lie in [0, 1]; {way_out}"
                )
        return tensor, label if self._ids is None else int(places_of(torch.tensor(label), self._ids, where))


def _length(dataset: Any, where: str) -> int:
    """How many items a dataset says that it has. What ``__len__`` itself raises is not caught, as ``len`` would mix."""
    said = type(dataset).__len__(dataset)
    try:
        length = index(said)
    except TypeError:
        length = -1
    if not 0 <= length <= sys.maxsize:
        raise UserError(f"__len__ of the dataset {where} must return the number of its items, got {said!r}")
    if length == 0:
        raise UserError(f"the dataset {where} is empty: check its root and split")
    return length


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
        number = index(label)
    except TypeError:
        raise UserError(
            f"the label of {where} must be an integer or None, got {type(label).__name__}: "
            "items are image, (image, label) or a dict with image and label"
        ) from None
    if not -1 <= number < 2**63:
        raise UserError(f"the label of {where} must be 0 or above, or None or -1 where there is none, got {number}")
    return image, number


def _listed_labels(dataset: Any) -> Tensor | None:
    """Labels that a dataset lists for its items."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels"):
        listed = getattr(dataset, name, None)
        if isinstance(listed, list | tuple | np.ndarray | Tensor) and len(listed) == len(dataset):
            values = np.asarray(listed)
            if values.ndim == 1 and np.issubdtype(values.dtype, np.integer):
                return torch.from_numpy(values.astype(np.int64))
    return None
