"""Log-determinants through Cholesky, with closed-form gradient, and with every repair reported."""

import math
import warnings

import torch
from torch import Tensor


class JitterWarning(RuntimeWarning):
    """A Cholesky factorization failed by rounding and ``jitter`` was added to the diagonal."""

    def __init__(self, jitter: float, size: int) -> None:
        self.jitter = jitter
        super().__init__(
            f"the Cholesky factorization of a {size} x {size} matrix failed: {jitter:.3g} was added to its diagonal; "
            "use float64 or a smaller beta"
        )


class _HalfLogDet(torch.autograd.Function):
    """1/2 logdet K from its Cholesky factor; the gradient 1/2 K^-1 needs no derivative of the factorization."""

    @staticmethod
    def forward(ctx, matrix: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return factor.diagonal().log().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return 0.5 * grad * torch.cholesky_inverse(factor), None


def half_logdet(matrix: Tensor) -> Tensor:
    """1/2 logdet of a matrix (d, d) that is positive definite but for rounding.

    Where the factorization fails, the smallest power of ten times the rounding error that mends it is added to the
    diagonal, and a JitterWarning, whose ``jitter`` says how much, is issued. Raises ValueError if that is not enough.
    """
    size = matrix.shape[-1]
    detached = matrix.detach()
    factor, info = torch.linalg.cholesky_ex(detached)
    if int(info):
        eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        unit = torch.finfo(matrix.dtype).eps * float(detached.diagonal().max())
        for power in range(7):
            jitter = unit * 10**power
            factor, info = torch.linalg.cholesky_ex(detached + jitter * eye)
            if not int(info):
                warnings.warn(JitterWarning(jitter, size), stacklevel=3)
                break
        else:
            raise ValueError(f"matrix ({size}, {size}) is not positive definite: use float64, or a smaller beta")
    return _HalfLogDet.apply(matrix, factor)


def covariance_half_logdet(covariance: Tensor, mean: Tensor) -> Tensor:
    """1/2 logdet of a covariance (d, d) of samples with that mean (d,); -inf where it is singular to rounding error.

    The determinant of a singular matrix comes back finite when rounding fills its null space, so the factorization is
    of the correlation matrix, whose pivots are shares of unexplained variance: below rounding they are zero.
    """
    eps = torch.finfo(covariance.dtype).eps
    variance = covariance.diagonal()
    if bool((variance.detach() <= (64 * eps * mean.detach()).square()).any()):
        return covariance.new_full((), -torch.inf)
    scale = variance.sqrt()
    correlation = covariance / torch.outer(scale, scale)
    factor, info = torch.linalg.cholesky_ex(correlation.detach())
    if int(info) or bool((factor.diagonal().square() <= 4 * len(scale) * eps).any()):
        return covariance.new_full((), -torch.inf)
    return scale.log().sum() + _HalfLogDet.apply(correlation, factor)


def cholesky_and_trace_of_inverse(matrix: Tensor) -> tuple[Tensor, float]:
    """Cholesky factor of a matrix (d, d), and the trace of its inverse, infinite where there is no factor.

    One over that trace is a lower bound of the smallest eigenvalue, at a fraction of the cost of eigenvalues.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor, math.inf if int(info) else float(torch.cholesky_inverse(factor.detach()).trace())
