"""W-MSE (arXiv:2007.06346): whiten the batch, then bring the views of an image together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.information import UndefinedEstimate
from sslinfo.objectives.base import JointEmbedding
from sslinfo.ranges import check_range


def whiten(z: Tensor, eps: float = 0.0) -> Tensor:
    """z (N, d), centred and multiplied by the inverse Cholesky factor of its covariance (arXiv:2007.06346, eq. 4-5).

    The covariance, with divisor N - 1, is shrunk to (1 - eps) S + eps I; with eps = 0 the result's is exactly I.

    Raises:
        UndefinedEstimate: too few samples for the dimensions.
        UserError: a singular covariance.

    >>> z = whiten(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> [[round(value, 2) + 0.0 for value in row] for row in torch.cov(z.T).tolist()]
    [[1.0, 0.0], [0.0, 1.0]]
    """
    n, d = z.shape
    if n < 2 or (n <= d and eps == 0):
        raise UndefinedEstimate(
            f"{n} samples have a covariance of rank {max(n - 1, 0)} at most, and {d} dimensions cannot be whitened: "
            f"raise data.batch_size or model.slice_size above {d}, take a narrower projector, or set model.eps above 0"
        )
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (n - 1)
    if eps:
        covariance = (1 - eps) * covariance + eps * torch.eye(d, dtype=z.dtype, device=z.device)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    white = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
    # Rounding lets half of all singular covariances have a factor; a direction that was lost shows in what comes out.
    variance = white.detach().square().sum(0) / (n - 1)
    if failed or (eps == 0 and not bool((variance > 0.5).all())):
        raise UserError(
            "the embeddings' covariance is singular and cannot be whitened (identical images, or a collapsed network): "
            "set model.eps above 0, 1e-3 for instance"
        )
    return white


def wmse_loss(z1: Tensor, z2: Tensor, slice_size: int = 128, eps: float = 0.0) -> dict[str, Tensor]:
    """Mean over samples of ||w1 - w2||^2 on the unit sphere, w the whitened embeddings (arXiv:2007.06346, eq. 6).

    The batch is cut into N // slice_size consecutive slices of nearly equal size, each whitened by itself and per view:
    a shuffled batch has random slices. Both views carry gradient.

    Args:
        z1, z2: embeddings of the two views, the whole batch, (N, d).
        slice_size: samples that are whitened together; above d, the published choice being 2 d.
        eps: shrinkage of the covariance towards I.

    Raises:
        UserError: a slice that cannot be whitened.

    >>> z = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(wmse_loss(z, 3 * z)["loss"].item(), 4), round(wmse_loss(z, -z)["loss"].item(), 4)
    (0.0, 4.0)
    """
    slices = max(1, len(z1) // slice_size)
    w1, w2 = (torch.cat([whiten(part, eps) for part in z.tensor_split(slices)]) for z in (z1, z2))
    return {"loss": (2 - 2 * F.cosine_similarity(w1, w2)).mean()}


class WMSE(JointEmbedding):
    """Whitening MSE: embeddings of unit covariance, and views of an image close together.

    Args:
        slice_size: samples that are whitened together, in [2, 1e9]; above the embedding's width.
        eps: shrinkage of the covariance towards I, in [0, 1), for batches that have none that can be inverted.
        projector: widths of the projection head's layers, in [1, 1e5]; the last is to be well below ``slice_size``.
        **kwargs: arguments of JointEmbedding.

    >>> model = WMSE(backbone="conv4", projector=[64, 16])
    >>> z = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> abs(model.loss(z, z)["loss"].item()) < 1e-5
    True
    """

    def __init__(
        self, slice_size: int = 128, eps: float = 0.0, projector: Sequence[int] = (1024, 64), **kwargs: Any
    ) -> None:
        super().__init__(projector=projector, **kwargs)
        check_range("slice_size", slice_size, "[2, 1e9]", whole=True)
        check_range("eps", eps, "[0, 1)")
        self.slice_size, self.eps = slice_size, eps

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        return wmse_loss(z1, z2, self.slice_size, self.eps)
