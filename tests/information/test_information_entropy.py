"""Entropies against closed forms, scipy, random-matrix theory and Monte Carlo.

Where a test is statistical it averages independent seeds and allows 5 standard errors of that average: a false alarm
about once in 1.7 million for a normal error.
"""

import math
import warnings

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from information_data import exact, marchenko_pastur_mean, mean_and_error, normal, sphere
from scipy import special, stats
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslinfo.information import (
    JitterWarning,
    Moments,
    UndefinedEstimate,
    gaussian_entropy,
    gaussian_logdet_bias,
    knn_entropy,
    logdet_entropy,
    pairwise_entropy,
    pairwise_entropy_cap,
    renyi_entropy,
    vmf_entropy,
    vmf_log_normalizer,
)
from sslinfo.information.vmf import log_bessel_i

LOG_2PIE = math.log(2 * math.pi * math.e)


# Gaussian


@pytest.mark.parametrize(("n", "d"), [(3, 2), (40, 5), (300, 60)])
def test_gaussian_entropy_is_that_of_the_sample_covariance(n, d):
    z = normal(n, d) @ normal(d, d, seed=1) + 3
    expected = stats.multivariate_normal(cov=np.cov(z.T)).entropy()
    assert gaussian_entropy(z).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(20, 2), (64, 32), (100, 90), (512, 128)])
def test_debiased_gaussian_entropy_is_unbiased(n, d):
    a = normal(d, d, seed=99) / 3 + torch.eye(d)
    truth = d / 2 * LOG_2PIE + np.linalg.slogdet(a)[1]
    repeats = 100
    estimates = [gaussian_entropy(normal(n, d, seed) @ a.T, debias=True).item() for seed in range(repeats)]
    # Exact variance of 1/2 logdet S for Gaussian data.
    deviation = 0.5 * math.sqrt(special.polygamma(1, (n - 1 - np.arange(d)) / 2).sum())
    assert np.mean(estimates) == pytest.approx(truth, abs=5 * deviation / math.sqrt(repeats))


def test_gaussian_bias_in_one_dimension():
    """log of a chi-square over its degrees: E log(chi2_k) from scipy's own quadrature."""
    k = 7
    expected = 0.5 * (stats.chi2(k).expect(math.log) - math.log(k))
    assert gaussian_logdet_bias(1, k) == pytest.approx(expected, rel=1e-6)


def test_gaussian_entropy_transforms_as_a_density():
    z, a = normal(50, 4), normal(4, 4, seed=1)
    expected = gaussian_entropy(z).item() + np.linalg.slogdet(a)[1]
    assert gaussian_entropy(z @ a.T + 7).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("case", ["constant", "copied", "sum", "one point"])
def test_singular_covariance_is_minus_infinity(case, scale):
    z = normal(100, 6) + 1e3
    if case == "constant":
        z[:, 2] = 1e3 + 0.1
    elif case == "copied":
        z[:, 2] = z[:, 4]
    elif case == "sum":
        z[:, 2] = z[:, 4] + z[:, 5] - z[:, 0]
    else:
        z[:] = z[0].clone()
    assert gaussian_entropy(z * scale).item() == -math.inf
    assert gaussian_entropy(Moments.of(z[:40] * scale) + Moments.of(z[40:] * scale)).item() == -math.inf


@pytest.mark.parametrize("spread", [1e-6, 1e6])
def test_badly_scaled_features_are_not_singular(spread):
    z = normal(100, 3)
    scaled = z * torch.tensor([1.0, spread, spread**2], dtype=torch.float64)
    expected = gaussian_entropy(z).item() + 3 * math.log(spread)
    assert gaussian_entropy(scaled).item() == pytest.approx(expected, rel=1e-9)


def test_gaussian_entropy_needs_more_samples_than_dimensions():
    with pytest.raises(UndefinedEstimate, match="N=5, d=5"):
        gaussian_entropy(normal(5, 5))


