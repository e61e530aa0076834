"""BYOL (arXiv:2006.07733): predict the other view's embedding by a slowly moving copy of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.objectives.base import by_view
from sslinfo.objectives.predictive import WithTarget, predictor_head


def byol_loss(p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> dict[str, Tensor]:
    """Mean over samples of ||p1 - t2||^2 + ||p2 - t1||^2 on the unit sphere (arXiv:2006.07733, eq. 2): 2 - 2 cos each.

    Args:
        p1, p2: predictions from the two views, the whole batch, (N, d).
        t1, t2: target embeddings of the two views, (N, d); no gradient flows through them.

    Returns:
        "loss", between 0 and 8, and "cosine", the mean cosine of prediction and target.

    >>> import torch
    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    >>> {name: round(term.item(), 2) for name, term in byol_loss(a, a, t1=a, t2=b).items()}  # 2 - 0 and 2 - 2
    {'loss': 2.0, 'cosine': 0.5}
    """
    first = F.cosine_similarity(p1, t2.detach()).mean()
    second = F.cosine_similarity(p2, t1.detach()).mean()
    return {"loss": 4 - 2 * (first + second), "cosine": (first + second) / 2}


class BYOL(WithTarget):
    """Bootstrap your own latent: a predictor of the online network matches the EMA target of the other view.

    With ``entropy`` set to LogDet or PairDist it is the paper's BYOL + LogDet or BYOL + PairDist (arXiv:2303.00633).

    Args:
        predictor: widths of the predictor's hidden layers, in [1, 1e5]; it ends with the embedding's width.
        predictor_norm: norm between them.
        momentum: of the target's moving average at the first optimizer step, in [0, 1].
        final_momentum: at the last, in [0, 1]; half a cosine between them.
        **kwargs: arguments of JointEmbedding.

    >>> import torch
    >>> model = BYOL(backbone="conv4", projector=[32, 16], predictor=[32])
    >>> sorted(model.embed([torch.rand(4, 3, 32, 32)] * 2))
    ['p1', 'p2', 't1', 't2', 'z1', 'z2']
    """

    def __init__(
        self,
        predictor: Sequence[int] = (4096,),
        predictor_norm: Literal["batch", "layer", "none"] = "batch",
        momentum: float = 0.99,
        final_momentum: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum=momentum, final_momentum=final_momentum, **kwargs)
        if predictor is None:
            raise UserError("predictor=None: BYOL has one; [] is a single linear layer")
        self.predictor = predictor_head(self.embedding_dim, predictor, predictor_norm)

    def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        z = super().embed(views)
        predictions = by_view("p", [self.predictor(value) for value in z.values()])
        return {**z, **predictions, **by_view("t", self.targets(views))}

    def loss(self, z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> dict[str, Tensor]:
        return byol_loss(p1, p2, t1, t2)
