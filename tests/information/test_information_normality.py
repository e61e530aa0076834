"""Normality against scipy, and Epps-Pulley against quadrature and its null law."""

import math

import numpy as np
import pytest
import torch
from information_data import mean_and_error, normal
from scipy import stats
from scipy.integrate import quad

from sslinfo.information import (
    CharacteristicSums,
    FourthMoments,
    UndefinedEstimate,
    benjamini_hochberg,
    epps_pulley,
    normality,
)


def several_shapes(n):
    z = normal(n, 6, seed=n)
    return torch.stack(
        [z[:, 0], z[:, 1].exp(), z[:, 2] ** 3, z[:, 3].sign() * 5 + z[:, 3], 1e3 + z[:, 4], z[:, 5].erf()], 1
    )


@pytest.mark.parametrize("n", [8, 20, 77, 512, 5000])
def test_dagostino_pearson_equals_scipy(n):
    z = several_shapes(n)
    expected = stats.normaltest(z.numpy())
    merged = FourthMoments.of(z[: n // 3]) + FourthMoments.of(z[n // 3 :])
    for result in (normality(z), normality(merged)):
        np.testing.assert_allclose(result.statistic, expected.statistic, rtol=1e-6)
        np.testing.assert_allclose(result.pvalue, expected.pvalue, rtol=1e-6)
        np.testing.assert_allclose(result.skewness, stats.skew(z.numpy()), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(result.excess_kurtosis, stats.kurtosis(z.numpy()), rtol=1e-6, atol=1e-9)
        rejected = stats.false_discovery_control(expected.pvalue) <= 0.05
        assert result.rejected.tolist() == rejected.tolist()


def test_symmetric_samples_have_skewness_score_zero():
    """scipy 1.x replaces an exact zero by one inside its skewness score; by symmetry the score is zero."""
    half = torch.arange(1, 21).double()  # integers, so that the third moment is exactly 0
    z = torch.cat([half, -half])[:, None]
    result = normality(z)
    assert result.skewness.item() == 0
    assert result.statistic.item() == pytest.approx(stats.kurtosistest(z.numpy()[:, 0]).statistic ** 2, rel=1e-9)


def test_null_pvalues_are_uniform():
    """2000 normal dimensions: the test is approximate, its p-values uniform to a Kolmogorov distance of 0.045.

    1.36 / sqrt(2000) = 0.030 is the 5% point; 0.045 has probability 6e-4 under exact uniformity, with a fixed seed.
    """
    pvalues = normality(normal(512, 2000)).pvalue.numpy()
    assert stats.kstest(pvalues, "uniform").statistic < 0.045


def test_constant_dimensions_are_nan_and_not_tested():
    z = torch.cat([normal(50, 2).exp() ** 2, torch.full((50, 1), 1e3 + 0.1)], dim=1)
    result = normality(z)
    assert result.pvalue.isnan().tolist() == [False, False, True]
    assert result.rejected.tolist() == [True, True, False]


@pytest.mark.parametrize("level", [0.01, 0.05, 0.3])
def test_false_discovery_control_equals_scipy(level):
    pvalues = (-3 * normal(200, 1).flatten() ** 2).exp()
    expected = stats.false_discovery_control(pvalues.numpy()) <= level
    assert 0 < expected.sum() < 200
    assert benjamini_hochberg(pvalues, level).tolist() == expected.tolist()
    assert not benjamini_hochberg(torch.tensor([0.5, 0.9, torch.nan])).any()


def test_normality_refuses_few_samples():
    with pytest.raises(UndefinedEstimate, match="at least 8 samples, got 7"):
        normality(normal(7, 2))
    with pytest.raises(ValueError, match="level"):
        normality(normal(20, 2), level=1.5)


def statistic_by_quadrature(slice_):
    """N int_-3^3 |phi_N - exp(-t^2/2)|^2 exp(-t^2/2) dt by adaptive quadrature."""

    def integrand(t):
        difference = np.exp(1j * t * slice_).mean() - math.exp(-t * t / 2)
        return abs(difference) ** 2 * math.exp(-t * t / 2)

    return len(slice_) * quad(integrand, -3, 3, limit=200)[0]


@pytest.mark.parametrize("case", ["normal", "shifted", "wide", "two points"])
def test_epps_pulley_in_one_dimension_is_the_integral(case):
    """d = 1: every unit slice is z or -z, which the statistic does not tell apart."""
    z = normal(60, 1)
    z = {"normal": z, "shifted": z + 1, "wide": 1.5 * z, "two points": z.sign()}[case]
    expected = statistic_by_quadrature(z.numpy()[:, 0])
    # The trapezoid on 17 knots against the integral: within 1% and 0.002 for samples of this width.
    assert epps_pulley(z, slices=3).item() == pytest.approx(expected, rel=0.01, abs=0.002)


def test_epps_pulley_under_the_null():
    """Mean 1.0525 and 95% point near 2.94, over 1500 independent slices of independent samples.

    5 standard errors for the mean; 2.94 covers 95% to 5 binomial deviations and 1% for "near".
    """
    values = np.array([epps_pulley(normal(100, 1, seed), slices=1).item() for seed in range(1500)])
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(1.0525, abs=5 * error)
    assert (values < 2.94).mean() == pytest.approx(0.95, abs=5 * math.sqrt(0.95 * 0.05 / 1500) + 0.01)


def test_epps_pulley_sees_what_is_not_standard_normal():
    z = normal(500, 16)
    null = epps_pulley(z).item()
    assert null < 1.5
    for other in (z + 0.5, 2 * z, 0.1 * z, z * torch.linspace(0.1, 2, 16)):
        assert epps_pulley(other).item() > 5 * null


def test_epps_pulley_merges_and_repeats():
    z = normal(90, 5)
    whole = epps_pulley(z, slices=32, seed=4).item()
    parts = [CharacteristicSums.of(z[a:b], slices=32, seed=4) for a, b in [(0, 0), (0, 11), (11, 90)]]
    assert epps_pulley(parts[2] + (parts[0] + parts[1])).item() == pytest.approx(whole, rel=1e-10)
    assert epps_pulley(z, slices=32, seed=5).item() != whole


def test_epps_pulley_of_a_point_at_the_origin():
    """phi_N = 1: N int_-3^3 (1 - exp(-t^2/2))^2 exp(-t^2/2) dt, by numpy's trapezoid on the same 17 knots."""
    t = np.linspace(0, 3, 17)
    expected = 4 * 2 * np.trapezoid((1 - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2), t)
    assert epps_pulley(torch.zeros(4, 2)).item() == pytest.approx(expected, rel=1e-12)


def test_epps_pulley_gradient():
    z = normal(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: epps_pulley(z, slices=4), z)
