"""Validation images split into labelled ones, pairs and held-out ones, and what the bound needs of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sslinfo.evaluation.choice import Chosen, keys_of
from sslinfo.information import LeastSquares, PairSums, within_radius
from sslinfo.information.bound_terms import farthest

PURPOSE = "generalization bound"  # of the choice of images
PARTS = ("labelled", "first", "partner", "held_out")
# Twice as many partners as firsts, so that nearly every first finds one whatever the class.
SHARES = (0.4, 1 / 6, 1 / 3, 0.1)
# Images whose features are kept; there are twice as many partners as firsts.
MOST_LABELLED, MOST_HELD_OUT, MOST_FIRSTS = 20_000, 4096, 10_000


class Split:
    """The three parts of one validation: sums in O(d^2) memory, and a limited number of features.

    Batches come whole on any number of ranks, so that every rank has all of this alike.
    """

    def __init__(self, classes: int | None, radius: float, treatment: Any) -> None:
        self.classes, self.radius, self.treatment = classes, radius, treatment
        self.count = self.unlabelled = self.unmatched = 0
        self.error: str | None = None
        self.labelled: LeastSquares | None = None
        self.views: PairSums | None = None
        self.firsts, self.partners = Chosen(MOST_FIRSTS, PURPOSE), Chosen(2 * MOST_FIRSTS, PURPOSE)
        self.held_out, self.own = Chosen(MOST_HELD_OUT, PURPOSE), Chosen(MOST_LABELLED, PURPOSE)
        self._seen: set[int] = set()

    def add(self, clean: Tensor, views: Sequence[Tensor], label: Tensor, index: Tensor) -> None:
        """Add a batch: clean representations (N, d), those of the views, labels and indices (N,)."""
        self.count += len(index)
        before = len(self._seen)
        self._seen.update(index.tolist())
        if len(self._seen) != before + len(index):
            self.error = "some images came twice in this validation: the three parts would not be disjoint"
        keep = torch.ones_like(label, dtype=torch.bool) if self.classes is None else label >= 0
        self.unlabelled += int((~keep).sum())
        label, index = label[keep], index[keep]
        if self.labelled is None:
            self.labelled = LeastSquares.empty(clean.shape[1], self.classes or 0, clean.device)
            self.views = PairSums.empty(clean.shape[1], self.classes or 0, clean.device)
        if self.error is not None:
            return
        try:
            treated = self._treated(clean[keep])
            of_views = [self._treated(view[keep]) for view in views]
        except ValueError as error:  # a network that diverged: the training goes on, and the reason is reported
            self.error = str(error)
            return
        part = part_of(index)
        masks = [part == number for number in range(len(PARTS))]
        assert bool((torch.stack(masks).sum(0) == 1).all())  # each image in one part
        of_labelled, of_firsts, of_partners, held_out = masks
        of_pairs = of_firsts | of_partners

        def labels(mask: Tensor) -> Tensor | None:
            return None if self.classes is None else label[mask]

        assert self.views is not None
        self.labelled = self.labelled + LeastSquares.of(treated[of_labelled], labels(of_labelled), self.classes)
        if len(of_views) == 2:
            one, other = (view[of_pairs] for view in of_views)
            self.views = self.views + PairSums.of(one, other, labels(of_pairs), self.classes)
        if self.classes is not None:
            clean = clean[keep]
            for chosen, mask in (
                (self.own, of_labelled),
                (self.firsts, of_firsts),
                (self.partners, of_partners),
                (self.held_out, held_out),
            ):
                chosen.add({"z": clean[mask], "label": label[mask], "index": index[mask]})

    def _treated(self, z: Tensor) -> Tensor:
        return within_radius(z, self.radius, self.treatment)

    def pairs_of_a_class(self) -> PairSums | None:
        """Firsts and partners of their class; a first without one counts with the largest distance there is.

        Who meets whom depends on labels and indices alone. None without firsts.
        """
        firsts, partners = self.firsts.take(), self.partners.take()
        if self.classes is None or not self.firsts.count:
            return None
        ours, theirs = [], []
        for label in range(self.classes):
            mine, others = ((rows["label"] == label).nonzero()[:, 0] for rows in (firsts, partners))
            matched = min(len(mine), len(others))
            ours.append(mine[:matched])
            theirs.append(others[:matched])
        first, second = torch.cat(ours), torch.cat(theirs)
        self.unmatched = self.firsts.count - len(first)
        pairs = PairSums.of(self._treated(firsts["z"][first]), self._treated(partners["z"][second]))
        whole = LeastSquares.of(self._treated(firsts["z"]), firsts["label"], self.classes)
        return PairSums(pairs.distance + farthest(self.radius, self.treatment) * self.unmatched, whole)

    def mean_residual(self) -> float | None:
        """Mean of ||W_S f - y|| over the labelled images; None where there are too many to keep them all."""
        rows = self.own.take()
        if self.labelled is None or self.own.count < self.labelled.n or not self.own.count:
            return None
        return self._risk(rows)[0]

    def measure(self) -> tuple[float, float] | None:
        """Risk and top-1 error on the held-out images of least squares on the labelled ones; None without any."""
        rows = self.held_out.take()
        return self._risk(rows) if self.held_out.count and self.labelled is not None and self.classes else None

    def _risk(self, rows: dict[str, Tensor]) -> tuple[float, float]:
        assert self.labelled is not None
        assert self.classes is not None
        output = self._treated(rows["z"]) @ self.labelled.solve().weights.T
        risk = torch.linalg.vector_norm(output - one_hot(rows["label"], self.classes), dim=1).mean()
        return float(risk), float((output.argmax(1) != rows["label"]).double().mean())


def part_of(index: Tensor) -> Tensor:
    """The part, a number into ``PARTS``, of the images with these indices (N,): a hash of the index alone.

    >>> [round(share, 2) for share in (part_of(torch.arange(1_000_000)).bincount() / 1_000_000).tolist()]
    [0.4, 0.17, 0.33, 0.1]
    """
    uniform = ((keys_of(index, PURPOSE) >> 11) & ((1 << 53) - 1)).double() / 2**53
    edges = torch.tensor(SHARES, dtype=torch.float64, device=index.device).cumsum(0)[:-1]
    return torch.bucketize(uniform, edges, right=True)
