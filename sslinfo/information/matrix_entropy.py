"""Matrix-based Renyi and von Neumann entropies."""

import math

import torch
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.spectrum import eigenvalues
from sslinfo.precision import full_precision


def renyi_entropy(
    z: Tensor, alpha: float = 1.0, bandwidth: float | None = None, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Matrix-based Renyi entropy of order alpha of z (N, d), 0-d, in nats: log(sum lambda^alpha) / (1 - alpha).

    lambda are the eigenvalues of K / tr K. K = Z Z^T, uncentred, taken on the smaller of N and d; or with a bandwidth
    the Gaussian kernel exp(-r^2 / 2 bandwidth^2), N x N, whose bandwidth sets the answer. alpha = 1 is the von Neumann
    entropy -sum lambda log lambda; alpha = 2 is -log ||K / tr K||_F^2 and needs no eigenvalues. Between 0 and
    log min(N, d), or log N with a bandwidth. Eigenvalues below rounding error count as 0: a small alpha would count
    them in full. Not a differential entropy. Differentiable.

    Raises ValueError for alpha <= 0, bandwidth <= 0 or bad input, UndefinedEstimate for N < 2 or z = 0.
    Source: Sanchez Giraldo, Rao & Principe, arXiv:1211.2459.

    >>> round(renyi_entropy(torch.eye(4)).item(), 4), round(renyi_entropy(torch.ones(4, 2), alpha=2.0).item(), 4) + 0.0
    (1.3863, 0.0)
    """
    alpha = checks.positive("alpha", alpha)
    z = checks.samples(z, dtype)
    if bandwidth is not None:
        z = (z - z.mean(0)) / checks.positive("bandwidth", bandwidth)
        norm = z.square().sum(1)
        with full_precision(z.device):
            squared = (norm[:, None] + norm - 2 * z @ z.T).clamp_min(0)
        kernel = (-squared / 2).exp()
        kernel = kernel - torch.diag(kernel.diagonal() - 1)
    else:
        with full_precision(z.device):
            kernel = z @ z.T if z.shape[0] < z.shape[1] else z.T @ z
    trace = kernel.trace()
    if float(trace.detach()) == 0:
        raise UndefinedEstimate("z is zero throughout: its kernel has no trace to divide by")
    kernel = kernel / trace
    if alpha == 2:
        return -kernel.square().sum().log()
    values = eigenvalues(kernel)
    p = values[values.detach() > len(values) * torch.finfo(dtype).eps * values.detach()[0]]
    if alpha == 1:
        return -(p * p.log()).sum()
    if abs(alpha - 1) < 0.5:
        # sum p^alpha = 1 + sum p (p^(alpha - 1) - 1): nothing is lost as alpha nears 1.
        return (p * torch.expm1((alpha - 1) * p.log())).sum().log1p() / (1 - alpha)
    return p.pow(alpha).sum().log() / (1 - alpha)


def renyi_ceiling(n: int, d: int) -> float:
    """The largest matrix-based entropy of n samples in d dimensions with the linear kernel: log min(n, d), in nats.

    >>> round(renyi_ceiling(256, 128), 4)
    4.852
    """
    return math.log(min(n, d))
