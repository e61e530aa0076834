"""Spectrum and geometry: data of exact covariance, the Marchenko-Pastur law, and statements by arithmetic."""

import math

import numpy as np
import pytest
import torch
from information_data import exact, marchenko_pastur_mean, mean_and_error, normal, sphere
from scipy import stats
from scipy.linalg import eigh
from scipy.spatial.distance import pdist
from scipy.special import xlogy

from sslinfo.information import (
    GroupedMoments,
    Moments,
    UndefinedEstimate,
    alignment,
    covariance_spectrum,
    effective_rank,
    feature_std,
    hadamard_gap,
    lidar,
    off_diagonal_covariance,
    participation_ratio,
    rank_ceiling,
    rankme,
    spectral_decay,
    stable_rank,
    uniformity,
)


def with_spectrum(values, n, mean=0.0, seed=0):
    """n samples whose covariance has exactly these eigenvalues, in a random basis."""
    values = torch.as_tensor(values, dtype=torch.float64)
    basis, _ = torch.linalg.qr(normal(len(values), len(values), seed + 1))
    return exact(torch.eye(len(values)).double(), n, seed=seed) * values.sqrt() @ basis.T + mean


# Exact spectra


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("source", [lambda z: z, Moments.of])
def test_ranks_of_an_exact_spectrum(mean, source):
    values = np.array([9.0, 4.0, 4.0, 1.0, 0.25])
    z = source(with_spectrum(values, 40, mean))
    p = values / values.sum()
    np.testing.assert_allclose(covariance_spectrum(z), values, rtol=1e-9)
    assert effective_rank(z).item() == pytest.approx(math.exp(stats.entropy(p)), rel=1e-9)
    assert participation_ratio(z).item() == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)
    assert stable_rank(z).item() == pytest.approx(values.sum() / 9, rel=1e-9)


def test_fewer_samples_than_dimensions():
    z = normal(10, 30) * torch.arange(1, 31)
    expected = np.sort(np.linalg.eigvalsh(np.cov(z.T.numpy())))[::-1]
    for source in (z, Moments.of(z)):
        spectrum = covariance_spectrum(source)
        assert spectrum.shape == (30,)
        np.testing.assert_allclose(spectrum, expected, atol=1e-10 * expected[0])
        p = expected[:9] / expected[:9].sum()
        assert effective_rank(source).item() == pytest.approx(math.exp(stats.entropy(p)), rel=1e-9)
        assert participation_ratio(source).item() == pytest.approx(1 / (p**2).sum(), rel=1e-9)
        assert stable_rank(source).item() == pytest.approx(1 / p[0], rel=1e-9)


def test_equal_eigenvalues_count_themselves():
    z = with_spectrum([3.0] * 7 + [0.0] * 6, 50)
    for rank in (effective_rank, participation_ratio, stable_rank):
        assert rank(z).item() == pytest.approx(7, rel=1e-6)
    assert rankme(z).item() == pytest.approx(7, rel=1e-4)


def test_power_law_is_read_exactly():
    for exponent in (0.5, 1.0, 2.0):
        z = with_spectrum(np.arange(1, 121.0) ** -exponent, 300)
        decay = spectral_decay(z)
        assert decay.exponent.item() == pytest.approx(exponent, rel=1e-8)
        assert decay.r2.item() == pytest.approx(1, abs=1e-9)
        assert (decay.start, decay.stop) == (6, 100)


def test_decay_equals_a_weighted_fit_by_numpy():
    z = normal(200, 50) * torch.linspace(1, 3, 50)
    values = np.sort(np.linalg.eigvalsh(np.cov(z.T.numpy())))[::-1]
    i = np.arange(3, 41)
    slope, offset = np.polyfit(np.log(i), np.log(values[2:40]), 1, w=np.sqrt(1 / i))
    y, fit = np.log(values[2:40]), slope * np.log(i) + offset
    r2 = 1 - ((y - fit) ** 2 / i).sum() / ((y - np.average(y, weights=1 / i)) ** 2 / i).sum()
    decay = spectral_decay(z, start=3, stop=40)
    assert decay.exponent.item() == pytest.approx(-slope, rel=1e-9)
    assert decay.r2.item() == pytest.approx(r2, rel=1e-9)


