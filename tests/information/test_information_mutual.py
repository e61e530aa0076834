"""Mutual information against closed forms of Gaussians, scipy and Monte Carlo; 5 standard errors where statistical."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from information_data import exact, mean_and_error, normal, sphere
from scipy import special, stats
from scipy.spatial.distance import cdist

from sslinfo.information import (
    Moments,
    UndefinedEstimate,
    gaussian_entropy,
    gaussian_mutual_information,
    infonce,
    logdet_entropy,
    mutual_information,
    pairwise_entropy,
    view_information,
    vmf_entropy,
)


def correlated(n, d, rho, seed):
    z1 = normal(n, d, seed)
    return z1, rho * z1 + math.sqrt(1 - rho**2) * normal(n, d, seed + 10_000)


# Gaussian


@pytest.mark.parametrize(("d", "rho"), [(1, 0.3), (5, 0.9), (20, 0.999)])
def test_gaussian_information_of_an_exact_covariance(d, rho):
    eye = torch.eye(d, dtype=torch.float64)
    joint = torch.cat([torch.cat([eye, rho * eye]), torch.cat([rho * eye, eye])], dim=1)
    z = exact(joint, 100, mean=50.0)
    expected = -d / 2 * math.log(1 - rho**2)
    z1, z2 = z[:, :d] @ normal(d, d, seed=5), z[:, d:] * 1e3  # any invertible map of either view changes nothing
    assert gaussian_mutual_information(z1, z2, debias=False).item() == pytest.approx(expected, rel=1e-8)
    assert gaussian_mutual_information(Moments.of(z1, z2), debias=False).item() == pytest.approx(expected, rel=1e-8)


def test_gaussian_information_by_canonical_correlations():
    """Views of different widths: -1/2 sum log(1 - rho^2), rho by numpy's QR and SVD."""
    z1 = normal(60, 4)
    z2 = z1[:, :3] @ normal(3, 6, seed=1) + normal(60, 6, seed=2)
    q1, q2 = (np.linalg.qr(z - z.mean(0))[0] for z in (z1.numpy(), z2.numpy()))
    rho = np.linalg.svd(q1.T @ q2, compute_uv=False)
    expected = -0.5 * np.log1p(-(rho**2)).sum()
    assert gaussian_mutual_information(z1, z2, debias=False).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "d", "rho"), [(256, 32, 0.5), (100, 40, 0.0), (1024, 128, 0.5)])
def test_debiased_gaussian_information_is_unbiased(n, d, rho):
    truth = -d / 2 * math.log(1 - rho**2)
    repeats = 8 if d == 128 else 40
    pairs = [correlated(n, d, rho, seed) for seed in range(repeats)]
    mean, error = mean_and_error([gaussian_mutual_information(*pair).item() for pair in pairs])
    assert mean == pytest.approx(truth, abs=5 * error)
    plug_in = gaussian_mutual_information(*pairs[0], debias=False).item()
    assert plug_in > truth + 50 * error  # what is corrected is not small


def test_gaussian_information_of_singular_views():
    z1, z2 = correlated(200, 3, 0.6, 0)
    expected = gaussian_mutual_information(z1, z2).item()
    wide1 = torch.cat([z1 @ normal(3, 5, seed=3), torch.full((200, 1), 1e3)], dim=1)  # rank 3 in 6 columns
    wide2 = torch.cat([z2, z2[:, :1]], dim=1)
    assert gaussian_mutual_information(wide1, wide2).item() == pytest.approx(expected, rel=1e-8)
    assert gaussian_mutual_information(z1, torch.ones(200, 3)).item() == 0
    assert gaussian_mutual_information(z1, torch.cat([z2[:, :2], z1[:, :1]], dim=1)).item() == math.inf
    assert gaussian_mutual_information(z1, z1).item() == math.inf


def canonical_information(z1, z2):
    """-1/2 sum log(1 - rho^2) by numpy from the samples: QR keeps what their covariance squares away."""
    q1, q2 = (np.linalg.qr(z - z.mean(0))[0] for z in (z1.double().numpy(), z2.double().numpy()))
    return -0.5 * np.log1p(-(np.linalg.svd(q1.T @ q2, compute_uv=False) ** 2)).sum()


