"""Mergeable sums of least squares and of pairs of features, which the generalization bound is computed from."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.reduction import sum_over_ranks

Treatment = Literal["clip", "normalize", "simplex"]

_CHUNK_ROWS = 4096
# Z^T Z is known to d eps of its largest eigenvalue, and W takes ||W||^2 times that error into the squared residual,
# at most ||Y||^2 * error / (smallest eigenvalue kept): with this factor one part in ten thousand, whatever the labels.
_TOLERANCE = 1e4 * torch.finfo(torch.float64).eps

_SHARES = 1e-5  # how far a float32 softmax of many entries may be from its sum


def within_radius(z: Tensor, radius: float = 1.0, treatment: Treatment = "clip") -> Tensor:
    """Features z (N, d) of length at most ``radius``, in float64: what the states of the bound are made of.

    "clip" shortens rows that are longer, "normalize" gives every row that length. A row of zeros stays. "simplex" takes
    rows of shares, >= 0 with sum ``radius``, as a softmax gives them, and is what makes the tightest bound. The radius
    is to be fixed without looking at the data.

    Raises ValueError for NaN, infinity, a radius that is not positive, or rows off the simplex. Source: derived.

    >>> within_radius(torch.tensor([[0.0, 4.0], [0.25, 0.5]])).tolist()
    [[0.0, 1.0], [0.25, 0.5]]
    >>> within_radius(torch.tensor([[0.0, 4.0], [0.0, 0.5]]), radius=2.0, treatment="normalize").tolist()
    [[0.0, 2.0], [0.0, 2.0]]
    """
    among("treatment", treatment, get_args(Treatment))
    return treated("features", z, checks.positive("radius", radius), treatment)


def treated(name: str, z: Tensor, radius: float, treatment: str) -> Tensor:
    z = checks.tensor(z, torch.float64, name, "N, d")
    if treatment == "simplex":
        total = z.sum(1, keepdim=True)
        if bool((z < 0).any()) or bool(((total / radius - 1).abs() > _SHARES).any()):
            raise ValueError(
                f"{name} has rows that are not >= 0 with sum {radius:g}, which treatment='simplex' asks for: pass a "
                "softmax, or another treatment"
            )
        return z * (radius / total)
    # Relative to the largest entry, so that no square overflows.
    largest = z.abs().amax(1, keepdim=True)
    direction = z / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True).clamp_min(1.0)
    on_sphere = direction * (radius / length)
    return on_sphere if treatment == "normalize" else torch.where(length * largest > radius, on_sphere, z)


class Solution(NamedTuple):
    """Minimum-norm least squares: weights W (K, d), the rank of the features, and ||Y - Z W^T||_F, 0-d."""

    weights: Tensor
    rank: int
    residual: Tensor


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """Sums from which the least-squares map from features Z (N, d) to one-hot labels Y (N, K) follows, in float64.

    O(d^2 + dK) memory whatever N; ``a + b`` of two, ``.reduce()`` of all ranks. Without labels K is 0. Y^T Y is the
    diagonal matrix of ``class_counts``. For the bound, Z is what ``within_radius`` returns.

    Source: derived (normal equations).

    >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    >>> merged = LeastSquares.of(z[:1], torch.tensor([0]), 2) + LeastSquares.of(z[1:], torch.tensor([1, 1]), 2)
    >>> fit = merged.solve()
    >>> merged.n, fit.rank, [[round(w, 4) for w in row] for row in fit.weights.tolist()], round(fit.residual.item(), 4)
    (3, 2, [[1.0, 0.0], [0.0, 0.6]], 0.4472)
    """

    count: Tensor  # ()
    gram: Tensor  # Z^T Z (d, d)
    cross: Tensor  # Z^T Y (d, K)
    class_counts: Tensor  # (K,)

    @classmethod
    def of(cls, features: Tensor, targets: Tensor | None = None, num_classes: int | None = None) -> Self:
        """Sums of features (N, d) and their targets: labels (N,), one-hot rows (N, K), or None; N may be 0.

        Raises ValueError for NaN or infinity, features whose squares overflow, labels outside 0..K-1, rows that are
        not one-hot, and mismatched shapes.
        """
        features = checks.tensor(features, features.dtype if is_tensor(features) else torch.float64, "features", "N, d")
        labels, classes = class_labels("targets", targets, len(features), num_classes)
        found = cls.empty(features.shape[1], classes, features.device)
        gram, cross = found.gram, found.cross
        for rows in row_blocks(len(features)):
            z = features[rows].double()
            gram = gram.addmm(z.T, z)
            if labels is not None:
                cross = cross.index_add(1, labels[rows].to(z.device), z.T)
        if not bool(gram.detach().isfinite().all()):
            raise ValueError(
                f"features overflow float64 when squared, largest entry {features.abs().max().item():.3g}: "
                "pass within_radius(features)"
            )
        count = torch.full_like(found.count, len(features))
        counts = found.class_counts
        if labels is not None:
            counts = torch.bincount(labels, minlength=classes).to(counts)
        return cls(count, gram, cross, counts)

    @classmethod
    def empty(cls, d: int, num_classes: int = 0, device: torch.device | str | None = None) -> Self:
        """The sums of no samples of d features: the start of a running sum."""
        gram = torch.zeros(d, d, dtype=torch.float64, device=device)
        return cls(gram.new_zeros(()), gram, gram.new_zeros(d, num_classes), gram.new_zeros(num_classes))

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.count)

    @property
    def d(self) -> int:
        """Number of features."""
        return len(self.gram)

    @property
    def num_classes(self) -> int:
        """Number of classes K, 0 without labels."""
        return len(self.class_counts)

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, LeastSquares):
            return NotImplemented
        if self.cross.shape != other.cross.shape:
            raise ValueError(
                f"sums of (d, K) = {tuple(self.cross.shape)} and {tuple(other.cross.shape)} do not merge: use the same "
                "number of features and of classes everywhere"
            )
        return type(self)(*(a + b for a, b in zip(self._sums(), other._sums(), strict=True)))

    def reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """The sums over the process group, on every rank: exact for uneven and empty ranks, one collective."""
        return type(self)(*sum_over_ranks(*self._sums(), group=group))

    def solve(self) -> Solution:
        """Minimum-norm least squares by the pseudo-inverse of Z^T Z.

        Eigenvalues at or below 1e4 d eps of the largest (eps of float64) count as zero: what is kept is known to one
        part in ten thousand, and rounding of float32 features lies below. The residual is the one of these weights,
        so that a bound with both holds whatever the tolerance.
        """
        return self._solution

    @functools.cached_property
    def _solution(self) -> Solution:
        values, vectors = torch.linalg.eigh(self.gram)
        kept = values > _TOLERANCE * self.d * values[-1].clamp_min(0)
        basis = vectors[:, kept]
        weights = (basis / values[kept]) @ (basis.T @ self.cross)  # (d, K)
        square = self.class_counts.sum() - 2 * (weights * self.cross).sum() + (weights * (self.gram @ weights)).sum()
        # A residual of zero comes out as rounding of ||Y||^2, of either sign.
        return Solution(weights.T, int(kept.sum()), square.clamp_min(0).sqrt())

    def _sums(self) -> tuple[Tensor, ...]:
        return self.count, self.gram, self.cross, self.class_counts


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sum of ||f(x+) - f(x++)|| over pairs, and the least-squares sums of the first images f(x+); merges exactly.

    Source: derived.

    >>> first, second = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.6, 0.0], [1.0, 0.0]])
    >>> sums = PairSums.of(first[:1], second[:1]) + PairSums.of(first[1:], second[1:])
    >>> sums.n, round(sums.invariance().item(), 4)
    (2, 0.4)
    """

    distance: Tensor  # ()
    first: LeastSquares

    @classmethod
    def of(cls, first: Tensor, second: Tensor, targets: Tensor | None = None, num_classes: int | None = None) -> Self:
        """Sums of m pairs (m, d) and (m, d), and of the labels that the two of a pair share, if known; m may be 0."""
        sums = LeastSquares.of(first, targets, num_classes)
        second = checks.tensor(second, second.dtype if is_tensor(second) else torch.float64, "second", "N, d")
        if first.shape != second.shape:
            raise ValueError(
                f"first {tuple(first.shape)} and second {tuple(second.shape)} do not match: row i of both is a pair"
            )
        distance = sums.count.new_zeros(())
        for rows in row_blocks(len(first)):
            distance = distance + torch.linalg.vector_norm(first[rows].double() - second[rows].double(), dim=1).sum()
        return cls(distance, sums)

    @classmethod
    def empty(cls, d: int, num_classes: int = 0, device: torch.device | str | None = None) -> Self:
        """The sums of no pairs."""
        first = LeastSquares.empty(d, num_classes, device)
        return cls(first.count, first)

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.first.n

    def invariance(self) -> Tensor:
        """Mean of ||f(x+) - f(x++)||, 0-d."""
        return self.distance / self.first.count

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, PairSums):
            return NotImplemented
        return type(self)(self.distance + other.distance, self.first + other.first)

    def reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """The sums over the process group, on every rank, in one collective."""
        distance, *sums = sum_over_ranks(self.distance, *self.first._sums(), group=group)
        return type(self)(distance, LeastSquares(*sums))


