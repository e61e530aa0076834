"""Tests of normality: D'Agostino-Pearson per dimension, Epps-Pulley on random slices; both from mergeable state."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.moments import CenteredSums
from sslinfo.information.reduction import sum_over_ranks
from sslinfo.precision import full_precision

_KNOTS = 17
_LAST_KNOT = 3.0


class Normality(NamedTuple):
    """D'Agostino-Pearson per dimension, each (d,): statistic and p-value, effect sizes, and which are rejected."""

    statistic: Tensor
    pvalue: Tensor
    skewness: Tensor
    excess_kurtosis: Tensor
    rejected: Tensor


@dataclass(frozen=True, eq=False)
class FourthMoments(CenteredSums):
    """Per-dimension sums of the second to fourth power about the mean, of samples z (N, d), in float64; mergeable.

    Source: Pebay, Sandia report SAND2008-6212, 2008.

    >>> z = torch.tensor([[0.0], [1.0], [5.0]])
    >>> merged = FourthMoments.of(z[:1]) + FourthMoments.of(z[1:])
    >>> [round(power.item(), 6) for power in (merged.second, merged.third, merged.fourth)]
    [14.0, 18.0, 98.0]
    """

    second: Tensor
    third: Tensor
    fourth: Tensor

    @classmethod
    def of(cls, z: Tensor) -> Self:
        """Moments of z (N, d); N may be 0."""
        z = checks.samples(z, torch.float64, minimum=0)
        count = z.new_tensor(float(len(z)))
        mean = z.sum(0) / count.clamp_min(1)
        centered = z - mean
        square = centered.square()
        return cls(count, mean, square.sum(0), (square * centered).sum(0), square.square().sum(0))

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.count)

    def _about(self, mean: Tensor) -> tuple[Tensor, ...]:
        shift, n = self.mean - mean, self.count
        return (
            self.second + n * shift**2,
            self.third + 3 * shift * self.second + n * shift**3,
            self.fourth + 4 * shift * self.third + 6 * shift**2 * self.second + n * shift**4,
        )

    def _with(self, count: Tensor, mean: Tensor, sums: tuple[Tensor, ...]) -> Self:
        return type(self)(count, mean, *sums)


def normality(z: Tensor | FourthMoments, level: float = 0.05, *, dtype: torch.dtype = torch.float64) -> Normality:
    """D'Agostino-Pearson test of each dimension of z (N, d): statistic, p-value, skewness, excess kurtosis, all (d,).

    Equals ``scipy.stats.normaltest``. Power is a matter of N: read the effect sizes beside the p-value. ``rejected``
    marks the dimensions rejected at false-discovery rate ``level`` by Benjamini-Hochberg. A constant dimension has NaN
    throughout and is not tested. ``FourthMoments`` are accepted, merged over batches or ranks.

    Raises UndefinedEstimate for N < 8, ValueError for bad input.
    Source: D'Agostino 1970; Anscombe & Glynn 1983; D'Agostino & Pearson 1973.

    >>> z = torch.tensor([[-2.0], [-1.5], [-1.0], [-0.5], [0.5], [1.0], [1.5], [2.0], [9.0]])
    >>> result = normality(z)
    >>> round(result.skewness.item(), 4), bool(result.rejected)
    (1.6969, True)
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}")
    sums = z if isinstance(z, FourthMoments) else FourthMoments.of(checks.samples(z, dtype))
    n = sums.n
    if n < 8:
        raise UndefinedEstimate(f"normality needs at least 8 samples, got {n}: pass more samples")
    eps = torch.finfo(torch.float64).eps
    variance = sums.second / n
    variance = torch.where(variance > (64 * eps * sums.mean).square(), variance, torch.nan)
    skewness = sums.third / n / variance**1.5
    kurtosis = sums.fourth / n / variance**2
    statistic = _skewness_score(skewness, n).square() + _kurtosis_score(kurtosis, n).square()
    pvalue = (-statistic / 2).exp()
    rejected = benjamini_hochberg(pvalue, level)
    return Normality(statistic.to(dtype), pvalue.to(dtype), skewness.to(dtype), (kurtosis - 3).to(dtype), rejected)


def benjamini_hochberg(pvalues: Tensor, level: float = 0.05) -> Tensor:
    """Which p-values (d,) are rejected with false-discovery rate at most ``level``; NaN is not tested, not rejected.

    Source: Benjamini & Hochberg 1995.

    >>> benjamini_hochberg(torch.tensor([0.01, 0.03, 0.04, 0.6])).tolist()
    [True, False, False, False]
    """
    tested = pvalues[~pvalues.isnan()].sort().values
    threshold = level * torch.arange(1, len(tested) + 1).to(tested) / max(len(tested), 1)
    passed = tested[tested <= threshold]
    if len(passed) == 0:
        return torch.zeros_like(pvalues, dtype=torch.bool)
    return pvalues <= passed.max()


def _skewness_score(skewness: Tensor, n: int) -> Tensor:
    """D'Agostino's transformation of the sample skewness to a standard normal score."""
    y = skewness * math.sqrt((n + 1) * (n + 3) / (6 * (n - 2)))
    beta2 = 3 * (n * n + 27 * n - 70) * (n + 1) * (n + 3) / ((n - 2) * (n + 5) * (n + 7) * (n + 9))
    w2 = math.sqrt(2 * (beta2 - 1)) - 1
    return torch.asinh(y / math.sqrt(2 / (w2 - 1))) / math.sqrt(math.log(w2) / 2)


def _kurtosis_score(kurtosis: Tensor, n: int) -> Tensor:
    """Anscombe & Glynn's transformation of the sample kurtosis to a standard normal score."""
    expected = 3 * (n - 1) / (n + 1)
    deviation = math.sqrt(24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5)))
    x = (kurtosis - expected) / deviation
    skew = 6 * (n * n - 5 * n + 2) / ((n + 7) * (n + 9)) * math.sqrt(6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3)))
    a = 6 + 8 / skew * (2 / skew + math.sqrt(1 + 4 / skew**2))
    base = (1 - 2 / a) / (1 + x * math.sqrt(2 / (a - 4)))
    root = base.sign() * base.abs() ** (1 / 3)
    return (1 - 2 / (9 * a) - root) / math.sqrt(2 / (9 * a))