@pytest.mark.parametrize(
    ("noise", "kept"), [(1e-3, True), (1e-5, True), (3e-7, False), (1e-7, False), (1e-9, False), (1e-12, False)]
)
def test_gaussian_information_of_nearly_collinear_features(noise, kept):
    """Independent views: the difference of two features counts while float64 can resolve it, then it is left out."""
    a, other = normal(1000, 1, 1), normal(1000, 100, 3)
    pair = torch.cat([a, a + noise * normal(1000, 1, 2)], dim=1)
    expected = canonical_information(pair if kept else a, other)
    assert gaussian_mutual_information(pair, other, debias=False).item() == pytest.approx(expected, rel=1e-4)
    assert gaussian_mutual_information(other, pair, debias=False).item() == pytest.approx(expected, rel=1e-4)
    wide = torch.cat([pair, 0.995 * other[:, :1] + 0.005 * normal(1000, 1, 4)], dim=1)  # 1 - rho^2 near 2.5e-5
    expected = canonical_information(wide if kept else wide[:, [0, 2]], other)
    assert gaussian_mutual_information(wide, other, debias=False).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_gaussian_information_of_low_rank_views_in_float32(seed):
    latent1, latent2 = normal(1000, 3, seed), normal(1000, 3, seed + 100)
    z1, z2 = (latent1 @ normal(3, 4, seed + 50)).float(), (latent2 @ normal(3, 4, seed + 150)).float()
    expected = canonical_information(latent1, latent2)
    assert gaussian_mutual_information(z1, z2, debias=False).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("d", [2, 20, 100])
def test_gaussian_information_of_a_determined_direction_is_infinite(d):
    """One view determines a direction of the other through maps, offsets and scales, not only as a copy."""
    z1, rest = normal(600, d), normal(600, d, 1)
    mixed = torch.cat([z1 @ normal(d, 1, 2) * 30 + 1e3, rest], dim=1) @ normal(d + 1, d + 1, 3)
    assert gaussian_mutual_information(z1, mixed).item() == math.inf
    assert gaussian_mutual_information(Moments.of(mixed, z1 @ normal(d, d, 4) - 50)).item() == math.inf
    difference = torch.cat([z1, z1[:, :1] + 1e-4 * rest[:, :1]], dim=1)  # determines rest, by a small difference
    assert gaussian_mutual_information(difference, rest).item() == math.inf


@pytest.mark.parametrize(("d1", "d2"), [(1, 1), (5, 12), (12, 5), (40, 40)])
@pytest.mark.parametrize(("collinear", "rho"), [(1.0, 0.3), (1e-2, 0.9), (1e-2, 0.9999), (1e-3, 0.0)])
def test_gaussian_information_by_factors_and_by_canonical_variates_agree(d1, d2, collinear, rho):
    """What is regular needs no eigenvalue; both ways give numpy's value from QR factors of the samples."""
    signal, own = normal(500, d1 + d2), normal(500, d1 + d2, 1)
    z1 = signal[:, :d1] @ normal(d1, d1, 2) + 3
    z1 = torch.cat([z1[:, :-1], z1[:, :1] + collinear * z1[:, -1:]], dim=1) if d1 > 1 else z1
    z2 = (rho * signal + math.sqrt(1 - rho**2) * own)[:, -d2:] * 1e3
    moments = Moments.of(z1, z2)
    expected = canonical_information(z1, z2)
    # Covariances square the samples' condition, and both ways start from them.
    condition = np.linalg.cond(np.corrcoef(torch.cat([z1, z2], dim=1).numpy().T))
    for way in (mutual_information._of_regular_views, mutual_information._of_singular_views):
        value, *ranks = way(moments)
        assert ranks == [d1, d2]
        assert value.item() == pytest.approx(expected, rel=1e-11 + 1e-16 * condition)


