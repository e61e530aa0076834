"""MoCo: contrast with keys of a slowly moving copy of the network, v3 (arXiv:2104.02057) within the batch, v2+
(arXiv:2003.04297, both directions) within a queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslinfo.distributed import gather
from sslinfo.errors import UserError
from sslinfo.models import RingQueue
from sslinfo.objectives.base import by_view
from sslinfo.objectives.predictive import WithTarget, predictor_head
from sslinfo.ranges import check_range


def moco_loss(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float = 0.2) -> dict[str, Tensor]:
    """MoCo v3: 2 t [CE(q1 k2^T / t) + CE(q2 k1^T / t)], each mean over samples (arXiv:2104.02057, algorithm 1).

    CE is the cross-entropy of a query's own key among the keys of the whole batch; all rows on the unit sphere.

    Args:
        q1, q2: queries of the two views, the whole batch, (N, d).
        k1, k2: keys of the two views, (N, d); no gradient flows through them.
        temperature: t > 0.

    >>> z = torch.eye(2)  # twice 2 [log(e + 1) - 1]
    >>> round(moco_loss(z, z, z, z, temperature=1.0)["loss"].item(), 4)
    1.253
    """
    own = torch.arange(len(q1), device=q1.device)
    loss = torch.stack(
        [
            F.cross_entropy(F.normalize(q, dim=1) @ F.normalize(k.detach(), dim=1).T / temperature, own)
            for q, k in ((q1, k2), (q2, k1))
        ]
    ).sum()
    return {"loss": 2 * temperature * loss}


def moco_queue_loss(
    q1: Tensor,
    q2: Tensor,
    k1: Tensor,
    k2: Tensor,
    queue1: Tensor,
    queue2: Tensor,
    temperature: float = 0.2,
    own: Tensor | None = None,
) -> dict[str, Tensor]:
    """MoCo v2+: cross-entropy of a query's own key among that key and the queue, mean over both directions.

    Args:
        q1, q2: queries of the two views, the whole batch, (N, d).
        k1, k2: keys of the two views, (N, d); no gradient flows through them.
        queue1, queue2: (M, d) keys of the same views of earlier batches, on the unit sphere; M may be 0.
        temperature: t > 0.
        own: (N, M) which keys of the queues are of the query's own image, and left out.

    >>> z, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])  # log(e + 1) - 1
    >>> round(moco_queue_loss(z, z, z, z, queue, queue, temperature=1.0)["loss"].item(), 4)
    0.3133
    """
    losses = []
    for q, k, queue in ((q1, k2, queue2), (q2, k1, queue1)):
        q, k = F.normalize(q, dim=1), F.normalize(k.detach(), dim=1)
        others = q @ queue.to(q.dtype).T
        if own is not None:
            others = others.masked_fill(own, -torch.inf)
        scores = torch.cat([(q * k).sum(1, keepdim=True), others], dim=1) / temperature
        losses.append(scores.logsumexp(1) - scores[:, 0])
    return {"loss": torch.cat(losses).mean()}


class MoCo(WithTarget):
    """Momentum contrast. ``queue=0`` with a predictor is v3; a queue without predictor is v2+.

    A batch's keys join the queue after its loss, and keys of a query's own image from an earlier epoch are left out, so
    a query never meets a positive among the negatives. (As published they stay: with 32,768 keys of 45,000 images a
    quarter of the queries would meet one.) The queue holds keys of whole batches, all ranks', in order.

    Args:
        queue: keys kept for each view, in [0, 1e8]; 0 contrasts within the batch.
        predictor: widths of the predictor's hidden layers, in [1, 1e5]; it ends with the embedding's width. None takes
            projections as queries.
        predictor_norm: norm between them.
        temperature: of the softmax, in [1e-4, 1e4].
        momentum: of the target's moving average at the first optimizer step, in [0, 1].
        final_momentum: at the last, in [0, 1]; half a cosine between them.
        freeze_patch_embedding: a ViT's patch embedding keeps its initial weights (arXiv:2104.02057, section 4.2).
        **kwargs: arguments of JointEmbedding.

    >>> model = MoCo(queue=8, predictor=None, backbone="conv4", projector=[32, 16])
    >>> terms = model.loss(*torch.randn(6, 4, 16))  # an empty queue: nothing to confuse a key with
    >>> terms["loss"].item()
    0.0
    """

    def __init__(
        self,
        queue: int = 0,
        predictor: Sequence[int] | None = (4096,),
        predictor_norm: Literal["batch", "layer", "none"] = "batch",
        temperature: float = 0.2,
        momentum: float = 0.99,
        final_momentum: float = 1.0,
        freeze_patch_embedding: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(momentum=momentum, final_momentum=final_momentum, **kwargs)
        check_range("temperature", temperature, "[1e-4, 1e4]")
        check_range("queue", queue, "[0, 1e8]", whole=True)
        self.temperature = temperature
        dim = self.embedding_dim
        self.predictor = predictor_head(dim, predictor, predictor_norm) if predictor is not None else nn.Identity()
        if queue and predictor is not None:
            raise UserError(
                f"queue={queue} with a predictor is no version of MoCo: set predictor to null (v2+) or queue to 0 (v3)"
            )
        self.queues = nn.ModuleList([RingQueue(queue, dim), RingQueue(queue, dim)] if queue else [])
        self.images = RingQueue(queue, 1, torch.int64) if queue else None  # whose keys those are
        self._index: Tensor | None = None
        if freeze_patch_embedding:
            patches = getattr(self.backbone, "patch_embed", None)
            if patches is None:
                raise UserError(
                    f"freeze_patch_embedding=True, but {type(self.backbone).__name__} has no patch_embed as ViTs do"
                )
            patches.requires_grad_(False)

    def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        z = super().embed(views)
        queries = by_view("q", [self.predictor(value) for value in z.values()])
        return {**z, **queries, **by_view("k", self.targets(views))}

    def loss(self, z1: Tensor, z2: Tensor, q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor) -> dict[str, Tensor]:
        if not self.queues:
            return moco_loss(q1, q2, k1, k2, self.temperature)
        queue1, queue2 = (queue.contents() for queue in self.queues)  # type: ignore[operator]
        known = self.images is not None and self._index is not None
        own = self._index[:, None] == self.images.contents().T if known else None  # type: ignore[index,union-attr]
        return moco_queue_loss(q1, q2, k1, k2, queue1, queue2, self.temperature, own)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        if self.images is not None:
            self._index = gather({"index": batch["index"]})["index"]
        return super().training_step(batch, batch_idx)

    def after_loss(self, embeddings: Mapping[str, Tensor]) -> None:
        if self.images is None or self._index is None:
            return
        for queue, name in zip(self.queues, ("k1", "k2"), strict=True):
            queue.push(F.normalize(embeddings[name], dim=1))  # type: ignore[operator]
        self.images.push(self._index[:, None])
        self._index = None
