"""Clean features of a whole split, gathered over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from sslinfo.data.datamodule import Split, TwoViewDataModule
from sslinfo.distributed import gather_uneven
from sslinfo.objectives.finite import NotFinite


@torch.no_grad()
def clean_features(
    data: TwoViewDataModule, module: Any, split: Split, limit: int | None = None, pixels: bool = False
) -> tuple[Tensor, Tensor]:
    """Representations of the images of a split without augmentation, in evaluation mode.

    This is a pass of its own over the split: one forward of the backbone an image.

    Args:
        data: a data module that is set up.
        module: maps images to features, such as a JointEmbedding; its ``device`` is used.
        split: train, val or test.
        limit: at most so many images, a choice that is the same on all ranks.
        pixels: the normalised pixels themselves, averaged down to at most 32 x 32, instead of the module's features.

    Raises:
        NotFinite: (a UserError) on every rank, where features hold NaN or infinity.

    Returns:
        (N, d) float32 and labels (N,), on the module's device, equal on all ranks and in one order on any number.
    """
    was_training = module.training
    module.eval()
    rows: dict[str, list[Tensor]] = {"features": [], "label": [], "index": []}
    try:
        for raw in data.clean_dataloader(split, limit):
            batch = data.to_batch(
                {name: value.to(module.device) if isinstance(value, Tensor) else value for name, value in raw.items()}
            )
            images, keep = batch["clean"], batch["keep"]
            features = adaptive_avg_pool2d(images, min(32, images.shape[-1])).flatten(1) if pixels else module(images)
            rows["features"].append(features.float()[keep])
            rows["label"].append(batch["label"][keep])
            rows["index"].append(batch["index"][keep])
    finally:
        module.train(was_training)
    whole = gather_uneven({name: torch.cat(parts) for name, parts in rows.items()})
    order = whole["index"].argsort()
    features, labels = whole["features"][order], whole["label"][order]
    bad = int((~features.isfinite().all(1)).sum())
    if bad:
        what = "pixels" if pixels else "representations"
        raise NotFinite(f"the {what} of {bad} of {len(features)} {split} images hold NaN or infinity: nothing to probe")
    return features, labels
