"""The local affine map against weights, finite differences and sampling."""

import importlib
import itertools
import math

import numpy as np
import pytest
import torch
from information_data import normal
from scipy import stats
from torch import nn

from sslinfo.information import (
    affine_residual,
    gaussian_entropy,
    local_affine,
    local_gaussian_entropy,
    noise_normality,
)


def network(*widths, seed=0):
    torch.manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def convolutional():
    torch.manual_seed(0)
    f = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    f[1].running_var.uniform_(0.5, 2)
    f[1].running_mean.uniform_(-1, 1)
    return f.double()


@pytest.mark.parametrize(("inputs", "d"), [(7, 3), (3, 7)])
def test_linear_network_is_its_weight(inputs, d):
    f = nn.Linear(inputs, d).double()
    x = normal(5, inputs)
    result = local_affine(f, x)
    weight = f.weight.detach()
    np.testing.assert_allclose(result.jacobian, weight.expand(5, d, inputs), rtol=1e-12)
    np.testing.assert_allclose(result.mean, f(x).detach(), rtol=1e-12)
    np.testing.assert_allclose(
        result.covariance(0.3), (0.3 * weight @ weight.T).expand(5, d, d), rtol=1e-10, atol=1e-14
    )
    assert not result.jacobian.requires_grad


@pytest.mark.parametrize("widths", [(6, 20, 3), (3, 20, 6)])  # by rows and by columns
def test_jacobian_equals_finite_differences(widths, monkeypatch):
    module = importlib.import_module("sslinfo.information.local_affine")  # the package has a function of that name
    monkeypatch.setattr(module, "_PASS_ROWS", 8)  # two directions a pass
    f, x, step = network(*widths), normal(4, widths[0]), 1e-7
    jacobian = local_affine(f, x).jacobian
    for j in range(widths[0]):
        shift = torch.zeros(widths[0], dtype=torch.float64)
        shift[j] = step
        with torch.no_grad():
            difference = (f(x + shift) - f(x - shift)) / (2 * step)
        np.testing.assert_allclose(jacobian[:, :, j], difference, rtol=1e-5, atol=1e-7)


def test_jacobian_of_a_convolutional_network():
    f = convolutional().eval()
    x = normal(3, 2 * 6 * 6).reshape(3, 2, 6, 6)
    expected = torch.stack([torch.autograd.functional.jacobian(f, image[None]).reshape(16, 72) for image in x])
    torch.testing.assert_close(local_affine(f, x).jacobian, expected)
    torch.testing.assert_close(local_affine(f.float(), x.float()).jacobian.float(), expected.float())
    with pytest.raises(ValueError, match=r"training mode \('1'\).*eval"):
        local_affine(f.train(), x.float())


class Attention(nn.Module):
    """Tokens of 4 features that attend to each other, flattened."""

    def forward(self, x):
        tokens = x.reshape(len(x), 1, -1, 4)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


@pytest.mark.parametrize("keep", [5, 24])  # by rows and by columns, as 24 > 12
def test_jacobian_of_attention(keep):
    def f(x):
        return torch.cat([Attention()(x), Attention()(x)], dim=1)[:, :keep]

    x = normal(2, 12)
    expected = torch.stack([torch.autograd.functional.jacobian(f, row[None]).reshape(keep, 12) for row in x])
    torch.testing.assert_close(local_affine(f, x).jacobian, expected)
    assert affine_residual(f, x, sigma=1e-6).item() < 1e-4


def test_entropy_of_a_linear_network():
    f = nn.Linear(6, 3, bias=False).double()
    weight = f.weight.detach().numpy()
    covariance = 0.2 * weight @ weight.T
    result = local_gaussian_entropy(f, normal(2, 6), variance=0.2)
    assert result.shape == (2,)
    np.testing.assert_allclose(result, stats.multivariate_normal(cov=covariance).entropy(), rtol=1e-10)
    regularised = local_gaussian_entropy(f, normal(2, 6), variance=0.2, noise_variance=0.01)
    np.testing.assert_allclose(regularised, 0.5 * np.linalg.slogdet(np.eye(3) + covariance / 0.01)[1], rtol=1e-10)