@pytest.mark.parametrize("noise", [1e-6, 1e-8, 0.0])
def test_gaussian_information_by_factors_is_left_to_canonical_variates_near_singularity(noise):
    z1, z2, other = normal(500, 6), normal(500, 6, 1), normal(500, 1, 2)
    collinear = torch.cat([z1, z1[:, :1] + noise * other], dim=1)
    determined = torch.cat([z2, z1.sum(1, keepdim=True) + noise * other], dim=1)
    constant = torch.cat([z1, torch.full_like(other, 5.0)], dim=1)
    for pair in ((collinear, z2), (z2, collinear), (z1, determined), (determined, z1), (constant, z2)):
        assert mutual_information._of_regular_views(Moments.of(*pair)) is None
    assert mutual_information._of_regular_views(Moments.of(z1, z2)) is not None


def test_gaussian_information_gradient():
    z1, z2 = (z.requires_grad_() for z in correlated(12, 2, 0.6, 0))
    assert torch.autograd.gradcheck(gaussian_mutual_information, (z1, z2))
    wide = torch.cat([z1, z1[:, :1]], dim=1)
    (gradient,) = torch.autograd.grad(gaussian_mutual_information(wide, z2), z2)
    (expected,) = torch.autograd.grad(gaussian_mutual_information(z1, z2), z2)
    torch.testing.assert_close(gradient, expected)


def test_gaussian_information_needs_samples():
    with pytest.raises(UndefinedEstimate, match="N=6, d1=3, d2=3"):
        gaussian_mutual_information(normal(6, 3), normal(6, 3, 1))
    with pytest.raises(ValueError, match="do not match"):
        gaussian_mutual_information(normal(20, 3), normal(21, 3))
    with pytest.raises(ValueError, match="joint"):
        gaussian_mutual_information(Moments.of(normal(20, 3)))
    with pytest.raises(ValueError, match="z2 is missing"):
        gaussian_mutual_information(normal(20, 3))


# InfoNCE


def best_critic(z1, z2, rho):
    """Factors whose inner product is log p(z2 | z1) / p(z2) up to a constant."""
    scale = 1 / (1 - rho**2)
    one = torch.ones(len(z1), 1, dtype=z1.dtype)
    energy1, energy2 = (rho**2 * scale / 2 * z.square().sum(1, keepdim=True) for z in (z1, z2))
    return torch.cat([rho * scale * z1, -energy1, one], dim=1), torch.cat([z2, one, -energy2], dim=1)


def test_infonce_is_log_n_less_cross_entropy():
    z1, z2 = correlated(50, 4, 0.7, 0)
    unit1, unit2 = (torch.nn.functional.normalize(z) for z in (z1, z2))
    loss = torch.nn.functional.cross_entropy(unit1 @ unit2.T / 0.2, torch.arange(50))
    assert infonce(z1, z2, 0.2).value.item() == pytest.approx(math.log(50) - loss.item(), rel=1e-12)
    loss = torch.nn.functional.cross_entropy(z1 @ z2.T / 0.2, torch.arange(50))
    assert infonce(z1, z2, 0.2, normalize=False).value.item() == pytest.approx(math.log(50) - loss.item(), rel=1e-12)


def test_infonce_saturates_with_the_best_critic():
    """d = 20, rho = 0.9: truth 16.6, yet no more than log 256 = 5.545 is read."""
    result = infonce(*best_critic(*correlated(256, 20, 0.9, 0), 0.9), temperature=1.0, normalize=False)
    assert result.ceiling.item() == pytest.approx(math.log(256), rel=1e-12)
    assert result.value.item() == pytest.approx(5.54, abs=0.01)
    assert result.saturated


def test_infonce_is_a_bound_and_nearly_tight_far_from_its_ceiling():
    truth = -math.log(1 - 0.5**2)  # d = 2
    results = [infonce(*best_critic(*correlated(512, 2, 0.5, s), 0.5), 1.0, normalize=False) for s in range(20)]
    mean, error = mean_and_error([result.value.item() for result in results])
    assert truth - 0.02 - 5 * error < mean < truth + 5 * error
    assert not any(result.saturated for result in results)


@pytest.mark.parametrize(("share", "saturated"), [(0.3, False), (0.94, False), (0.96, True)])
def test_infonce_is_saturated_past_95_percent_of_its_ceiling(share, saturated):
    """Orthonormal rows: value log N - log(1 + (N - 1) exp(-1 / T)), at a temperature that makes it the given share."""
    n = 64
    temperature = -1 / math.log((n ** (1 - share) - 1) / (n - 1))
    result = infonce(torch.eye(n), torch.eye(n), temperature)
    assert result.value.item() == pytest.approx(share * math.log(n), rel=1e-9)
    assert result.saturated is saturated


