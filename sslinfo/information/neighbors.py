"""Nearest-neighbour entropy, for a handful of dimensions only."""

import math

import torch
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate

_LARGEST_DIMENSION = 10
_BLOCK_ROWS = 256


@torch.no_grad()
def knn_entropy(z: Tensor, k: int = 3, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Kozachenko-Leonenko entropy of z (N, d), 0-d, in nats: psi(N) - psi(k) + log V_d + d mean_i log r_k(i).

    r_k(i) is the distance of sample i to its k-th neighbour, V_d the volume of the unit ball. No assumption on the
    density, right for d <= 8, nats off above: refused for d > 10. -inf where k + 1 samples coincide. O(N x block)
    memory; no gradient.

    Raises UndefinedEstimate for d > 10 or N <= k, ValueError for k < 1 or bad input.
    Source: Kozachenko & Leonenko 1987; Kraskov, Stoegbauer & Grassberger, arXiv:cond-mat/0305641, equation 20.

    >>> round(knn_entropy(torch.tensor([[0.0], [1.0], [2.0]]), k=1).item(), 4)
    2.1931
    """
    k = checks.at_least("k", k, 1)
    z = checks.samples(z, dtype)
    n, d = z.shape
    if d > _LARGEST_DIMENSION:
        raise UndefinedEstimate(
            f"knn_entropy is nats off above d = {_LARGEST_DIMENSION}, got d={d}: reduce the dimension or use another"
        )
    if n <= k:
        raise UndefinedEstimate(f"knn_entropy with k={k} needs N > {k} samples, got {n}: pass more samples")
    radius = torch.cat(
        [
            torch.cdist(rows, z, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(k + 1, dim=1).values
            for rows in z.split(_BLOCK_ROWS)
        ]
    )
    log_ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    psi = torch.digamma(torch.tensor([n, k], dtype=torch.float64))
    return d * radius.log().mean() + (float(psi[0] - psi[1]) + log_ball)
