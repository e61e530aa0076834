"""Everything that can be said of a representation given as arrays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslinfo.information.checks import labels_of, paired, samples
from sslinfo.information.measure import Report, measure
from sslinfo.information.moments import Moments


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
    Source: each quantity's own, see docs/quantities.md.

    >>> z = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    >>> found = report(z, z + 0.1 * torch.randn(500, 8, generator=torch.Generator().manual_seed(1)))
    >>> round(found["effective_rank"].value, 1), found["effective_rank"].ceiling
    (7.9, 8)
    """
    views = [_tensor(z) for z in (z1, z2) if z is not None]
    if len(views) == 1:
        samples(views[0], torch.float64)
    else:
        paired(views[0], views[1], torch.float64)
    known = None if labels is None else labels_of(_tensor(labels), len(views[0]))
    return measure(views, Moments.of(*views), labels=known)


def _tensor(array: Any) -> Tensor:
    """Arrays are copied: torch takes none that is read-only or goes backwards."""
    return array if isinstance(array, Tensor) else torch.as_tensor(array.copy() if hasattr(array, "copy") else array)