# The split


def test_gaussian_split_has_the_known_answer():
    """z = s + e, z' = s + e' with exact sample moments: (d / 2) log((1 + v) / 2v) with the identity decoder."""
    d, v = 6, 0.25
    eye = torch.eye(d, dtype=torch.float64)
    joint = torch.cat([torch.cat([(1 + v) * eye, eye]), torch.cat([eye, (1 + v) * eye])], dim=1)
    z = exact(joint, 400) * math.sqrt(400 / 399)  # E over the sample has divisor N
    z1, z2 = z[:, :d], z[:, d:]
    result = view_information(z1, z2, entropy="gaussian")
    expected = d / 2 * math.log((1 + v) / (2 * v)) + d / 2 * math.log(400 / 399)
    assert result.total.item() == pytest.approx(expected, rel=1e-9)
    assert not result.is_bound
    fixed = view_information(z1, z2, entropy="gaussian", decoder_variance=2 * v)
    assert fixed.total.item() == pytest.approx(expected, rel=1e-9)
    attained = -d / 2 * math.log(1 - (1 / (1 + v)) ** 2)
    assert gaussian_mutual_information(z1, z2, debias=False).item() == pytest.approx(attained, rel=1e-9)
    assert attained > expected


@pytest.mark.parametrize("entropy", ["logdet", "gaussian"])
@pytest.mark.parametrize("variance", [None, 0.7])
def test_split_of_merged_moments(entropy, variance):
    z1, z2 = correlated(60, 3, 0.7, 1)
    joint = Moments.of(z1[:20], z2[:20]) + Moments.of(z1[20:], z2[20:])
    merged = view_information(joint, entropy=entropy, decoder_variance=variance)
    whole = view_information(z1, z2, entropy, decoder_variance=variance)
    torch.testing.assert_close(torch.stack(merged[:3]), torch.stack(whole[:3]), rtol=1e-9, atol=1e-9)


def test_best_decoder_variance_is_the_best():
    z1, z2 = correlated(50, 3, 0.8, 0)
    best = view_information(z1, z2).conditional.item()
    others = [view_information(z1, z2, decoder_variance=v).conditional.item() for v in (0.1, 0.3, 0.4, 0.5, 2.0)]
    assert best >= max(others)


@pytest.mark.parametrize(
    ("entropy", "options", "function"),
    [
        ("logdet", {"beta": 2.0}, logdet_entropy),
        ("gaussian", {"debias": True}, gaussian_entropy),
        ("pairwise", {"variance": 0.4, "bound": "upper"}, pairwise_entropy),
        ("vmf", {"concentration": 3.0}, vmf_entropy),
    ],
)
def test_split_averages_the_entropies_of_both_views(entropy, options, function):
    z1, z2 = correlated(40, 3, 0.7, 1)
    result = view_information(z1, 2 * z2, entropy, **options)
    expected = (function(z1, **options) + function(2 * z2, **options)).item() / 2
    assert result.entropy.item() == pytest.approx(expected, rel=1e-12)
    assert result.total.item() == pytest.approx((result.entropy + result.conditional).item(), rel=1e-12)
    assert not result.is_bound


def test_pairwise_conditional_half_by_monte_carlo():
    """E log N(z; z', s2 I) with noise of variance s2 on both views, drawn."""
    z1, z2 = correlated(30, 2, 0.9, 0)
    s2, rng = 0.3, np.random.default_rng(0)
    noise = rng.standard_normal((2, 4000, 30, 2)) * math.sqrt(s2)
    error = ((z1.numpy() + noise[0] - z2.numpy() - noise[1]) ** 2).sum(-1)
    draws = -math.log(2 * math.pi * s2) - error / (2 * s2)
    mean, uncertainty = mean_and_error(draws.mean(1))
    result = view_information(z1, z2, entropy="pairwise", variance=s2)
    assert result.conditional.item() == pytest.approx(mean, abs=5 * uncertainty)


