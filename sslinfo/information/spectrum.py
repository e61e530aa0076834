"""What the covariance says: ranks, decay of its eigenvalues, and what stands beside its diagonal.

Every rank has the ceiling ``rank_ceiling(n, d)``: a rank read without N, d and its ceiling says little.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.cholesky import covariance_half_logdet
from sslinfo.information.moments import Moments, as_moments


class SpectralDecay(NamedTuple):
    """Power law lambda_i ~ i^-exponent fitted over the ranks start..stop (both included), with the fit's R^2."""

    exponent: Tensor
    r2: Tensor
    start: int
    stop: int


def rank_ceiling(n: int, d: int, centered: bool = True) -> int:
    """The largest rank that n samples in d dimensions can show: min(n - 1, d) centred, min(n, d) not.

    >>> rank_ceiling(256, 512), rank_ceiling(256, 512, centered=False)
    (255, 256)
    """
    return min(n - 1 if centered else n, d)


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a positive semi-definite matrix, descending; negative ones, which only rounding makes, are 0."""
    try:
        values = torch.linalg.eigvalsh(matrix)
    except torch.linalg.LinAlgError:
        # Some GPU libraries fail to converge on ill-conditioned matrices that LAPACK solves.
        values = torch.linalg.eigvalsh(matrix.double().cpu()).to(matrix)
    return values.flip(0).clamp_min(0)


def exponential_entropy(weights: Tensor) -> Tensor:
    """exp H(p) of weights >= 0 normalised to p: the effective number of them."""
    p = weights / weights.sum()
    return (-torch.special.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum()).exp()


def _smaller_covariance(z: Tensor | Moments, dtype: torch.dtype) -> tuple[Tensor, int, int]:
    """S, or where N < d the N x N Gram matrix that shares its non-zero eigenvalues; N and d."""
    if isinstance(z, Tensor) and z.ndim == 2 and z.shape[0] < z.shape[1]:
        z = checks.samples(z, dtype).double()
        n, d = z.shape
        mean = z.mean(0)
        matrix = (z - mean) @ (z - mean).T / (n - 1)
    else:
        moments = as_moments(z, dtype)
        matrix, mean, n, d = moments.covariance(), moments.mean, moments.n, moments.d
    rounding = 64 * torch.finfo(matrix.dtype).eps * torch.linalg.vector_norm(mean.detach())
    if float(matrix.detach().trace()) <= float(rounding) ** 2:
        raise UndefinedEstimate(f"all {n} samples are one point: a spectrum without variance has no shape")
    return matrix, n, d


def _values(z: Tensor | Moments, dtype: torch.dtype) -> tuple[Tensor, int, int]:
    """Eigenvalues of the covariance on the smaller side, N and d."""
    matrix, n, d = _smaller_covariance(z, dtype)
    if isinstance(z, Tensor) or matrix.requires_grad:
        return eigenvalues(matrix), n, d
    return covariance_eigenvalues(z), n, d


def covariance_eigenvalues(moments: Moments) -> Tensor:
    """Eigenvalues (d,) of a covariance, descending, of one point too; moments keep theirs for the next to ask."""
    if "eigenvalues" not in moments.__dict__:
        moments.__dict__["eigenvalues"] = eigenvalues(moments.covariance())
    return moments.__dict__["eigenvalues"]


def covariance_spectrum(z: Tensor | Moments, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Eigenvalues (d,) of the covariance of z (N, d), descending, divisor N - 1; zeros beyond rank N - 1.

    Computed in float64 on the smaller of N and d; differentiable. Raises UndefinedEstimate for N < 2 or when all
    samples are one point, ValueError for bad input.
    Source: derived.

    >>> covariance_spectrum(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).tolist()
    [2.6666666666666665, 0.6666666666666666]
    """
    values, _, d = _values(z, dtype)
    return torch.nn.functional.pad(values, (0, d - len(values))).to(dtype)