def test_decay_stops_where_rounding_begins():
    z = with_spectrum([*np.arange(1, 13.0) ** -1, *[0.0] * 8], 60)
    decay = spectral_decay(z, start=2)
    assert decay.stop == 12
    assert decay.exponent.item() == pytest.approx(1, rel=1e-6)
    with pytest.raises(UndefinedEstimate, match="number 12"):
        spectral_decay(z, start=11)


# White noise


def white_rankme_share(gamma):
    """RankMe over d of white noise: exp of the entropy of the singular values under the Marchenko-Pastur law."""
    root = marchenko_pastur_mean(math.sqrt, gamma)
    return math.exp(-marchenko_pastur_mean(lambda x: math.sqrt(x) * math.log(math.sqrt(x) / root), gamma) / root)


@pytest.mark.parametrize(("n", "d"), [(201, 200), (401, 200), (801, 200), (1601, 100)])
def test_ranks_of_white_noise(n, d):
    """Means over seeds against Marchenko-Pastur: 5 standard errors and corrections of relative order 1 / d."""
    gamma = d / (n - 1)
    samples = [normal(n, d, seed) for seed in range(6)]

    def agrees(rank, expected):
        mean, error = mean_and_error([rank(z).item() for z in samples])
        assert mean == pytest.approx(expected, abs=5 * error + expected / d)

    entropy = marchenko_pastur_mean(lambda x: x * math.log(x), gamma)
    assert math.exp(-entropy) == pytest.approx(math.exp(-gamma / 2), rel=1e-6)
    agrees(effective_rank, d * math.exp(-gamma / 2))
    agrees(rankme, d * white_rankme_share(gamma))
    agrees(participation_ratio, d / (1 + gamma))
    agrees(lambda z: participation_ratio(z, debias=True), d)
    # Johnstone (2001): the largest eigenvalue has the Tracy-Widom law, of mean -1.2065, in these units.
    edge = math.sqrt(n - 2) + math.sqrt(d)
    largest = edge**2 - 1.2065336 * edge * (1 / math.sqrt(n - 2) + 1 / math.sqrt(d)) ** (1 / 3)
    agrees(stable_rank, d * (n - 1) / largest)


def test_debiased_participation_removes_the_bias_of_the_trace_of_the_square():
    """tr S^2 as the de-biased ratio implies it, over 800 samples of N = 12: to 5 standard errors, below 5%."""
    scale = torch.linspace(1, 2, 40, dtype=torch.float64)
    implied = []
    for seed in range(800):
        z = normal(12, 40, seed) * scale
        implied.append((z.var(0).sum() ** 2 / participation_ratio(z, debias=True)).item())
    mean, error = mean_and_error(implied)
    truth = scale.pow(4).sum().item()
    assert 5 * error < 0.05 * truth
    assert mean == pytest.approx(truth, abs=5 * error)


def test_rankme_of_white_noise_as_published():
    known = {1: 0.805, 1 / 2: 0.926, 1 / 4: 0.966, 1 / 16: 0.992}
    for gamma, share in known.items():
        assert white_rankme_share(gamma) == pytest.approx(share, abs=5e-4)  # to its last digit


def test_rankme_is_uncentred_and_follows_its_formula():
    z = normal(300, 20) + 5
    sigma = np.linalg.svd(z.numpy(), compute_uv=False)
    p = sigma / sigma.sum() + 1e-5
    assert rankme(z, eps=1e-5).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-10)
    assert rankme(Moments.of(z), eps=1e-5).item() == pytest.approx(rankme(z, eps=1e-5).item(), rel=1e-9)
    assert rankme(z).item() < 0.8 * rankme(z - z.mean(0)).item()


