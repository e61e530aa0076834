"""Everything that can be said of a representation given as arrays."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslinfo.information.checks import labels_of, paired, samples
from sslinfo.information.measure import measure
from sslinfo.information.moments import Moments
from sslinfo.information.quantities import Quantity, Report
from sslinfo.precision import full_precision


@torch.no_grad()
def report(z1: Tensor, z2: Tensor | None = None, labels: Tensor | None = None) -> Report:
    """All diagnostics of representations given as arrays.

    Args:
        z1: (N, d) representations, a tensor or an array.
        z2: (N, d) those of a second view of the same images: adds the information between views.
        labels: (N,) integer classes, negative where unknown: adds the share of the variance between classes and
            leave-one-out k-NN accuracy.

    Returns:
        A mapping from names to :class:`Quantity`, with the reasons for what does not exist; ``print`` shows a table.

    Raises:
        ValueError: NaN, infinity, wrong or mismatched shapes, integer samples.
    Source: each estimator's own, see ``sslinfo.information``.

    >>> z = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    >>> found = report(z, z + 0.1 * torch.randn(500, 8, generator=torch.Generator().manual_seed(1)))
    >>> round(found["effective_rank"].value, 1), found["effective_rank"].ceiling
    (7.9, 8)
    """
    z1 = _tensor(z1)
    z2 = None if z2 is None else _tensor(z2)
    labels = None if labels is None else _tensor(labels)
    if z2 is None:
        samples(z1, torch.float64)
        found = measure([z1], Moments.of(z1))
    else:
        paired(z1, z2, torch.float64)
        found = measure([z1, z2], Moments.of(z1, z2))
    if labels is not None:
        _add_labels(found, z1.double(), labels_of(labels, len(z1)))
    return found


def _tensor(array: Any) -> Tensor:
    """Arrays are copied: torch takes none that is read-only or goes backwards."""
    return array if isinstance(array, Tensor) else torch.as_tensor(array.copy() if hasattr(array, "copy") else array)


def _add_labels(found: Report, z: Tensor, labels: Tensor) -> None:
    known = labels >= 0
    z, labels = z[known], labels[known]
    n, d = z.shape
    classes, members = labels.unique(return_inverse=True)
    if len(classes) < 2 or n < 3:
        reason = f"{n} labelled samples of {len(classes)} classes: two classes and three samples are needed"
        found.reasons.update({"class_share_of_variance": reason, "knn_top1": reason})
        return
    means = torch.stack([z[members == label].mean(0) for label in range(len(classes))])
    total = (z - z.mean(0)).square().sum()
    between = (means[members] - z.mean(0)).square().sum()
    about = f"{len(classes)} classes"
    if float(total) <= n * d * (64 * torch.finfo(z.dtype).eps * float(z.abs().max())) ** 2:
        found.reasons["class_share_of_variance"] = f"all {n} labelled samples are one point"
    else:
        found.quantities["class_share_of_variance"] = Quantity(float(between / total), 1.0, "share", n, d, about)
    unit = F.normalize(z, dim=1)
    right = 0
    with full_precision(z.device):
        for rows in torch.arange(n, device=z.device).split(1024):
            similarity = unit[rows] @ unit.T
            similarity[torch.arange(len(rows)), rows] = -torch.inf
            best, where = similarity.topk(min(20, n - 1), dim=1)
            votes = z.new_zeros(len(rows), len(classes))
            votes.scatter_add_(1, members[where], torch.softmax(best / 0.07, dim=1))
            right += int((votes.argmax(1) == members[rows]).sum())
    settings = "leave-one-out, k 20, temperature 0.07"
    found.quantities["knn_top1"] = Quantity(right / n, 1.0, "accuracy", n, d, settings)