def test_gaussian_entropy_gradient_in_closed_form():
    z = (normal(20, 4) @ normal(4, 4, seed=1) + 100).requires_grad_()
    (gradient,) = torch.autograd.grad(gaussian_entropy(z), z)
    centered = (z - z.mean(0)).detach().numpy()
    np.testing.assert_allclose(gradient, centered @ np.linalg.inv(np.cov(centered.T)) / 19, rtol=1e-9, atol=1e-12)


# LogDet


@pytest.mark.parametrize(("n", "d"), [(60, 10), (10, 60), (2, 5)])
@pytest.mark.parametrize("centered", [True, False])
def test_logdet_equals_numpy_on_either_side(n, d, centered):
    z = normal(n, d) * 3 + 2
    s = np.cov(z.T) if centered else (z.T @ z / n).numpy()
    expected = 0.5 * np.linalg.slogdet(np.eye(d) + 4.5 * s)[1]
    assert logdet_entropy(z, 4.5, centered).item() == pytest.approx(expected, rel=1e-10)
    assert logdet_entropy(Moments.of(z), 4.5, centered).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "d", "beta"), [(257, 256, 10.0), (513, 64, 1.0), (301, 200, 1e3)])
def test_logdet_of_white_data_follows_marchenko_pastur(n, d, beta):
    gamma, repeats = d / (n - 1), 30
    low, high = (1 - math.sqrt(gamma)) ** 2, (1 + math.sqrt(gamma)) ** 2

    def f(x):
        return 0.5 * math.log1p(beta * x)

    # Bai & Silverstein's correction of order 1 for real data; the integral by Chebyshev points.
    angles = (np.arange(2000) + 0.5) * np.pi / 2000
    arc = np.mean([f(1 + gamma + 2 * math.sqrt(gamma) * math.cos(angle)) for angle in angles]) / 2
    expected = d * marchenko_pastur_mean(f, gamma) + (f(low) + f(high)) / 4 - arc
    mean, error = mean_and_error([logdet_entropy(normal(n, d, seed), beta).item() for seed in range(repeats)])
    assert mean == pytest.approx(expected, abs=5 * error + 2 / d)  # 2 / d: the next order


def test_logdet_of_white_data_as_published():
    """The closed form of E 1/2 logdet(I + beta S) against the quadrature used above: d = N = 256, beta = 10: 241.6."""
    gamma, beta, d = 1.0, 10.0, 256
    root = math.sqrt(gamma)
    f = (math.sqrt(beta * (1 + root) ** 2 + 1) - math.sqrt(beta * (1 - root) ** 2 + 1)) ** 2
    v = math.log(1 + beta - f / 4) + math.log(1 + beta * gamma - f / 4) / gamma - f / (4 * beta * gamma)
    quadrature = d * marchenko_pastur_mean(lambda x: 0.5 * math.log1p(beta * x), gamma)
    assert d / 2 * v == pytest.approx(quadrature, rel=1e-6)
    assert quadrature == pytest.approx(241.6, abs=0.05)


def test_logdet_is_the_information_of_a_gaussian_channel():
    """I(x; x + e) of Gaussian x with covariance S and noise of variance 1 / beta, by scipy's entropies."""
    s, beta = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64), 3.0
    noise = np.eye(2) / beta
    information = (
        stats.multivariate_normal(cov=s.numpy() + noise).entropy() - stats.multivariate_normal(cov=noise).entropy()
    )
    assert logdet_entropy(exact(s, 30, mean=4), beta).item() == pytest.approx(information, rel=1e-10)


def test_logdet_scaling_law():
    z = normal(30, 4)
    assert logdet_entropy(5 * z, 0.3).item() == pytest.approx(logdet_entropy(z, 0.3 * 25).item(), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(8, 3), (3, 8)])
def test_logdet_gradient_in_closed_form(n, d):
    z, beta = (normal(n, d) + 1).requires_grad_(), 2.5
    (gradient,) = torch.autograd.grad(logdet_entropy(z, beta), z)
    centered = (z - z.mean(0)).detach().numpy()
    expected = beta / (n - 1) * centered @ np.linalg.inv(np.eye(d) + beta * np.cov(z.detach().T))
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: logdet_entropy(z, beta, centered=False), z)