def class_labels(name: str, targets: Tensor | None, n: int, num_classes: int | None) -> tuple[Tensor | None, int]:
    """Integer labels (n,) and their number of classes, of labels or one-hot rows; (None, 0) without labels."""
    if targets is None:
        return None, 0
    if not is_tensor(targets):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(targets).__name__}: use torch.as_tensor")
    if len(targets) != n or targets.ndim not in (1, 2) or (targets.ndim == 1 and targets.is_floating_point()):
        raise ValueError(
            f"{name} must be integer labels ({n},) or one-hot rows ({n}, K), got {targets.dtype} {tuple(targets.shape)}"
        )
    if targets.ndim == 1:
        labels = targets.long()
        classes = num_classes if num_classes is not None else int(labels.max()) + 1 if n else 0
    else:
        classes = targets.shape[1]
        labels = targets.to(torch.uint8).argmax(1) if classes else targets.new_zeros(n, dtype=torch.long)
        ones = int((targets != 0).sum()) == n and bool((targets.gather(1, labels[:, None]) == 1).all())
        if classes and not ones:
            raise ValueError(f"{name} has rows that are not one-hot: the bound is of classes, pass integer labels (n,)")
        if num_classes not in (None, classes):
            raise ValueError(f"{name} has {classes} columns where num_classes is {num_classes}: use one of them")
    classes = checks.at_least("num_classes", classes, 1 if n else 0)
    if n and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(
            f"{name} must lie in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}: "
            "leave out what has no label, or raise num_classes"
        )
    return labels, classes


def row_blocks(n: int) -> Iterator[slice]:
    """Rows, a few at a time: no float64 copy of the whole is held."""
    return (slice(start, start + _CHUNK_ROWS) for start in range(0, n, _CHUNK_ROWS))


def is_tensor(z: Any) -> bool:
    return isinstance(z, Tensor)


def among(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
