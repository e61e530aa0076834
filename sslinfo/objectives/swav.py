"""SwAV (arXiv:2006.09882): each view predicts the other's assignment to prototypes, balanced over the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslinfo.lightning_compat import has_trainer
from sslinfo.models import RingQueue
from sslinfo.objectives.base import JointEmbedding
from sslinfo.ranges import check_range


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Balanced soft assignments of N samples to K prototypes (arXiv:2006.09882, eq. 3-5), in log space.

    exp(scores / epsilon), scaled in turn so that each prototype has a share of 1 / K and each sample of 1 / N.

    Args:
        scores: (N, K), the whole batch's.
        epsilon: entropy of the assignments, > 0; small is hard.
        iterations: of both scalings; the samples' comes last.

    Returns:
        (N, K), rows that sum to 1; no gradient flows.

    >>> sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))  # both want the first; each gets half of each
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    check_range("epsilon", epsilon, "> 0")
    log = scores / epsilon
    n, k = log.shape
    for _ in range(iterations):
        log = log - log.logsumexp(0, keepdim=True) - math.log(k)
        log = log - log.logsumexp(1, keepdim=True) - math.log(n)
    return log.softmax(1)


def swav_loss(
    z1: Tensor,
    z2: Tensor,
    prototypes: Tensor,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue1: Tensor | None = None,
    queue2: Tensor | None = None,
) -> dict[str, Tensor]:
    """Swapped prediction (arXiv:2006.09882, eq. 1-2).

    -1/2 mean_i sum_k [a1 log softmax(s2 / t) + a2 log softmax(s1 / t)], where s = z prototypes^T with z on the unit
    sphere, and a1, a2 are the balanced assignments of each view over the whole batch, queue included, without gradient.

    Args:
        z1, z2: embeddings of the two views, the whole batch, (N, d).
        prototypes: (K, d), as they are; SwAV keeps them on the unit sphere.
        temperature: t > 0.
        epsilon, iterations: of :func:`sinkhorn`.
        queue1, queue2: (M, d) earlier embeddings of the same views, on the unit sphere, which take part in the balance.

    Returns:
        "loss", and "used", exp of the entropy of the mean prediction: prototypes in use, at most K.

    >>> z = torch.eye(2)  # assignments are one-hot; softmax of (1, 0): log(e + 1) - 1
    >>> round(swav_loss(z, z, torch.eye(2), temperature=1.0)["loss"].item(), 4)
    0.3133
    """
    scores = [F.normalize(z, dim=1) @ prototypes.T for z in (z1, z2)]
    assigned = []
    for own, queue in zip(scores, (queue1, queue2), strict=True):
        whole = own if queue is None else torch.cat([own, queue @ prototypes.T])
        assigned.append(sinkhorn(whole.detach(), epsilon, iterations)[: len(own)])
    predicted = [(own / temperature).log_softmax(1) for own in scores]
    loss = -sum((a * p).sum(1).mean() for a, p in zip(assigned, reversed(predicted), strict=True)) / 2
    share = torch.cat([p.detach() for p in predicted]).exp().mean(0)
    return {"loss": loss, "used": torch.special.entr(share).sum().exp()}  # type: ignore[dict-item]


class SwAV(JointEmbedding):
    """Swapping assignments between views, two views of full size.

    Args:
        prototypes: K, their number, in [2, 1e7].
        temperature: of the softmax over prototypes, in [1e-4, 1e4].
        epsilon: of the balanced assignments, in [1e-4, 1e4].
        iterations: of the balanced assignments, in [1, 1e4].
        queue: earlier embeddings of each view that take part in the balance in training, for batches much smaller than
            K, in [0, 1e8]; 0 is none.
        queue_start_epoch: first epoch that uses the queue, in [0, 1e9]; it is filled from the start.
        freeze_prototypes_epochs: the prototypes do not move in so many first epochs, in [0, 1e9].
        **kwargs: arguments of JointEmbedding.

    >>> model = SwAV(prototypes=10, backbone="conv4", projector=[64, 16])
    >>> terms = model.loss(*torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0)))
    >>> sorted(terms), 1 < terms["used"].item() <= 10
    (['loss', 'used'], True)
    """

    counts_clusters = "used"

    def __init__(
        self,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue: int = 0,
        queue_start_epoch: int = 15,
        freeze_prototypes_epochs: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("prototypes", prototypes, "[2, 1e7]", whole=True)
        check_range("temperature", temperature, "[1e-4, 1e4]")
        check_range("epsilon", epsilon, "[1e-4, 1e4]")
        check_range("iterations", iterations, "[1, 1e4]", whole=True)
        check_range("queue", queue, "[0, 1e8]", whole=True)
        check_range("queue_start_epoch", queue_start_epoch, "[0, 1e9]", whole=True)
        check_range("freeze_prototypes_epochs", freeze_prototypes_epochs, "[0, 1e9]", whole=True)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_start_epoch, self.freeze_prototypes_epochs = queue_start_epoch, freeze_prototypes_epochs
        dim = self.embedding_dim
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        self.queues = nn.ModuleList([RingQueue(queue, dim), RingQueue(queue, dim)] if queue else [])
        self._normalize_prototypes()

    @torch.no_grad()
    def _normalize_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        # In training alone: what an evaluation says of a checkpoint does not depend on the epoch it is run in.
        queues: list[Tensor] = []
        if self.queues and self.training and has_trainer(self) and self.current_epoch >= self.queue_start_epoch:
            queues = [queue.contents() for queue in self.queues]  # type: ignore[operator]
        prototypes = self.prototypes.weight.to(z1.dtype)
        return swav_loss(z1, z2, prototypes, self.temperature, self.epsilon, self.iterations, *queues)

    def after_loss(self, embeddings: Mapping[str, Tensor]) -> None:
        for queue, name in zip(self.queues, ("z1", "z2"), strict=False):
            queue.push(F.normalize(embeddings[name], dim=1))  # type: ignore[operator]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.current_epoch < self.freeze_prototypes_epochs:
            self.prototypes.weight.grad = None

    def after_optimizer_step(self, step: int, total: float) -> None:
        self._normalize_prototypes()