@pytest.mark.parametrize(("n", "d"), [(64, 512), (256, 2048)])
def test_smaller_side_keeps_float32_accurate(n, d):
    """beta = 1e8: beyond float32 on the side of d by hundreds of nats, harmless on the side of N."""
    z = normal(n, d)
    centered = (z - z.mean(0)).numpy()
    # The determinant on the side of N is the product over its n - 1 eigenvalues that centring leaves.
    eigenvalues = np.linalg.eigvalsh(centered @ centered.T / (n - 1))[1:]
    value = logdet_entropy(z, 1e8, dtype=torch.float32)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.5 * np.log1p(1e8 * eigenvalues).sum(), abs=1e-2)


def test_jitter_is_reported():
    z = (normal(400, 200)[:, :3] @ normal(3, 200, seed=1)).float()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = logdet_entropy(z, 1e9, dtype=torch.float32)
    assert value.isfinite()
    assert [type(w.message) for w in caught] == [JitterWarning]
    assert caught[0].message.jitter > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logdet_entropy(z, 1e9)  # float64 needs none


# Pairwise


def reference_pairwise(z, variance, factor, leave_one_out=False):
    logits = -cdist(z, z, "sqeuclidean") / (factor * variance)
    if leave_one_out:
        np.fill_diagonal(logits, -np.inf)
    count = len(z) - leave_one_out
    d = z.shape[1]
    return d / 2 * (LOG_2PIE + math.log(variance)) - (special.logsumexp(logits, axis=1) - math.log(count)).mean()


@pytest.mark.parametrize(("bound", "factor"), [("lower", 8), ("upper", 2)])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("variance", [0.05, 1.0, 30.0])
def test_pairwise_equals_scipy_over_several_blocks(monkeypatch, bound, factor, leave_one_out, variance):
    monkeypatch.setattr("sslinfo.information.kernel._BLOCK_ELEMENTS", {"cpu": 700})  # blocks of 7 rows of 100
    z = normal(100, 3) * 2 + 1e3
    value = pairwise_entropy(z, variance, bound, leave_one_out).item()
    assert value == pytest.approx(reference_pairwise(z.numpy(), variance, factor, leave_one_out), rel=1e-9)