def effective_rank(z: Tensor | Moments, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Effective rank exp H(lambda / sum lambda) of the *centred* covariance eigenvalues of z (N, d), 0-d.

    White Gaussian data read d exp(-d / 2N); the ceiling is min(N - 1, d). Not RankMe, though published under its name.
    Raises as ``covariance_spectrum``.
    Source: Roy & Vetterli 2007, on eigenvalues.

    >>> effective_rank(torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])).item()
    2.0
    """
    return exponential_entropy(_values(z, dtype)[0]).to(dtype)


def rankme(z: Tensor | Moments, eps: float = 1e-7, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """RankMe exp(-sum p log p), p = sigma / sum sigma + eps, sigma the singular values of *uncentred* z (N, d), 0-d.

    As published: a shift of the mean alone moves it. The ceiling is min(N, d). Samples go through a singular value
    decomposition, moments through eigenvalues, which resolve singular values only down to 1e-8 of the largest.

    Raises ValueError for eps <= 0 or bad input, UndefinedEstimate for N < 2 or z = 0.
    Source: Garrido et al., arXiv:2210.02885.

    >>> round(rankme(torch.eye(4)).item(), 4)
    4.0
    """
    eps = checks.positive("eps", eps)
    if isinstance(z, Moments):
        moments = as_moments(z, dtype)
        squares = eigenvalues(moments.second_moment())[: rank_ceiling(moments.n, moments.d, centered=False)]
        # What rounding leaves of an eigenvalue of zero has a square root that counts.
        values = torch.where(squares > moments.d * torch.finfo(squares.dtype).eps * squares[0], squares, 0.0).sqrt()
    else:
        values = torch.linalg.svdvals(checks.samples(z, dtype).double())
    if float(values.detach().max()) == 0:
        raise UndefinedEstimate("z is zero throughout: RankMe of no signal does not exist")
    p = values / values.sum() + eps
    return (-(p * p.log()).sum()).exp().to(dtype)


def participation_ratio(z: Tensor | Moments, debias: bool = False, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Participation ratio tr^2 S / tr S^2 of z (N, d), 0-d: K for K equal eigenvalues, d / (1 + d / N) for white data.

    ``debias=True`` removes the bias of tr S^2 for Gaussian data. The ceiling of the raw form is min(N - 1, d).
    Raises as ``covariance_spectrum``, and UndefinedEstimate for the de-biased form where N = 2 or nothing is left.
    Source: Gao et al. 2017 (participation ratio); bias derived from the Wishart moments.

    >>> participation_ratio(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])).item()
    2.0
    """
    matrix, n, _ = _smaller_covariance(z, dtype)
    squared_trace, trace_of_square, freedom = matrix.trace().square(), matrix.square().sum(), n - 1
    if debias:
        if freedom < 2:
            raise UndefinedEstimate(f"the de-biased participation ratio needs N > 2, got N={n}: pass more samples")
        left = trace_of_square - squared_trace / freedom
        if float(left.detach()) <= 4 * torch.finfo(left.dtype).eps * float(trace_of_square.detach()):
            raise UndefinedEstimate(f"the spectrum at N={n} is as flat as sampling noise makes it: pass more samples")
        trace_of_square = freedom**2 / ((freedom - 1) * (freedom + 2)) * left
    return (squared_trace / trace_of_square).to(dtype)