@dataclass(frozen=True, eq=False)
class CharacteristicSums:
    """Sums of cos(t z.a) and sin(t z.a) of samples z (N, d) on random unit slices a and knots t; mergeable.

    The slices depend on d, ``slices`` and ``seed`` alone, and so are the same on every rank and device.
    """

    count: Tensor
    cosine: Tensor
    sine: Tensor
    key: tuple[int, int, int]

    @classmethod
    def of(cls, z: Tensor, slices: int = 256, seed: int = 0, *, dtype: torch.dtype = torch.float64) -> Self:
        """Sums of z (N, d), each (slices, knots); N may be 0. Differentiable."""
        slices, seed = checks.at_least("slices", slices, 1), checks.at_least("seed", seed, 0)
        z = checks.samples(z, dtype, minimum=0)
        d = z.shape[1]
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(d, slices, generator=generator, dtype=torch.float64)
        directions = (directions / torch.linalg.vector_norm(directions, dim=0)).to(z)
        with full_precision(z.device):
            projected = z @ directions
        knots = torch.linspace(0, _LAST_KNOT, _KNOTS, dtype=torch.float64).tolist()
        cosine = torch.stack([(knot * projected).cos().sum(0) for knot in knots], dim=1)
        sine = torch.stack([(knot * projected).sin().sum(0) for knot in knots], dim=1)
        return cls(z.new_tensor(float(len(z))), cosine, sine, (d, slices, seed))

    def __add__(self, other: Self) -> Self:
        if self.key != other.key:
            raise ValueError(f"sums on other slices do not merge: (d, slices, seed) {self.key} against {other.key}")
        return type(self)(self.count + other.count, self.cosine + other.cosine, self.sine + other.sine, self.key)

    def reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Sum over the process group, on every rank: one collective, uneven and empty ranks included, no gradient."""
        count, cosine, sine = sum_over_ranks(self.count, self.cosine, self.sine, group=group)
        return type(self)(count, cosine, sine, self.key)


def epps_pulley(
    z: Tensor | CharacteristicSums, slices: int = 256, seed: int = 0, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Epps-Pulley distance of z (N, d) from the standard normal N(0, I), mean over random unit slices, 0-d, >= 0.

    N int |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt on [-3, 3], phi_N the characteristic function of a slice, taken
    as the trapezoid on 17 knots of [0, 3], doubled: the statistic of SIGReg. Under N(0, I) its mean is 1.0525 and 95%
    of single slices lie below about 2.94. Mean and scale count: standardise z first to test the shape alone.
    ``CharacteristicSums`` are accepted, and bring their own slices. Differentiable.

    Raises UndefinedEstimate for N < 2, ValueError for bad input.
    Source: Epps & Pulley 1983; Balestriero & LeCun, arXiv:2511.08544.

    >>> round(epps_pulley(torch.zeros(4, 2)).item(), 4)  # the trapezoid of 4 (1 - exp(-t^2 / 2))^2 exp(-t^2 / 2)
    1.6082
    """
    sums = (
        z
        if isinstance(z, CharacteristicSums)
        else CharacteristicSums.of(checks.samples(z, dtype), slices, seed, dtype=dtype)
    )
    if int(sums.count) < 2:
        raise UndefinedEstimate(f"epps_pulley needs at least 2 samples, got {int(sums.count)}: pass more samples")
    t = torch.linspace(0, _LAST_KNOT, _KNOTS, dtype=torch.float64)
    weight = torch.full_like(t, 2 * _LAST_KNOT / (_KNOTS - 1))
    weight[[0, -1]] /= 2
    normal = (-t.square() / 2).exp()
    weight, normal = (weight * normal).to(sums.cosine), normal.to(sums.cosine)
    squared = (sums.cosine / sums.count - normal).square() + (sums.sine / sums.count).square()
    return (sums.count * (squared * weight).sum(1)).mean().to(dtype)
