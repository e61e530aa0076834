"""Alignment, uniformity, feature standard deviation and LiDAR."""

import math

import torch
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.cholesky import covariance_half_logdet
from sslinfo.information.kernel import kernel_logsumexp
from sslinfo.information.moments import GroupedMoments, Moments, as_moments
from sslinfo.information.spectrum import eigenvalues, exponential_entropy


def alignment(
    z1: Tensor | Moments, z2: Tensor | None = None, normalize: bool = False, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Mean squared distance E ||z - z'||^2 of paired views z1, z2 (N, d), 0-d; or of joint ``Moments.of(z1, z2)``.

    ``normalize=True`` puts the rows on the unit sphere first, as published. 2 v d for z, z' = s + noise of variance v.
    Raises ValueError for bad or mismatched input, UndefinedEstimate for N < 2 or rows of length 0 to be normalised.
    Source: Wang & Isola, arXiv:2005.10242, with exponent 2.

    >>> alignment(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])).item()
    1.0
    """
    if isinstance(z1, Moments):
        if len(z1.sizes) != 2 or z1.sizes[0] != z1.sizes[1] or z2 is not None or normalize:
            raise ValueError(f"alignment takes joint Moments.of(z1, z2) alone, not normalised, got sizes {z1.sizes}")
        moments, d = as_moments(z1, dtype), z1.sizes[0]
        covariance = moments.covariance(ddof=0)
        spread = covariance.trace() - 2 * covariance[:d, d:].trace()
        # Mean and spread apart: uncentred second moments would cancel at a large mean.
        return ((moments.mean[:d] - moments.mean[d:]).square().sum() + spread.clamp_min(0)).to(dtype)
    if z2 is None:
        raise ValueError("z2 is missing: pass both views, or joint Moments.of(z1, z2)")
    z1, z2 = checks.paired(z1, z2, dtype)
    if normalize:
        z1, z2 = checks.unit_rows(z1, "z1"), checks.unit_rows(z2, "z2")
    return (z1 - z2).square().sum(1).mean()


def uniformity(z: Tensor, t: float = 2.0, normalize: bool = False, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniformity log E exp(-t ||z - z'||^2) over distinct pairs of the rows of z (N, d), 0-d, <= 0.

    Published for rows on the unit sphere: pass such rows, or ``normalize=True``. The uniform sphere reads -3.9375 at
    d = 128, t = 2. O(N x block) memory forward and backward; differentiable.

    Raises ValueError for t <= 0 or bad input, UndefinedEstimate for N < 2 or rows of length 0 to be normalised.
    Source: Wang & Isola, arXiv:2005.10242.

    >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item(), 4)
    -8.0
    """
    t = checks.positive("t", t)
    z = checks.samples(z, dtype)
    if normalize:
        z = checks.unit_rows(z)
    n = len(z)
    return kernel_logsumexp(z, t, leave_one_out=True).logsumexp(0) - math.log(n * (n - 1))


def feature_std(z: Tensor | Moments, normalize: bool = True, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Mean over the features of their standard deviation (divisor N - 1), rows of z (N, d) on the unit sphere, 0-d.

    1 / sqrt(d) for directions spread evenly, 0 at complete collapse; blind to dimensional collapse. Moments are taken
    with ``normalize=False`` only. Raises ValueError for bad input, UndefinedEstimate for N < 2 or rows of length 0.
    Source: Chen & He (SimSiam), arXiv:2011.10566.

    >>> round(feature_std(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).item(), 4)
    0.8165
    """
    if isinstance(z, Moments):
        if normalize:
            raise ValueError("feature_std of Moments cannot normalise rows: pass normalize=False, or z itself")
        return as_moments(z, dtype).covariance().diagonal().sqrt().mean().to(dtype)
    z = checks.samples(z, dtype)
    return (checks.unit_rows(z) if normalize else z).std(0).mean()


def lidar(
    views: Tensor | GroupedMoments, delta: float = 1e-4, debias: bool = False, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """LiDAR of views (n, q, d), q views of each of n images: the effective rank of Sw^-1/2 Sb Sw^-1/2, 0-d.

    Sb is the covariance of the image means (divisor n - 1), Sw the one within images (divisor n (q - 1)) plus delta I.
    The image means carry Sw / q of noise, so pure noise reads near d; ``debias=True`` subtracts it, and eigenvalues
    that fall below 0 count as 0. Two views are too few. The ceiling is min(n - 1, d). ``GroupedMoments`` by image are
    accepted, and may hold different numbers of views.

    Raises UndefinedEstimate for n < 2, q < 2, singular Sw with delta = 0, or when nothing is left of Sb;
    ValueError for bad input.
    Source: Thilak et al., arXiv:2312.04000; de-biased form derived.

    >>> image = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    >>> noise = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> round(lidar(image[:, None] + noise).item(), 4)
    1.0
    """
    delta = checks.positive("delta", delta, or_zero=True)
    if not isinstance(views, GroupedMoments):
        views = checks.tensor(views, dtype, "views", "n, q, d")
        n, q, d = views.shape
        groups = torch.arange(n, device=views.device).repeat_interleave(q)
        views = GroupedMoments.of(views.reshape(n * q, d), groups, max(n, 1))
    count = views.count[views.count > 0]
    if len(count) < 2:
        raise UndefinedEstimate(f"lidar needs at least 2 images, got {len(count)}: pass more images")
    within, between = views.within_covariance(), views.between().covariance()
    if debias:
        between = between - within * count.reciprocal().mean()
    noise = within + delta * torch.eye(len(within), dtype=within.dtype, device=within.device)
    # A factorization may succeed on rounding alone: the pivots decide.
    if bool(covariance_half_logdet(noise.detach(), views.mean.abs().amax(0)).isinf()):
        raise UndefinedEstimate(f"the covariance within images is singular at delta={delta}: raise delta")
    factor = torch.linalg.cholesky(noise)
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    ratio = torch.linalg.solve_triangular(factor, half.T, upper=False)
    values = eigenvalues((ratio + ratio.T) / 2)
    if float(values.detach().sum()) <= 0:
        raise UndefinedEstimate("the image means differ by no more than the noise of their views: pass more views")
    return exponential_entropy(values).to(dtype)
