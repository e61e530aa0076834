"""The forms of the generalization bound, a function each beside its steps of the proof.

f is a representation of length at most R. S are n labelled images and S' are m pairs (x+, x++) of one class; y is
one-hot among K classes. W_S is the minimum-norm least-squares map from f to y on S, W_S' the one on the first images
of the pairs. The risk is E||W_S f - y||, a norm and not its square. I(f) = E||f(x+) - f(x++)||, and I is its mean over
the pairs.

Assumed: S i.i.d.; S' i.i.d. and independent of S, a class drawn first and then two independent images of it; f does
not depend on S. R_m(F) is the complexity of the f that the pairs could have chosen, R_m(W o F) that of ||W f - y||.

A form takes a :class:`Sample` and nothing else. It gives its named contributions, which add up to it, or the reason
why it is absent.

>>> from sslinfo.information.bound_sample import Fit
>>> sample = Sample(
...     delta=0.05, radius=1.0, treatment="clip", pairs_of="class", complexity=0.0, weight_norm=2.0, n=800, m=3200, d=8,
...     classes=2, invariance=0.1, rank=8, pair_rank=8, fit=Fit(residual=0.25, s=1.5, B_prime=2.5), mean_residual=0.125,
...     pair_residual=None, pair_fit=None, best_constant=0.7,
... )
>>> {name: round(value, 3) for name, value in corollary(sample).items()}
{'invariance': 0.15, 'invariance_complexity': 0.0, 'invariance_deviation_pairs': 0.076,
 'invariance_deviation_labelled': 0.152, 'residual': 0.25, 'label_frequency': 0.137}
>>> round(sum(corollary(sample).values()), 3), round(sum(sharp(sample).values()), 3)
(0.764, 0.639)
>>> certified(sample)
'the labels of the pairs are unknown: pass pair_targets; the corollary needs none'
"""

from __future__ import annotations

import math
from typing import TypeAlias

from sslinfo.information.bound_sample import Sample
from sslinfo.information.bound_terms import label_deviation

Form: TypeAlias = dict[str, float] | str

UNKNOWN_COMPLEXITY = (
    "R_m(F) is unknown: over all networks that could have been trained on the pairs it is not computable"
)
NO_LABELS = "there are no labels"
PAIRS_OF_AN_IMAGE = (
    "the pairs are augmentations of one image: step 3 of the proof needs two independent images of one class"
)


def paper(sample: Sample) -> Form:
    """The paper's informal sum: a number to compare representations by, no certificate.

    I + 2 ||P_S' Y_S'||_F / sqrt m + ||P_S Y_S||_F / sqrt n + 2 R_m(F)/sqrt m + Q. P projects labels off the row space
    of the features. Q = O(sqrt(log(1/delta)/m) + sqrt(log(1/delta)/n)) stands at constant 1, ``confidence_pairs`` and
    ``confidence_labelled``. What labels unrelated to the features would leave stands in for an unknown residual.

    Source: arXiv:2303.00633.
    """
    if sample.complexity is None:
        return UNKNOWN_COMPLEXITY
    log = math.log(1 / sample.delta)
    return {
        "invariance": sample.invariance,
        **{name: 2 * value for name, value in pair_residual_or_stand_in(sample).items()},
        **residual_or_stand_in(sample),
        "invariance_complexity": 2 * sample.complexity / math.sqrt(sample.m),
        "confidence_pairs": math.sqrt(log / sample.m),
        "confidence_labelled": math.sqrt(log / sample.n),
    }


def corollary(sample: Sample) -> Form:
    """The certificate that needs no label of a pair: with probability 1 - delta the risk is at most this sum.

    Three events fail with probability delta/3 each; l = log(3/delta). None of them depends on W: they concern label
    frequencies and distances of features alone, and so hold for the W_S that was fitted to S.

    (2) a_y = E[||W_S f - y|| | y] lies in [0, B']. Let p be the probabilities of the classes and p^ their frequencies
        in S. The risk sum p_y a_y exceeds sum p^_y a_y by (B'/2) ||p - p^||_1 at most, and ||p - p^||_1 is at most
        ``label_deviation``: ``label_frequency``.
    (3) Within a class ||W_S f - y|| changes by s ||f - f'|| at most. So a labelled image has
        a_{y_i} <= ||W_S f(x_i) - y_i|| + s h(x_i), where h(x_i) is the mean of ||f - f(x_i)|| over its class. The mean
        of h over S exceeds I(f) by tau sqrt(l/2n) at most (Hoeffding): s times it is ``invariance_deviation_labelled``.
    (4) I(f) <= I + 2 R_m(F)/sqrt m + tau sqrt(l/2m) (symmetrization, bounded differences): s times them are
        ``invariance``, ``invariance_complexity`` and ``invariance_deviation_pairs``.

    The mean of ||W_S f(x_i) - y_i|| over S remains. It is at most its root mean square (Jensen): ``residual``.

    Source: derived.
    """
    if sample.complexity is None:
        return UNKNOWN_COMPLEXITY
    if sample.fit is None:
        return NO_LABELS
    if sample.pairs_of == "image":
        return PAIRS_OF_AN_IMAGE
    fit = sample.fit
    return {
        **_steps_3_and_4(sample, fit.s, sample.complexity, events=3),
        "residual": fit.residual,
        "label_frequency": fit.B_prime / 2 * label_deviation(sample.classes, sample.n, sample.delta / 3),
    }


def sharp(sample: Sample) -> Form:
    """The corollary without its last step: ``residual`` is the mean of ||W_S f(x_i) - y_i|| over S itself.

    The events are the corollary's, so that both hold at once.

    Source: derived.
    """
    form = corollary(sample)
    if isinstance(form, str):
        return f"there is no corollary: {form}"
    if sample.mean_residual is None:
        return "features are sums: pass mean_residual"
    return form | {"residual": sample.mean_residual}