def test_rankme_of_low_rank_data():
    z = normal(600, 10) @ normal(10, 128, seed=1)
    exact_rank = rankme(z).item()
    assert exact_rank < 10.01
    assert rankme(z.float()).item() == pytest.approx(exact_rank, abs=0.01)
    assert rankme(Moments.of(z)).item() == pytest.approx(exact_rank, abs=0.02)


def test_ceilings():
    assert rank_ceiling(10, 30) == 9
    assert rank_ceiling(10, 30, centered=False) == 10
    assert effective_rank(normal(10, 300)) <= 9
    assert rankme(normal(10, 300)) <= 10.001


@pytest.mark.parametrize("rank", [effective_rank, participation_ratio, stable_rank, covariance_spectrum])
@pytest.mark.parametrize("shape", [(20, 3), (3, 20)])
def test_a_single_point_has_no_spectrum(rank, shape):
    z = torch.full(shape, 1e3 + 0.1)
    with pytest.raises(UndefinedEstimate, match="one point"):
        rank(z)
    with pytest.raises(UndefinedEstimate, match="one point"):
        rank(Moments.of(z))


@pytest.mark.parametrize("rank", [effective_rank, participation_ratio, stable_rank, rankme])
def test_ranks_are_differentiable(rank):
    assert torch.autograd.gradcheck(rank, normal(7, 3).requires_grad_())
    assert torch.autograd.gradcheck(rank, normal(3, 7).requires_grad_())


# Hadamard gap


@pytest.mark.parametrize(("d", "rho", "half"), [(64, 0.05, -0.90), (64, 0.2, -5.7)])
def test_hadamard_gap_of_equal_correlations(d, rho, half):
    correlation = torch.full((d, d), rho, dtype=torch.float64).fill_diagonal_(1)
    scale = torch.logspace(-3, 3, d, dtype=torch.float64)
    gap = hadamard_gap(exact(correlation, 200, mean=9) * scale).item()
    assert gap == pytest.approx(-(d - 1) * math.log(1 - rho) - math.log(1 + (d - 1) * rho), rel=1e-9)
    assert gap / 2 == pytest.approx(-half, abs=0.05)


def test_hadamard_gap_at_its_ends():
    assert hadamard_gap(exact(torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()), 20)).item() == pytest.approx(
        0, abs=1e-9
    )
    z = normal(20, 3)
    assert hadamard_gap(torch.cat([z, z[:, :1]], dim=1)).item() == math.inf
    with pytest.raises(UndefinedEstimate, match="N=4, d=4"):
        hadamard_gap(normal(4, 4))


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (9, 9)])  # each side, and the one where they meet
def test_off_diagonal_covariance_equals_numpy(n, d):
    z = normal(n, d) @ normal(d, d, 1) + 3.0
    covariance = np.cov(z.numpy().T)
    expected = (covariance[~np.eye(d, dtype=bool)] ** 2).sum() / d
    assert off_diagonal_covariance(z).item() == pytest.approx(expected, rel=1e-10)
    assert off_diagonal_covariance(Moments.of(z)).item() == pytest.approx(expected, rel=1e-10)
    assert off_diagonal_covariance(z.float()).dtype == torch.float64


@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12)])
def test_off_diagonal_covariance_gradient(n, d):
    z = normal(n, d).requires_grad_()
    assert torch.autograd.gradcheck(off_diagonal_covariance, (z,))
    assert torch.autograd.gradcheck(lambda z: off_diagonal_covariance(Moments.of(z)), (z,))


# Geometry


