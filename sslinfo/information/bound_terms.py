"""Closed forms that the generalization bound is built from: ranges, a deviation, complexities, a trivial risk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslinfo.information import checks


def farthest(radius: float, treatment: str) -> float:
    """The farthest that two features are apart: opposite points of a ball, or two corners of the simplex."""
    return (math.sqrt(2) if treatment == "simplex" else 2) * radius


def slope(weights: Tensor, treatment: str) -> float:
    """The most that W (K, d) stretches a difference of two features: ||W||_2, on the simplex over sums of zero."""
    moved = weights - weights.mean(1, keepdim=True) if treatment == "simplex" else weights
    return float(torch.linalg.matrix_norm(moved, 2))


def largest(weights: Tensor, radius: float, treatment: str) -> float:
    """sup ||W f|| over features: a ball's radius times ||W||_2, or a corner of the simplex, since norms are convex."""
    if treatment == "simplex":
        return radius * float(torch.linalg.vector_norm(weights, dim=0).max())
    return radius * float(torch.linalg.matrix_norm(weights, 2))


def reach(weights: Tensor, radius: float, treatment: str) -> float:
    """At least sup ||W f - y|| over features and one-hot y."""
    if treatment == "simplex":
        corners, classes = radius * weights.T, torch.eye(len(weights)).to(weights)
        return float((corners[:, None] - classes).norm(dim=2).max())
    return 1 + largest(weights, radius, treatment)


def label_deviation(classes: int, n: int, delta: float) -> float:
    """What the l1 distance of K frequencies of n draws to their probabilities exceeds with probability delta at most.

    sqrt(2 log((2^K - 2)/delta)/n) (Weissman et al. 2003).
    """
    subsets = classes * math.log(2) + math.log1p(-(2.0 ** (1 - classes)))  # log(2^K - 2) for any K
    return math.sqrt(2 * (subsets - math.log(delta)) / n)


def checkpoint_complexity(checkpoints: int, radius: float = 1.0) -> float:
    """R_m(F) of that many checkpoints, fixed before the pairs were seen: at most 2 R sqrt(2 log N), 0 for one.

    For ``complexity`` of :func:`generalization_bound` where the best of N checkpoints was chosen by the pairs.

    Source: derived (Massart's lemma for ||f(x+) - f(x++)|| in [0, 2R]).

    >>> round(checkpoint_complexity(10), 4), checkpoint_complexity(1)
    (4.2919, 0.0)
    """
    checkpoints = checks.at_least("checkpoints", checkpoints, 1)
    return 2 * checks.positive("radius", radius) * math.sqrt(2 * math.log(checkpoints))


def prediction_complexity(weight_norm: float, radius: float, num_classes: int, checkpoints: int = 1) -> float:
    """R_m(W o F), the complexity of ||W f(x) - y|| over ||W||_F <= L and N fixed checkpoints f.

    sqrt(2) L R sqrt(K) (1 + sqrt(2 log N)).

    Source: derived (vector contraction, Maurer 2016; ||Xi^T Z^T||_F has mean at most R sqrt(mK), and is sub-Gaussian
    of variance m K R^2 by bounded differences).

    >>> round(prediction_complexity(1.0, 1.0, 2), 4)
    2.0
    """
    frozen = math.sqrt(2) * checks.positive("weight_norm", weight_norm) * checks.positive("radius", radius)
    frozen *= math.sqrt(checks.at_least("num_classes", num_classes, 2))
    return frozen * (1 + math.sqrt(2 * math.log(checks.at_least("checkpoints", checkpoints, 1))))


def best_constant(frequencies: Tensor) -> float:
    """Smallest E||v - y|| of a constant v where one-hot labels y have these frequencies (K,), which add up to 1.

    sqrt(1 - 1/K) for equal classes. In general v is the geometric median of the corners of the simplex: a corner where
    one class is frequent enough, sqrt((1 - p_j)^2 + sum_{k != j} p_k^2) <= sqrt(2) p_j, else found by Weiszfeld's
    iteration. Taken at a sample's frequencies it is low on average: the constant was fitted to that sample.

    Source: derived (optimality of a corner: Kuhn 1973).

    >>> round(best_constant(torch.full((4,), 0.25)), 4), round(best_constant(torch.tensor([0.9, 0.1])), 4)
    (0.866, 0.1414)
    """
    p = checks.tensor(frequencies, torch.float64, "frequencies", "K")
    if bool((p < 0).any()) or abs(float(p.sum()) - 1) > 1e-6:
        raise ValueError(f"frequencies must be >= 0 and add up to 1, they add up to {float(p.sum()):.6g}")
    top = int(p.argmax())
    others = p.clone()
    others[top] = 1 - p[top]
    if float(others.norm()) <= math.sqrt(2) * float(p[top]):
        return float(math.sqrt(2) * (1 - p[top]))
    v = p
    for _ in range(20_000):
        pull = p / _to_corners(v)
        moved = pull / pull.sum()
        if float((moved - v).abs().max()) < 1e-15:
            break
        v = moved
    return float((p * _to_corners(v)).sum())


def _to_corners(v: Tensor) -> Tensor:
    """Distance of v (K,) to each corner of the simplex."""
    return (v.square().sum() - 2 * v + 1).clamp_min(0).sqrt()
