"""Shares of clusters and of a probe, and the certificate of arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.experiments import certify, cluster_shares, probe_shares


def blobs(n: int, k: int = 3, noise: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, k, (n,), generator=generator)
    return 2 * torch.eye(k, 6)[labels] + noise * torch.randn(n, 6, generator=generator), labels


def test_shares_of_clusters_find_blobs_without_labels() -> None:
    features, labels = blobs(300)
    shares = cluster_shares(features, 3, temperature=0.05)
    other, truth = blobs(200, seed=1)
    found = shares(other)
    assert found.shape == (200, 3)
    assert found.sum(1) == pytest.approx(1, abs=1e-12)
    for cluster in range(3):  # each is one class, whatever its number
        assert len(truth[found.argmax(1) == cluster].unique()) == 1
    # Of directions from the mean: the scale about it does not count.
    mean = features.mean(0)
    torch.testing.assert_close(shares(mean + 7 * (other - mean)), found)
    assert shares(other).max() > cluster_shares(features, 3, temperature=0.5)(other).max()
    assert len(labels.unique()) == 3


@pytest.mark.parametrize("classes", [2, 4])
def test_shares_of_a_probe_are_scikit_learns_probabilities(classes: int) -> None:
    features, labels = blobs(200, classes, noise=1.0)
    other, _ = blobs(50, classes, noise=1.0, seed=1)
    x = features.double().numpy()
    mean, scale = x.mean(0), math.sqrt(((x - x.mean(0)) ** 2).mean())
    model = LogisticRegression(max_iter=2000).fit((x - mean) / scale, labels.numpy())
    scaled = (other.double().numpy() - mean) / scale
    np.testing.assert_allclose(probe_shares(features, labels, 1.0)(other), model.predict_proba(scaled), atol=1e-10)
    scores = model.decision_function(scaled)
    scores = scores if scores.ndim == 2 else np.stack([-scores / 2, scores / 2], 1)
    np.testing.assert_allclose(probe_shares(features, labels, 0.3)(other), softmax(scores / 0.3, 1), atol=1e-10)


def test_a_certificate_holds_and_tells_good_features_from_noise() -> None:
    features, labels = blobs(300)
    other, truth = blobs(6000, seed=1)
    good = certify(cluster_shares(features, 3)(other), truth, "simplex")
    assert good.bound.sharp is not None
    assert good.risk <= good.bound.sharp <= good.bound.corollary  # type: ignore[operator]
    assert good.bound.verdicts["sharp"] == "below for sure"
    assert good.error == 0
    noise = certify(torch.randn(6000, 3, generator=torch.Generator().manual_seed(0)).softmax(1), truth, "simplex")
    assert noise.bound.vacuous
    assert noise.risk <= noise.bound.sharp  # type: ignore[operator]
    assert len(labels) == 300


def test_the_seed_moves_images_between_the_parts_and_nothing_else() -> None:
    features, labels = blobs(900)
    one, same, other = (certify(features, labels, seed=seed) for seed in (0, 0, 1))
    assert one.bound == same.bound
    assert one.bound.corollary != other.bound.corollary
    assert one.bound.corollary == pytest.approx(other.bound.corollary, rel=0.2)
    assert (one.bound.n + one.bound.m) / 900 == pytest.approx(0.4 + 1 / 6, abs=0.08)  # 5 standard deviations


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="too few"):
        certify(torch.randn(2, 3), torch.tensor([0, 1]))