def test_alignment_of_noisy_views():
    z1, z2 = normal(30, 4), normal(30, 4, seed=1) + 2
    expected = np.mean(np.linalg.norm(z1 - z2, axis=1) ** 2)
    assert alignment(z1, z2).item() == pytest.approx(expected, rel=1e-12)
    assert alignment(Moments.of(z1, z2)).item() == pytest.approx(expected, rel=1e-10)
    unit1, unit2 = (torch.nn.functional.normalize(z) for z in (z1, z2))
    cosine = torch.nn.functional.cosine_similarity(z1, z2).mean().item()
    assert alignment(z1, z2, normalize=True).item() == pytest.approx(2 - 2 * cosine, rel=1e-10)
    assert alignment(unit1, unit2).item() == pytest.approx(2 - 2 * cosine, rel=1e-10)


@pytest.mark.parametrize("noise", [1.0, 1e-3, 1e-6])
def test_alignment_of_moments_far_from_the_origin(noise):
    z = normal(1000, 4) + 1e3
    y = z + noise * normal(1000, 4, seed=1)
    expected = ((z - y) ** 2).sum(1).mean().item()
    merged = Moments.of(z[:300], y[:300]) + Moments.of(z[300:], y[300:])
    assert alignment(merged).item() == pytest.approx(expected, rel=1e-6 if noise < 1e-3 else 1e-8)
    assert alignment(Moments.of(z, z + 2)).item() == pytest.approx(16, rel=1e-9)


def test_alignment_known_answer():
    v, d = 0.3, 8
    signal = normal(5000, d)
    views = [signal + math.sqrt(v) * normal(5000, d, seed) for seed in (1, 2)]
    deviation = 2 * v * math.sqrt(2 * d / 5000)  # of a mean of 5000 times 2 v chi-square(d)
    assert alignment(*views).item() == pytest.approx(2 * v * d, abs=5 * deviation)


def test_uniformity_equals_scipy():
    z = sphere(60, 5)
    expected = math.log(np.mean(np.exp(-3 * pdist(z.numpy(), "sqeuclidean"))))
    assert uniformity(z, t=3).item() == pytest.approx(expected, rel=1e-10)
    assert uniformity(7 * z, t=3, normalize=True).item() == pytest.approx(expected, rel=1e-10)
    assert uniformity(7 * z, t=3 / 49).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("d", "known"), [(8, -3.0825), (128, -3.9375), (2048, -3.9961)])
def test_uniformity_of_the_uniform_sphere(d, known):
    mean, error = mean_and_error([uniformity(sphere(600, d, seed)).item() for seed in range(6)])
    assert mean == pytest.approx(known, abs=5 * error + 1e-3)


def test_uniformity_gradient():
    z = sphere(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(uniformity, z)


def test_feature_std():
    z = normal(50, 6) + 1
    unit = z / z.norm(dim=1, keepdim=True)
    assert feature_std(z).item() == pytest.approx(np.std(unit.numpy(), axis=0, ddof=1).mean(), rel=1e-12)
    expected = np.std(z.numpy(), axis=0, ddof=1).mean()
    assert feature_std(z, normalize=False).item() == pytest.approx(expected, rel=1e-12)
    assert feature_std(Moments.of(z), normalize=False).item() == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match="normalize=False"):
        feature_std(Moments.of(z))
    assert feature_std(normal(5000, 64)).item() == pytest.approx(1 / 8, rel=0.01)


# LiDAR


def latent_views(n, q, d, rank, noise=1.0, seed=0):
    """z = m + e: image means of variance a = 1 in ``rank`` dimensions, view noise of variance b in all."""
    means = torch.zeros(n, 1, d, dtype=torch.float64)
    means[:, 0, :rank] = normal(n, rank, seed)
    return means + math.sqrt(noise) * normal(n * q, d, seed + 1).reshape(n, q, d)


