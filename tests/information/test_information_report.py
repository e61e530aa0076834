"""Every number of a report against numpy and scipy; what does not exist is absent with its reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from information_data import normal
from scipy.linalg import eigh
from scipy.spatial.distance import cdist, pdist
from scipy.special import digamma, log_softmax, logsumexp
from torch import Tensor

import sslinfo
from sslinfo.information import Moments, effective_rank, spectral_decay, stable_rank
from sslinfo.information.measure import Quantity, Report, Scales, measure

ONE_VIEW = {
    "logdet_entropy",
    "logdet_entropy_unit_variance",
    "gaussian_entropy",
    "pairwise_entropy_lower",
    "pairwise_entropy_upper",
    "pairwise_entropy_lower_below_cap",
    "pairwise_entropy_upper_below_cap",
    "von_neumann_entropy",
    "effective_rank",
    "rankme",
    "participation_ratio",
    "stable_rank",
    "spectral_decay",
    "spectral_decay_r2",
    "hadamard_gap",
    "off_diagonal_covariance",
    "feature_std",
    "uniformity",
}
PAIR = {
    "alignment",
    "gaussian_mutual_information",
    "infonce",
    "view_logdet_entropy",
    "view_logdet_conditional",
    "view_logdet_total",
    "view_pairwise_entropy",
    "view_pairwise_conditional",
    "view_pairwise_total",
}


def views(n: int, d: int, count: int = 2, noise: float = 0.4, mean: float = 0.5) -> list[Tensor]:
    """Views of n images in d correlated dimensions of unequal spread."""
    signal = normal(n, d, 1) @ (normal(d, d, 2) / math.sqrt(d)) * torch.linspace(1.5, 0.3, d) + mean
    return [signal + noise * normal(n, d, 10 + view) for view in range(count)]


# Closed forms in numpy


def logdet_bias(d: int, n: int) -> float:
    """E 1/2 logdet of a Wishart covariance less that of the truth."""
    nu = n - 1
    return 0.5 * sum(digamma((nu - i) / 2) - math.log(nu / 2) for i in range(d))


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def logdet(z: np.ndarray, beta: float) -> float:
    return 0.5 * np.linalg.slogdet(np.eye(z.shape[1]) + beta * np.cov(z.T))[1]


def kernel_entropy(z: np.ndarray, variance: float, scale: float) -> float:
    d = z.shape[1]
    exponent = -scale * cdist(z, z, "sqeuclidean") / variance
    return d / 2 * math.log(2 * math.pi * math.e * variance) - logsumexp(exponent, axis=1).mean() + math.log(len(z))


def entropy_of_shares(values: np.ndarray) -> float:
    p = values[values > 0] / values.sum()
    return float(-(p * np.log(p)).sum())


def weighted_line(values: np.ndarray) -> tuple[float, float]:
    """Exponent and R^2 of log lambda_i over -log i, i = 6 ... 100, weighted by 1 / i."""
    i = np.arange(6, min(100, len(values)) + 1)
    y, weight = np.log(values[i - 1]), 1 / i
    slope, intercept = np.polyfit(-np.log(i), y, 1, w=np.sqrt(weight))
    residual = y - (slope * -np.log(i) + intercept)
    spread = y - np.average(y, weights=weight)
    return slope, 1 - (weight * residual**2).sum() / (weight * spread**2).sum()


def numpy_lidar(z: np.ndarray, debias: bool) -> float:
    n, q, d = z.shape
    means = z.mean(1)
    deviation = (z - means[:, None]).reshape(-1, d)
    within = deviation.T @ deviation / (n * (q - 1))
    between = np.cov(means.T) - (within / q if debias else 0)
    return math.exp(entropy_of_shares(eigh(between, within + 1e-4 * np.eye(d), eigvals_only=True).clip(0)))


def in_numpy(tensors: list[Tensor], scales: Scales = Scales()) -> dict[str, float]:  # noqa: B008 a NamedTuple of numbers
    """Every quantity of N > d samples."""
    beta, variance, temperature = scales
    z, *others = (tensor.double().numpy() for tensor in tensors)
    n, d = z.shape
    covariance = np.cov(z.T)
    values = np.linalg.eigvalsh(covariance)[::-1]
    singular = np.linalg.svd(z, compute_uv=False)
    p = singular / singular.sum() + 1e-7
    sphere = unit(z) * math.sqrt(d)
    bias = logdet_bias(d, n)
    cap = d / 2 * math.log(2 * math.pi * math.e * variance * d) + math.log(n)
    found = {
        "logdet_entropy": logdet(z, beta),
        "logdet_entropy_unit_variance": logdet(z / math.sqrt(np.trace(covariance) / d), beta),
        "gaussian_entropy": 0.5 * np.linalg.slogdet(2 * math.pi * math.e * covariance)[1] - bias,
        "pairwise_entropy_lower": kernel_entropy(sphere, variance * d, 1 / 8),
        "pairwise_entropy_upper": kernel_entropy(sphere, variance * d, 1 / 2),
        "pairwise_entropy_lower_below_cap": cap - kernel_entropy(sphere, variance * d, 1 / 8),
        "pairwise_entropy_upper_below_cap": cap - kernel_entropy(sphere, variance * d, 1 / 2),
        "von_neumann_entropy": entropy_of_shares(np.linalg.svd(sphere, compute_uv=False) ** 2),
        "effective_rank": math.exp(entropy_of_shares(values)),
        "rankme": math.exp(-(p * np.log(p)).sum()),
        "participation_ratio": values.sum() ** 2 / (values**2).sum(),
        "stable_rank": values.sum() / values[0],
        "hadamard_gap": np.log(np.diag(covariance)).sum() - np.log(values).sum(),
        "off_diagonal_covariance": (covariance[~np.eye(d, dtype=bool)] ** 2).sum() / d,
        "feature_std": unit(z).std(0, ddof=1).mean(),
        "uniformity": math.log(np.exp(-2 * pdist(unit(z), "sqeuclidean")).mean()),
    }
    found["spectral_decay"], found["spectral_decay_r2"] = weighted_line(values)
    if others:
        y = others[0]
        joint = np.cov(z.T, y.T)
        halves = np.linalg.slogdet(joint[:d, :d])[1] + np.linalg.slogdet(joint[d:, d:])[1]
        found["gaussian_mutual_information"] = 0.5 * (halves - np.linalg.slogdet(joint)[1]) - (
            2 * bias - logdet_bias(2 * d, n)
        )
        found["alignment"] = ((unit(z) - unit(y)) ** 2).sum(1).mean()
        scores = unit(z) @ unit(y).T / temperature
        found["infonce"] = np.diag(log_softmax(scores, axis=1)).mean() + math.log(n)
        error = ((z - y) ** 2).sum(1).mean()
        size = math.sqrt(np.trace(joint) / (2 * d))  # both views in the unit in which their mean variance is 1
        noise = d / 2 * math.log(2 * math.pi * math.e / beta)
        found["view_logdet_entropy"] = (logdet(z / size, beta) + logdet(y / size, beta)) / 2 + noise
        error = error / (d * size**2) + 2 / beta
        found["view_logdet_conditional"] = -d / 2 * math.log(2 * math.pi * math.e * error)
        other, component = unit(y) * math.sqrt(d), variance * d
        error = ((sphere - other) ** 2).sum(1).mean()
        found["view_pairwise_entropy"] = np.mean([kernel_entropy(v, component, 1 / 8) for v in (sphere, other)])
        found["view_pairwise_conditional"] = -d / 2 * math.log(2 * math.pi * component) - error / (2 * component) - d
        for split in ("logdet", "pairwise"):
            found[f"view_{split}_total"] = found[f"view_{split}_entropy"] + found[f"view_{split}_conditional"]
    if len(others) > 1:
        images = np.stack([z, *others], axis=1)
        found["lidar"], found["lidar_debiased"] = numpy_lidar(images, False), numpy_lidar(images, True)
    return found


def assert_values(found: Report, expected: dict[str, float], rel: float = 1e-8) -> None:
    assert {name: q.value for name, q in found.items()} == pytest.approx(expected, rel=rel, abs=1e-10)
    assert not found.reasons


@pytest.mark.parametrize(("n", "d"), [(60, 12), (400, 24), (130, 9)])
def test_two_views_equal_numpy(n: int, d: int) -> None:
    z1, z2 = views(n, d)
    found = sslinfo.report(z1, z2)
    assert set(found) == ONE_VIEW | PAIR
    assert_values(found, in_numpy([z1, z2]))
    assert {(q.n, q.d) for q in found.values()} == {(n, d)}


def test_one_view_is_the_same_without_what_needs_a_pair() -> None:
    z1, z2 = views(90, 12)
    found = sslinfo.report(z1)
    assert set(found) == ONE_VIEW
    assert_values(found, in_numpy([z1]))
    both = sslinfo.report(z1, z2)
    # Joint moments are those of one view, up to the order of sums.
    assert {name: both[name].value for name in found} == pytest.approx({n: q.value for n, q in found.items()}, rel=1e-9)


def test_more_views_add_lidar_and_scales_are_used() -> None:
    tensors = views(80, 9, count=4)
    scales = Scales(beta=7.0, variance=0.3, temperature=0.5)
    found = measure(tensors, scales=scales)
    assert set(found) == ONE_VIEW | PAIR | {"lidar", "lidar_debiased"}
    assert_values(found, in_numpy(tensors, scales))
    assert "beta 7" in found["logdet_entropy"].settings
    assert "temperature 0.5" in found["infonce"].settings
    assert "0.3" in found["pairwise_entropy_lower"].settings
    assert "4 views" in found["lidar"].settings
    assert "lidar" not in measure(tensors[:2])


def test_precision_of_the_samples_is_named_and_computing_is_in_float64() -> None:
    z1, z2 = (z.float() for z in views(100, 12, mean=30.0))
    found = sslinfo.report(z1, z2)
    assert "float32" in found.precision
    assert "float64" in found.precision
    assert_values(found, in_numpy([z1, z2]), rel=1e-7)  # of those very numbers, 30 standard deviations from 0
    assert_values(sslinfo.report(z1.bfloat16(), z2.bfloat16()), in_numpy([z1.bfloat16(), z2.bfloat16()]), rel=1e-7)


def test_moments_of_more_samples_serve_what_needs_no_pairs() -> None:
    """The views are the last 40 of 200 samples, and only what needs samples is of those."""
    all1, all2 = views(200, 12)
    few = [all1[160:], all2[160:]]
    found = measure(few, Moments.of(all1, all2), window=5)
    many, last = in_numpy([all1, all2]), in_numpy(few)
    pairs = {"pairwise_entropy_lower", "pairwise_entropy_upper", "von_neumann_entropy", "feature_std", "uniformity"}
    pairs |= {"pairwise_entropy_lower_below_cap", "pairwise_entropy_upper_below_cap"}
    pairs |= {"alignment", "infonce", "view_pairwise_entropy", "view_pairwise_conditional", "view_pairwise_total"}
    assert_values(found, {name: last[name] if name in pairs else value for name, value in many.items()})
    assert {name for name, q in found.items() if q.n == 40} == pairs
    assert {q.n for name, q in found.items() if name not in pairs} == {200}
    assert {name for name, q in found.items() if "window of 5 steps" in q.settings} == set(found) - pairs
    # Not a quantity of the views themselves in disguise.
    assert all(abs(many[name] - last[name]) > 1e-6 for name in set(many) - pairs)


def test_moments_of_one_view_beside_two_views() -> None:
    """Wide layers keep no joint moments: what is between the views then cannot come from them."""
    z1, z2 = views(200, 12)
    found = measure([z1[:50], z2[:50]], Moments.of(z1))
    assert found["effective_rank"].n == 200
    assert found["infonce"].n == 50
    few = in_numpy([z1[:50], z2[:50]])
    for name in ("gaussian_mutual_information", "view_logdet_total"):
        if name in found:
            assert (found[name].n, found[name].value) == (50, pytest.approx(few[name]))
        else:
            assert found.reasons[name]


# What does not exist


def test_fewer_samples_than_dimensions() -> None:
    n, d = 20, 32
    z1, z2 = views(n, d)
    found = sslinfo.report(z1, z2)
    for name in ("gaussian_entropy", "hadamard_gap", "gaussian_mutual_information"):
        assert name not in found
        reason = found.reasons[name]
        assert re.search(rf"N={n}\b", reason)
        assert re.search(rf"d1?={d}\b", reason)
        with pytest.raises(KeyError, match=re.escape(reason)):
            found[name]
    values = np.linalg.eigvalsh(np.cov(z1.numpy().T))[::-1][: n - 1]
    assert found["effective_rank"].value == pytest.approx(math.exp(entropy_of_shares(values)), rel=1e-8)
    assert found["stable_rank"].value == pytest.approx(values.sum() / values[0], rel=1e-8)
    assert found["logdet_entropy"].value == pytest.approx(logdet(z1.numpy(), 10.0), rel=1e-8)
    decay, r2 = weighted_line(values)
    assert (found["spectral_decay"].value, found["spectral_decay_r2"].value) == pytest.approx((decay, r2), rel=1e-8)
    # From samples as from moments.
    direct = measure([z1, z2])
    assert set(direct) == set(found)
    for name, quantity in direct.items():
        rel = 1e-4 if name == "rankme" else 1e-8  # moments resolve singular values down to 1e-8 of the largest
        assert quantity.value == pytest.approx(found[name].value, rel=rel, abs=1e-10), name
    assert found["effective_rank"].ceiling == n - 1
    assert found["rankme"].ceiling == pytest.approx(n, rel=1e-5)


def test_joint_width_decides_on_information_between_views() -> None:
    """d < N <= 2 d: each view has an entropy, the pair no mutual information."""
    z1, z2 = views(20, 12)
    found = sslinfo.report(z1, z2)
    assert "gaussian_entropy" in found
    assert re.search(r"N=20\b.*d1=12.*d2=12", found.reasons["gaussian_mutual_information"])


def test_too_few_eigenvalues_for_a_power_law() -> None:
    found = sslinfo.report(normal(100, 7))
    assert "3 eigenvalues" in found.reasons["spectral_decay"]
    assert "spectral_decay_r2" in found.reasons


@pytest.mark.parametrize("at", [0.0, 1.0, 1e3, 0.1])
def test_collapse_to_a_point_raises_nothing_and_gives_no_number_that_is_not_one(at: float) -> None:
    z = torch.full((50, 9), at, dtype=torch.float64)
    found = sslinfo.report(z, z.clone(), torch.arange(50) % 5)
    assert all(math.isfinite(q.value) for q in found.values()), {n: q for n, q in found.items()}
    for name in ("effective_rank", "participation_ratio", "stable_rank", "logdet_entropy_unit_variance"):
        assert "one point" in found.reasons[name]
    for name in ("gaussian_entropy", "hadamard_gap", "view_logdet_total", "class_share_of_variance"):
        assert found.reasons[name]
    assert found["logdet_entropy"].value == pytest.approx(0, abs=1e-12)
    assert found["off_diagonal_covariance"].value == pytest.approx(0, abs=1e-12)
    if at:
        assert found["feature_std"].value == pytest.approx(0, abs=1e-12)
        assert found["uniformity"].value == pytest.approx(0, abs=1e-12)
        assert found["von_neumann_entropy"].value == pytest.approx(0, abs=1e-9)
        assert found["infonce"].value == pytest.approx(0, abs=1e-12)
    else:
        assert "length 0" in found.reasons["feature_std"]
        assert "zero throughout" in found.reasons["rankme"]


def test_collapse_to_a_subspace() -> None:
    """Two of nine dimensions live: ranks are at most 2 and the log-determinant does not exist."""
    basis = normal(2, 9, 3)
    z1, z2 = normal(60, 2) @ basis, normal(60, 2, 1) @ basis
    found = sslinfo.report(z1, z2)
    for name in ("effective_rank", "participation_ratio", "stable_rank", "rankme"):
        assert 1 <= found[name].value <= 2.001
    for name in ("gaussian_entropy", "hadamard_gap"):
        assert "singular" in found.reasons[name]


# Ceilings


def assert_under_ceilings(found: Report) -> None:
    for name, quantity in found.items():
        if quantity.ceiling is not None:
            rounding = 1e-7 * max(1.0, abs(quantity.ceiling))
            assert quantity.value <= quantity.ceiling + rounding, f"{name}: {quantity}"


KINDS: dict[str, Callable[[int, int], Tensor]] = {
    "noise": normal,
    "constant": lambda n, d: torch.ones(n, d, dtype=torch.float64),
    "far apart": lambda n, d: 1e4 * normal(n, d),
    "far from the origin": lambda n, d: normal(n, d) + 1e3,
    "one direction": lambda n, d: normal(n, 1) @ normal(1, d, 5),
    "axes, both ways": lambda n, d: (
        torch.eye(d, dtype=torch.float64).repeat(n, 1)[:n] * (-1.0) ** torch.arange(n)[:, None]
    ),
    "orthogonal": lambda n, d: torch.linalg.qr(normal(max(n, d), max(n, d)))[0][:n, :d],
}


@given(
    kind=st.sampled_from(sorted(KINDS)),
    n=st.integers(2, 40),
    d=st.integers(1, 24),
    noise=st.sampled_from([0.0, 1e-6, 0.3, 10.0]),
    temperature=st.sampled_from([1e-3, 0.1, 10.0]),
    variance=st.sampled_from([1e-4, 0.1, 10.0]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_no_ceiling_is_ever_passed(
    kind: str, n: int, d: int, noise: float, temperature: float, variance: float
) -> None:
    z = KINDS[kind](n, d)
    others = [z + noise * normal(n, d, seed) for seed in (7, 8)]
    found = measure([z, *others], scales=Scales(variance=variance, temperature=temperature))
    assert_under_ceilings(found)
    assert all(math.isfinite(q.value) for q in found.values())
    assert not set(found) & set(found.reasons)


@pytest.mark.parametrize(
    ("name", "kind", "n", "d", "off"),
    [
        # Exactly white, so every rank is the dimension: both signs of every axis.
        ("effective_rank", "axes", 12, 6, 0),
        ("participation_ratio", "axes", 12, 6, 0),
        ("stable_rank", "axes", 12, 6, 0),
        ("rankme", "axes", 12, 6, 0),
        ("von_neumann_entropy", "axes", 12, 6, 0),
        ("feature_std", "axes", 12, 6, 0),
        ("logdet_entropy_unit_variance", "axes", 12, 6, 0),
        ("view_logdet_entropy", "axes", 12, 6, 0),
        ("view_logdet_conditional", "axes", 12, 6, 0),
        ("view_logdet_total", "axes", 12, 6, 0),
        ("infonce", "orthogonal", 8, 8, 8 * math.exp(-20)),  # less than log N by log(1 + (N - 1) exp(-1 / .05))
        ("uniformity", "one point", 8, 8, 0),
    ],
)
def test_ceilings_are_reached(name: str, kind: str, n: int, d: int, off: float) -> None:
    """A ceiling that nothing reaches would be no ceiling but a bound."""
    axes = torch.eye(d, dtype=torch.float64)
    z = {
        "axes": torch.cat([axes, -axes]),
        "orthogonal": axes,
        "one point": torch.ones(n, d, dtype=torch.float64),
    }[kind]
    quantity = measure([z, z], scales=Scales(temperature=0.05))[name]
    assert quantity.ceiling is not None
    assert quantity.value == pytest.approx(quantity.ceiling, rel=1e-6, abs=off + 1e-12)


def test_pairwise_entropies_reach_their_cap_where_components_do_not_overlap() -> None:
    z = normal(16, 64)
    found = measure([z, z], scales=Scales(variance=1e-4))
    for name in ("pairwise_entropy_lower", "pairwise_entropy_upper"):
        assert found[name].value == pytest.approx(found[name].ceiling, rel=1e-12)
    expected = 32 * math.log(2 * math.pi * math.e * 1e-4 * 64) + math.log(16)
    assert found["pairwise_entropy_lower"].ceiling == pytest.approx(expected)
    # Views without a difference: log N less what the noise in both halves costs, d / 2 nats.
    assert found["view_pairwise_total"].value == pytest.approx(math.log(16) - 32)
    assert found["view_pairwise_total"].ceiling == pytest.approx(math.log(16) - 32)
    assert "says nothing" in found["view_pairwise_total"].settings
    few = normal(16, 4)
    top = measure([few, few], scales=Scales(variance=1e-4))["view_pairwise_total"]
    assert top.value == pytest.approx(math.log(16) - 2)
    assert top.ceiling == pytest.approx(math.log(16) - 2)


def test_the_logdet_split_does_not_depend_on_the_unit_and_stays_finite() -> None:
    z1, z2 = views(500, 6)
    for half in ("entropy", "conditional", "total"):
        found = [measure([scale * z1, scale * z2])[f"view_logdet_{half}"].value for scale in (0.01, 1.0, 100.0)]
        assert found == pytest.approx([found[1]] * 3, rel=1e-9)
    same = measure([z1, z1])["view_logdet_total"].value  # 1/2 logdet(I + 10 S) - (d/2) log 2
    covariance = np.cov(z1.numpy().T)
    expected = np.linalg.slogdet(np.eye(6) + 10 * covariance / (np.trace(covariance) / 6))[1] / 2 - 3 * math.log(2)
    assert same == pytest.approx(expected)
    assert 0 < found[1] < same


def test_arrays_serve_as_well_as_tensors() -> None:
    z1, z2 = views(60, 3)
    labels = torch.arange(60) % 3
    ours, theirs = sslinfo.report(z1, z2, labels), sslinfo.report(z1.numpy(), z2.numpy(), labels.numpy())  # type: ignore[arg-type]
    assert {name: q.value for name, q in ours.items()} == {name: q.value for name, q in theirs.items()}


def test_saturation_of_infonce_is_said() -> None:
    z = normal(32, 8)
    assert "not saturated" not in measure([z, z], scales=Scales(temperature=0.01))["infonce"].settings
    assert "saturated" in measure([z, z], scales=Scales(temperature=0.01))["infonce"].settings
    assert "not saturated" in measure([z, normal(32, 8, 1)])["infonce"].settings


# Labels


def knn_by_hand(z: np.ndarray, labels: np.ndarray, k: int = 20, temperature: float = 0.07) -> float:
    """One image at a time: its k most similar others vote with exp(cosine / temperature)."""
    u, right = unit(z), 0
    for row in range(len(u)):
        similarity = u @ u[row]
        similarity[row] = -np.inf
        votes: dict[int, float] = {}
        for other in np.argsort(-similarity)[: min(k, len(u) - 1)]:
            votes[labels[other]] = votes.get(labels[other], 0.0) + math.exp(similarity[other] / temperature)
        right += max(votes, key=lambda label: votes[label]) == labels[row]
    return right / len(u)


def share_by_hand(z: np.ndarray, labels: np.ndarray) -> float:
    within = sum(((z[labels == c] - z[labels == c].mean(0)) ** 2).sum() for c in np.unique(labels))
    return 1 - within / ((z - z.mean(0)) ** 2).sum()


def classes(n: int, d: int = 5, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 4 * 3  # 0, 3, 6, 9: not consecutive
    return normal(n, d) + apart * normal(4, d, 9)[labels // 3], labels


@pytest.mark.parametrize("n", [12, 150, 1100])  # fewer than k + 1, some, more than one block of rows
def test_labels_equal_numpy(n: int) -> None:
    z, labels = classes(n)
    found = sslinfo.report(z, labels=labels)
    share, knn = found["class_share_of_variance"], found["knn_top1"]
    assert share.value == pytest.approx(share_by_hand(z.numpy(), labels.numpy()), rel=1e-10)
    assert knn.value == pytest.approx(knn_by_hand(z.numpy(), labels.numpy()), abs=1e-12)
    assert 0.2 < knn.value < 1
    assert (share.n, share.d, share.ceiling, knn.ceiling) == (n, 5, 1, 1)
    assert "4 classes" in share.settings
    assert set(found) == set(sslinfo.report(z)) | {"class_share_of_variance", "knn_top1"}


def test_unknown_labels_are_left_out_of_labelled_quantities_alone() -> None:
    z, labels = classes(200)
    partly = labels.clone()
    partly[::3] = -1
    known = partly >= 0
    found, bare = sslinfo.report(z, labels=partly), sslinfo.report(z)
    a, b = z[known].numpy(), labels[known].numpy()
    assert found["class_share_of_variance"].value == pytest.approx(share_by_hand(a, b), rel=1e-10)
    assert found["knn_top1"].value == pytest.approx(knn_by_hand(a, b), abs=1e-12)
    assert found["knn_top1"].n == int(known.sum())
    assert {name: found[name] for name in bare} == bare.quantities


@pytest.mark.parametrize("labels", [[-1] * 10, [4] * 10, [1, 2] + [-1] * 8])
def test_labels_that_say_nothing(labels: list[int]) -> None:
    found = sslinfo.report(normal(10, 3), labels=torch.tensor(labels))
    for name in ("class_share_of_variance", "knn_top1"):
        assert "two classes" in found.reasons[name]


def test_separate_classes_and_no_classes() -> None:
    far, labels = classes(200, apart=1e3)
    found = sslinfo.report(far, labels=labels)
    assert found["class_share_of_variance"].value > 0.999
    assert found["knn_top1"].value > 0.99
    # Without any difference the share is (classes - 1) / (N - 1) in expectation, within six standard errors.
    noise, labels = classes(400, apart=0.0)
    share = sslinfo.report(noise, labels=labels)["class_share_of_variance"].value
    expected = 3 / 399
    assert abs(share - expected) < 6 * expected * math.sqrt(2 / (3 * 5))


# Input


def bad(z: Tensor, value: float) -> Tensor:
    z = z.clone()
    z[3, 1] = value
    return z


Z = normal(20, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((bad(Z, math.nan),), "1 NaN or infinite"),
        ((bad(Z, math.inf),), "1 NaN or infinite"),
        ((Z, bad(Z, math.nan)), "z2 holds 1 NaN"),
        ((torch.ones(20, 4, dtype=torch.long),), "floating point, got torch.int64"),
        ((Z, torch.ones(20, 4, dtype=torch.long)), "z2 must be floating point"),
        ((Z, Z[:19]), r"\(20, 4\) and z2 \(19, 4\) do not match"),
        ((Z, Z[:, :3]), r"\(20, 4\) and z2 \(20, 3\) do not match"),
        ((Z[0],), r"shape \(N, d\)"),
        ((Z[:1],), "at least 2 samples, got 1"),
        ((Z, None, torch.zeros(19, dtype=torch.long)), r"labels must be an integer tensor of shape \(20,\)"),
        ((Z, None, torch.zeros(20)), "labels must be an integer tensor"),
    ],
)
def test_bad_input_is_an_error_with_a_way_out(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sslinfo.report(*arguments)


def test_nothing_given_is_changed() -> None:
    z1, z2 = views(30, 12)
    labels = torch.arange(30) % 3
    before = [tensor.clone() for tensor in (z1, z2, labels)]
    sslinfo.report(z1, z2, labels)
    for tensor, old in zip((z1, z2, labels), before, strict=True):
        torch.testing.assert_close(tensor, old, rtol=0, atol=0)


# The report itself


def test_table_holds_every_name_value_and_reason() -> None:
    z1, z2 = views(20, 12)
    found = sslinfo.report(z1, z2, torch.arange(20) % 4)
    assert found.reasons  # so that there are both kinds of row
    table = str(found)
    lines = {line.split()[0]: line for line in table.splitlines()}
    for name, quantity in found.items():
        assert f" {quantity.value:.4g} " in lines[name]
        assert f"{quantity.n} x {quantity.d}" in lines[name]
        assert quantity.settings in lines[name]
        if quantity.ceiling is not None:
            assert f" {quantity.ceiling:.4g} " in lines[name]
    for name, reason in found.reasons.items():
        assert reason in lines[name]
    assert len(lines) == len(table.splitlines()) == 2 + len(found) + len(found.reasons)
    assert found.precision in table


def test_it_is_a_mapping() -> None:
    found = sslinfo.report(*views(60, 12))
    assert isinstance(found["rankme"], Quantity)
    assert len(found) == len(dict(found)) == len(list(found))
    assert "no such thing" not in found
    with pytest.raises(KeyError):
        found["no such thing"]


# Eigenvalues that moments keep for the next quantity


def test_kept_eigenvalues_change_no_result() -> None:
    z = views(60, 12)[0]
    fresh = [effective_rank(Moments.of(z)), stable_rank(Moments.of(z)), spectral_decay(Moments.of(z)).exponent]
    moments = Moments.of(z)
    kept = [effective_rank(moments), stable_rank(moments), spectral_decay(moments).exponent]
    again = [effective_rank(moments), stable_rank(moments), spectral_decay(moments).exponent]
    assert fresh == kept == again
    # A merge, a view and a reduction are other moments.
    more = normal(30, 12, 4) * torch.linspace(0, 1, 12)
    merged = effective_rank(moments + Moments.of(more))
    assert merged.item() == pytest.approx(effective_rank(torch.cat([z, more])).item(), rel=1e-10)
    assert abs(merged - fresh[0]) > 1e-3
    joint = Moments.of(z[:, :5], z[:, 5:])
    for index, part in enumerate((z[:, :5], z[:, 5:])):
        effective_rank(joint)
        expected = effective_rank(part).item()
        assert effective_rank(joint.view(index)).item() == pytest.approx(expected, rel=1e-10)


def test_gradient_through_moments_twice() -> None:
    z = views(40, 6)[0].requires_grad_()
    moments = Moments.of(z)
    gradients = [torch.autograd.grad(effective_rank(moments), z, retain_graph=True)[0] for _ in range(2)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert gradients[0].abs().max() > 1e-6
    direction = normal(40, 6, 6)
    with torch.no_grad():
        step = 1e-5
        change = (effective_rank(z + step * direction) - effective_rank(z - step * direction)) / (2 * step)
    assert (gradients[0] * direction).sum().item() == pytest.approx(change.item(), rel=1e-6)


def test_eigenvalues_kept_without_gradient_are_not_served_to_one_that_needs_it() -> None:
    z = views(40, 6)[0].requires_grad_()
    moments = Moments.of(z)
    with torch.no_grad():
        expected = effective_rank(moments).item()
    value = effective_rank(moments)
    assert value.requires_grad
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert sslinfo.report(z)["effective_rank"].value == pytest.approx(expected, rel=1e-10)


@pytest.mark.filterwarnings("error")
def test_samples_with_gradient_are_reported_like_others() -> None:
    z1, z2 = views(40, 12)
    plain = sslinfo.report(z1, z2)
    found = sslinfo.report(z1.requires_grad_(), z2)
    assert found.quantities == plain.quantities
    assert z1.grad is None


# Dead features, large scales, awkward arrays


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at", [0.0, 0.1, 3.0])
def test_a_dead_feature_takes_no_information_away(dtype: torch.dtype, at: float) -> None:
    z1, z2 = (z.to(dtype) for z in views(600, 11))
    dead = torch.full((600, 1), at, dtype=dtype)
    whole = sslinfo.report(torch.cat([dead, z1], dim=1), torch.cat([dead, z2], dim=1))
    alive = sslinfo.report(z1, z2)["gaussian_mutual_information"].value
    assert whole["gaussian_mutual_information"].value == pytest.approx(alive, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_that_are_one_point_share_no_information(dtype: torch.dtype) -> None:
    z = torch.ones(50, 4, dtype=dtype)
    assert sslinfo.report(z, z)["gaussian_mutual_information"].value == 0


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e8])
def test_a_log_determinant_that_rounding_decides_is_undefined(scale: float) -> None:
    """Rank 4 in 32 dimensions: at the largest scale what float64 leaves of the other 28 would count as nats."""
    z = scale * normal(500, 4) @ normal(4, 32, 1)
    found = sslinfo.report(z)
    if scale == 1e8:
        assert "rounding in float64" in found.reasons["logdet_entropy"]
    else:
        values = 10 * np.linalg.svd(z.numpy() - z.numpy().mean(0), compute_uv=False)[:4] ** 2 / 499
        assert found["logdet_entropy"].value == pytest.approx(np.log1p(values).sum() / 2, rel=1e-6)
    # Of full rank it is as well known at any scale.
    full = 1e8 * normal(500, 6)
    assert sslinfo.report(full)["logdet_entropy"].value == pytest.approx(logdet(full.numpy(), 10.0), rel=1e-9)


def test_a_row_without_a_direction_leaves_out_all_that_is_on_the_sphere() -> None:
    z1, z2 = views(40, 6)
    z1[3] = 0
    found = sslinfo.report(z1, z2)
    for name in ("pairwise_entropy_lower", "view_pairwise_total", "von_neumann_entropy", "infonce", "uniformity"):
        assert "1 rows of length 0" in found.reasons[name], name
    assert "effective_rank" in found


def test_arrays_in_any_memory_order(recwarn: pytest.WarningsRecorder) -> None:
    z = views(60, 3)[0].numpy()
    expected = sslinfo.report(torch.as_tensor(z))["effective_rank"].value
    z.flags.writeable = False
    for array in (z, z[::-1], np.asfortranarray(z), z.tolist()):
        assert sslinfo.report(array)["effective_rank"].value == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    assert not recwarn.list


def test_settings_are_separated_by_commas_alone() -> None:
    z1, z2 = views(200, 12)
    settings = measure([z1[:40], z2[:40]], Moments.of(z1, z2), window=5)["spectral_decay"].settings
    assert settings == "eigenvalues 6 to 12, window of 5 steps"
