"""Probes as functions: linear classification to convergence, k nearest neighbours, and few labels a class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.information.labelled import neighbour_votes


@dataclass
class LinearClassifier:
    """A fitted linear classifier: features are centred and divided by one number before its weights see them."""

    mean: np.ndarray
    scale: float
    model: LogisticRegression

    def predict(self, features: Tensor) -> np.ndarray:
        """Labels (N,) of features (N, d)."""
        return self.model.predict((features.double().cpu().numpy() - self.mean) / self.scale)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of the labels (N,) predicted from features (N, d)."""
        return float((self.predict(features) == labels.cpu().numpy()).mean())


def fit_linear(features: Tensor, labels: Tensor, max_iter: int = 2000) -> LinearClassifier:
    """Multinomial logistic regression fitted to convergence (scikit-learn's, C = 1).

    Features are centred and divided by their root mean square, one number for all dimensions: the answer does not
    depend on the features' scale, and their geometry stays. (A scale for each dimension, estimated from three images a
    class, costs raw digits five points.)

    Args:
        features: (N, d).
        labels: (N,) int64, at least two classes.
        max_iter: L-BFGS iterations after which a fit that has not converged is warned of.

    Raises:
        UserError: features that hold NaN or infinity.

    >>> x = torch.tensor([[-1.0], [-0.9], [0.9], [1.0]])
    >>> fit_linear(x, torch.tensor([0, 0, 1, 1])).predict(torch.tensor([[-0.5], [0.5]])).tolist()
    [0, 1]
    """
    x = features.double().cpu().numpy()
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x).all(1)).sum())
        raise UserError(
            f"the features of {bad} of {len(x)} images hold NaN or infinity: no classifier is fitted to them"
        )
    mean = x.mean(0)
    scale = max(float(np.sqrt(np.mean((x - mean) ** 2))), 1e-12)
    model = LogisticRegression(max_iter=max_iter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit((x - mean) / scale, labels.cpu().numpy())
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        rank_zero_warn(f"the linear probe on {len(labels)} labels did not converge in {max_iter} iterations")
    return LinearClassifier(mean, scale, model)


def knn_scores(
    queries: Tensor, bank: Tensor, bank_labels: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Votes of the k most similar images for each class, each weighted by exp(cosine / temperature).

    Source: Wu et al., arXiv:1805.01978, section 3.4.

    Args:
        queries: (n, d); bank: (m, d); bank_labels: (m,) int64.
        k: neighbours; at most m are used.

    Returns:
        (n, num_classes), summing to 1 in each row.

    >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> knn_scores(torch.tensor([[2.0, 0.1]]), bank, torch.tensor([0, 1]), 2, k=1)
    tensor([[1., 0.]])
    """
    similarity = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
    return neighbour_votes(similarity, bank_labels, num_classes, k, temperature)


@dataclass
class Mean:
    """A mean over repetitions with its standard error (0 for a single one)."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Mean and standard error of independent values.

        >>> Mean.of([1.0, 3.0])
        Mean(mean=2.0, error=1.0)
        """
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
        return cls(float(np.mean(values)), error)


def label_efficiency(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, per_class: int | None, draws: int = 100
) -> Mean:
    """Test accuracy of linear probes fitted on random draws of a few labels a class.

    Args:
        train: (N, d) and test: (M, d) features, with labels (N,) and (M,).
        per_class: labels drawn from each class; None takes all labels once.
        draws: number of draws; draw i is seeded by i, so that two representations see the same ones.

    Returns:
        Mean and standard error over the draws.

    >>> x, y = torch.tensor([[-1.0], [-0.9], [0.9], [1.0]]), torch.tensor([0, 0, 1, 1])
    >>> label_efficiency(x, y, x, y, per_class=1, draws=4)
    Mean(mean=1.0, error=0.0)
    """
    if per_class is None:
        return Mean.of([fit_linear(train, train_labels).accuracy(test, test_labels)])
    by_class = [np.flatnonzero(train_labels.numpy() == label) for label in train_labels.unique().tolist()]
    results = []
    for draw in range(draws):
        generator = np.random.default_rng(draw)
        rows = torch.from_numpy(np.concatenate([generator.permutation(members)[:per_class] for members in by_class]))
        results.append(fit_linear(train[rows], train_labels[rows]).accuracy(test, test_labels))
    return Mean.of(results)