@given(
    d=st.integers(1, 5), n=st.integers(2, 20), rho=st.floats(0, 1), s2=st.floats(0.05, 3), seed=st.integers(0, 10**6)
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_pairwise_split_is_a_bound_about_the_empirical_mixture(d, n, rho, s2, seed):
    """total <= I(Z; X') = h(mixture) - h(component), by Monte Carlo to 5 standard errors, and <= log N."""
    z1, z2 = (z.numpy() for z in correlated(n, d, rho, seed))
    rng = np.random.default_rng(seed)
    truths, errors = [], []
    for z in (z1, z2):
        index = rng.integers(n, size=2000)
        draws = z[index] + math.sqrt(s2) * rng.standard_normal((2000, d))
        logits = -cdist(draws, z, "sqeuclidean") / (2 * s2)
        truth, error = mean_and_error(logits[np.arange(2000), index] - special.logsumexp(logits, axis=1) + math.log(n))
        truths.append(truth)
        errors.append(error)
    result = view_information(torch.from_numpy(z1), torch.from_numpy(z2), entropy="pairwise", variance=s2)
    assert result.is_bound
    assert result.total.item() <= np.mean(truths) + 5 * np.mean(errors) + 1e-9
    assert result.total.item() <= math.log(n) + 1e-9


def test_only_the_lower_pairwise_bound_with_self_terms_is_a_bound():
    z1, z2 = correlated(20, 2, 0.5, 0)
    flags = {
        (bound, loo): view_information(z1, z2, "pairwise", variance=1.0, bound=bound, leave_one_out=loo).is_bound
        for bound in ("lower", "upper")
        for loo in (False, True)
    }
    assert [key for key, flag in flags.items() if flag] == [("lower", False)]


def test_vmf_split_is_the_simclr_objective():
    """Total = log N + cos / tau less the log-sum-exp over the view itself; and its densities are scipy's."""
    z1, z2, k = sphere(25, 4), sphere(25, 4, seed=1), 5.0
    result = view_information(z1, z2, "vmf", concentration=k)
    rows = [(k * z @ z.T).logsumexp(1).mean() for z in (z1, z2)]
    expected = math.log(25) + k * (z1 * z2).sum(1).mean() - (rows[0] + rows[1]) / 2
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-9)
    log_q = [stats.vonmises_fisher(b, k).logpdf(a) for a, b in zip(z1.numpy(), z2.numpy(), strict=True)]
    assert result.conditional.item() == pytest.approx(np.mean(log_q), rel=1e-9)


@pytest.mark.parametrize(
    ("entropy", "options"),
    [("logdet", {}), ("gaussian", {}), ("pairwise", {"variance": 0.5}), ("vmf", {"concentration": 2.0})],
)
def test_split_gradient(entropy, options):
    z1, z2 = (z.requires_grad_() for z in correlated(8, 3, 0.5, 0))
    assert torch.autograd.gradcheck(lambda a, b: view_information(a, b, entropy, **options).total, (z1, z2))


def test_split_of_collapsed_views_does_not_exist():
    one = torch.ones(20, 3)
    for views in ((one, one), (Moments.of(one, one),)):
        with pytest.raises(UndefinedEstimate, match="no difference"):
            view_information(*views, entropy="gaussian")


def test_split_names_what_is_wrong():
    z1, z2 = correlated(8, 3, 0.5, 0)
    with pytest.raises(ValueError, match="'kde'"):
        view_information(z1, z2, "kde")
    with pytest.raises(ValueError, match="variance must be"):
        view_information(z1, z2, "pairwise")
    with pytest.raises(ValueError, match="concentration must be"):
        view_information(z1, z2, "vmf")
    with pytest.raises(ValueError, match="decoder_variance=1"):
        view_information(z1, z2, "pairwise", variance=1.0, decoder_variance=1.0)
    with pytest.raises(ValueError, match="needs samples"):
        view_information(Moments.of(z1, z2), entropy="vmf", concentration=1.0)
    with pytest.raises(ValueError, match="joint"):
        view_information(Moments.of(z1))
    with pytest.raises(ValueError, match="z2 is missing"):
        view_information(z1)
