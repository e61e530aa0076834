"""Von Mises-Fisher kernel estimate of the entropy on the unit sphere."""

import math

import torch
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.kernel import kernel_logsumexp


def log_bessel_i(order: float, x: float) -> float:
    """log I_order(x), the modified Bessel function of the first kind, for order >= 0 and x > 0.

    The power series summed in the log domain around its largest term: neither a large order nor a large x overflows,
    as the scaled functions of the usual libraries do.

    >>> round(log_bessel_i(0.5, 2.0), 6)  # sqrt(2 / pi x) sinh x
    0.716002
    """
    peak = (math.hypot(order, x) - order) / 2
    width = 12 * math.sqrt(peak + 1) + 40
    m = torch.arange(max(0, math.floor(peak - width)), math.ceil(peak + width) + 1, dtype=torch.float64)
    terms = (2 * m + order) * math.log(x / 2) - torch.lgamma(m + 1) - torch.lgamma(m + order + 1)
    return float(terms.logsumexp(0))


def vmf_log_normalizer(d: int, concentration: float) -> float:
    """log C_d(k), so that C_d(k) exp(k mu . z) is a density on the unit sphere of R^d, d >= 2.

    Source: Mardia & Jupp, Directional Statistics, section 9.3.

    >>> round(vmf_log_normalizer(3, 2.0), 6)  # log k / (4 pi sinh k)
    -3.126244
    """
    d = checks.at_least("d", d, 2)
    k = checks.positive("concentration", concentration)
    order = d / 2 - 1
    return order * math.log(k) - d / 2 * math.log(2 * math.pi) - log_bessel_i(order, k)


def vmf_entropy(
    z: Tensor, concentration: float, leave_one_out: bool = False, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Entropy on the unit sphere of a von Mises-Fisher kernel density at the rows of z (N, d), 0-d, in nats.

    -mean_i log mean_j C_d(k) exp(k cos(z_i, z_j)); rows are normalised. With k = 1 / temperature it is SimCLR's
    log-sum-exp half up to a constant. A resubstitution estimate: with j = i in the sum it is biased low, saturates at
    log N - log C_d(k) - k and bounds nothing; without (``leave_one_out``) it is biased high. The uniform sphere has
    log(2 pi^(d/2) / Gamma(d/2)). O(N x block) memory forward and backward; differentiable.

    Raises ValueError for concentration <= 0, d < 2 or bad input, UndefinedEstimate for N < 2 or rows of length 0.
    Source: arXiv:2303.00633 for its part in SimCLR; derived.

    >>> z = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    >>> round(vmf_entropy(z, 2.0).item(), 6)  # -log C_3(2) - 2
    1.126244
    """
    concentration = checks.positive("concentration", concentration)
    z = checks.unit_rows(checks.samples(z, dtype))
    n, d = z.shape
    log_normalizer = vmf_log_normalizer(d, concentration)
    # On the sphere k cos = k - k r^2 / 2.
    log_sums = concentration + kernel_logsumexp(z, concentration / 2, leave_one_out)
    return math.log(n - leave_one_out) - log_normalizer - log_sums.mean()