def test_lidar_equals_scipy_generalized_eigenvalues():
    views = latent_views(40, 5, 6, 3) + 4
    means = views.mean(1).numpy()
    within = (views.numpy() - means[:, None]).reshape(-1, 6)
    within = within.T @ within / (40 * 4) + 0.01 * np.eye(6)
    values = eigh(np.cov(means.T), within, eigvals_only=True)
    expected = math.exp(stats.entropy(values / values.sum()))
    assert lidar(views, delta=0.01).item() == pytest.approx(expected, rel=1e-9)
    groups = torch.arange(40).repeat_interleave(5)
    shuffled = torch.randperm(200)
    grouped = GroupedMoments.of(views.reshape(200, 6)[shuffled], groups[shuffled], 45)
    assert lidar(grouped, delta=0.01).item() == pytest.approx(expected, rel=1e-9)


def lidar_limit(debias, images=4000, q=10, d=64, rank=8):
    """exp H of ``rank`` eigenvalues a / b + 1 / q and d - rank of noise; debiased, each less 1 / q but not below 0."""

    def noise(x):
        return max(x - debias, 0) / q

    gamma = (d - rank) / (images - 1)
    image = 1 + (1 - debias) / q
    total = (d - rank) * marchenko_pastur_mean(noise, gamma) + rank * image
    logs = (d - rank) * marchenko_pastur_mean(lambda x: xlogy(noise(x), noise(x)), gamma) + rank * xlogy(image, image)
    return total * math.exp(-logs / total)


def test_lidar_as_published_and_debiased():
    """d = 64, rank 8, a = b, q = 10, n = 4000: 33.0 raw, 9.7 de-biased, truth 8.

    a / b + 1 / q for the image means, 1 / q times the Marchenko-Pastur law for the noise; over 5 seeds, to 5 standard
    errors and corrections of relative order 1 / d.
    """
    for debias, published in ((False, 33.0), (True, 9.7)):
        expected = lidar_limit(debias)
        views = (latent_views(4000, 10, 64, 8, seed=7 * seed) for seed in range(5))
        mean, error = mean_and_error([lidar(z, debias=debias).item() for z in views])
        assert mean == pytest.approx(expected, abs=5 * error + expected / 64)
        assert mean == pytest.approx(published, abs=5 * error + expected / 64 + 0.05)  # and its last digit


def test_lidar_of_noise_is_high_unless_debiased():
    noise = latent_views(500, 10, 16, 0)
    assert lidar(noise).item() > 15
    strong = latent_views(500, 10, 16, 4, noise=1e-6)
    assert lidar(strong, delta=0.0).item() == pytest.approx(4, rel=0.02)


def test_lidar_refuses_what_it_cannot_do():
    with pytest.raises(UndefinedEstimate, match="2 samples in some group"):
        lidar(latent_views(10, 1, 3, 1))
    with pytest.raises(UndefinedEstimate, match="2 images"):
        lidar(latent_views(1, 10, 3, 1))
    with pytest.raises(UndefinedEstimate, match="raise delta"):
        lidar(latent_views(10, 3, 2, 1, noise=0.0), delta=0.0)
    copied = (normal(100, 6, 1)[:, None] + normal(500, 6, 10).reshape(100, 5, 6))[:, :, [0, 1, 2, 3, 4, 4]]
    for views in (copied, copied * 1e6, copied + 1e3):
        with pytest.raises(UndefinedEstimate, match="raise delta"):
            lidar(views, delta=0.0)
    assert lidar(copied + 1e3).isfinite()
    with pytest.raises(UndefinedEstimate, match="raise delta"):
        lidar(copied * 1e7)  # a delta of 1e-4 is below the rounding of a variance of 1e14
    with pytest.raises(ValueError, match="delta must be a finite number >= 0, got None"):
        lidar(copied, delta=None)
    with pytest.raises(ValueError, match=r"views must have shape \(n, q, d\)"):
        lidar(normal(10, 3))
    with pytest.raises(ValueError, match="delta"):
        lidar(latent_views(10, 3, 2, 1), delta=-1.0)


def test_lidar_gradient():
    views = latent_views(6, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lidar, views)
