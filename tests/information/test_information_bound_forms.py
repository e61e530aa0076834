"""Each form of the bound by itself, from a sample whose numbers make every contribution easy to work out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from sslinfo.information.bound_forms import best_constant_margin, certified, corollary, paper, sharp
from sslinfo.information.bound_sample import Fit, PairFit, Sample

# sqrt n = 2 and sqrt m = 4. With l = 2, sqrt(l/2n) = 1/2 and sqrt(l/2m) = 1/4.
SAMPLE = Sample(
    delta=math.exp(-1),
    radius=1.0,
    treatment="clip",
    pairs_of="class",
    complexity=2.0,
    weight_norm=6.0,
    n=4,
    m=16,
    d=8,
    classes=2,
    invariance=0.5,
    rank=3,
    pair_rank=7,
    fit=Fit(residual=0.6, s=3.0, B_prime=4.0),
    mean_residual=0.4,
    pair_residual=0.3,
    pair_fit=PairFit(c=2.0, pair_weight_norm=5.0, B=1.0, kappa=7.0, kappa_prime=3.0, prediction_complexity=1.5),
    best_constant=0.7,
)
LOG3, LOG5 = replace(SAMPLE, delta=3 * math.exp(-2)), replace(SAMPLE, delta=5 * math.exp(-2))  # log(events/delta) = 2
FREQUENCY = math.sqrt((math.log(2) + 2) / 2)  # sqrt(2 (log(2^K - 2) + 2)/n): 2^K - 2 is 2 for two classes


def of_pairs(sample: Sample, **values: Any) -> Sample:
    assert sample.pair_fit is not None
    return replace(sample, pair_fit=replace(sample.pair_fit, **values))


def test_paper_by_hand() -> None:
    expected = {
        "invariance": 0.5,
        "pair_residual": 0.6,  # twice
        "residual": 0.6,
        "invariance_complexity": 1.0,  # 2 * 2 / 4
        "confidence_pairs": 0.25,  # log(1/delta) = 1
        "confidence_labelled": 0.5,
    }
    assert paper(SAMPLE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("absent", "expected"),
    [
        ({"fit": None}, {"residual_stand_in": 0.5, "pair_residual": 0.6}),
        ({"pair_residual": None}, {"residual": 0.6, "pair_residual_stand_in": 1.5}),
        ({"fit": None, "pair_residual": None}, {"residual_stand_in": 0.5, "pair_residual_stand_in": 1.5}),
    ],
)
def test_paper_without_labels_by_hand(absent: dict[str, Any], expected: dict[str, float]) -> None:
    """Ranks 3 of 4 and 7 of 16 leave sqrt(1/4) and sqrt(9/16); one side may have labels without the other."""
    parts = paper(replace(SAMPLE, pair_fit=None, **absent))
    others = {"invariance": 0.5, "invariance_complexity": 1, "confidence_pairs": 0.25, "confidence_labelled": 0.5}
    assert parts == pytest.approx(others | expected, rel=1e-12)


COROLLARY = {
    "invariance": 1.5,  # 3 * .5
    "invariance_complexity": 3.0,  # 3 * 2 * 2 / 4
    "invariance_deviation_pairs": 1.5,  # 3 * 2 * 1/4, tau = 2
    "invariance_deviation_labelled": 3.0,  # 3 * 2 * 1/2
    "residual": 0.6,
    "label_frequency": 2 * FREQUENCY,  # 4 / 2
}


def test_corollary_by_hand() -> None:
    assert corollary(LOG3) == pytest.approx(COROLLARY, rel=1e-12)


def test_sharp_by_hand() -> None:
    assert sharp(LOG3) == pytest.approx({**COROLLARY, "residual": 0.4}, rel=1e-12)


def test_certified_by_hand() -> None:
    expected = {
        "invariance": 1.0,  # 2 * .5
        "invariance_complexity": 2.0,  # 2 * 2 * 2 / 4
        "invariance_deviation_pairs": 1.0,  # 2 * 2 * 1/4
        "invariance_deviation_labelled": 2.0,  # 2 * 2 * 1/2
        "pair_residual": 0.6,  # twice
        "residual": 0.6,
        "label_frequency": FREQUENCY / 2,  # B = 1
        "prediction_complexity": 1.5,  # 4 * 1.5 / 4
        "prediction_deviation_pairs": 3.5,  # 2 * 7 * 1/4
        "prediction_deviation_labelled": 1.5,  # 3 * 1/2
    }
    assert certified(LOG5) == pytest.approx(expected, rel=1e-12)


def test_the_margin_by_hand() -> None:
    assert best_constant_margin(LOG3) == pytest.approx(FREQUENCY / math.sqrt(2), rel=1e-12)


def test_tau_is_the_diameter_of_the_ball_or_of_the_simplex() -> None:
    """Opposite points 2 R apart; corners (R, 0) and (0, R)."""
    assert replace(SAMPLE, radius=1.5).tau == replace(SAMPLE, radius=1.5, treatment="normalize").tau == 3.0
    on_simplex = replace(LOG3, radius=1.5, treatment="simplex")
    assert on_simplex.tau == pytest.approx(math.dist((1.5, 0), (0, 1.5)), rel=1e-15)
    parts = corollary(on_simplex)
    assert isinstance(parts, dict)
    assert parts["invariance_deviation_pairs"] == pytest.approx(3 * 1.5 * math.sqrt(2) / 4, rel=1e-12)


UNKNOWN, NO_LABELS, ONE_IMAGE = "R_m(F) is unknown", "there are no labels", "step 3 of the proof"
WITHOUT_LABELS = {"classes": 0, "fit": None, "mean_residual": None, "pair_fit": None, "best_constant": None}
WITHOUT_PAIR_LABELS = {"pair_residual": None, "pair_fit": None}
CERTIFICATES = ("corollary", "sharp", "certified")


@pytest.mark.parametrize(
    ("change", "absent"),
    [
        ({}, {}),
        ({"complexity": None}, dict.fromkeys(("paper", *CERTIFICATES), UNKNOWN)),
        (WITHOUT_LABELS, dict.fromkeys(CERTIFICATES, NO_LABELS)),
        ({"pairs_of": "image"}, dict.fromkeys(CERTIFICATES, ONE_IMAGE)),
        ({"mean_residual": None}, {"sharp": "features are sums: pass mean_residual"}),
        (WITHOUT_PAIR_LABELS, {"certified": "the labels of the pairs are unknown: pass pair_targets"}),
        ({"weight_norm": 4.99}, {"certified": "||W_S'||_F = 5 exceeds weight_norm 4.99"}),
        ({"weight_norm": 5.0}, {}),
        # The first of several reasons.
        ({**WITHOUT_LABELS, "pairs_of": "image", "complexity": None}, dict.fromkeys(("paper", *CERTIFICATES), UNKNOWN)),
        ({**WITHOUT_LABELS, "pairs_of": "image"}, dict.fromkeys(CERTIFICATES, NO_LABELS)),
        ({**WITHOUT_PAIR_LABELS, "pairs_of": "image"}, dict.fromkeys(CERTIFICATES, ONE_IMAGE)),
    ],
)
def test_a_form_says_why_it_is_absent(change: dict[str, Any], absent: dict[str, str]) -> None:
    for form in (paper, corollary, sharp, certified):
        found = form(replace(SAMPLE, **change))
        assert isinstance(found, str) == (form.__name__ in absent), form
        if isinstance(found, str):
            assert absent[form.__name__] in found


def test_certified_needs_the_complexity_of_predictions() -> None:
    sample = of_pairs(SAMPLE, prediction_complexity=None)
    found = certified(sample)
    assert isinstance(found, str)
    assert "R_m(W o F) is unknown: pass predictions" in found
    assert isinstance(corollary(sample), dict)
    # A norm that is too large comes first: no complexity mends it.
    found = certified(of_pairs(sample, pair_weight_norm=6.5))
    assert isinstance(found, str)
    assert "||W_S'||_F = 6.5 exceeds weight_norm 6" in found
