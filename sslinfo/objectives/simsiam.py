"""SimSiam (arXiv:2011.10566): a predictor and a stopped gradient, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sslinfo.errors import UserError
from sslinfo.objectives.base import JointEmbedding, by_view
from sslinfo.objectives.predictive import predictor_head


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """-1/2 cos(p1, z2) - 1/2 cos(p2, z1), mean over samples (arXiv:2011.10566, eq. 2); no gradient through z1, z2.

    Args:
        p1, p2: predictions from the two views, the whole batch, (N, d).
        z1, z2: projections of the two views, (N, d).

    Returns:
        "loss", between -1 and 1.

    >>> import torch
    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> simsiam_loss(a, b, z1=a, z2=a)["loss"].item()  # cosines 1 and 0
    -0.5
    """
    first = F.cosine_similarity(p1, z2.detach()).mean()
    second = F.cosine_similarity(p2, z1.detach()).mean()
    return {"loss": -(first + second) / 2}


class SimSiam(JointEmbedding):
    """SimSiam: a predictor of each view's projection matches the other's, which stands still.

    Args:
        predictor: widths of the predictor's hidden layers, in [1, 1e5]; it ends with the embedding's width.
        predictor_norm: norm between them.
        constant_predictor_lr: the predictor's learning rate follows neither warm-up nor decay (section 4.2).
        **kwargs: arguments of JointEmbedding.

    >>> import torch
    >>> model = SimSiam(backbone="conv4", projector=[32, 16], predictor=[8])
    >>> sorted(model.embed([torch.rand(4, 3, 32, 32)] * 2))
    ['p1', 'p2', 'z1', 'z2']
    """

    def __init__(
        self,
        predictor: Sequence[int] = (512,),
        predictor_norm: Literal["batch", "layer", "none"] = "batch",
        constant_predictor_lr: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if predictor is None:
            raise UserError("predictor=None: SimSiam has one; [] is a single linear layer")
        self.predictor = predictor_head(self.embedding_dim, predictor, predictor_norm)
        self.constant_predictor_lr = constant_predictor_lr

    def constant_rate_modules(self) -> Iterable[nn.Module]:
        return [self.predictor] if self.constant_predictor_lr else []

    def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        z = super().embed(views)
        return {**z, **by_view("p", [self.predictor(value) for value in z.values()])}

    def loss(self, z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor) -> dict[str, Tensor]:
        return simsiam_loss(p1, p2, z1, z2)
