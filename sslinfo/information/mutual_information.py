"""Mutual information between two views: Gaussian, InfoNCE, and the paper's entropy plus conditional split."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.cholesky import cholesky_and_trace_of_inverse
from sslinfo.information.entropy import gaussian_entropy, gaussian_logdet_bias, logdet_entropy, pairwise_entropy
from sslinfo.information.geometry import alignment
from sslinfo.information.moments import Moments, as_moments
from sslinfo.information.vmf import vmf_entropy, vmf_log_normalizer
from sslinfo.precision import full_precision

# Rounding error of a correlation in float64, with room for the factorizations that follow.
_ROUNDING = 16 * torch.finfo(torch.float64).eps

_ENTROPIES: dict[str, Callable[..., Tensor]] = {
    "logdet": logdet_entropy,
    "gaussian": gaussian_entropy,
    "pairwise": pairwise_entropy,
    "vmf": vmf_entropy,
}


class InfoNCE(NamedTuple):
    """InfoNCE value, the ceiling log N it cannot pass, and whether it is so near that it says no more than that."""

    value: Tensor
    ceiling: Tensor
    saturated: bool


class ViewInformation(NamedTuple):
    """entropy H(Z) + conditional E log q(z|z') = total, in nats; a lower bound of the information if ``is_bound``."""

    entropy: Tensor
    conditional: Tensor
    total: Tensor
    is_bound: bool


def gaussian_mutual_information(
    z1: Tensor | Moments, z2: Tensor | None = None, debias: bool = True, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Mutual information of jointly Gaussian views z1 (N, d1), z2 (N, d2), 0-d, in nats: -1/2 sum log(1 - rho^2).

    rho are the canonical correlations. Assumes Gaussian data: neither bound for others, and above log N a statement of
    that assumption more than of the data. The plug-in value is off by tens of nats where 2d is near N;
    ``debias=True`` removes exactly that, b(d1) + b(d2) - b(d1 + d2) of ``gaussian_logdet_bias``, and may fall below 0.
    Takes joint ``Moments.of(z1, z2)`` too. Inside a view, constant features are left out and, with features
    standardised, directions with less than 4e-13 of the variance of the largest; +inf where one view determines a
    direction of the other, to rounding error of the covariances. Differentiable.

    Raises UndefinedEstimate when N <= d1 + d2, ValueError for bad or mismatched input.
    Source: Hotelling 1936 (canonical correlations); bias derived.

    >>> z1 = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    >>> z2 = torch.tensor([[2.0], [-2.0], [1.0], [-1.0]])
    >>> round(gaussian_mutual_information(z1, z2, debias=False).item(), 4)  # rho^2 = 0.9
    1.1513
    """
    if isinstance(z1, Moments):
        if len(z1.sizes) != 2 or z2 is not None:
            raise ValueError(f"Moments must be joint, Moments.of(z1, z2), and passed alone, got sizes {z1.sizes}")
        joint = as_moments(z1, dtype)
    elif z2 is None:
        raise ValueError("z2 is missing: pass both views, or joint Moments.of(z1, z2)")
    else:
        joint = Moments.of(*checks.paired(z1, z2, dtype, same_width=False))
    n, sizes = joint.n, joint.sizes
    if n <= joint.d:
        raise UndefinedEstimate(
            f"gaussian_mutual_information needs N > d1 + d2, got N={n}, d1={sizes[0]}, d2={sizes[1]}: "
            "merge moments of more batches"
        )
    found = _of_regular_views(joint) or _of_singular_views(joint)
    if found is None:
        return joint.scatter.new_full((), torch.inf, dtype=dtype)
    value, d1, d2 = found
    if debias:
        freedom = n - 1
        marginals = gaussian_logdet_bias(d1, freedom) + gaussian_logdet_bias(d2, freedom)
        value = value - (marginals - gaussian_logdet_bias(d1 + d2, freedom))
    return value.to(dtype)


def _of_regular_views(joint: Moments) -> tuple[Tensor, int, int] | None:
    """-1/2 logdet(I - C C^T), C the whitened cross-covariance, and the views' ranks, by Cholesky factors alone.

    None where rounding might matter: where a view may have directions that are left out, or 1 - rho^2 may be zero.
    """
    covariance, d1, d2 = joint.covariance(), *joint.sizes
    variance = covariance.diagonal()
    if bool((variance <= (64 * torch.finfo(torch.float64).eps * joint.mean).square()).any()):
        return None
    correlation = covariance * torch.outer(variance.rsqrt(), variance.rsqrt())
    factor1, inverse1 = cholesky_and_trace_of_inverse(correlation[:d1, :d1])
    factor2, inverse2 = cholesky_and_trace_of_inverse(correlation[d1:, d1:])
    if 100 * _ROUNDING * max(d1 * inverse1, d2 * inverse2) >= 1:  # the largest eigenvalue is d at most
        return None
    half = torch.linalg.solve_triangular(factor1, correlation[:d1, d1:], upper=False)
    cross = torch.linalg.solve_triangular(factor2, half.T, upper=False)
    cross = cross if d2 <= d1 else cross.T
    unexplained, inverse = cholesky_and_trace_of_inverse(torch.eye(len(cross)).to(cross) - cross @ cross.T)
    if 100 * _ROUNDING * inverse * (inverse1 + inverse2) >= 1:
        return None
    return -unexplained.diagonal().log().sum(), d1, d2


def _of_singular_views(joint: Moments) -> tuple[Tensor, int, int] | None:
    """-1/2 sum log(1 - rho^2) on the directions that rounding leaves, and how many each view has; None if infinite."""
    (basis1, values1), (basis2, values2) = (_whitening(joint.view(i)) for i in (0, 1))
    d1, d2 = len(values1), len(values2)
    if not d1 or not d2:
        return joint.scatter.new_zeros(()), 0, 0
    covariance, split = joint.covariance(), joint.sizes[0]
    # The bases carry no gradient and are white to rounding error only: the factors of the two blocks correct both.
    factor1 = torch.linalg.cholesky(basis1.T @ covariance[:split, :split] @ basis1)
    factor2 = torch.linalg.cholesky(basis2.T @ covariance[split:, split:] @ basis2)
    half = torch.linalg.solve_triangular(factor1, basis1.T @ covariance[:split, split:] @ basis2, upper=False)
    cross = torch.linalg.solve_triangular(factor2, half.T, upper=False).T
    left, rho, right = torch.linalg.svd(cross, full_matrices=False)
    # A canonical variate is a combination of standardised features, which multiplies their rounding by its own squared
    # length: 1 - rho^2 below that is zero.
    length = (left.detach().square() / values1[:, None]).sum(0) + (right.detach().square() / values2).sum(1)
    if bool((1 - rho.detach().square() <= _ROUNDING * length).any()):
        return None
    return -torch.log1p(-rho.square()).sum() / 2, d1, d2


@torch.no_grad()
def _whitening(view: Moments) -> tuple[Tensor, Tensor]:
    """Whitening map (d, rank) onto the directions that rounding leaves, and their variance (rank,) of correlation."""
    covariance = view.covariance()
    eps = torch.finfo(torch.float64).eps
    variance = covariance.diagonal()
    inverse_scale = torch.where(variance > (64 * eps * view.mean).square(), variance.rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(covariance * torch.outer(inverse_scale, inverse_scale))
    # A hundred times rounding error: what is kept is known to a hundredth or better.
    kept = values > 100 * _ROUNDING * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return inverse_scale[:, None] * vectors / values.sqrt(), values


def infonce(
    z1: Tensor, z2: Tensor, temperature: float, normalize: bool = True, *, dtype: torch.dtype = torch.float64
) -> InfoNCE:
    """InfoNCE lower bound on the information between views z1, z2 (N, d), in nats: log N - cross-entropy.

    The critic is cos(z1_i, z2_j) / temperature, or with ``normalize=False`` the inner product; row i is classified
    among the N rows of z2. In expectation below the truth and never above log N, with any critic: ``saturated`` says
    that the value is past 95% of it, where it no longer measures the information. O(N^2) memory. Differentiable.

    Raises ValueError for temperature <= 0 or bad or mismatched input, UndefinedEstimate for N < 2 or rows of length 0
    to be normalised.
    Source: van den Oord et al., arXiv:1807.03748; the bound: Poole et al., arXiv:1905.06922.

    >>> result = infonce(torch.eye(4), torch.eye(4), temperature=0.1)
    >>> round(result.value.item(), 4), round(result.ceiling.item(), 4), result.saturated
    (1.3862, 1.3863, True)
    """
    temperature = checks.positive("temperature", temperature)
    z1, z2 = checks.paired(z1, z2, dtype)
    if normalize:
        z1, z2 = checks.unit_rows(z1, "z1"), checks.unit_rows(z2, "z2")
    with full_precision(z1.device):
        scores = z1 @ z2.T / temperature
    ceiling = scores.new_tensor(math.log(len(z1)))
    value = (scores.diagonal() - scores.logsumexp(1)).mean() + ceiling
    return InfoNCE(value, ceiling, bool(value.detach() > 0.95 * ceiling))


def view_information(
    z1: Tensor | Moments,
    z2: Tensor | None = None,
    entropy: Literal["logdet", "gaussian", "pairwise", "vmf"] = "logdet",
    *,
    decoder_variance: float | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> ViewInformation:
    """The paper's split I(Z; X') >= H(Z) + E log q(z|z') of views z1, z2 (N, d), every term 0-d, in nats.

    ``entropy`` names the estimator of H, averaged over the views and given the ``options`` (beta; debias; variance and
    bound; concentration). It decides the decoder q too:

    - ``logdet``, ``gaussian``: N(z; z', v I) with ``decoder_variance`` v, by default the best, E ||z - z'||^2 / d.
      A *proxy*: the Gaussian H is an upper bound, the log-det one is of z with noise of variance 1/beta and has no
      scale of its own, and the total grows without limit as the views coincide. ``smoothed_view_information`` has the
      noise in both halves.
    - ``pairwise``: both views carry Gaussian noise of the component variance s2, and q = N(z; z', s2 I), so that
      E log q = -(d/2) log 2 pi s2 - E ||z1 - z2||^2 / 2 s2 - d. With ``bound="lower"`` (the default) and self terms
      kept a true lower bound of the information about the empirical mixture, at most log N: the only ``is_bound``.
    - ``vmf``: von Mises-Fisher around z', log C_d(k) + k E cos(z1, z2). A proxy: a resubstitution estimate.

    ``logdet`` and ``gaussian`` take joint ``Moments.of(z1, z2)`` too.

    Raises ValueError for an unknown entropy, a missing variance or concentration, a decoder variance where the entropy
    sets it, bad or mismatched input; UndefinedEstimate as the entropy does, and where -inf meets +inf: a Gaussian
    entropy of singular views without a difference.
    Source: arXiv:2303.00633; form with noise in both halves derived.

    >>> z1 = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> result = view_information(z1, z1 + 0.5, entropy="pairwise", variance=1.0)
    >>> [round(term.item(), 4) for term in result[:3]], result.is_bound
    ([1.6803, -2.0439, -0.3636], True)
    """
    if entropy not in _ENTROPIES:
        raise ValueError(f"entropy must be one of {', '.join(_ENTROPIES)}, got {entropy!r}")
    kernel = entropy in ("pairwise", "vmf")
    if kernel and decoder_variance is not None:
        raise ValueError(f"decoder_variance={decoder_variance} is set by the kernel of entropy={entropy!r}: drop it")
    if isinstance(z1, Moments):
        if kernel:
            raise ValueError(f"entropy={entropy!r} needs samples: pass z1 and z2, not Moments")
        views: tuple[Tensor | Moments, ...] = (z1.view(0), z1.view(1)) if len(z1.sizes) == 2 else ()
        d = z1.sizes[0]
    elif z2 is None:
        raise ValueError("z2 is missing: pass both views, or joint Moments.of(z1, z2)")
    else:
        z1, z2 = views = checks.paired(z1, z2, dtype)
        d = z1.shape[1]
    error = alignment(z1, z2, normalize=entropy == "vmf", dtype=dtype)
    is_bound = False
    if entropy == "pairwise":
        variance = checks.positive("variance", options.get("variance", math.nan))
        conditional = -d / 2 * math.log(2 * math.pi * variance) - error / (2 * variance) - d
        is_bound = options.get("bound", "lower") == "lower" and not options.get("leave_one_out", False)
    elif entropy == "vmf":
        concentration = checks.positive("concentration", options.get("concentration", math.nan))
        conditional = vmf_log_normalizer(d, concentration) + concentration * (1 - error / 2)
    elif decoder_variance is None:
        conditional = -d / 2 * (2 * math.pi * math.e * error / d).log()
    else:
        decoder_variance = checks.positive("decoder_variance", decoder_variance)
        conditional = -d / 2 * math.log(2 * math.pi * decoder_variance) - error / (2 * decoder_variance)
    half = torch.stack([_ENTROPIES[entropy](z, dtype=dtype, **options) for z in views]).mean()
    total = half + conditional
    if bool(total.detach().isnan()):
        raise UndefinedEstimate("the views are singular and show no difference: -inf + inf is no information")
    return ViewInformation(half, conditional, total, is_bound)


def smoothed_view_information(
    z1: Tensor | Moments, z2: Tensor | None = None, beta: float = 1.0, *, dtype: torch.dtype = torch.float64
) -> ViewInformation:
    """The paper's split of views z1, z2 (N, d) with noise of variance 1/beta added to both, every term 0-d, in nats.

    H = (d/2) log(2 pi e / beta) + 1/2 logdet(I + beta S), the mean over the views: the entropy of a Gaussian of that
    covariance with the noise. q = N(z; z', v I) with the best v = E ||z1 - z2||^2 / d + 2 / beta, which holds the noise
    of both. The total, 1/2 logdet(I + beta S) - (d/2) log(2 + beta E ||z1 - z2||^2 / d), does not depend on the unit of
    z at given beta S, stays finite as the views coincide, and is 0 where beta is. A *proxy*: H is an upper bound. Joint
    ``Moments.of(z1, z2)`` serve too.

    Raises ValueError for beta <= 0 or bad or mismatched input. Source: arXiv:2303.00633; noise in both halves derived.

    >>> z = torch.tensor([[-1.0], [1.0]])  # variance 2: 1/2 log 3 - 1/2 log 2
    >>> round(smoothed_view_information(z, z).total.item(), 4)
    0.2027
    """
    beta = checks.positive("beta", beta)
    if isinstance(z1, Moments):
        views: tuple[Tensor | Moments, ...] = (z1.view(0), z1.view(1))
        d = z1.sizes[0]
    elif z2 is None:
        raise ValueError("z2 is missing: pass both views, or joint Moments.of(z1, z2)")
    else:
        z1, z2 = views = checks.paired(z1, z2, dtype)
        d = z1.shape[1]
    error = alignment(z1, z2, dtype=dtype)
    half = torch.stack([logdet_entropy(z, beta=beta, dtype=dtype) for z in views]).mean()
    half = half + d / 2 * math.log(2 * math.pi * math.e / beta)
    conditional = -d / 2 * (2 * math.pi * math.e * (error / d + 2 / beta)).log()
    return ViewInformation(half, conditional, half + conditional, False)
