"""Which images are pre-trained on, which ones probes are fitted on, and which ones validate and test."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from sklearn.model_selection import train_test_split

from sslinfo.data.stores import ImageStore, JoinedStore
from sslinfo.errors import UserError

TrainOn = Literal["train", "unlabelled", "both"]


def divided(
    loaded: Mapping[str, ImageStore], *, val_fraction: float, train_on: TrainOn = "train", seed: int = 0
) -> dict[str, ImageStore]:
    """The splits of a training, from those that a data set has.

    Args:
        loaded: ``train``, and what the data set has of ``val``, ``test`` and ``unlabelled``.
        val_fraction: the share of ``train`` that becomes ``val`` where the data set has none. 0 validates on the test
            images, with a warning.
        train_on: what is pre-trained on.
        seed: of the choice of the validation images.

    Returns:
        ``pretrain``, the images to pre-train on; ``train``, the labelled ones that probes are fitted on; ``val``; and
        ``test`` where the data set has test images.

    Raises:
        UserError: there is nothing to validate on, or no unlabelled split where one is asked for.

    Example:
        >>> from sslinfo.data.stores import MemoryStore
        >>> images = MemoryStore(torch.zeros(50, 1, 1, 1, dtype=torch.uint8), torch.arange(50) % 2)
        >>> {name: len(store) for name, store in divided({"train": images}, val_fraction=0.1).items()}
        {'pretrain': 45, 'train': 45, 'val': 5}
    """
    train, test = loaded["train"], loaded.get("test")
    if "val" in loaded:
        val = loaded["val"]
    elif val_fraction > 0:
        train, val = _held_out(train, val_fraction, seed)
    elif test is not None:
        rank_zero_warn(
            "val_fraction=0: validation runs on the test images. Do not choose a model or a setting by its results"
        )
        val = test
    else:
        raise UserError("val_fraction=0, but the data set has no test images to validate on: set data.val_fraction")
    pretrain = train
    if train_on != "train":
        if "unlabelled" not in loaded:
            raise UserError(
                f"train_on={train_on!r} needs an unlabelled split, and this data set has {', '.join(loaded)}: "
                "set data.train_on: train"
            )
        unlabelled = loaded["unlabelled"]
        pretrain = unlabelled if train_on == "unlabelled" else JoinedStore(train, unlabelled)
    splits = {"pretrain": pretrain, "train": train, "val": val}
    return splits if test is None else {**splits, "test": test}


def _held_out(store: ImageStore, fraction: float, seed: int) -> tuple[ImageStore, ImageStore]:
    """The images that stay and those held out, with equal shares of the classes where there are enough images."""
    labels = store.labels.numpy()
    if len(store) < 2:
        raise UserError(f"{store.where} has one image: none is left for validation, and training needs two or more")
    counts = np.unique(labels, return_counts=True)[1]
    held_out = min(max(1, round(len(store) * fraction)), len(store) - 1)
    stratify = labels if counts.min() >= 2 and held_out >= len(counts) <= len(store) - held_out else None
    train, val = train_test_split(np.arange(len(store)), test_size=held_out, random_state=seed, stratify=stratify)
    return store.subset(torch.from_numpy(np.sort(train))), store.subset(torch.from_numpy(np.sort(val)))
