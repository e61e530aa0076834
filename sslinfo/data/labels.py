"""The labels of all splits: checked in one place, and made 0 ... K - 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from sslinfo.data.stores import ImageStore

_SHOWN = 6  # labels that a note names


def number_of_classes(loaded: Mapping[str, ImageStore]) -> int | None:
    """The number K of classes, None without labels. Labels with gaps, or large ones, become 0 ... K - 1, with a note.

    The labels of all splits change alike. A class that is named keeps its label where it has no images.

    Args:
        loaded: ``train`` and what else there is.

    Raises:
        UserError: a label below -1, or later, on reading: one that the training images lack.

    Example:
        >>> from sslinfo.data.stores import MemoryStore
        >>> images = MemoryStore(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.tensor([700, 3, -1]))
        >>> number_of_classes({"train": images}), images.labels.tolist()
        note: the labels of memory are taken as 0 ... 1, in this order: 3, 700
        (2, [1, 0, -1])
    """
    train = loaded["train"]
    if not len(_ids([train])):
        return None
    ids = _ids(store for store in loaded.values() if store is train or store.labels_are_known)
    named = train.classes is not None and int(ids[-1]) < len(train.classes)
    if not named and not _counts_from_0(ids):
        # A class may have its images in another split alone, where finding them can take a pass over it.
        ids = _ids(loaded.values())
    if named or _counts_from_0(ids):
        ids = torch.arange(int(ids[-1]) + 1)
    else:
        more = f" ... {int(ids[-1])}" if len(ids) > _SHOWN else ""
        rank_zero_only(print)(
            f"note: the labels of {train.where} are taken as 0 ... {len(ids) - 1}, in this order: "
            f"{', '.join(map(str, ids[:_SHOWN].tolist()))}{more}",
            flush=True,
        )
    for store in loaded.values():
        store.relabel(ids)
        if store.classes is not None and len(store.classes) < len(ids):
            store.classes = None
    return len(ids)


def _ids(stores: Iterable[ImageStore]) -> Tensor:
    labels = torch.cat([store.labels for store in stores])
    return labels[labels >= 0].unique()


def _counts_from_0(ids: Tensor) -> bool:
    return int(ids[-1]) == len(ids) - 1
