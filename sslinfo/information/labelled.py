"""What labels add: how far classes lie apart, and whether an image's nearest neighbours name its class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.precision import full_precision


def class_share_of_variance(z: Tensor, labels: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Variance of the class means of z (N, d), each class by its size, over all variance, 0-d: from 0 to 1.

    Samples with a negative label (N,) are left out. Without any difference between the classes of Gaussian data it is
    (classes - 1) / (N - 1) on average. Differentiable in z.

    Raises UndefinedEstimate for fewer than two classes or three labelled samples, or where all those are one point;
    ValueError for bad input.
    Source: Fisher 1925 (correlation ratio), of all features together.

    >>> z = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    >>> round(class_share_of_variance(z, torch.tensor([0, 0, 1, 1])).item(), 4)  # 100 of 104
    0.9615
    """
    z, labels = _labelled(z, labels, dtype)
    n, d = z.shape
    classes, members = labels.unique(return_inverse=True)
    means = torch.stack([z[members == label].mean(0) for label in range(len(classes))])
    total = (z - z.mean(0)).square().sum()
    between = (means[members] - z.mean(0)).square().sum()
    if float(total.detach()) <= n * d * (64 * torch.finfo(z.dtype).eps * float(z.detach().abs().max())) ** 2:
        raise UndefinedEstimate(f"all {n} labelled samples are one point")
    return between / total


@torch.no_grad()
def knn_top1(
    z: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.07, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Share of the samples z (N, d) whose class the k most similar others name, 0-d: from 0 to 1.

    Each sample is left out in turn; the others vote with exp(cosine / temperature), at most N - 1 of them. Samples with
    a negative label (N,) neither vote nor count. O(N) memory beside z, a block of rows at a time.

    Raises UndefinedEstimate for fewer than two classes or three labelled samples, ValueError for bad input.
    Source: Wu et al., arXiv:1805.01978, section 3.4, with the samples as their own bank.

    >>> z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [1.0, 0.5]])
    >>> round(knn_top1(z, torch.tensor([0, 0, 1, 1, 1]), k=1).item(), 4)  # the last is nearest to class 0
    0.8
    """
    k, temperature = checks.at_least("k", k, 1), checks.positive("temperature", temperature)
    z, labels = _labelled(z, labels, dtype)
    n = len(z)
    classes, members = labels.unique(return_inverse=True)
    unit = F.normalize(z, dim=1)
    right = 0
    with full_precision(z.device):
        for rows in torch.arange(n, device=z.device).split(1024):
            similarity = unit[rows] @ unit.T
            similarity[torch.arange(len(rows)), rows] = -torch.inf
            votes = neighbour_votes(similarity, members, len(classes), min(k, n - 1), temperature)
            right += int((votes.argmax(1) == members[rows]).sum())
    return z.new_tensor(right / n)


def neighbour_votes(similarity: Tensor, labels: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    """Votes (n, num_classes) of the k most similar of m samples, which sum to 1 in each row.

    Args:
        similarity: cosines (n, m).
        labels: of the m samples, (m,) from 0.
        k: neighbours, at most m of them.
        temperature: a neighbour votes with weight exp(cosine / temperature).

    Source: Wu et al., arXiv:1805.01978, section 3.4.

    >>> neighbour_votes(torch.tensor([[0.5, 0.5, 0.1]]), torch.tensor([0, 1, 1]), 2, k=2, temperature=0.07)
    tensor([[0.5000, 0.5000]])
    """
    best, where = similarity.topk(min(k, similarity.shape[1]), dim=1)
    weights = torch.softmax(best / temperature, dim=1)
    return weights.new_zeros(len(similarity), num_classes).scatter_add_(1, labels[where], weights)


def _labelled(z: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The samples whose label is known, and those labels."""
    z = checks.samples(z, dtype)
    labels = checks.labels_of(labels, len(z))
    known = labels >= 0
    z, labels = z[known], labels[known]
    classes = len(labels.unique())
    if classes < 2 or len(z) < 3:
        raise UndefinedEstimate(
            f"{len(z)} labelled samples of {classes} classes: two classes and three samples are needed"
        )
    return z, labels
