"""VICReg (arXiv:2105.04906) and its variants with an entropy half of your choice (arXiv:2303.00633, section on new
objectives)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sslinfo.objectives.base import JointEmbedding
from sslinfo.objectives.entropy import EntropyHalf, VarianceCovariance
from sslinfo.ranges import check_range


def vicreg_loss(
    z1: Tensor, z2: Tensor, entropy: EntropyHalf | None = None, invariance: float = 25.0
) -> dict[str, Tensor]:
    """invariance * E (z1 - z2)^2 (mean over samples and dimensions) plus the loss of the entropy half.

    Without further arguments it is VICReg as published (arXiv:2105.04906, Algorithm 1): weights 25, 25 and 1.

    Args:
        z1, z2: embeddings of the two views, the whole batch, (N, d).
        entropy: the entropy half, VarianceCovariance() without one; its ``prepare`` is applied to both views first, for
            both terms.
        invariance: weight of the invariance.

    Returns:
        "loss", "invariance" and the terms of the half, 0-d.

    >>> import torch
    >>> z = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> terms = vicreg_loss(z, z + 0.1)
    >>> {name: round(term.item(), 4) for name, term in terms.items()}
    {'loss': 0.25, 'invariance': 0.01, 'variance': 0.0, 'covariance': 0.0}
    """
    entropy = VarianceCovariance() if entropy is None else entropy
    z1, z2 = entropy.prepare(z1), entropy.prepare(z2)
    distance = (z1 - z2).square().mean()
    half = entropy(z1, z2)
    return {"loss": invariance * distance + half.pop("loss"), "invariance": distance, **half}


class VICReg(JointEmbedding):
    """Variance-invariance-covariance regularization, or the same invariance with another entropy half.

    Args:
        entropy: what keeps the embeddings spread: VarianceCovariance (as published, weights 25 and 1), LogDet or
            PairDist, or any other half.
        invariance: weight of the mean squared distance between the views' embeddings, in [0, 1e6].
        **kwargs: arguments of JointEmbedding.

    >>> import torch
    >>> model = VICReg(backbone="conv4", projector=[64, 64])
    >>> terms = model.loss(*torch.randn(2, 256, 64, generator=torch.Generator().manual_seed(0)))
    >>> sorted(terms), round(terms["invariance"].item(), 1)  # independent views: E (z - z')^2 = 2
    (['covariance', 'invariance', 'loss', 'variance'], 2.0)
    """

    adds_entropy = False

    def __init__(self, entropy: EntropyHalf | None = None, invariance: float = 25.0, **kwargs: Any) -> None:
        super().__init__(entropy=entropy if entropy is not None else VarianceCovariance(), **kwargs)
        check_range("invariance", invariance, "[0, 1e6]")
        self.invariance = invariance

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        assert self.entropy is not None
        return vicreg_loss(z1, z2, self.entropy, self.invariance)