@pytest.mark.parametrize("bound", ["lower", "upper"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_pairwise_gradient(monkeypatch, bound, leave_one_out):
    monkeypatch.setattr("sslinfo.information.kernel._BLOCK_ELEMENTS", {"cpu": 20})
    z = normal(9, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: pairwise_entropy(z, 0.7, bound, leave_one_out), z)


@pytest.mark.parametrize(("bound", "factor"), [("lower", 8), ("upper", 2)])
def test_pairwise_gradient_in_closed_form(bound, factor):
    """d/dz_i = (2 / factor s2 N) sum_j (w_ij + w_ji) (z_i - z_j), w_ij the weight of j in the sum of i."""
    z = (normal(30, 3) + 1e3).requires_grad_()
    (gradient,) = torch.autograd.grad(pairwise_entropy(z, 0.7, bound), z)
    points = z.detach().numpy()
    weight = special.softmax(-cdist(points, points, "sqeuclidean") / (factor * 0.7), axis=1)
    weight = weight + weight.T
    expected = 2 / (factor * 0.7 * 30) * (weight.sum(1, keepdims=True) * points - weight @ points)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        self.elements = max([self.elements, *(part.numel() for part in tensors)])
        return result


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_pairwise_holds_one_block_of_rows_at_a_time(monkeypatch, leave_one_out):
    monkeypatch.setattr("sslinfo.information.kernel._BLOCK_ELEMENTS", {"cpu": 6_000})
    z = normal(300, 3).requires_grad_()
    with LargestTensor() as largest:
        torch.autograd.grad(pairwise_entropy(z, 1.0, leave_one_out=leave_one_out), z)
    assert largest.elements == 6_000  # 20 rows against 300 keys, of 90 000 pairs


def test_pairwise_saves_no_matrix_of_pairs():
    saved = []
    z = normal(500, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        pairwise_entropy(z, 1.0)
    assert max(saved) <= z.numel()


@pytest.mark.parametrize("bound", ["lower", "upper"])
def test_pairwise_limits(bound):
    """Identical points: one Gaussian. K far, equal clusters: + log K. Everything far apart: the cap."""
    one = torch.full((12, 3), 1e3)
    gaussian = stats.multivariate_normal(cov=0.5 * np.eye(3)).entropy()
    assert pairwise_entropy(one, 0.5, bound).item() == pytest.approx(gaussian, rel=1e-12)
    clusters = one + 1e4 * torch.arange(12)[:, None] % 4e4
    assert pairwise_entropy(clusters, 0.5, bound).item() == pytest.approx(gaussian + math.log(4), rel=1e-12)
    apart = one + 1e4 * torch.arange(12)[:, None]
    assert pairwise_entropy(apart, 0.5, bound).item() == pytest.approx(gaussian + math.log(12), rel=1e-12)
    assert pairwise_entropy_cap(12, 3, 0.5).item() == pytest.approx(gaussian + math.log(12), rel=1e-12)


def test_pairwise_distances_are_never_negative():
    """Copies of far points in float32, a narrow kernel: whatever the rounding, no entropy below one component's."""
    far = (1e3 * normal(50, 16)).float().repeat(4, 1)
    value = pairwise_entropy(far, 1e-3, leave_one_out=False, dtype=torch.float32).item()
    assert value >= stats.multivariate_normal(cov=1e-3 * np.eye(16)).entropy()


@pytest.mark.parametrize("d", [1, 2, 4])
def test_pairwise_of_a_gaussian_population(d):
    """Kernel variance near that of the data: the limit N -> infinity, over 8 seeds.

    Twice the value of N samples less that of its halves has no bias of order 1 / N; of the next, 16 / N^2 a dimension
    is allowed.
    """
    s2, v, n = 1.0, 1.2, 1024
    upper = d / 2 * (LOG_2PIE + math.log(s2 + v)) + d / 2 * v / (s2 + v)
    lower = d / 2 * (LOG_2PIE + math.log(s2)) + d / 2 * math.log(1 + v / (4 * s2)) + d / 2 * v / (4 * s2 + v)
    for bound, expected in (("upper", upper), ("lower", lower)):
        values = []
        for seed in range(8):
            z = normal(n, d, seed) * math.sqrt(v)
            halves = [pairwise_entropy(part, s2, bound).item() for part in z.split(n // 2)]
            values.append(2 * pairwise_entropy(z, s2, bound).item() - sum(halves) / 2)
        mean, error = mean_and_error(values)
        assert mean == pytest.approx(expected, abs=5 * error + 16 * d / n**2)


def test_pairwise_saturates_in_many_dimensions():
    """d = 128, N = 4096, kernel and data of variance 1: both bounds read the cap 189.9, with no gradient left."""
    z = normal(4096, 128).requires_grad_()
    cap = pairwise_entropy_cap(4096, 128, 1.0).item()
    assert cap == pytest.approx(189.9, abs=0.05)
    upper = pairwise_entropy(z, 1.0, "upper")
    assert upper.item() == pytest.approx(cap, abs=1e-6)
    (gradient,) = torch.autograd.grad(upper, z)
    assert gradient.abs().max() < 1e-10


@given(
    d=st.integers(1, 8),
    components=st.integers(2, 12),
    separation=st.floats(0, 6),
    variance=st.floats(0.05, 5),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pairwise_bounds_bracket_the_mixture_entropy(d, components, separation, variance, seed):
    """lower <= truth <= upper, the truth by Monte Carlo to 5 of its own standard errors (3e-7 a side and example)."""
    rng = np.random.default_rng(seed)
    means = separation * rng.standard_normal((components, d))
    draws = means[rng.integers(components, size=4000)] + math.sqrt(variance) * rng.standard_normal((4000, d))
    log_density = special.logsumexp(-cdist(draws, means, "sqeuclidean") / (2 * variance), axis=1)
    log_density -= math.log(components) + d / 2 * math.log(2 * math.pi * variance)
    truth, error = mean_and_error(-log_density)
    z = torch.from_numpy(means)
    assert pairwise_entropy(z, variance, "lower").item() <= truth + 5 * error + 1e-9
    assert pairwise_entropy(z, variance, "upper").item() >= truth - 5 * error - 1e-9


# Von Mises-Fisher


@pytest.mark.parametrize("order", [0.0, 0.5, 3.0, 63.0, 1023.0])
@pytest.mark.parametrize("x", [1e-3, 0.5, 10.0, 300.0, 1e5])
def test_log_bessel_equals_mpmath(order, x):
    with mpmath.workdps(30):
        expected = float(mpmath.log(mpmath.besseli(order, x)))
    assert log_bessel_i(order, x) == pytest.approx(expected, rel=1e-11, abs=1e-9)


@pytest.mark.parametrize(("d", "k"), [(2, 0.3), (3, 5.0), (10, 20.0)])
def test_vmf_is_a_kernel_density_by_scipy(d, k):
    z = sphere(40, d)
    density = np.mean([stats.vonmises_fisher(mu, k).pdf(z.numpy()) for mu in z.numpy()], axis=0)
    assert vmf_entropy(3 * z, k).item() == pytest.approx(-np.log(density).mean(), rel=1e-9)


def test_vmf_closed_forms():
    d, k = 3, 4.0
    log_c = math.log(k / (4 * math.pi * math.sinh(k)))
    assert vmf_log_normalizer(d, k) == pytest.approx(log_c, rel=1e-12)
    poles = torch.tensor([[0, 0, 1.0], [0, 0, -1.0]])
    expected = -log_c - math.log((math.exp(k) + math.exp(-k)) / 2)
    assert vmf_entropy(poles, k).item() == pytest.approx(expected, rel=1e-12)
    expected = -log_c + k  # the other pole alone
    assert vmf_entropy(poles, k, leave_one_out=True).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [2, 8, 128, 2048])
def test_vmf_of_a_flat_kernel_is_the_area_of_the_sphere(d):
    area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    # The log-density of the kernel is within concentration of uniform.
    assert vmf_entropy(sphere(20, d), 1e-4).item() == pytest.approx(area, abs=2e-4)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_vmf_gradient(leave_one_out):
    z = normal(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: vmf_entropy(z, 3.0, leave_one_out), z)


# Matrix-based


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12)])
def test_renyi_equals_the_eigenvalues_of_the_gram_matrix(alpha, n, d):
    z = normal(n, d)
    p = np.linalg.eigvalsh(z @ z.T)
    p = p[p > 1e-9] / p.sum()
    expected = stats.entropy(p) if alpha == 1 else math.log((p**alpha).sum()) / (1 - alpha)
    assert renyi_entropy(z, alpha).item() == pytest.approx(expected, rel=1e-9)
    kernel = np.exp(-cdist(z, z, "sqeuclidean") / (2 * 1.7**2)) / n
    p = np.linalg.eigvalsh(kernel)
    expected = stats.entropy(p) if alpha == 1 else math.log((p**alpha).sum()) / (1 - alpha)
    assert renyi_entropy(z, alpha, bandwidth=1.7).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize(("n", "d"), [(50, 30), (30, 50)])
def test_renyi_counts_no_rounding(alpha, n, d):
    """Rank 1 and rank 4, where a small alpha would count eigenvalues that only rounding makes."""
    assert renyi_entropy(torch.ones(n, 1) * normal(1, d), alpha).item() == pytest.approx(0, abs=1e-9)
    z = normal(n, 4) @ normal(4, d, seed=1)
    p = np.linalg.svd(z.numpy(), compute_uv=False)[:4] ** 2
    expected = math.log(((p / p.sum()) ** alpha).sum()) / (1 - alpha)
    assert renyi_entropy(z, alpha).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("offset", [1e-15, 1e-13, 1e-9, 1e-6, -1e-13, -1e-6])
def test_renyi_is_continuous_at_order_one(offset):
    """H_alpha = H_1 - (alpha - 1) / 2 Var log p to first order."""
    z = normal(40, 6)
    p = np.linalg.svd(z.numpy(), compute_uv=False) ** 2
    p /= p.sum()
    variance = (p * np.log(p) ** 2).sum() - stats.entropy(p) ** 2
    expected = stats.entropy(p) - offset / 2 * variance
    assert renyi_entropy(z, 1 + offset).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 2.0, 3.0])
