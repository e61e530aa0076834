"""Barlow Twins (arXiv:2103.03230): the cross-correlation of the views is the identity."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.objectives.base import JointEmbedding
from sslinfo.ranges import check_range


def standardize(z: Tensor, eps: float = 1e-5) -> Tensor:
    """z (N, d) as batch norm has it: (z - mean) / sqrt(biased variance + eps), per dimension."""
    return (z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt()


def barlow_twins_loss(z1: Tensor, z2: Tensor, off_diagonal: float = 0.0051, scale: float = 1.0) -> dict[str, Tensor]:
    """scale * [sum_i (C_ii - 1)^2 + off_diagonal * sum_{i != j} C_ij^2] (arXiv:2103.03230, eq. 1-2).

    C = BN(z1)^T BN(z2) / N is the cross-correlation of the views over the whole batch, each standardised with its
    biased variance. ||C||_F^2 is taken on the smaller side: it is the product of the two N x N Gram matrices.

    Args:
        z1, z2: embeddings of the two views, the whole batch, (N, d).
        off_diagonal: weight of the redundancy term.
        scale: of the whole; .1 in solo-learn's CIFAR recipe, 1 in the paper.

    Returns:
        "loss", and the two sums "on_diagonal" and "off_diagonal", neither weighted nor scaled.

    Raises:
        UserError: fewer than two samples.

    >>> import torch
    >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # C = [[1, 1], [1, 1]]
    >>> {name: round(term.item(), 3) for name, term in barlow_twins_loss(z, z, off_diagonal=0.5).items()}
    {'loss': 1.0, 'on_diagonal': 0.0, 'off_diagonal': 2.0}
    """
    n, d = z1.shape
    if n < 2:
        raise UserError(f"Barlow Twins needs at least 2 samples a batch, got {n}: raise data.batch_size")
    a, b = standardize(z1) / n**0.5, standardize(z2) / n**0.5
    diagonal = (a * b).sum(0)
    squared = (a.T @ b).square().sum() if d <= n else ((a @ a.T) * (b @ b.T)).sum()
    on = (diagonal - 1).square().sum()
    off = squared - diagonal.square().sum()
    return {"loss": scale * (on + off_diagonal * off), "on_diagonal": on, "off_diagonal": off}


class BarlowTwins(JointEmbedding):
    """Barlow Twins: equal dimensions of the views correlate, different ones do not.

    Args:
        off_diagonal: weight of the squared correlations of different dimensions, in [0, 1e6].
        scale: of the whole loss, in [1e-6, 1e6].
        **kwargs: arguments of JointEmbedding.

    >>> import torch
    >>> model = BarlowTwins(backbone="conv4", projector=[64, 2])
    >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # uncorrelated, of variance 1
    >>> round(model.loss(z, z)["loss"].item(), 4)
    0.0
    """

    def __init__(self, off_diagonal: float = 0.0051, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("off_diagonal", off_diagonal, "[0, 1e6]")
        check_range("scale", scale, "[1e-6, 1e6]")
        self.off_diagonal, self.scale = off_diagonal, scale

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        return barlow_twins_loss(z1, z2, self.off_diagonal, self.scale)
