"""What the predictive objectives (BYOL, SimSiam, MoCo) share: a predictor, and an EMA target of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sslinfo.models import EMATarget, ema_momentum, projection_head
from sslinfo.objectives.base import JointEmbedding
from sslinfo.ranges import check_range


def predictor_head(dim: int, hidden: Sequence[int], norm: Literal["batch", "layer", "none"]) -> nn.Sequential:
    """A head from embeddings (N, dim) to predictions of embeddings (N, dim), with hidden layers of the given widths.

    >>> import torch
    >>> predictor_head(4, [8], "none")(torch.zeros(2, 4)).shape
    torch.Size([2, 4])
    """
    return projection_head(dim, [*hidden, dim], norm, name="predictor")


class WithTarget(JointEmbedding):
    """An objective whose targets come from an exponential moving average of backbone and projector.

    The average is taken right after each optimizer step (not after each batch, where batches are accumulated), with the
    momentum of that step, so that a checkpoint holds a target that belongs to its weights.

    Args:
        momentum: of the average at the first optimizer step, in [0, 1].
        final_momentum: at the last, in [0, 1]; half a cosine between them.
        **kwargs: arguments of JointEmbedding.
    """

    def __init__(self, momentum: float = 0.99, final_momentum: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("momentum", momentum, "[0, 1]")
        check_range("final_momentum", final_momentum, "[0, 1]")
        self.momentum, self.final_momentum = momentum, final_momentum
        self.target = EMATarget(self.backbone, self.projector)

    def after_optimizer_step(self, step: int, total: float) -> None:
        momentum = ema_momentum(step, total, self.momentum, self.final_momentum)
        self.target.update(momentum, self.backbone, self.projector)
        self.log("train/ema_momentum", momentum, batch_size=1)

    def targets(self, views: Sequence[Tensor]) -> list[Tensor]:
        """The target network's embeddings (N, d) of each view, without gradient."""
        return [self.target(view) for view in views]
