"""A deterministic network as a local affine map: Jacobian, output density, and how far both hold.

A piecewise-affine network is z = A x + b around each input, so Gaussian input noise of variance s2 within one piece
gives z ~ N(f(x), s2 A A^T) with no noise injected into the network (arXiv:2303.00633).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sslinfo.information import checks
from sslinfo.information.normality import normality

# Samples times directions in one vectorized pass: bounds the memory of the activations.
_PASS_ROWS = 256

Function = Callable[[Tensor], Tensor]


class LocalAffine(NamedTuple):
    """mean f(x) (N, d) and jacobian (N, d, D), D the number of inputs of one sample."""

    mean: Tensor
    jacobian: Tensor

    def covariance(self, variance: float) -> Tensor:
        """Covariance variance J J^T (N, d, d) of the output under isotropic Gaussian input noise."""
        return checks.positive("variance", variance) * self.jacobian @ self.jacobian.mT


class NoiseNormality(NamedTuple):
    """Normality under input noise: sigmas (S,), and pvalue, skewness, excess_kurtosis (S, N, d), NaN where constant."""

    sigmas: Tensor
    pvalue: Tensor
    skewness: Tensor
    excess_kurtosis: Tensor

    @property
    def mean_pvalue(self) -> Tensor:
        """p-value (S,) averaged over images and the dimensions that vary."""
        return self.pvalue.flatten(1).nanmean(1)

    @property
    def constant_share(self) -> Tensor:
        """Share (S,) of dimensions that did not vary, and were left out."""
        return self.pvalue.flatten(1).isnan().double().mean(1)


@torch.no_grad()
@sdpa_kernel(SDPBackend.MATH)  # the fused attention kernels have no forward derivative
def local_affine(f: Function, x: Tensor, *, dtype: torch.dtype = torch.float64) -> LocalAffine:
    """Output f(x) (N, d) and Jacobian (N, d, D) of f at each sample of x (N, ...), D inputs a sample.

    d vector-Jacobian products or D Jacobian-vector products, whichever is fewer, in chunks, in the precision of x;
    the result is cast to ``dtype``. Exact for a linear network; for a piecewise-affine one it is the map of the piece
    that x lies in. f treats samples independently: batch norm (with running statistics) and dropout in eval mode. No
    gradient.

    Raises ValueError for other such layers, an output that is not finite (N, d), or bad input.
    Source: arXiv:2303.00633, section on deterministic networks.

    >>> linear = torch.nn.Linear(3, 2).requires_grad_(False)
    >>> _ = linear.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    >>> local_affine(linear, torch.zeros(1, 3)).jacobian.tolist()
    [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]
    """
    f = _checked(f, x)
    mean, pull_back = torch.func.vjp(f, x)[:2]
    _check_output(mean)
    n, d, inputs = len(x), mean.shape[1], x[0].numel()
    chunk = max(1, _PASS_ROWS // n)
    if d <= inputs:
        directions = torch.eye(d).to(mean)
        rows = torch.func.vmap(lambda v: pull_back(v.expand(n, d))[0], chunk_size=chunk)(directions)
        jacobian = rows.reshape(d, n, inputs).transpose(0, 1)
    else:
        directions = torch.eye(inputs).to(x).reshape(inputs, *x.shape[1:])
        columns = torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v.expand_as(x),))[1], chunk_size=chunk)(directions)
        jacobian = columns.permute(1, 2, 0)
    if not bool(jacobian.isfinite().all()):
        raise ValueError(f"the Jacobian of f holds {int((~jacobian.isfinite()).sum())} NaN or infinite values: move x")
    return LocalAffine(mean.to(dtype), jacobian.to(dtype))


def local_gaussian_entropy(
    f: Function,
    x: Tensor,
    variance: float,
    noise_variance: float | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Entropy (N,), in nats, of f(x + e), e ~ N(0, variance I), by the local map: 1/2 logdet(2 pi e variance J J^T).

    -inf where J has rank below d to rounding error, as it must for D < d. ``noise_variance`` t2 gives the regularised
    1/2 logdet(I + (variance / t2) J J^T) >= 0 instead, the information of z + N(0, t2 I) about the input noise.
    Right while the noise stays in one piece: ``affine_residual`` says whether it does. No gradient.

    Raises ValueError for a variance <= 0 and as ``local_affine``.
    Source: arXiv:2303.00633, theorem on the output density, covariance form derived.

    >>> halve = lambda x: x / 2
    >>> round(local_gaussian_entropy(halve, torch.zeros(1, 1), variance=4.0).item(), 4)
    1.4189
    """
    variance = checks.positive("variance", variance)
    jacobian = local_affine(f, x, dtype=torch.float64).jacobian
    d, inputs = jacobian.shape[1:]
    values = torch.linalg.svdvals(jacobian)
    if noise_variance is not None:
        ratio = variance / checks.positive("noise_variance", noise_variance)
        return (torch.log1p(ratio * values.square()).sum(1) / 2).to(dtype)
    floor = max(d, inputs) * torch.finfo(x.dtype).eps * values[:, :1]
    full_rank = (values > floor).sum(1) == d
    entropy = values.log().sum(1) + d / 2 * math.log(2 * math.pi * math.e * variance)
    return torch.where(full_rank, entropy, -torch.inf).to(dtype)