def test_entropy_within_one_piece_is_that_of_samples():
    """Input noise far inside a piece: the de-biased Gaussian entropy of 4000 outputs, to 5 standard deviations."""
    f, x, sigma = network(8, 30, 4), normal(1, 8), 1e-5
    with torch.no_grad():
        sampled = gaussian_entropy(f(x + sigma * normal(4000, 8, seed=1)), debias=True).item()
    deviation = math.sqrt(4 / (2 * 4000))
    assert local_gaussian_entropy(f, x, sigma**2).item() == pytest.approx(sampled, abs=5 * deviation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_maps_have_no_entropy(dtype):
    widening, narrow = nn.Linear(2, 4).to(dtype), nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 4)).to(dtype)
    assert (local_gaussian_entropy(widening, normal(3, 2).to(dtype), 1.0) == -math.inf).all()
    assert (local_gaussian_entropy(narrow, normal(3, 6).to(dtype), 1.0) == -math.inf).all()
    assert local_gaussian_entropy(narrow, normal(3, 6).to(dtype), 1.0, noise_variance=0.1).isfinite().all()


def test_residual_is_zero_inside_a_piece_and_grows_beyond():
    assert affine_residual(nn.Linear(5, 3).double(), normal(4, 5), sigma=10.0).item() < 1e-12
    f, x = network(8, 50, 50, 4), normal(20, 8)
    small, middle, large = (affine_residual(f, x, sigma, draws=4).item() for sigma in (1e-7, 0.1, 1.0))
    assert small < 1e-6
    assert small < middle < large


def test_residual_by_arithmetic():
    """|x| at x = 1: nothing while e > -1; beyond, f(1 + e) - 1 - e = -2 (1 + e)."""
    x, sigma = torch.ones(1, 1, dtype=torch.float64), 2.0
    noise = sigma * torch.randn(1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = max(0.0, -2 * (1 + noise.item())) / abs(noise.item())
    assert affine_residual(torch.abs, x, sigma, seed=3).item() == pytest.approx(expected, abs=1e-12)
    dead = torch.full((2, 1), -5.0)
    assert affine_residual(torch.relu, dead, 0.1).item() == 0  # J e = 0 and nothing moves
    assert affine_residual(lambda x: (x > -5).to(x) * 1.0, dead, 0.1, draws=8).item() == math.inf


def test_noise_normality_of_a_linear_map():
    """Gaussian at every sigma: p-values as good as uniform, the same at every sigma, as the noise is."""
    f = nn.utils.parametrizations.orthogonal(nn.Linear(40, 10).double())
    result = noise_normality(f, normal(20, 40), sigmas=[0.01, 1.0, 5.0])
    assert result.pvalue.shape == (3, 20, 10)
    torch.testing.assert_close(result.pvalue[0], result.pvalue[2], rtol=1e-6, atol=1e-9)
    # Orthonormal rows: 200 independent p-values, 0.5 to 5 deviations of their mean (false alarm 6e-7).
    assert result.mean_pvalue[0].item() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / 200))
    assert result.constant_share.tolist() == [0, 0, 0]


def test_noise_normality_falls_with_sigma():
    f = network(2, 50, 50, 5)
    result = noise_normality(f, normal(30, 2), sigmas=[1e-4, 0.1, 2.0])
    assert result.mean_pvalue[0] > result.mean_pvalue[1] > result.mean_pvalue[2]
    assert result.mean_pvalue[0] > 0.3
    assert result.mean_pvalue[2] < 0.1


