"""SimCLR (arXiv:2002.05709): a contrast with every other view of the batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslinfo.objectives.base import JointEmbedding
from sslinfo.ranges import check_range


def nt_xent_loss(z1: Tensor, z2: Tensor, temperature: float = 0.2) -> dict[str, Tensor]:
    """Normalised temperature-scaled cross-entropy, mean over the 2 N anchors (arXiv:2002.05709, eq. 1).

    For an anchor i with partner i', among the 2 N - 1 other views k: log sum_k exp(cos(i, k) / t) - cos(i, i') / t.
    Read as two halves (arXiv:2303.00633): a von Mises-Fisher decoder of concentration 1 / t, and up to constants the
    negative leave-one-out entropy of a von Mises-Fisher kernel density.

    Args:
        z1, z2: embeddings of the two views, the whole batch, (N, d), of any scale.
        temperature: t > 0.

    Returns:
        "loss" = "contrast" - "agreement": mean log-sum-exp, and mean cos(i, i') / t.

    >>> z = torch.eye(2)  # the partner at cosine 1, the two others at 0: log(e + 2) - 1
    >>> round(nt_xent_loss(z, z, temperature=1.0)["loss"].item(), 4)
    0.5514
    """
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scores = z @ z.T / temperature
    agreement = scores.diagonal(n).mean()
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    contrast = scores.masked_fill(itself, -torch.inf).logsumexp(1).mean()
    return {"loss": contrast - agreement, "contrast": contrast, "agreement": agreement}


class SimCLR(JointEmbedding):
    """SimCLR: views of one image agree, views of different images do not.

    Args:
        temperature: of the softmax over the batch, in [1e-4, 1e4]; .2 is used on CIFAR-10, .1 on ImageNet.
        **kwargs: arguments of JointEmbedding.

    >>> model = SimCLR(backbone="conv4", projector=[64, 16])
    >>> round(model.loss(torch.ones(8, 16), torch.ones(8, 16))["loss"].item(), 4)  # all equal: log(2 * 8 - 1)
    2.7081
    """

    def __init__(self, temperature: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("temperature", temperature, "[1e-4, 1e4]")
        self.temperature = temperature

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        return nt_xent_loss(z1, z2, self.temperature)
