"""k-NN votes, linear classifiers at their optimum, and draws of few labels."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from sslinfo.callbacks.linear_probe import label_subset
from sslinfo.errors import UserError
from sslinfo.evaluation.probes import Mean, fit_linear, knn_scores, label_efficiency


def blobs(n: int, classes: int = 4, d: int = 6, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Overlapping Gaussian classes off the origin, one dimension far wider than the others."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    x = means[labels] + spread * torch.randn(n, d, generator=generator) + 3
    return x * torch.tensor([5.0] + [1.0] * (d - 1)), labels


def voted(
    query: list[float], bank: list[list[float]], labels: list[int], classes: int, k: int, t: float
) -> list[float]:
    """arXiv:1805.01978, section 3.4, in loops."""

    def cosine(a: list[float], b: list[float]) -> float:
        norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / norms

    nearest = sorted(((cosine(query, row), label) for row, label in zip(bank, labels, strict=True)), reverse=True)[:k]
    votes = [0.0] * classes
    for similarity, label in nearest:
        votes[label] += math.exp(similarity / t)
    return [vote / sum(votes) for vote in votes]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (500, 0.07)])
def test_votes_are_the_formulas(k: int, temperature: float) -> None:
    bank, labels = (part for part in blobs(40))
    queries, _ = blobs(9, seed=1)
    bank, queries = bank.double(), queries.double()
    found = knn_scores(queries, bank, labels, 4, k, temperature)
    for row, query in zip(found.tolist(), queries.tolist(), strict=True):
        assert row == pytest.approx(voted(query, bank.tolist(), labels.tolist(), 4, k, temperature), abs=1e-12)


@pytest.mark.parametrize(("k", "temperature"), [(5, 0.07), (20, 0.3)])
def test_votes_are_those_of_scikit_learn(k: int, temperature: float) -> None:
    bank, labels = blobs(300)
    queries, _ = blobs(80, seed=1)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank.double().numpy(), labels.numpy())
    found = knn_scores(queries.double(), bank.double(), labels, 4, k, temperature)
    np.testing.assert_allclose(found.numpy(), reference.predict_proba(queries.double().numpy()), atol=1e-10)


def test_a_class_without_images_in_the_bank_gets_no_vote() -> None:
    bank, labels = blobs(20, classes=2)
    found = knn_scores(bank, bank, labels, num_classes=5, k=3)
    assert found.shape == (20, 5)
    assert bool((found[:, 2:] == 0).all())
    torch.testing.assert_close(found.sum(1), torch.ones(20))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_linear_fit_is_at_the_optimum(classes: int) -> None:
    """The gradient of the mean of the penalised negative log-likelihood, sum_i nll_i + |W|^2 / 2, is zero."""
    x, y = blobs(120, classes)
    fitted = fit_linear(x, y)
    features = (x.double().numpy() - x.double().numpy().mean(0)) / fitted.scale
    assert np.mean(features**2) == pytest.approx(1, rel=1e-12)
    weights, bias = fitted.model.coef_, fitted.model.intercept_
    logits = features @ weights.T + bias
    if classes == 2:
        # One logit; its weight is the difference of two, and the penalty is on that.
        residual = 1 / (1 + np.exp(-logits)) - y.numpy()[:, None]
    else:
        exponent = np.exp(logits - logits.max(1, keepdims=True))
        residual = exponent / exponent.sum(1, keepdims=True) - np.eye(classes)[y.numpy()]
    at_zero = np.abs(((np.full((120, classes), 1 / classes) - np.eye(classes)[y.numpy()]).T @ features) / 120).max()
    # L-BFGS stops at 1e-4 of the mean loss's gradient; before the fit it is a thousand times that.
    assert at_zero > 0.1
    assert np.abs((residual.T @ features + weights) / 120).max() < 1.5e-4
    assert np.abs(residual.mean(0)).max() < 1.5e-4


def test_predictions_do_not_depend_on_scale_and_shift_of_all_features() -> None:
    x, y = blobs(120)
    test, test_labels = blobs(200, seed=2)
    one, other = fit_linear(x, y), fit_linear(1e3 * x - 50, y)
    assert (one.predict(test) == other.predict(1e3 * test - 50)).mean() > 0.99
    right = sum(int(a == b) for a, b in zip(one.predict(test), test_labels.tolist(), strict=True))
    assert one.accuracy(test, test_labels) == right / 200
    assert 0.4 < right / 200 < 1


def test_features_that_are_not_finite_are_refused_in_words() -> None:
    x = torch.randn(6, 2)
    x[1, 0], x[4] = torch.nan, torch.inf
    with pytest.raises(UserError, match="the features of 2 of 6 images hold NaN or infinity"):
        fit_linear(x, torch.tensor([0, 1] * 3))


def test_a_fit_that_stops_early_is_said() -> None:
    x, y = blobs(120)
    with pytest.warns(UserWarning, match="linear probe on 120 labels did not converge in 2 iterations"):
        fit_linear(x, y, max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_linear(x, y)


def test_few_labels_a_class() -> None:
    x, y = blobs(80)
    test, test_labels = blobs(100, seed=3)
    draws = []
    for draw in range(5):
        generator = np.random.default_rng(draw)
        rows = np.concatenate([generator.permutation(np.flatnonzero(y.numpy() == label))[:3] for label in range(4)])
        assert np.bincount(y.numpy()[rows]).tolist() == [3, 3, 3, 3]
        draws.append(fit_linear(x[rows], y[rows]).accuracy(test, test_labels))
    found = label_efficiency(x, y, test, test_labels, per_class=3, draws=5)
    deviation = math.sqrt(sum((value - sum(draws) / 5) ** 2 for value in draws) / 4)
    assert (found.mean, found.error) == pytest.approx((sum(draws) / 5, deviation / math.sqrt(5)), rel=1e-12)
    assert found.error > 0
    # The same images are drawn for every representation of them.
    assert label_efficiency(2 * x, y, 2 * test, test_labels, per_class=3, draws=5).mean == found.mean
    whole = label_efficiency(x, y, test, test_labels, per_class=None)
    assert whole == Mean(fit_linear(x, y).accuracy(test, test_labels), 0.0)


@pytest.mark.parametrize(("fraction", "counts"), [(1.0, [100, 60, 4]), (0.1, [10, 6, 1]), (0.01, [1, 1, 1])])
def test_a_part_of_the_labels_is_balanced_and_repeatable(fraction: float, counts: list[int]) -> None:
    labels = torch.tensor([0] * 100 + [1] * 60 + [2] * 4)[torch.randperm(164)]
    rows = label_subset(labels, fraction)
    assert labels[rows].bincount().tolist() == counts
    assert len(rows.unique()) == len(rows)
    assert torch.equal(rows, label_subset(labels, fraction))