def stable_rank(z: Tensor | Moments, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Stable rank sum lambda / lambda_1 of the covariance of z (N, d), 0-d; also published as NESum.

    White Gaussian data read d / (1 + sqrt(d / N))^2; the ceiling is min(N - 1, d). Raises as ``covariance_spectrum``.
    Source: Rudelson & Vershynin 2007; NESum: He & Ozay 2022.

    >>> stable_rank(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).item()
    1.25
    """
    values = _values(z, dtype)[0]
    return (values.sum() / values[0]).to(dtype)


def spectral_decay(
    z: Tensor | Moments, start: int = 6, stop: int = 100, *, dtype: torch.dtype = torch.float64
) -> SpectralDecay:
    """Exponent a of lambda_i ~ i^-a (alpha-ReQ): least squares of log lambda_i on -log i with weights 1 / i, and R^2.

    Fitted over i = start..stop, cut to the eigenvalues above rounding error; the range used is returned. Read the
    exponent only with an R^2 near 1.

    Raises UndefinedEstimate when fewer than 3 eigenvalues are left in the range, ValueError for start < 1 or
    stop < start + 2, else as ``covariance_spectrum``.
    Source: Agrawal et al., alpha-ReQ, NeurIPS 2022.

    >>> z = torch.diag(torch.arange(1.0, 41.0) ** -0.5)  # lambda_i near 1 / i
    >>> decay = spectral_decay(torch.cat([z, -z]))
    >>> round(decay.exponent.item(), 6), round(decay.r2.item(), 6), decay.stop
    (1.0, 1.0, 40)
    """
    start = checks.at_least("start", start, 1)
    stop = checks.at_least("stop", stop, start + 2)
    values, n, d = _values(z, dtype)
    floor = len(values) * torch.finfo(values.dtype).eps * float(values.detach()[0])
    last = min(stop, int((values.detach() > floor).sum()))
    if last - start < 2:
        raise UndefinedEstimate(
            f"spectral_decay needs 3 eigenvalues in {start}..{stop}, the last above rounding at N={n}, d={d} is "
            f"number {last}: lower start or pass more samples"
        )
    index = torch.arange(start, last + 1).to(values)
    weight = index.reciprocal() / index.reciprocal().sum()
    x, y = -index.log(), values[start - 1 : last].log()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    exponent = (weight * x * y).sum() / (weight * x * x).sum()
    r2 = 1 - (weight * (y - exponent * x).square()).sum() / (weight * y * y).sum()
    return SpectralDecay(exponent.to(dtype), r2.to(dtype), start, last)


def hadamard_gap(z: Tensor | Moments, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Hadamard gap sum_j log S_jj - logdet S >= 0 of z (N, d), 0-d, in nats: 0 only for a diagonal covariance.

    Twice the total correlation of a Gaussian with that covariance. Biased upward by sampling where d is near N.
    +inf where S is singular. Raises UndefinedEstimate when N <= d, ValueError for bad input.
    Source: Hadamard's inequality; arXiv:2303.00633 for its part in VICReg.

    >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    >>> round(hadamard_gap(z).item(), 4) + 0.0
    0.0
    """
    moments = as_moments(z, dtype)
    if moments.n <= moments.d:
        raise UndefinedEstimate(f"hadamard_gap needs N > d, got N={moments.n}, d={moments.d}: merge more batches")
    covariance = moments.covariance()
    half = covariance_half_logdet(covariance, moments.mean)
    if bool(half.detach().isinf()):
        return covariance.new_full((), torch.inf, dtype=dtype)
    return (covariance.diagonal().log().sum() - 2 * half).clamp_min(0).to(dtype)


def off_diagonal_covariance(z: Tensor | Moments, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Sum of the squared covariances of different features of z (N, d), divided by d, 0-d: VICReg's c.

    Computed in float64 on the smaller of N and d; ``dtype`` is that of the result. It grows with the fourth power of
    the scale of z. Differentiable. Raises UndefinedEstimate for N < 2, ValueError for bad input.
    Source: Bardes, Ponce & LeCun, arXiv:2105.04906, equations 3 and 4.

    >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]) / 2  # C = [[.5, .5], [.5, .5]]
    >>> off_diagonal_covariance(z).item()
    0.25
    """
    if isinstance(z, Moments):
        covariance = z.covariance()
        return ((covariance.square().sum() - covariance.diagonal().square().sum()) / z.d).to(dtype)
    z = checks.samples(z, dtype).double()
    centred = z - z.mean(0)
    return off_diagonal_of(centred, centred.var(0)).to(dtype)


def off_diagonal_of(centred: Tensor, variance: Tensor) -> Tensor:
    """The same of centred samples (N, d) and their variances (d,), in their own precision.

    On the smaller side: the sum of the squares of all covariances is ||Z^T Z||_F^2 = ||Z Z^T||_F^2 over (N - 1)^2.
    """
    n, d = centred.shape
    gram = centred.T @ centred if d <= n else centred @ centred.T
    return ((gram / (n - 1)).square().sum() - variance.square().sum()) / d
