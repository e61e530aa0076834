"""Frozen: no objective, any encoder as it is under the same diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslinfo.errors import UserError
from sslinfo.objectives.base import JointEmbedding


class Frozen(JointEmbedding):
    """An encoder that is not trained: ``validate``, ``test`` and ``predict`` report on it as on any other.

    Its embedding is its representation.

    Args:
        backbone: ``conv4``, any timm name, or a module with ``num_features``; ``weights`` names a local file.
        projector: widths of a head after it, in [1, 1e5]; none by default.
        **kwargs: other arguments of JointEmbedding.

    >>> model = Frozen(backbone="conv4")
    >>> model.embed([torch.zeros(2, 3, 32, 32)])["z1"].shape, any(p.requires_grad for p in model.parameters())
    (torch.Size([2, 128]), False)
    """

    def __init__(self, backbone: str | nn.Module = "resnet18", projector: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(backbone=backbone, projector=projector, **kwargs)
        self.requires_grad_(False)

    def loss(self, **embeddings: Tensor) -> dict[str, Tensor]:
        """Mean squared distance of the first two views on the unit sphere, for the log; there is nothing to train."""
        first, *others = (torch.nn.functional.normalize(z, dim=1) for z in embeddings.values())
        other = others[0] if others else first
        return {"loss": (first - other).square().sum(1).mean()}

    def configure_optimizers(self) -> Any:
        raise UserError("Frozen has nothing to fit: use sslinfo validate, test or predict")
