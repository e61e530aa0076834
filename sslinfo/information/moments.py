"""Mergeable moments: state that adds up exactly over batches and ranks, from which quantities are computed once.

Averages of non-linear quantities over shards are wrong by many nats; sums about a common mean are not. Every kind of
moment here is a count, a mean and some sums about that mean, and merges in one way: move both sides to the common mean,
then add (Chan, Golub & LeVeque 1979; Pebay 2008 for the orders three and four).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.reduction import sum_over_ranks

_CHUNK_ROWS = 512  # a chunk of some hundred features in float64 stays near the caches


@dataclass(frozen=True, eq=False)
class CenteredSums:
    """A count (), a mean (d,) and sums about that mean; with a leading axis of groups where there are groups."""

    count: Tensor
    mean: Tensor

    def _about(self, mean: Tensor) -> tuple[Tensor, ...]:
        """The sums of this state about another mean."""
        raise NotImplementedError

    def _with(self, count: Tensor, mean: Tensor, sums: tuple[Tensor, ...]) -> Self:
        """A state of this kind with these sums. Both methods are each kind's own: there is no state of the base."""
        raise NotImplementedError

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, type(self)):
            return NotImplemented
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"moments of shapes {tuple(self.mean.shape)} and {tuple(other.mean.shape)} do not merge: "
                "use the same number of features and of groups everywhere"
            )
        count = self.count + other.count
        share = (other.count / count.clamp_min(1))[..., None]
        mean = self.mean + (other.mean - self.mean) * share
        sums = tuple(a + b for a, b in zip(self._about(mean), other._about(mean), strict=True))
        return self._with(count, mean, sums)

    def reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Merge over the process group, on every rank: exact for uneven and empty ranks, two collectives, no gradient.

        Without a process group the state is returned as it is.
        """
        count, total = sum_over_ranks(self.count, self.count[..., None] * self.mean, group=group)
        mean = total / count.clamp_min(1)[..., None]
        return self._with(count, mean, sum_over_ranks(*self._about(mean), group=group))


def _chunks(views: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Rows of the joined views in float64, a few at a time: no float64 copy of the whole is held."""
    for parts in zip(*(z.split(_CHUNK_ROWS) for z in views), strict=True):
        yield torch.cat([part.double() for part in parts], dim=1) if len(parts) > 1 else parts[0].double()


def _scatter_about(mean: Tensor, count: Tensor, old_mean: Tensor, scatter: Tensor) -> Tensor:
    shift = torch.atleast_2d(old_mean - mean)
    return torch.addmm(scatter, (shift * count.reshape(-1, 1)).T, shift)


@dataclass(frozen=True, eq=False)
class Moments(CenteredSums):
    """First and second moments of samples z (N, d), in float64, O(d^2) memory whatever N.

    ``Moments.of(z)`` of one batch, ``a + b`` of two, ``.reduce()`` of all ranks: the same result as of all samples at
    once. ``Moments.of(z1, z2)`` holds the joint moments of several views, ``.view(i)`` the moments of one of them.
    Gradients flow through ``of`` and ``+``; a running sum over batches is taken of detached samples.

    Source: derived (pairwise merge of Chan, Golub & LeVeque).

    >>> z = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 8.0]])
    >>> merged = Moments.of(z[:1]) + Moments.of(z[1:])
    >>> merged.n, merged.mean.tolist(), merged.covariance().tolist()
    (3, [2.0, 4.0], [[4.0, 7.0], [7.0, 13.0]])
    """

    scatter: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, *views: Tensor) -> Self:
        """Moments of z (N, d), or the joint moments of several views (N, d_i) of the same samples; N may be 0.

        Raises ValueError for NaN or infinity, integer tensors, another rank than two, or views of different N.
        """
        names = ["z"] if len(views) == 1 else [f"z{i + 1}" for i in range(len(views))]
        for z, name in zip(views, names, strict=True):
            checks.tensor(z, z.dtype if isinstance(z, Tensor) else torch.float64, name, "N, d")
        if not views:
            raise ValueError("views is empty: pass at least one tensor (N, d)")
        if len({len(z) for z in views}) > 1:
            shapes = [tuple(z.shape) for z in views]
            raise ValueError(f"views must have as many rows each, got shapes {shapes}: row i of all is one sample")
        sums = cls.empty(*(z.shape[1] for z in views), device=views[0].device)
        total, scatter = sums.mean, sums.scatter
        for chunk in _chunks(views):
            total = total + chunk.sum(0)
        count = torch.full_like(sums.count, len(views[0]))
        mean = total / count.clamp_min(1)
        for chunk in _chunks(views):
            centered = chunk - mean
            scatter = scatter.addmm_(centered.T, centered)
        return cls(count, mean, scatter, sums.sizes)

    @classmethod
    def empty(cls, *sizes: int, device: torch.device | str | None = None) -> Self:
        """The moments of no samples of d features (or of several views of d_i): the start of a running sum."""
        d = sum(sizes)
        zeros = torch.zeros(d, d, dtype=torch.float64, device=device)
        return cls(zeros.new_zeros(()), zeros.new_zeros(d), zeros, tuple(sizes))

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.count)

    @property
    def d(self) -> int:
        """Number of features, of all views together."""
        return self.mean.shape[-1]

    def __add__(self, other: Self) -> Self:
        if isinstance(other, Moments) and self.sizes != other.sizes:
            raise ValueError(
                f"moments of views of widths {self.sizes} and {other.sizes} do not merge: split all batches alike"
            )
        return super().__add__(other)

    def covariance(self, ddof: int = 1) -> Tensor:
        """Covariance (d, d) with divisor n - ddof; raises UndefinedEstimate when n <= ddof."""
        if self.n <= ddof:
            raise UndefinedEstimate(f"a covariance with ddof={ddof} needs n > {ddof} samples, got n={self.n}")
        return self.scatter / (self.n - ddof)

    def second_moment(self) -> Tensor:
        """Uncentred second moment (d, d) with divisor n; raises UndefinedEstimate when n = 0."""
        return self.covariance(ddof=0) + torch.outer(self.mean, self.mean)

    def view(self, index: int) -> Self:
        """The moments of one view out of joint moments; each time the same object, which keeps its eigenvalues."""
        views = self.__dict__.setdefault("views", {})
        if index not in views:
            start = sum(self.sizes[:index])
            part = slice(start, start + self.sizes[index])
            views[index] = type(self)(self.count, self.mean[part], self.scatter[part, part], (self.sizes[index],))
        return views[index]

    def _about(self, mean: Tensor) -> tuple[Tensor, ...]:
        return (_scatter_about(mean, self.count, self.mean, self.scatter),)

    def _with(self, count: Tensor, mean: Tensor, sums: tuple[Tensor, ...]) -> Self:
        return type(self)(count, mean, sums[0], self.sizes)


