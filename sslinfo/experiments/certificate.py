"""Certificates of frozen representations: which features make the generalization bound tight."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.evaluation.bound_split import Split
from sslinfo.evaluation.probes import fit_linear
from sslinfo.information import Bound, generalization_bound
from sslinfo.information.least_squares import Treatment

Features = Callable[[Tensor], Tensor]


def cluster_shares(features: Tensor, clusters: int, temperature: float = 0.02, seed: int = 0) -> Features:
    """Features as shares of clusters that no label made: softmax of cosine / temperature to k-means centres.

    Args:
        features: (N, d) of training images: centred at their mean, on the unit sphere, clustered by scikit-learn.
        clusters: k.
        temperature: of the softmax.
        seed: of k-means.

    Returns:
        A function from features (n, d) to shares (n, clusters), float64.

    >>> corners = torch.eye(3).repeat(10, 1)
    >>> cluster_shares(corners, 3)(corners[:3]).sort().values.round().tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    """
    mean = features.double().mean(0)

    def direction(z: Tensor) -> Tensor:
        return F.normalize(z.double() - mean, dim=1)

    found = KMeans(clusters, n_init=10, random_state=seed).fit(direction(features).numpy())
    centres = F.normalize(torch.from_numpy(found.cluster_centers_), dim=1)
    return lambda z: (direction(z) @ centres.T / temperature).softmax(1)


def probe_shares(features: Tensor, labels: Tensor, temperature: float = 0.3) -> Features:
    """Features as the probabilities of a linear probe that was fitted on other labelled images.

    Args:
        features: (N, d) of training images, with labels (N,), integers from 0.
        temperature: of the softmax over the probe's scores.

    Returns:
        A function from features (n, d) to probabilities (n, classes), float64.

    >>> x, y = torch.tensor([[-1.0], [-0.9], [0.9], [1.0]]), torch.tensor([0, 0, 1, 1])
    >>> probe_shares(x, y)(torch.tensor([[-1.0], [1.0]])).round().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    probe = fit_linear(features, labels)

    def shares(z: Tensor) -> Tensor:
        scores = probe.model.decision_function((z.double().numpy() - probe.mean) / probe.scale)
        if scores.ndim == 1:  # scikit-learn gives two classes one score
            scores = np.stack([-scores, scores], axis=1) / 2
        return (torch.from_numpy(scores) / temperature).softmax(1)

    return shares


class Certificate(NamedTuple):
    """The bound, and risk and top-1 error measured on images that it has not seen."""

    bound: Bound
    risk: float
    error: float


def certify(
    features: Tensor, labels: Tensor, treatment: Treatment = "normalize", delta: float = 0.05, seed: int = 0
) -> Certificate:
    """The bound of least squares on features of images that neither the network nor the features have seen.

    As the callback ``GeneralizationBound``: 40% of the images are labelled ones, 50% make the pairs of one class, and
    on 10% the risk is measured.

    Args:
        features: (N, d).
        labels: (N,) integers from 0.
        treatment: how features are brought within the radius of 1.
        delta: probability with which the bound may fail: divide it by the number of settings that are compared.
        seed: which images fall into which part.

    >>> labels = torch.arange(6000) % 2
    >>> found = certify(torch.eye(2)[labels], labels, "simplex")
    >>> round(found.bound.sharp, 3), found.bound.verdicts["sharp"], found.risk < 1e-6
    (0.151, 'below for sure', True)
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    split = Split(int(labels.max()) + 1, 1.0, treatment)
    split.add(features[order], [], labels[order], torch.arange(len(features)))
    pairs, measured = split.pairs_of_a_class(), split.measure()
    if split.error or split.labelled is None or pairs is None or measured is None:
        raise UserError(split.error or f"features of {len(features)} images are too few to split: pass more")
    bound = generalization_bound(
        split.labelled, None, pairs, delta=delta, treatment=treatment, mean_residual=split.mean_residual()
    )
    return Certificate(bound, *measured)