def best_constant_margin(sample: Sample) -> float:
    """How far the best constant's risk at the class frequencies of S is from that at the classes' probabilities.

    The risk of a constant v is sum p_y ||v - y||, and its terms ||v - y|| differ by sqrt 2 at most, as two one-hot y
    do. So the smallest risk differs by ||p - p^||_1 / sqrt 2 at most, in the event (2) of the corollary.

    Source: derived.
    """
    return label_deviation(sample.classes, sample.n, sample.delta / 3) / math.sqrt(2)


def certified(sample: Sample) -> Form:
    """The certificate of labelled pairs: with probability 1 - delta over S and S' the risk is at most this sum.

    phi = y - W_S' f and D = W_S - W_S'. Five events fail with probability delta/5 each; l = log(5/delta).

    (1) E||W_S f - y|| <= E||D f|| + E||phi||, since W_S f - y = D f - phi.
    (2) a_y = E[||D f|| | y] lies in [0, B]. Let p be the probabilities of the classes and p^ their frequencies in S.
        E||D f|| = sum p_y a_y exceeds sum p^_y a_y by (B/2) ||p - p^||_1 at most, and ||p - p^||_1 is at most
        ``label_deviation``: ``label_frequency``.
    (3) Within a class ||D f|| changes by c ||f - f'|| at most. So a labelled image has
        a_{y_i} <= ||D f(x_i)|| + c h(x_i), where h(x_i) is the mean of ||f - f(x_i)|| over its class. The mean of h
        over S exceeds I(f) by tau sqrt(l/2n) at most (Hoeffding): c times it is ``invariance_deviation_labelled``.
    (4) I(f) <= I + 2 R_m(F)/sqrt m + tau sqrt(l/2m) (symmetrization, bounded differences): c times them are
        ``invariance``, ``invariance_complexity`` and ``invariance_deviation_pairs``.
    (5) The mean of ||D f(x_i)|| over S is at most that of ||W_S f(x_i) - y_i|| plus that of ||phi_i||. The first is at
        most its root mean square (Jensen): ``residual``. The second exceeds E||phi|| by kappa' sqrt(l/2n) at most
        (Hoeffding; W_S' does not depend on S): ``prediction_deviation_labelled``.
    (6) E||phi|| <= ||P_S' Y_S'||_F / sqrt m + 2 R_m(W o F)/sqrt m + kappa sqrt(l/2m) (Jensen, symmetrization, bounded
        differences), provided that ||W_S'||_F <= L, which was fixed beforehand. It counts in (1) and in (5): twice them
        are ``pair_residual``, ``prediction_complexity`` and ``prediction_deviation_pairs``.

    Source: derived.
    """
    if sample.complexity is None:
        return UNKNOWN_COMPLEXITY
    if sample.fit is None:
        return NO_LABELS
    if sample.pairs_of == "image":
        return PAIRS_OF_AN_IMAGE
    pair_fit = sample.pair_fit
    if pair_fit is None or sample.pair_residual is None:
        return "the labels of the pairs are unknown: pass pair_targets; the corollary needs none"
    if sample.weight_norm is not None and pair_fit.pair_weight_norm > sample.weight_norm:
        return (
            f"||W_S'||_F = {pair_fit.pair_weight_norm:.4g} exceeds weight_norm {sample.weight_norm:.4g}, fixed "
            "beforehand: the class of maps does not contain W_S'"
        )
    if pair_fit.prediction_complexity is None:
        return (
            "f is not frozen (complexity > 0) and R_m(W o F) is unknown: pass predictions, "
            "prediction_complexity(weight_norm, radius, num_classes, checkpoints) for instance"
        )
    log = math.log(5 / sample.delta)
    return {
        **_steps_3_and_4(sample, pair_fit.c, sample.complexity, events=5),
        "pair_residual": 2 * sample.pair_residual,
        "residual": sample.fit.residual,
        "label_frequency": pair_fit.B / 2 * label_deviation(sample.classes, sample.n, sample.delta / 5),
        "prediction_complexity": 4 * pair_fit.prediction_complexity / math.sqrt(sample.m),
        "prediction_deviation_pairs": 2 * pair_fit.kappa * math.sqrt(log / (2 * sample.m)),
        "prediction_deviation_labelled": pair_fit.kappa_prime * math.sqrt(log / (2 * sample.n)),
    }


def _steps_3_and_4(sample: Sample, slope: float, complexity: float, events: int) -> dict[str, float]:
    """What a map of that slope may change between two images of one class."""
    log = math.log(events / sample.delta)
    return {
        "invariance": slope * sample.invariance,
        "invariance_complexity": slope * 2 * complexity / math.sqrt(sample.m),
        "invariance_deviation_pairs": slope * sample.tau * math.sqrt(log / (2 * sample.m)),
        "invariance_deviation_labelled": slope * sample.tau * math.sqrt(log / (2 * sample.n)),
    }


def residual_or_stand_in(sample: Sample) -> dict[str, float]:
    """||P_S Y_S||_F / sqrt n, or without labels sqrt(1 - rank/n), under the name that says which."""
    if sample.fit is not None:
        return {"residual": sample.fit.residual}
    return {"residual_stand_in": math.sqrt(1 - sample.rank / sample.n)}


def pair_residual_or_stand_in(sample: Sample) -> dict[str, float]:
    """||P_S' Y_S'||_F / sqrt m, or without labels of the pairs sqrt(1 - rank/m), under the name that says which."""
    if sample.pair_residual is not None:
        return {"pair_residual": sample.pair_residual}
    return {"pair_residual_stand_in": math.sqrt(1 - sample.pair_rank / sample.m)}
