"""Generalization bound of a linear classifier on a representation, from pairs that share a label.

A representation f of norm at most R, K classes, labelled images S (n of them), pairs S' (m of them), W_S the
minimum-norm least-squares map from features to one-hot labels on S, W_S' the one on the first images of the pairs.
The risk is E||W_S f(x) - y||, a norm and not its square. Everything is computed from sums that merge exactly.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from torch import Tensor

from sslinfo.information.bound_forms import (
    best_constant_margin,
    certified,
    corollary,
    pair_residual_or_stand_in,
    paper,
    residual_or_stand_in,
    sharp,
)
from sslinfo.information.bound_sample import PairsOf, Sample, sample_of
from sslinfo.information.least_squares import LeastSquares, PairSums, Treatment

FORMS = ("paper", "certified", "corollary", "sharp")  # columns of the printed table

CAVEAT = (
    "The theorem wants pairs of two independent images of one class. Two augmentations of one image usually make "
    "the invariance smaller and break step 3 of the proof: of them there is the paper's sum and no certificate."
)
WITHOUT_LABELS = (
    "Without labels the paper's sum takes sqrt(1 - rank/N) for a residual, about what labels unrelated to the features "
    "would leave: no upper bound (labels may leave up to 1), and loose where features know the labels. Invariance and "
    "rank can be said without labels; c, s, the residuals, the risk and every certificate cannot."
)


@dataclass(frozen=True)
class Bound:
    """The bound in its forms, None where one does not apply, with every term; prints as a table.

    paper: the paper's informal sum, with sqrt(log(1/delta)/m) + sqrt(log(1/delta)/n) at constant 1 for its Q: a number
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
        names = list(dict.fromkeys(name for form in FORMS for name in self.contributions.get(form, ())))
        rows: list[tuple[str, ...]] = [("contribution", *FORMS)]
        for name in names:
            rows.append((name, *(_cell(self.contributions.get(form, {}).get(name)) for form in FORMS)))
        rows.append(("sum", *(_cell(getattr(self, form)) for form in FORMS)))
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

    Source: arXiv:2303.00633 (the paper's sum); certified form, corollary and sharp form derived. Each stands beside its
    steps of the proof in ``sslinfo.information.bound_forms``.

    >>> import torch
    >>> labels = torch.arange(2000) % 2
    >>> z = 0.9 * torch.eye(2)[labels]  # f maps each class to one point: invariance and residuals are 0
    >>> found = generalization_bound(z, labels, (z, z), pair_targets=labels)
    >>> round(found.corollary, 3), found.best_constant, found.verdicts["corollary"]
    (0.215, 0.7071067811865476, 'below for sure')
    """
    sample = sample_of(
        features,
        targets,
        pairs,
        delta=delta,
        radius=radius,
        weight_norm=weight_norm,
        num_classes=num_classes,
        complexity=complexity,
        pair_targets=pair_targets,
        treatment=treatment,
        pairs_of=pairs_of,
        predictions=predictions,
        mean_residual=mean_residual,
    )
    forms = {form.__name__: form(sample) for form in (paper, corollary, sharp, certified)}
    contributions = {name: form for name, form in forms.items() if not isinstance(form, str)}
    sums = {name: math.fsum(parts.values()) for name, parts in contributions.items()}
    reasons = {name: form for name in FORMS if isinstance(form := forms[name], str)}

    certificate, trivial = sums.get("corollary"), sample.best_constant
    margin = None if certificate is None else best_constant_margin(sample)
    if certificate is None:
        reasons |= dict.fromkeys(("top1_error", "vacuous"), reasons["sharp"])
    if trivial is None:
        reasons["best_constant"] = "there are no labels: their frequencies are unknown"
    verdicts: dict[str, str] = {}
    if trivial is not None and margin is not None:
        verdicts = {name: _verdict(sums[name], trivial, margin) for name in FORMS[1:] if name in sums}
    return Bound(
        paper=sums.get("paper"),
        certified=sums.get("certified"),
        corollary=certificate,
        sharp=sums.get("sharp"),
        top1_error=None if certificate is None else math.sqrt(2) * certificate,
        best_constant=trivial,
        vacuous=None if certificate is None or trivial is None else certificate >= trivial,
        verdicts=verdicts,
        terms=_terms(sample, margin),
        contributions=contributions,
        reasons=reasons,
        n=sample.n,
        m=sample.m,
        d=sample.d,
        num_classes=sample.classes or None,
        rank=sample.rank,
        pair_rank=sample.pair_rank,
        delta=sample.delta,
        radius=sample.radius,
        weight_norm=sample.weight_norm,
        treatment=sample.treatment,
        pairs_of=sample.pairs_of,
    )


def _terms(sample: Sample, margin: float | None) -> dict[str, float]:
    """What the forms are made of, as far as it is known."""
    known: dict[str, float | None] = {
        "invariance": sample.invariance,
        "tau": sample.tau,
        "rank": float(sample.rank),
        "pair_rank": float(sample.pair_rank),
        **(asdict(sample.fit) if sample.fit else residual_or_stand_in(sample)),
        "mean_residual": sample.mean_residual,
        **pair_residual_or_stand_in(sample),
        "complexity": sample.complexity,
        "best_constant_margin": margin,
        **(asdict(sample.pair_fit) if sample.pair_fit else {}),
    }
    return {name: value for name, value in known.items() if value is not None}


def _verdict(value: float, trivial: float, margin: float) -> str:
    if value >= trivial:
        return "vacuous"
    return "below for sure" if value < trivial - margin else "below"


def _error(value: float) -> str:
    return f"{value:.4g}" + (", which says nothing" if value >= 1 else "")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
