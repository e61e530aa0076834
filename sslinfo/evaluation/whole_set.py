"""WholeSet: what a report of a whole split needs, in memory that does not grow with the split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslinfo.evaluation.choice import Chosen
from sslinfo.information import Moments
from sslinfo.information.measure import Report, Scales, measure

Views = tuple[Tensor, ...]
PAIRED = "gaussian_mutual_information"
WIDEST_JOINT = 4096  # features of both views whose joint covariance is kept


def not_finite(parts: Sequence[Tensor]) -> Report | None:
    """A report without numbers, of samples that hold NaN or infinity: no training stops because of its diagnostics."""
    bad = sum(int((~rows.isfinite()).any(1).sum()) for rows in parts)
    count = sum(len(rows) for rows in parts)
    return Report(reasons={"all": f"{bad} of {count} samples hold NaN or infinity"}) if bad else None


class WholeSet:
    """Moments of all samples, and some samples, chosen by a hash of their index: the same on any number of ranks."""

    def __init__(self, samples: int) -> None:
        self.chosen = Chosen(samples, "information monitor")
        self.moments: Moments | None = None
        self.absent: Report | None = None  # in place of numbers

    def add(self, views: Views, index: Tensor) -> None:
        if self.absent is None:
            self.absent = not_finite(views)
        if self.absent is not None:
            return
        joint = 2 * views[0].shape[1] <= WIDEST_JOINT
        some = Moments.of(*(views[:2] if joint else views[:1]))
        self.moments = some if self.moments is None else self.moments + some
        self.chosen.add({"views": torch.stack(views, dim=1), "index": index})

    def measure(self, scales: Scales) -> Report:
        if self.absent is not None:
            return self.absent
        assert self.moments is not None
        rows = self.chosen.take()
        views = rows["views"][rows["index"].argsort()].unbind(1)
        found = measure(views, self.moments, scales)
        if len(views) > 1 and len(self.moments.sizes) == 1 and PAIRED in found.reasons:
            found.reasons[PAIRED] = f"joint moments of two views are kept up to {WIDEST_JOINT // 2} features"
        return found

    def first(self) -> Moments | None:
        """Moments of the first view, if there is a covariance."""
        if self.moments is None or self.absent is not None or self.moments.n < 2:
            return None
        return self.moments.view(0)