@torch.no_grad()
@sdpa_kernel(SDPBackend.MATH)
def affine_residual(
    f: Function, x: Tensor, sigma: float, draws: int = 1, seed: int = 0, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Validity of the local map at noise e ~ N(0, sigma^2 I): mean of ||f(x + e) - f(x) - J e|| / ||J e||, 0-d.

    Averaged over the samples of x (N, ...) and ``draws`` of e for each. 0 where the noise stays in one affine piece;
    the local log-determinant is off by about a nat near 0.6. +inf where J e = 0 and the output moves all the same.
    f runs in the precision of x: where sigma is so small that its output moves by little more than rounding, rounding
    is what is measured; pass f and x in float64 there.

    Raises ValueError for sigma <= 0 and as ``local_affine``.
    Source: derived.

    >>> residual = affine_residual(lambda x: 2 * x + 1, torch.zeros(3, 2, dtype=torch.float64), sigma=0.1)
    >>> round(residual.item(), 6)
    0.0
    """
    sigma, draws = checks.positive("sigma", sigma), checks.at_least("draws", draws, 1)
    generator = torch.Generator().manual_seed(checks.at_least("seed", seed, 0))
    f = _checked(f, x)
    ratios = []
    for _ in range(draws):
        shifted = x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        # The noise that x, rounded, really received.
        mean, linear = torch.func.jvp(f, (x,), (shifted - x,))[:2]
        moved, linear = f(shifted), linear.to(dtype)
        _check_output(mean)
        _check_output(moved)
        error = torch.linalg.vector_norm(moved.to(dtype) - mean.to(dtype) - linear, dim=1)
        length = torch.linalg.vector_norm(linear, dim=1)
        ratios.append(torch.where(error == 0, error, error / length))
    return torch.cat(ratios).mean()


@torch.no_grad()
def noise_normality(f: Function, x: Tensor, sigmas: Sequence[float], draws: int = 512, seed: int = 0) -> NoiseNormality:
    """D'Agostino-Pearson tests of f(x_i + sigma e) for each image of x (N, ...), each sigma, each output dimension.

    Given one image the output of a piecewise-affine network is Gaussian while sigma keeps it in one piece, and p falls
    as sigma grows. The same ``draws`` of e ~ N(0, I) serve all sigmas. Tests z given an image, not the marginal over
    images, which is ``normality``. p depends on draws: compare at equal draws.

    Raises ValueError for a sigma <= 0, no sigma, draws < 8 and as ``local_affine``.
    Source: arXiv:2303.00633, experiment on Gaussianity of deterministic networks (512 draws an image).

    >>> result = noise_normality(lambda x: x.clamp_min(0), torch.tensor([[5.0]]), sigmas=[0.1, 10.0])
    >>> [bool(p > 0.001) for p in result.mean_pvalue]
    [True, False]
    """
    if not hasattr(sigmas, "__len__") or getattr(sigmas, "ndim", 1) != 1:
        raise ValueError(f"sigmas must be a sequence of numbers, got {sigmas!r}: pass [{sigmas!r}]")
    if len(sigmas) == 0:
        raise ValueError("sigmas is empty: pass at least one noise level")
    sigmas = [checks.positive("sigmas", sigma) for sigma in sigmas]
    draws = checks.at_least("draws", draws, 8)
    generator = torch.Generator().manual_seed(checks.at_least("seed", seed, 0))
    f = _checked(f, x)
    images = []
    for image in x:
        noise = torch.randn((draws, *image.shape), generator=generator, dtype=x.dtype).to(x.device)
        outputs = (torch.cat([f(image + sigma * part) for part in noise.split(_PASS_ROWS)]) for sigma in sigmas)
        tests = []
        for z in outputs:
            _check_output(z)
            tests.append(normality(z))
        images.append(tests)
    stacked = [
        torch.stack([torch.stack([getattr(test, name) for test in tests]) for tests in images], dim=1)
        for name in ("pvalue", "skewness", "excess_kurtosis")
    ]
    return NoiseNormality(torch.tensor(sigmas, dtype=torch.float64), *stacked)


def _check_output(z: Tensor) -> None:
    if not bool(z.isfinite().all()):
        raise ValueError(f"f returned {int((~z.isfinite()).sum())} NaN or infinite values: find where it diverges")


def _checked(f: Function, x: Tensor) -> Function:
    """f once it and x are fit for these estimates: with its output checked, and x safe from layers in place."""
    if not isinstance(x, Tensor):
        got = f"{type(x).__name__}: convert it with torch.as_tensor"
        raise ValueError(f"x must be a floating-point tensor (N, ...) of at least one sample, got {got}")
    if not x.is_floating_point() or x.ndim < 2 or len(x) == 0:
        got = f"{x.dtype} {tuple(x.shape)}"
        raise ValueError(f"x must be a floating-point tensor (N, ...) of at least one sample, got {got}")
    if not bool(x.isfinite().all()):
        raise ValueError(f"x holds {int((~x.isfinite()).sum())} NaN or infinite values: drop those samples")
    if isinstance(f, nn.Module):
        mixing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        training = [name for name, module in f.named_modules() if module.training and isinstance(module, mixing)]
        if training:
            raise ValueError(f"f has batch norm or dropout in training mode ({training[0]!r}): call f.eval() first")
        batch = [
            name for name, module in f.named_modules() if isinstance(module, mixing[0]) and module.running_mean is None
        ]
        if batch:
            raise ValueError(
                f"f has batch norm without running statistics, which takes statistics of the batch ({batch[0]!r}): "
                "build it with track_running_stats=True"
            )

    def checked(x: Tensor) -> Tensor:
        z = f(x.clone())
        if not isinstance(z, Tensor):
            raise ValueError(f"f must return a torch.Tensor, got {type(z).__name__}: pick the output to look at")
        if z.ndim != 2 or len(z) != len(x):
            got = f"({len(x)}, ...) to ({len(x)}, d), got {tuple(z.shape)}"
            raise ValueError(f"f must map {got}: flatten its output")
        return z

    return checked