def test_noise_normality_equals_scipy_on_the_same_draws():
    f, x = network(4, 8, 3), normal(2, 4)
    result = noise_normality(f, x, sigmas=[0.5], draws=300, seed=7)
    generator = torch.Generator().manual_seed(7)
    for i in range(2):
        noise = torch.randn(300, 4, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            expected = stats.normaltest(f(x[i] + 0.5 * noise).numpy())
        np.testing.assert_allclose(result.pvalue[0, i], expected.pvalue, rtol=1e-6)


LOW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("widths", [(6, 3), (3, 6)])
def test_local_map_in_low_precision(dtype, widths):
    """A linear map passes its weight through unrounded, whichever side the Jacobian is taken from."""
    f, x = nn.Linear(*widths).to(dtype), normal(4, widths[0]).to(dtype)
    result = local_affine(f, x)
    assert result.jacobian.dtype == result.mean.dtype == torch.float64
    weight = f.weight.detach().double()
    torch.testing.assert_close(result.jacobian, weight.expand(4, *weight.shape), rtol=0, atol=0)
    torch.testing.assert_close(result.mean, f(x).detach().double(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", LOW)
def test_residual_in_low_precision(dtype):
    """|x| rounds nothing: its residual at the noise that low precision adds, by arithmetic in float64."""
    x, sigma = torch.full((50, 1), 1.5, dtype=dtype), 3.0
    noise = sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    shifted = (x + noise).double()
    error, length = (shifted.abs() - shifted).abs(), (shifted - x.double()).abs()
    ratios = torch.where(error == 0, 0.0, error / length)  # noise that rounds to nothing has no error: 0
    value = affine_residual(torch.abs, x, sigma, seed=3)
    assert value.dtype == torch.float64
    eps = torch.finfo(dtype).eps
    assert value.item() == pytest.approx(ratios.mean().item(), rel=8 * eps, abs=8 * eps)
    assert ratios.mean() > 8 * eps


def test_residual_of_small_noise_in_float32_is_not_the_rounding_of_the_input():
    x = (normal(30, 3) + 100).float()
    assert affine_residual(lambda x: x * 4, x, sigma=1e-4).item() < 1e-6


@pytest.mark.parametrize("dtype", LOW)
def test_noise_normality_in_low_precision(dtype):
    x = normal(2, 3).to(dtype)
    result = noise_normality(lambda x: 2 * x, x, sigmas=[0.5], draws=300, seed=7)
    generator = torch.Generator().manual_seed(7)
    for i in range(2):
        noise = torch.randn(300, 3, generator=generator, dtype=dtype)
        expected = stats.normaltest((2 * (x[i] + 0.5 * noise)).double().numpy())
        np.testing.assert_allclose(result.pvalue[0, i], expected.pvalue, rtol=1e-6)


@pytest.mark.parametrize("widths", [(4, 3), (3, 4)])
def test_a_first_layer_in_place_leaves_the_input_alone(widths):
    linear = nn.Linear(*widths).double()
    f, x = nn.Sequential(nn.ReLU(inplace=True), linear), normal(5, widths[0])
    before = x.clone()
    jacobian = local_affine(f, x).jacobian
    torch.testing.assert_close(jacobian, linear.weight.detach() * (before > 0)[:, None])
    assert affine_residual(f, x, sigma=1e-9).item() < 1e-5
    assert noise_normality(f, x, [0.1], draws=8).pvalue.shape == (1, 5, widths[1])
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "call",
    [
        local_affine,
        lambda f, x: local_gaussian_entropy(f, x, 1.0),
        lambda f, x: affine_residual(f, x, 0.1),
        lambda f, x: noise_normality(f, x, [0.1]),
    ],
)
def test_bad_functions_are_named(call):
    x = normal(4, 3)
    with pytest.raises(ValueError, match=r"f returned (12|1536) NaN or infinite values"):
        call(lambda x: x * torch.nan, x)
    with pytest.raises(ValueError, match=r"f must map \((4|256), \.\.\.\) to .*, got \((4|256),\): flatten"):
        call(lambda x: x.sum(1), x)
    with pytest.raises(ValueError, match=r"f must return a torch\.Tensor, got tuple"):
        call(lambda x: (x, x), x)
    with pytest.raises(ValueError, match=r"statistics of the batch \('1'\)"):
        call(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).double().eval(), x)
    with pytest.raises(ValueError, match=r"x must be .*got ndarray: convert it with torch\.as_tensor"):
        call(nn.Linear(3, 3), x.numpy())


def test_constant_outputs_are_left_out():
    result = noise_normality(lambda x: torch.cat([x, 0 * x], dim=1), normal(3, 2), sigmas=[0.1])
    assert result.constant_share.item() == 0.5
    assert result.mean_pvalue.isfinite().all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda f, x: local_affine(f, x[0]), r"x must be .*\(N, ...\)"),
        (lambda f, x: local_affine(f, x.long()), "int64"),
        (lambda f, x: local_affine(f, x * torch.nan), "NaN"),
        (lambda f, x: local_affine(lambda x: x.sum(1), x), r"got \(4,\)"),
        (lambda f, x: local_gaussian_entropy(f, x, 0.0), "variance"),
        (lambda f, x: local_gaussian_entropy(f, x, 1.0, noise_variance=-1.0), "noise_variance"),
        (lambda f, x: affine_residual(f, x, -1.0), "sigma"),
        (lambda f, x: noise_normality(f, x, []), "sigmas is empty"),
        (lambda f, x: noise_normality(f, x, [0.1, 0.0]), "sigmas"),
        (lambda f, x: noise_normality(f, x, 0.1), r"sigmas must be a sequence of numbers, got 0\.1: pass \[0\.1\]"),
        (lambda f, x: noise_normality(f, x, [0.1], seed=1.5), "seed must be an integer >= 0, got 1.5"),
        (lambda f, x: affine_residual(f, x, 0.1, seed=None), "seed must be an integer >= 0, got None"),
        (lambda f, x: noise_normality(f, x, [0.1], draws=7), "draws"),
        (lambda f, x: noise_normality(nn.Dropout(), x, [0.1]), "training mode"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call(network(3, 4, 2), normal(4, 3))
