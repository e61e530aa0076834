"""Samples whose answers are known: exact covariances, white noise, and the Marchenko-Pastur law."""

import math

import numpy as np
import torch
from scipy.integrate import quad
from torch import Tensor


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(covariance: Tensor, n: int, mean: float = 0.0, seed: int = 0) -> Tensor:
    """n samples whose sample covariance (divisor n - 1) is the given one up to rounding, n > d."""
    z = normal(n, len(covariance), seed)
    q, _ = torch.linalg.qr(z - z.mean(0))
    return q @ torch.linalg.cholesky(covariance).T * math.sqrt(n - 1) + mean


def sphere(n: int, d: int, seed: int = 0) -> Tensor:
    z = normal(n, d, seed)
    return z / z.norm(dim=1, keepdim=True)


def marchenko_pastur_mean(function, gamma: float) -> float:
    """E f(x) over the Marchenko-Pastur law of the covariance eigenvalues of white data, gamma = d / nu <= 1."""
    low, high = (1 - math.sqrt(gamma)) ** 2, (1 + math.sqrt(gamma)) ** 2

    def integrand(angle: float) -> float:
        # x = centre + radius cos(angle) removes the square roots at both edges.
        x = (low + high) / 2 + (high - low) / 2 * math.cos(angle)
        return function(x) * ((high - low) / 2 * math.sin(angle)) ** 2 / (2 * math.pi * gamma * x)

    return quad(integrand, 0, math.pi, epsabs=1e-12, epsrel=1e-12)[0]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    array = np.asarray(values)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array)))
