"""What the forms of the generalization bound take: what was fixed beforehand, and what is measured on S and S'."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.bound_terms import best_constant, farthest, largest, prediction_complexity, reach, slope
from sslinfo.information.least_squares import (
    LeastSquares,
    PairSums,
    Treatment,
    among,
    class_labels,
    is_tensor,
    row_blocks,
    treated,
)

PairsOf = Literal["class", "image"]

_ROUNDING = 1e-9  # of a sum of many lengths, each of which is the radius but for rounding


@dataclass(frozen=True)
class Fit:
    """W_S, where S has labels."""

    residual: float  # ||P_S Y_S||_F / sqrt n
    s: float  # ||W_S||_2: the most that W_S stretches a difference of two features
    B_prime: float  # at least sup ||W_S f - y||


@dataclass(frozen=True)
class PairFit:
    """W_S' and D = W_S - W_S', where both S and the pairs have labels."""

    c: float  # ||D||_2: the most that D stretches a difference of two features
    pair_weight_norm: float  # ||W_S'||_F
    B: float  # sup ||D f||
    kappa: float  # at least sup ||W f - y|| over ||W||_F <= L
    kappa_prime: float  # at least sup ||W_S' f - y||
    prediction_complexity: float | None  # R_m(W o F), None where it is unknown


@dataclass(frozen=True, kw_only=True)
class Sample:
    """All that a form takes, in the letters of the proof; None is what is unknown."""

    delta: float  # probability with which a certificate may fail
    radius: float  # R
    treatment: str  # how features were brought within R
    pairs_of: str  # what the two of a pair share, "class" or "image"
    complexity: float | None  # R_m(F)
    weight_norm: float | None  # L, unknown if neither it nor K is given
    n: int
    m: int
    d: int
    classes: int  # K, 0 without labels
    invariance: float  # I, the mean of ||f(x+) - f(x++)|| over the pairs
    rank: int  # of the features of S
    pair_rank: int
    fit: Fit | None
    mean_residual: float | None  # (1/n) sum ||W_S f(x_i) - y_i||
    pair_residual: float | None  # ||P_S' Y_S'||_F / sqrt m
    pair_fit: PairFit | None
    best_constant: float | None  # risk of the best constant at the class frequencies of S

    @property
    def tau(self) -> float:
        """The farthest that two features are apart."""
        return farthest(self.radius, self.treatment)


@torch.no_grad()
def sample_of(
    features: Tensor | LeastSquares,
    targets: Tensor | None,
    pairs: tuple[Tensor, Tensor] | PairSums,
    *,
    delta: float,
    radius: float,
    weight_norm: float | None,
    num_classes: int | None,
    complexity: float | None,
    pair_targets: Tensor | None,
    treatment: Treatment,
    pairs_of: PairsOf,
    predictions: float | None,
    mean_residual: float | None,
) -> Sample:
    """Checks and measures what :func:`generalization_bound` was given; its arguments and errors stand there."""
    delta = checks.positive("delta", delta)
    if delta >= 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta!r}: 0.05 for a bound that holds at 95%")
    radius = checks.positive("radius", radius)
    among("pairs_of", pairs_of, get_args(PairsOf))
    among("treatment", treatment, get_args(Treatment))
    if complexity is not None:
        complexity = checks.positive("complexity", complexity, or_zero=True)
    labelled, paired = _sums(features, targets, pairs, pair_targets, num_classes, radius, treatment)
    n, m, classes = labelled.n, paired.n, labelled.num_classes
    if classes == 1:
        raise ValueError("num_classes must be at least 2, got 1: with one class there is nothing to predict")
    if weight_norm is not None:
        weight_norm = checks.positive("weight_norm", weight_norm)
    elif classes:
        weight_norm = math.sqrt(classes) / radius

    solution, pair_solution = labelled.solve(), paired.first.solve()
    fit = pair_fit = pair_residual = trivial = None
    if classes:
        fit = Fit(
            residual=float(solution.residual) / math.sqrt(n),
            s=slope(solution.weights, treatment),
            B_prime=reach(solution.weights, radius, treatment),
        )
        trivial = best_constant(labelled.class_counts / n)
        if isinstance(features, Tensor):
            mean_residual = _mean_residual(solution.weights, features, targets, radius, treatment)
        if mean_residual is not None:
            mean_residual = checks.positive("mean_residual", mean_residual, or_zero=True)
    if paired.first.num_classes:
        pair_residual = float(pair_solution.residual) / math.sqrt(m)
    if classes and paired.first.num_classes and weight_norm is not None:
        if predictions is not None:
            predictions = checks.positive("predictions", predictions)
        elif complexity == 0:
            predictions = prediction_complexity(weight_norm, radius, classes)
        difference = solution.weights - pair_solution.weights
        pair_fit = PairFit(
            c=slope(difference, treatment),
            pair_weight_norm=float(pair_solution.weights.norm()),
            B=largest(difference, radius, treatment),
            kappa=1 + weight_norm * radius,
            kappa_prime=reach(pair_solution.weights, radius, treatment),
            prediction_complexity=predictions,
        )
    return Sample(
        delta=delta,
        radius=radius,
        treatment=treatment,
        pairs_of=pairs_of,
        complexity=complexity,
        weight_norm=weight_norm,
        n=n,
        m=m,
        d=labelled.d,
        classes=classes,
        invariance=float(paired.invariance()),
        rank=solution.rank,
        pair_rank=pair_solution.rank,
        fit=fit,
        mean_residual=mean_residual if classes else None,
        pair_residual=pair_residual,
        pair_fit=pair_fit,
        best_constant=trivial,
    )


def _mean_residual(
    weights: Tensor, features: Tensor, targets: Tensor | None, radius: float, treatment: Treatment
) -> float:
    """Mean of ||W f(x) - y|| over the labelled images."""
    labels, _ = class_labels("targets", targets, len(features), len(weights))
    assert labels is not None
    total = 0.0
    for rows in row_blocks(len(features)):
        output = treated("features", features[rows], radius, treatment) @ weights.T
        output[torch.arange(len(output)), labels[rows].to(output.device)] -= 1
        total += float(torch.linalg.vector_norm(output, dim=1).sum())
    return total / len(features)


def _sums(
    features: Tensor | LeastSquares,
    targets: Tensor | None,
    pairs: tuple[Tensor, Tensor] | PairSums,
    pair_targets: Tensor | None,
    num_classes: int | None,
    radius: float,
    treatment: Treatment,
) -> tuple[LeastSquares, PairSums]:
    """The sums of what was passed, once they fit each other and the radius."""
    known = [_known_classes("targets", features, targets), _known_classes("pair_targets", pairs, pair_targets)]
    if num_classes is None:
        num_classes = max(known) or None
    if isinstance(features, LeastSquares):
        labelled = features
    else:
        labelled = _labelled_sums(features, targets, num_classes, radius, treatment)
    paired = pairs if isinstance(pairs, PairSums) else _pair_sums(pairs, pair_targets, num_classes, radius, treatment)

    for name, sums in (("features", labelled), ("pairs", paired.first)):
        if sums.n == 0:
            raise ValueError(f"{name} holds no samples: pass at least one")
        if float(sums.gram.trace()) > sums.n * radius**2 * (1 + _ROUNDING):
            raise ValueError(
                f"{name} holds features longer than radius {radius:g}: make the sums of within_radius(z, radius)"
            )
        if sums.num_classes and num_classes is not None and sums.num_classes != num_classes:
            raise ValueError(
                f"{name} holds sums of {sums.num_classes} classes, expected {num_classes}: use one num_classes"
            )
    if labelled.d != paired.first.d:
        raise ValueError(f"features have d={labelled.d} and pairs d={paired.first.d}: use one representation")
    tau = farthest(radius, treatment)
    if float(paired.distance) > tau * paired.n * (1 + _ROUNDING):
        raise ValueError(
            f"pairs are farther apart than {tau:.4g}, radius {radius:g}: make the sums of "
            f"within_radius(z, radius, {treatment!r})"
        )
    return labelled, paired


def _known_classes(name: str, data: Any, targets: Tensor | None) -> int:
    """K that sums or labels tell, 0 where they tell none; sums come without labels beside them."""
    if isinstance(data, LeastSquares | PairSums):
        if targets is not None:
            raise ValueError(f"{name} must be None where the sums are passed: they hold the labels already")
        return data.num_classes if isinstance(data, LeastSquares) else data.first.num_classes
    if isinstance(targets, Tensor) and targets.numel():
        return int(targets.max()) + 1 if targets.ndim == 1 else targets.shape[1]
    return 0


def _labelled_sums(
    features: Tensor, targets: Tensor | None, num_classes: int | None, radius: float, treatment: Treatment
) -> LeastSquares:
    width = _width("features", features)
    labels, classes = class_labels("targets", targets, len(features), num_classes)
    sums = LeastSquares.empty(width, classes, features.device)
    for rows in row_blocks(len(features)):
        z = treated("features", features[rows], radius, treatment)
        sums = sums + LeastSquares.of(z, None if labels is None else labels[rows], classes or None)
    return sums


def _pair_sums(
    pairs: Any, targets: Tensor | None, num_classes: int | None, radius: float, treatment: Treatment
) -> PairSums:
    if not (isinstance(pairs, tuple | list) and len(pairs) == 2):
        raise ValueError(f"pairs must be two tensors (m, d) or a PairSums, got {type(pairs).__name__}")
    first, second = pairs
    if _width("pairs[0]", first) != _width("pairs[1]", second) or len(first) != len(second):
        raise ValueError(f"pairs {tuple(first.shape)} and {tuple(second.shape)} do not match: row i of both is a pair")
    labels, classes = class_labels("pair_targets", targets, len(first), num_classes)
    sums = PairSums.empty(first.shape[1], classes, first.device)
    for rows in row_blocks(len(first)):
        z = treated("pairs[0]", first[rows], radius, treatment)
        other = treated("pairs[1]", second[rows], radius, treatment)
        sums = sums + PairSums.of(z, other, None if labels is None else labels[rows], classes or None)
    return sums


def _width(name: str, z: Any) -> int:
    checks.tensor(z[:0] if is_tensor(z) else z, torch.float64, name, "N, d")
    return int(z.shape[1])