@dataclass(frozen=True, eq=False)
class GroupedMoments(CenteredSums):
    """Counts (G,) and means (G, d) of groups (classes, images), and the scatter (d, d) within groups summed over them.

    Merges like ``Moments``, in O(G d + d^2) memory; a group may be spread over batches and ranks.

    Source: derived (the merge of Chan, Golub & LeVeque within each group).

    >>> z = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    >>> groups = GroupedMoments.of(z, torch.tensor([0, 0, 1, 1]), num_groups=2)
    >>> groups.mean.flatten().tolist(), groups.within_covariance().item(), groups.between().covariance().item()
    ([1.0, 12.0], 5.0, 60.5)
    """

    scatter: Tensor

    @classmethod
    def of(cls, z: Tensor, groups: Tensor, num_groups: int) -> Self:
        """Moments of z (N, d) in the groups (N,), integers from 0 to num_groups - 1; N may be 0."""
        z = checks.samples(z, torch.float64, minimum=0)
        num_groups = checks.at_least("num_groups", num_groups, 1)
        if not isinstance(groups, Tensor):
            raise TypeError(
                f"groups must be a torch.Tensor, got {type(groups).__name__}: convert it with torch.as_tensor"
            )
        if groups.shape != z.shape[:1] or groups.is_floating_point():
            raise ValueError(f"groups must be integers ({len(z)},), got {groups.dtype} {tuple(groups.shape)}")
        if len(z) and (int(groups.min()) < 0 or int(groups.max()) >= num_groups):
            raise ValueError(f"groups must lie in 0..{num_groups - 1}, got {int(groups.min())}..{int(groups.max())}")
        groups = groups.long()
        count = z.new_zeros(num_groups).index_add(0, groups, z.new_ones(len(z)))
        mean = z.new_zeros(num_groups, z.shape[1]).index_add(0, groups, z) / count.clamp_min(1)[:, None]
        centered = z - mean[groups]
        return cls(count, mean, centered.T @ centered)

    @property
    def n(self) -> int:
        """Number of samples in all groups."""
        return int(self.count.sum())

    def within_covariance(self) -> Tensor:
        """Pooled covariance within groups (d, d), divisor n - (number of groups that are not empty)."""
        freedom = self.n - int((self.count > 0).sum())
        if freedom <= 0:
            raise UndefinedEstimate(f"a covariance within groups needs 2 samples in some group, got n={self.n}")
        return self.scatter / freedom

    def between(self) -> Moments:
        """Moments of the group means, each group that is not empty counted once."""
        return Moments.of(self.mean[self.count > 0])

    def _about(self, mean: Tensor) -> tuple[Tensor, ...]:
        return (_scatter_about(mean, self.count, self.mean, self.scatter),)

    def _with(self, count: Tensor, mean: Tensor, sums: tuple[Tensor, ...]) -> Self:
        return type(self)(count, mean, sums[0])


def as_moments(z: Tensor | Moments, dtype: torch.dtype) -> Moments:
    """z itself if it is moments, else its moments; ``dtype`` is that of the statistic, moments stay in float64."""
    if isinstance(z, Moments):
        if z.n < 2:
            raise UndefinedEstimate(f"moments need at least 2 samples, got n={z.n}: merge more batches")
        return z
    return Moments.of(checks.samples(z, dtype))
