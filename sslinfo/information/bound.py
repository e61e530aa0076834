"""Generalization bound of a linear classifier on a representation, from pairs that share a label.

A representation f of norm at most R, K classes, labelled images S (n of them), pairs S' (m of them), W_S the
minimum-norm least-squares map from features to one-hot labels on S, W_S' the one on the first images of the pairs.
The risk is E||W_S f(x) - y||, a norm and not its square. Everything is computed from sums that merge exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sslinfo.information import checks
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
_INVARIANCE = "invariance"

CAVEAT = (
    "The theorem wants pairs of two independent images of one class. Two augmentations of one image usually make "
    "the invariance smaller and break step 3 of the proof: of them there is the paper's sum and no certificate."
)
WITHOUT_LABELS = (
    "Without labels the paper's sum takes sqrt(1 - rank/N) for a residual, about what labels unrelated to the features "
    "would leave: no upper bound (labels may leave up to 1), and loose where features know the labels. Invariance and "
    "rank can be said without labels; c, s, the residuals, the risk and every certificate cannot."
)


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


@dataclass(frozen=True)
class Bound:
    """The bound in its forms, None where one does not apply, with every term; prints as a table.

    paper: the paper's informal sum, with sqrt(log(1/delta)/m) + sqrt(log(1/delta)/n) at constant 1 for its Q: a figure
        to compare representations by, no certificate.
    certified: holds with probability 1 - delta over S and S'; needs labels of the pairs.
    corollary: holds with probability 1 - delta; needs no label of a pair.
    sharp: the corollary with the mean residual on S itself; both hold at once, on the same events.
    top1_error: sqrt(2) corollary, which bounds the share of wrong arg-maxima; not cut at 1.
    best_constant: the risk of the best constant prediction at the labelled images' class frequencies; an estimate, on
        average below that of the population, and within ``terms["best_constant_margin"]`` of it wherever the
        corollary's own event for label frequencies holds.
    vacuous: whether the corollary is at or above ``best_constant``.
    verdicts: of each certificate "vacuous", "below" the best constant, or "below for sure": below the population's,
        that is by more than the margin, at the same 1 - delta.
    terms: what the forms are made of: the sample's quantities (invariance I, residual ||P_S Y_S||_F / sqrt n,
        mean_residual, pair_residual, c = ||W_S - W_S'||_2, s = ||W_S||_2, ranks), the ranges (tau, B, B_prime, kappa,
        kappa_prime) and the complexities.
    contributions: by form, named numbers that add up to it.
    reasons: why a form or a term is absent.
    """

    paper: float | None
    certified: float | None
    corollary: float | None
    sharp: float | None
    top1_error: float | None
    best_constant: float | None
    vacuous: bool | None
    verdicts: dict[str, str]
    terms: dict[str, float]
    contributions: dict[str, dict[str, float]]
    reasons: dict[str, str]
    n: int
    m: int
    d: int
    num_classes: int | None
    rank: int
    pair_rank: int
    delta: float
    radius: float
    weight_norm: float | None
    treatment: str
    pairs_of: str

    def __str__(self) -> str:
        forms = ("paper", "certified", "corollary", "sharp")
        names = list(dict.fromkeys(name for form in forms for name in self.contributions.get(form, ())))
        rows: list[tuple[str, ...]] = [("contribution", *forms)]
        for name in names:
            rows.append((name, *(_cell(self.contributions.get(form, {}).get(name)) for form in forms)))
        rows.append(("sum", *(_cell(getattr(self, form)) for form in forms)))
        wide = max(len(row[0]) for row in rows)
        classes = "no labels" if self.num_classes is None else f"K={self.num_classes} classes"
        about = f"n={self.n} labelled, m={self.m} pairs of one {self.pairs_of}, {classes}, d={self.d}"
        size = "" if self.weight_norm is None else f", L {self.weight_norm:.4g}"
        lines = [
            f"E||W f(x) - y|| with probability {1 - self.delta:g}: {about}",
            f"radius {self.radius:g} ({self.treatment}){size}, rank {self.rank} of S, {self.pair_rank} of the pairs",
        ]
        lines += [row[0].ljust(wide) + "".join(cell.rjust(11) for cell in row[1:]) for row in rows]
        if self.corollary is not None and self.best_constant is not None:
            margin = self.terms["best_constant_margin"]
            lines.append(f"best constant {self.best_constant:.4g} within {margin:.4g}")
            lines += [
                f"  {form} {verdict}, top-1 error at most {_error(math.sqrt(2) * getattr(self, form))}"
                for form, verdict in self.verdicts.items()
            ]
        if self.rank == self.n:
            lines.append(f"residual 0: {self.d} features fit any labels of {self.n} images; only s pays for that")
        lines += [f"no {name}: {reason}" for name, reason in self.reasons.items()]
        lines.append("The paper's sum is informal: its Q stands at constant 1 and it certifies nothing.")
        lines.append(CAVEAT)
        if self.num_classes is None:
            lines.append(WITHOUT_LABELS)
        return "\n".join(lines)


@torch.no_grad()
def generalization_bound(
    features: Tensor | LeastSquares,
    targets: Tensor | None,
    pairs: tuple[Tensor, Tensor] | PairSums,
    *,
    delta: float = 0.05,
    radius: float = 1.0,
    weight_norm: float | None = None,
    num_classes: int | None = None,
    complexity: float | None = 0.0,
    pair_targets: Tensor | None = None,
    treatment: Treatment = "clip",
    pairs_of: PairsOf = "class",
    predictions: float | None = None,
    mean_residual: float | None = None,
) -> Bound:
    """Bound on the risk of least squares on a representation, from labelled images and pairs that share a label.

    Assumed: labelled images S i.i.d.; pairs S' i.i.d. and independent of S, a class drawn first and then two
    independent images of it; f does not depend on S. Tensors are brought within the radius here; states hold features
    that ``within_radius`` already brought there.

    Args:
        features: (n, d) of the labelled images, or their sums.
        targets: (n,) integer labels or (n, K) one-hot rows; None without labels, or where the sums hold them.
        pairs: two tensors (m, d), row i of both a pair, or their sums.
        delta: probability with which the bound may fail.
        radius: R, fixed without looking at the data.
        weight_norm: L, fixed beforehand; None takes sqrt(K) / radius, which depends on no data.
        num_classes: K; None takes the largest label plus one, which is too few where the last classes are missing.
        complexity: R_m(F). 0 where f is frozen and the pairs are held out from its training, ``checkpoint_complexity``
            where the pairs chose among fixed checkpoints; None where f was trained on the pairs: it is not computable
            then, and no form exists.
        pair_targets: labels of the pairs, as targets.
        treatment: "clip" or "normalize" to the radius; or "simplex", features that are shares (>= 0, sum R). Those are
            sqrt(2) R apart at most and not 2 R, a map is largest at a corner, and its slope counts on directions of sum
            zero alone: tau, B, B', kappa', c and s are smaller.
        pairs_of: "class", two independent images of one class, or "image", two augmentations of one image.
        predictions: R_m(W o F); None takes ``prediction_complexity`` of a frozen f.
        mean_residual: (1/n) sum ||W_S f(x_i) - y_i|| over S, for the sharp form where features are sums; features given
            as a tensor need none.

    Returns:
        A :class:`Bound`; what does not apply is None, with the reason.

    Raises:
        ValueError: no samples, NaN, one class only, targets that are not one-hot, mismatched sizes, delta outside
            (0, 1), or sums of features longer than the radius.

    Source: arXiv:2303.00633 (the paper's sum); certified form and corollary derived, as is their proof:
    with phi = y - W_S' f, D = W_S - W_S' and l = log(5/delta),
    (1) E||W_S f - y|| <= E||D f|| + E||phi||;
    (2) label frequencies in S are within sqrt(2 log(5 (2^K - 2)/delta)/n) of the classes' in l1 (Weissman et al. 2003);
    (3) in a class, ||D f|| changes by c ||f - f'|| at most, whose mean over S is within tau sqrt(l/2n) of I(f);
    (4) I(f) is within 2 R_m(F)/sqrt m + tau sqrt(l/2m) of the pairs' mean;
    (5) mean ||D f(x_i)|| over S is at most the residual plus E||phi|| + kappa' sqrt(l/2n);
    (6) E||phi|| is at most the pairs' residual plus 2 R_m(W o F)/sqrt m + kappa sqrt(l/2m).
    The corollary applies (2), (3) and (4) to ||W_S f - y|| itself, with log(3/delta). Its residual is an upper bound,
    by Jensen, of the mean of ||W_S f - y|| over S, which the sharp form takes instead: no event depends on W.

    >>> labels = torch.arange(2000) % 2
    >>> z = 0.9 * torch.eye(2)[labels]  # f maps each class to one point: invariance and residuals are 0
    >>> found = generalization_bound(z, labels, (z, z), pair_targets=labels)
    >>> round(found.corollary, 3), found.best_constant, found.verdicts["corollary"]
    (0.215, 0.7071067811865476, 'below for sure')
    """
    delta = checks.positive("delta", delta)
    if delta >= 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta!r}: 0.05 for a bound that holds at 95%")
    radius = checks.positive("radius", radius)
    among("pairs_of", pairs_of, get_args(PairsOf))
    among("treatment", treatment, get_args(Treatment))
    if complexity is not None:
        complexity = checks.positive("complexity", complexity, or_zero=True)
    labelled, paired = _states(features, targets, pairs, pair_targets, num_classes, radius, treatment)
    n, m, classes = labelled.n, paired.n, labelled.num_classes or None
    if classes == 1:
        raise ValueError("num_classes must be at least 2, got 1: with one class there is nothing to predict")
    if weight_norm is not None:
        weight_norm = checks.positive("weight_norm", weight_norm)
    elif classes:
        weight_norm = math.sqrt(classes) / radius
    own, of_pairs = labelled.solve(), paired.first.solve()

    tau = (math.sqrt(2) if treatment == "simplex" else 2) * radius
    terms = {_INVARIANCE: float(paired.invariance()), "tau": tau}
    terms |= {"rank": float(own.rank), "pair_rank": float(of_pairs.rank)}
    reasons: dict[str, str] = {}
    if classes:
        terms["residual"] = float(own.residual) / math.sqrt(n)
        terms["s"] = _slope(own.weights, treatment)
        terms["B_prime"] = _reach(own.weights, radius, treatment)
        if isinstance(features, Tensor):
            mean_residual = _mean_residual(own.weights, features, targets, radius, treatment)
        if mean_residual is not None:
            terms["mean_residual"] = checks.positive("mean_residual", mean_residual, or_zero=True)
    else:
        terms["residual_stand_in"] = math.sqrt(1 - own.rank / n)
    if paired.first.num_classes:
        terms["pair_residual"] = float(of_pairs.residual) / math.sqrt(m)
    else:
        terms["pair_residual_stand_in"] = math.sqrt(1 - of_pairs.rank / m)
    if complexity is None:
        unknown = "R_m(F) is unknown: over all networks that could have been trained on the pairs it is not computable"
        reasons |= dict.fromkeys(("paper", "certified", "corollary"), unknown)
    else:
        terms["complexity"] = complexity

    contributions: dict[str, dict[str, float]] = {}
    if complexity is not None:
        contributions["paper"] = {
            _INVARIANCE: terms[_INVARIANCE],
            **{name: 2 * terms[name] for name in ("pair_residual", "pair_residual_stand_in") if name in terms},
            **{name: terms[name] for name in ("residual", "residual_stand_in") if name in terms},
            "invariance_complexity": 2 * complexity / math.sqrt(m),
            "confidence_pairs": math.sqrt(math.log(1 / delta) / m),
            "confidence_labelled": math.sqrt(math.log(1 / delta) / n),
        }
    absent = _why_no_certificate(classes, pairs_of)
    if absent:
        reasons |= {form: absent for form in ("certified", "corollary") if form not in reasons}
    elif classes and complexity is not None:
        log3 = math.log(3 / delta)
        frequency = _label_deviation(classes, n, delta / 3)
        terms["best_constant_margin"] = frequency / math.sqrt(2)
        contributions["corollary"] = {
            **_invariance_part(terms["s"], terms[_INVARIANCE], complexity, tau, log3, n, m),
            "residual": terms["residual"],
            "label_frequency": terms["B_prime"] / 2 * frequency,
        }
        if "mean_residual" in terms:
            contributions["sharp"] = contributions["corollary"] | {"residual": terms["mean_residual"]}
    if classes and paired.first.num_classes and weight_norm is not None:
        terms["c"] = _slope(own.weights - of_pairs.weights, treatment)
        terms["pair_weight_norm"] = float(of_pairs.weights.norm())
        terms["B"] = _largest(own.weights - of_pairs.weights, radius, treatment)
        terms["kappa"] = 1 + weight_norm * radius
        terms["kappa_prime"] = _reach(of_pairs.weights, radius, treatment)
        if predictions is None and complexity == 0:
            predictions = prediction_complexity(weight_norm, radius, classes)
        if predictions is not None:
            terms["prediction_complexity"] = checks.positive("predictions", predictions)
    if "certified" not in reasons:
        if "c" not in terms:
            reasons["certified"] = "the labels of the pairs are unknown: pass pair_targets; the corollary needs none"
        elif weight_norm is not None and terms["pair_weight_norm"] > weight_norm:
            reasons["certified"] = (
                f"||W_S'||_F = {terms['pair_weight_norm']:.4g} exceeds weight_norm {weight_norm:.4g}, fixed "
                "beforehand: the class of maps does not contain W_S'"
            )
        elif predictions is None:
            reasons["certified"] = (
                "f is not frozen (complexity > 0) and R_m(W o F) is unknown: pass predictions, "
                "prediction_complexity(weight_norm, radius, num_classes, checkpoints) for instance"
            )
        elif classes and complexity is not None:
            log5 = math.log(5 / delta)
            contributions["certified"] = {
                **_invariance_part(terms["c"], terms[_INVARIANCE], complexity, tau, log5, n, m),
                "pair_residual": 2 * terms["pair_residual"],
                "residual": terms["residual"],
                "label_frequency": terms["B"] / 2 * _label_deviation(classes, n, delta / 5),
                "prediction_complexity": 4 * predictions / math.sqrt(m),
                "prediction_deviation_pairs": 2 * terms["kappa"] * math.sqrt(log5 / (2 * m)),
                "prediction_deviation_labelled": terms["kappa_prime"] * math.sqrt(log5 / (2 * n)),
            }
    sums = {form: math.fsum(parts.values()) for form, parts in contributions.items()}
    corollary = sums.get("corollary")
    trivial = best_constant(labelled.class_counts / n) if classes else None
    verdicts: dict[str, str] = {}
    if trivial is not None:
        for form in ("certified", "corollary", "sharp"):
            if form in sums:
                sure = sums[form] < trivial - terms["best_constant_margin"]
                verdicts[form] = "vacuous" if sums[form] >= trivial else "below for sure" if sure else "below"
    if corollary is None:
        reasons |= dict.fromkeys(("sharp", "top1_error", "vacuous"), f"there is no corollary: {reasons['corollary']}")
    elif "sharp" not in sums:
        reasons["sharp"] = "features are sums: pass mean_residual"
    if trivial is None:
        reasons["best_constant"] = "there are no labels: their frequencies are unknown"
    return Bound(
        paper=sums.get("paper"),
        certified=sums.get("certified"),
        corollary=corollary,
        sharp=sums.get("sharp"),
        top1_error=None if corollary is None else math.sqrt(2) * corollary,
        best_constant=trivial,
        vacuous=None if corollary is None or trivial is None else corollary >= trivial,
        verdicts=verdicts,
        terms=terms,
        contributions=contributions,
        reasons=reasons,
        n=n,
        m=m,
        d=labelled.d,
        num_classes=classes,
        rank=own.rank,
        pair_rank=of_pairs.rank,
        delta=delta,
        radius=radius,
        weight_norm=weight_norm,
        treatment=treatment,
        pairs_of=pairs_of,
    )


def _invariance_part(
    slope: float, invariance: float, complexity: float, tau: float, log: float, n: int, m: int
) -> dict[str, float]:
    """Steps 3 and 4: what a map of that spectral norm may change between two images of one class."""
    return {
        _INVARIANCE: slope * invariance,
        "invariance_complexity": slope * 2 * complexity / math.sqrt(m),
        "invariance_deviation_pairs": slope * tau * math.sqrt(log / (2 * m)),
        "invariance_deviation_labelled": slope * tau * math.sqrt(log / (2 * n)),
    }


def _slope(weights: Tensor, treatment: str) -> float:
    """The most that W (K, d) stretches a difference of two features: ||W||_2, on the simplex over sums of zero."""
    moved = weights - weights.mean(1, keepdim=True) if treatment == "simplex" else weights
    return float(torch.linalg.matrix_norm(moved, 2))


def _largest(weights: Tensor, radius: float, treatment: str) -> float:
    """sup ||W f|| over features: a ball's radius times ||W||_2, or a corner of the simplex, since norms are convex."""
    if treatment == "simplex":
        return radius * float(torch.linalg.vector_norm(weights, dim=0).max())
    return radius * float(torch.linalg.matrix_norm(weights, 2))


def _reach(weights: Tensor, radius: float, treatment: str) -> float:
    """At least sup ||W f - y|| over features and one-hot y."""
    if treatment == "simplex":
        corners, classes = radius * weights.T, torch.eye(len(weights)).to(weights)
        return float((corners[:, None] - classes).norm(dim=2).max())
    return 1 + _largest(weights, radius, treatment)


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


def _label_deviation(classes: int, n: int, delta: float) -> float:
    """What the l1 distance of K frequencies of n draws to their probabilities exceeds with probability delta at most.

    sqrt(2 log((2^K - 2)/delta)/n) (Weissman et al. 2003).
    """
    subsets = classes * math.log(2) + math.log1p(-(2.0 ** (1 - classes)))  # log(2^K - 2) for any K
    return math.sqrt(2 * (subsets - math.log(delta)) / n)


def _why_no_certificate(classes: int | None, pairs_of: str) -> str | None:
    if not classes:
        return "there are no labels"
    if pairs_of == "image":
        return "the pairs are augmentations of one image: step 3 of the proof needs two independent images of one class"
    return None


def _states(
    features: Tensor | LeastSquares,
    targets: Tensor | None,
    pairs: tuple[Tensor, Tensor] | PairSums,
    pair_targets: Tensor | None,
    num_classes: int | None,
    radius: float,
    treatment: Treatment,
) -> tuple[LeastSquares, PairSums]:
    """The sums of what was passed, which is checked."""
    known = []
    for state, name, own in ((features, "targets", targets), (pairs, "pair_targets", pair_targets)):
        if isinstance(state, LeastSquares | PairSums):
            if own is not None:
                raise ValueError(f"{name} must be None where the sums are passed: they hold the labels already")
            held = state.num_classes if isinstance(state, LeastSquares) else state.first.num_classes
            known += [held] if held else []
        elif isinstance(own, Tensor) and own.numel():
            known.append(int(own.max()) + 1 if own.ndim == 1 else own.shape[1])
    if known and num_classes is None:
        num_classes = max(known)

    if isinstance(features, LeastSquares):
        labelled = features
    else:
        width = _width("features", features)
        labels, classes = class_labels("targets", targets, len(features), num_classes)
        labelled = LeastSquares.empty(width, classes, features.device)
        for rows in row_blocks(len(features)):
            z = treated("features", features[rows], radius, treatment)
            labelled = labelled + LeastSquares.of(z, None if labels is None else labels[rows], classes or None)
    if isinstance(pairs, PairSums):
        paired = pairs
    else:
        if not (isinstance(pairs, tuple | list) and len(pairs) == 2):
            raise ValueError(f"pairs must be two tensors (m, d) or a PairSums, got {type(pairs).__name__}")
        first, second = pairs
        if _width("pairs[0]", first) != _width("pairs[1]", second) or len(first) != len(second):
            raise ValueError(
                f"pairs {tuple(first.shape)} and {tuple(second.shape)} do not match: row i of both is a pair"
            )
        labels, classes = class_labels("pair_targets", pair_targets, len(first), num_classes)
        paired = PairSums.empty(first.shape[1], classes, first.device)
        for rows in row_blocks(len(first)):
            z = treated("pairs[0]", first[rows], radius, treatment)
            other = treated("pairs[1]", second[rows], radius, treatment)
            paired = paired + PairSums.of(z, other, None if labels is None else labels[rows], classes or None)

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
    farthest = (math.sqrt(2) if treatment == "simplex" else 2) * radius
    if float(paired.distance) > farthest * paired.n * (1 + _ROUNDING):
        raise ValueError(
            f"pairs are farther apart than {farthest:.4g}, radius {radius:g}: make the sums of "
            f"within_radius(z, radius, {treatment!r})"
        )
    return labelled, paired


def _width(name: str, z: Any) -> int:
    checks.tensor(z[:0] if is_tensor(z) else z, torch.float64, name, "N, d")
    return int(z.shape[1])


def _error(value: float) -> str:
    return f"{value:.4g}" + (", which says nothing" if value >= 1 else "")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