def test_renyi_limits(alpha):
    assert renyi_entropy(torch.eye(16), alpha).item() == pytest.approx(math.log(16), rel=1e-9)
    assert renyi_entropy(torch.ones(16, 3), alpha).item() == pytest.approx(0, abs=1e-6)
    assert renyi_entropy(1e3 * torch.arange(16.0)[:, None], alpha, bandwidth=1.0).item() == pytest.approx(math.log(16))


@pytest.mark.parametrize(("n", "d"), [(2048, 64), (64, 1024)])
def test_renyi_of_the_uniform_sphere(n, d):
    small, large = min(n, d), max(n, d)
    mean, error = mean_and_error([renyi_entropy(sphere(n, d, seed)).item() for seed in range(5)])
    # log m - m / 2M up to the next order (m / M)^2.
    assert mean == pytest.approx(math.log(small) - small / (2 * large), abs=5 * error + (small / large) ** 2)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("bandwidth", [None, 1.3])
def test_renyi_gradient(alpha, bandwidth):
    z = normal(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: renyi_entropy(z, alpha, bandwidth), z)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_renyi_gradient_is_finite_where_the_rank_drops(alpha):
    z = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [3.0, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(renyi_entropy(z, alpha), z)
    assert gradient.isfinite().all()


# Nearest neighbours


@pytest.mark.parametrize(("d", "k"), [(1, 1), (2, 3), (4, 5), (8, 3), (10, 1)])
def test_knn_entropy_equals_its_formula_over_a_tree(d, k):
    z = 2 * normal(700, d) + 1e3
    radius = cKDTree(z.numpy()).query(z.numpy(), k + 1)[0][:, k]
    ball = math.pi ** (d / 2) / special.gamma(d / 2 + 1)
    expected = special.digamma(700) - special.digamma(k) + math.log(ball) + d * np.log(radius).mean()
    assert knn_entropy(z, k).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (2, 3), (4, 3)])
