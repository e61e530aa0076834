"""Entropies in nats: Gaussian, LogDet, and the pairwise and von Mises-Fisher kernel estimates."""

import math
from typing import Literal

import torch
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.cholesky import covariance_half_logdet, half_logdet
from sslinfo.information.kernel import kernel_logsumexp
from sslinfo.information.moments import Moments, as_moments
from sslinfo.precision import full_precision

# -scale r^2 in units of r^2 / variance: Kullback-Leibler divergence above, Bhattacharyya distance below.
_PAIRWISE_SCALE = {"upper": 1 / 2, "lower": 1 / 8}


def gaussian_logdet_bias(d: int, freedom: int) -> float:
    """Exact bias, in nats, of 1/2 logdet S for Gaussian data, S the covariance (d, d) on ``freedom`` = N - 1 degrees.

    b = 1/2 sum_{i=1..d} [psi((freedom - i + 1) / 2) - log(freedom / 2)], whatever the true covariance.

    Source: derived from the Bartlett decomposition of the Wishart distribution.

    >>> round(gaussian_logdet_bias(128, 1023), 1)
    -4.2
    """
    if freedom < d:
        raise UndefinedEstimate(f"the log-determinant bias needs N > d, got d={d} and N={freedom + 1}: raise N")
    degrees = freedom - torch.arange(d, dtype=torch.float64)
    return float(0.5 * (torch.digamma(degrees / 2) - math.log(freedom / 2)).sum())


def gaussian_entropy(z: Tensor | Moments, debias: bool = False, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Entropy of the Gaussian with the covariance S of z (N, d): (d/2) log 2 pi e + 1/2 logdet S, 0-d, in nats.

    Among all densities with that covariance the largest, so an *upper* bound on the entropy of z up to sampling error,
    which is tens of nats where d is near N; ``debias=True`` removes that error exactly in expectation for Gaussian
    data. Computed in float64; ``dtype`` is that of the result. -inf where S is singular. Differentiable.

    Raises UndefinedEstimate when N <= d, ValueError for bad input.
    Source: Cover & Thomas, Elements of Information Theory, theorem 8.6.5; bias derived.

    >>> z = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> round(gaussian_entropy(z).item(), 4)
    1.4189
    """
    moments = as_moments(z, dtype)
    n, d = moments.n, moments.d
    if n <= d:
        raise UndefinedEstimate(f"gaussian_entropy needs N > d, got N={n}, d={d}: merge moments of more batches")
    value = covariance_half_logdet(moments.covariance(), moments.mean) + d / 2 * math.log(2 * math.pi * math.e)
    return (value - gaussian_logdet_bias(d, n - 1) if debias else value).to(dtype)


def logdet_entropy(
    z: Tensor | Moments, beta: float = 1.0, centered: bool = True, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """LogDet entropy 1/2 logdet(I + beta S) of z (N, d), 0-d, in nats, >= 0.

    S is the covariance with divisor N - 1, or with ``centered=False`` the second moment Z^T Z / N of the original
    paper. For Gaussian z it is I(z; z + e), e ~ N(0, I / beta); it is not scale-invariant, so log beta beside it.
    Works on the smaller of N and d. Jitter, where rounding asks for it, is reported by a ``JitterWarning``.
    Differentiable, with gradient (beta / (N - 1)) Z_c (I + beta S)^-1.

    Raises ValueError for beta <= 0 and bad input, UndefinedEstimate for N < 2.
    Source: Zhouyin & Liu, arXiv:2105.03705.

    >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    >>> round(logdet_entropy(z, beta=3.0).item(), 4), round(logdet_entropy(z, beta=3.0, centered=False).item(), 4)
    (1.6094, 1.3863)
    """
    beta = checks.positive("beta", beta)
    shift = 0.0
    if isinstance(z, Moments):
        moments = as_moments(z, dtype)
        gram = moments.covariance() if centered else moments.second_moment()
    else:
        z = checks.samples(z, dtype)
        n, d = z.shape
        if centered:
            z = z - z.mean(0)
        with full_precision(z.device):
            gram = (z @ z.T if n < d else z.T @ z) / (n - 1 if centered else n)
        if centered and n < d:
            # Centring leaves the all-ones direction at eigenvalue 1 beside large ones, lost to rounding in float32: it
            # is raised to their mean, exactly, and log(1 + shift) / 2 taken off again. The gradient does not see it.
            shift = beta * float(gram.detach().diagonal().mean())
    matrix = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) + beta * gram
    if shift:
        return (half_logdet(matrix + shift / len(gram)) - 0.5 * math.log1p(shift)).to(dtype)
    return half_logdet(matrix).to(dtype)


def pairwise_entropy(
    z: Tensor,
    variance: float,
    bound: Literal["lower", "upper"] = "lower",
    leave_one_out: bool = False,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Bound on the entropy of the mixture of N Gaussians N(z_i, variance I) at the rows of z (N, d), 0-d, in nats.

    (d/2) log(2 pi e variance) - mean_i log mean_j exp(-D_ij), with D the Bhattacharyya distance r^2 / 8 variance for
    the *lower* bound and the Kullback-Leibler divergence r^2 / 2 variance for the *upper*. Both bound the entropy of
    that mixture, not of the population, and saturate at ``pairwise_entropy_cap``: log the distance to it. With
    ``leave_one_out`` the term j = i is dropped: no cap, no bound any more, and isolated points count without limit.
    O(N x block) memory forward and backward. Differentiable.

    Raises ValueError for variance <= 0, an unknown bound or bad input, UndefinedEstimate for N < 2.
    Source: Kolchinsky & Tracey, arXiv:1706.02419.

    >>> z = torch.tensor([[0.0], [1e3]])
    >>> round(pairwise_entropy(z, 1.0).item(), 4), round(pairwise_entropy_cap(2, 1, 1.0).item(), 4)
    (2.1121, 2.1121)
    """
    variance = checks.positive("variance", variance)
    if bound not in _PAIRWISE_SCALE:
        raise ValueError(f"bound must be 'lower' or 'upper', got {bound!r}")
    z = checks.samples(z, dtype)
    n, d = z.shape
    log_sums = kernel_logsumexp(z, _PAIRWISE_SCALE[bound] / variance, leave_one_out)
    return d / 2 * math.log(2 * math.pi * math.e * variance) - log_sums.mean() + math.log(n - leave_one_out)


def pairwise_entropy_cap(n: int, d: int, variance: float) -> Tensor:
    """The largest value of both pairwise bounds for n samples in d dimensions, 0-d, in nats; reached beyond reach.

    (d/2) log(2 pi e variance) + log n, the entropy of n components that do not overlap. There the gradient is 0.

    Source: derived.

    >>> round(pairwise_entropy_cap(4096, 128, 1.0).item(), 1)
    189.9
    """
    n, d = checks.at_least("n", n, 1), checks.at_least("d", d, 1)
    half = d / 2 * math.log(2 * math.pi * math.e * checks.positive("variance", variance))
    return torch.tensor(half + math.log(n), dtype=torch.float64)