def test_knn_entropy_of_a_gaussian(d, k):
    estimates = [knn_entropy(2 * normal(2000, d, seed), k).item() for seed in range(10)]
    mean, error = mean_and_error(estimates)
    # The density is taken constant out to the k-th neighbour, whose squared distance goes as N^(-2/d): bias below it.
    bias = (k / 2000) ** (2 / d)
    assert mean == pytest.approx(d / 2 * (LOG_2PIE + math.log(4)), abs=5 * error + bias)


def test_knn_entropy_of_a_circle_of_points():
    """Equally spaced on a ring in the plane: every second neighbour at one distance, by arithmetic."""
    angles = 2 * math.pi * torch.arange(10, dtype=torch.float64) / 10
    z = torch.stack([angles.cos(), angles.sin()], dim=1)
    step = 2 * math.sin(math.pi / 10)
    expected = special.digamma(10) - special.digamma(2) + math.log(math.pi) + 2 * math.log(step)
    assert knn_entropy(z, k=2).item() == pytest.approx(expected, rel=1e-9)


def test_knn_entropy_refuses_what_it_cannot_do():
    with pytest.raises(UndefinedEstimate, match="d=11"):
        knn_entropy(normal(50, 11))
    with pytest.raises(UndefinedEstimate, match="N > 3"):
        knn_entropy(normal(3, 2), k=3)
    assert knn_entropy(torch.zeros(5, 2)).item() == -math.inf
