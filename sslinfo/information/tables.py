"""The page docs/quantities.md, made of the lists of quantities and estimators.

``python -m sslinfo.information.tables > docs/quantities.md`` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sslinfo import information as info
from sslinfo.information.quantities import QUANTITIES

PAGE = """\
# Quantities

This page is written by `python -m sslinfo.information.tables > docs/quantities.md`, from the lists in
[quantities.py](../sslinfo/information/quantities.py) and [tables.py](../sslinfo/information/tables.py). A function's
name leads to its source. [Extending](extending.md#a-new-quantity) says how to add a quantity.

Throughout, z has the shape (N, d): N samples in d dimensions. S is its covariance, with divisor N - 1. Logarithms are
natural, and information is in nats. Numbers are computed in float64.

## What is logged

`sslinfo.report` gives these numbers for arrays of one view or two. `InformationMonitor` logs them while a network
trains, as `train_info/<layer>/<name>` and `info/<layer>/<name>`. Those that need labels are in a report alone, and
those that need three views in the monitor alone. Each number comes with its N and d, its unit, its ceiling, and
what it was computed at. A ceiling is the largest value that a number can take: read the two side by side. A number
that does not exist at this N and d is absent, and the reason stands in its place.

{logged}

Ranks and entropies compare runs of one method. They select no model across methods: a high value is necessary, not
sufficient. A number that moves with the width or with the batch size is not a property of the data.

## The estimators

All are functions of `sslinfo.information`. Bad input is a `ValueError` that says the way out. A quantity that does not
exist at this N and d raises `UndefinedEstimate`. `Moments` merge exactly over batches and ranks. Nothing non-linear is
ever averaged over either.

{estimators}

These functions serve the others:

{helpers}
"""


class Estimator(NamedTuple):
    """Functions of one row: what they are, which side they bound, and when not to trust them."""

    functions: tuple[Callable[..., Any], ...]
    meaning: str
    bounds: str
    distrust: str


ESTIMATORS = [
    Estimator(
        (info.gaussian_entropy,),
        "entropy of a Gaussian with the covariance of z",
        "above: no density of that covariance has more",
        "N near d: tens of nats too low; `debias=True` corrects Gaussian data exactly",
    ),
    Estimator(
        (info.logdet_entropy,),
        "information that Gaussian z keeps under noise of variance 1/beta",
        "none across scales",
        "without its beta and the scale of z",
    ),
    Estimator(
        (info.pairwise_entropy,),
        "entropy of the mixture of one Gaussian a sample",
        "both sides, of that mixture, not of the population",
        "near `pairwise_entropy_cap`, where it is a function of N alone and has no gradient",
    ),
    Estimator(
        (info.vmf_entropy,),
        "von Mises-Fisher kernel estimate on the sphere",
        "none; biased low (`leave_one_out`: high)",
        "without its concentration",
    ),
    Estimator(
        (info.renyi_entropy,),
        "entropy of the eigenvalues of the kernel matrix",
        "at most log min(N, d), with a bandwidth log N; not a differential entropy",
        "with a bandwidth, which sets the answer",
    ),
    Estimator(
        (info.knn_entropy,),
        "Kozachenko-Leonenko estimate from neighbour distances",
        "none; few assumptions",
        "d above 8; refused above 10",
    ),
    Estimator(
        (info.gaussian_mutual_information,),
        "information between jointly Gaussian views",
        "none unless they are Gaussian",
        "beyond log N, where it states its assumption",
    ),
    Estimator(
        (info.infonce,),
        "contrastive estimate of the views' information",
        "below, in expectation, at most log N",
        "when `saturated`: past 95% of log N",
    ),
    Estimator(
        (info.view_information,),
        "the paper's H(Z) + E log q(z|z')",
        "below, only where `is_bound`, about the empirical mixture, at most log N - d/2 there",
        "otherwise a proxy; with a Gaussian entropy it runs to infinity as the views coincide",
    ),
    Estimator(
        (info.smoothed_view_information,),
        "the same with noise of variance 1/beta in both halves",
        "none: a proxy, finite as the views coincide",
        "without its beta; as a bound",
    ),
    Estimator(
        (info.covariance_spectrum,),
        "eigenvalues of the covariance, largest first",
        "none",
        "N near d spreads them: Marchenko-Pastur",
    ),
    Estimator(
        (info.effective_rank, info.participation_ratio, info.stable_rank),
        "how many dimensions are in use, by three norms of the spectrum",
        "at most `rank_ceiling`, min(N - 1, d)",
        "N below 10 d: white noise already reads less than d",
    ),
    Estimator(
        (info.rankme,),
        "the same from uncentred singular values, as published",
        "at most min(N, d)",
        "after a shift of the mean; across methods",
    ),
    Estimator(
        (info.spectral_decay,),
        "exponent of the spectrum's power law",
        "none",
        "R^2 well below 1",
    ),
    Estimator(
        (info.hadamard_gap,),
        "what the diagonal of the covariance leaves out of its log-determinant",
        "at least 0, which is a diagonal covariance",
        "N near d: high by sampling",
    ),
    Estimator(
        (info.off_diagonal_covariance,),
        "VICReg's penalty c on the covariances of different features",
        "at least 0, which is a diagonal covariance",
        "across scales of z",
    ),
    Estimator(
        (info.alignment, info.uniformity),
        "mean squared distance of views; log mean Gaussian potential",
        "none",
        "across scales, unless normalised",
    ),
    Estimator(
        (info.feature_std,),
        "mean standard deviation of unit vectors",
        "1/sqrt(d) where spread evenly",
        "blind to dimensional collapse",
    ),
    Estimator(
        (info.lidar,),
        "effective rank between images relative to that between their views",
        "at most min(n - 1, d) of n images",
        "raw, pure noise reads d; two views are too few",
    ),
    Estimator(
        (info.class_share_of_variance, info.knn_top1),
        "how far classes lie apart; whether an image's nearest neighbours name its class",
        "from 0 to 1",
        "few samples a class",
    ),
    Estimator(
        (info.normality,),
        "D'Agostino-Pearson test of each dimension",
        "none; a p-value with effect sizes",
        "the p-value alone: its power is a matter of N",
    ),
    Estimator(
        (info.epps_pulley,),
        "distance to a standard normal on random slices",
        "1.05 on average under it",
        "data that is not standardised",
    ),
    Estimator(
        (info.local_affine, info.local_gaussian_entropy),
        "the network's affine map at x, and the entropy of Gaussian noise through it",
        "exact within one affine piece",
        "a nat off where `affine_residual` nears 0.6",
    ),
    Estimator(
        (info.affine_residual,),
        "how far the network is from that map at noise sigma",
        "at least 0, which is one piece",
        "float32 networks at tiny sigma, where it reads rounding",
    ),
    Estimator(
        (info.noise_normality,),
        "p-value of the output under input noise, against sigma",
        "none",
        "features that are constant under the noise (`constant_share`)",
    ),
    Estimator(
        (info.generalization_bound,),
        "risk of least squares on a representation, from labelled images and pairs that share a label",
        "above, with probability 1 - delta, if `certified` or `corollary` exists",
        "vacuous at or above `best_constant`; pairs of one image, or a network trained on the pairs",
    ),
]

HELPERS: list[tuple[Callable[..., Any], str]] = [
    (info.gaussian_logdet_bias, "exact bias of 1/2 log det S for Gaussian data"),
    (info.pairwise_entropy_cap, "largest value of the pairwise entropy at this N, d and variance"),
    (info.renyi_ceiling, "largest value of the matrix-based entropy with the linear kernel"),
    (info.rank_ceiling, "largest rank that N samples in d dimensions can show"),
    (info.vmf_log_normalizer, "log C_d(k) of the von Mises-Fisher density"),
    (info.benjamini_hochberg, "which of many p-values are rejected at a false discovery rate"),
    (info.within_radius, "features brought within the radius that the bound assumes"),
    (info.checkpoint_complexity, "R_m(F) of a choice among fixed checkpoints"),
    (info.prediction_complexity, "R_m(W o F) of linear maps on a fixed representation"),
    (info.best_constant, "risk of the best constant prediction, at or above which a bound says nothing"),
]


def logged() -> str:
    """The table of the logged quantities.

    >>> logged().splitlines()[2].split(" | ")[0]
    '| `logdet_entropy`'
    """
    rows = [
        (
            f"`{q.name}`",
            _link(q.function),
            q.meaning,
            q.unit,
            q.needs.value,
            "" if q.ceiling is None else q.ceiling.words,
            q.distrust,
            re.sub(r"arXiv:(\d+\.\d+)", r"[\g<0>](https://arxiv.org/abs/\1)", q.source),
        )
        for q in QUANTITIES
    ]
    return _table(
        ("name", "function", "what it is", "unit", "needs", "ceiling", "when not to trust it", "source"), rows
    )


def estimators() -> str:
    """The table of the estimators."""
    rows = [(", ".join(map(_link, e.functions)), e.meaning, e.bounds, e.distrust) for e in ESTIMATORS]
    return _table(("function", "what it is", "which side it bounds", "when not to trust it"), rows)


def page() -> str:
    """All of docs/quantities.md."""
    helpers = _table(("function", "what it is"), [(_link(function), meaning) for function, meaning in HELPERS])
    return PAGE.format(logged=logged(), estimators=estimators(), helpers=helpers)


def _link(function: Callable[..., Any]) -> str:
    """The function's name, with a link to its source where that is in the package."""
    package, *rest = function.__module__.split(".")
    name = f"`{function.__name__}`"
    return f"[{name}](../{'/'.join([package, *rest])}.py)" if package == "sslinfo" else name


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    print(page(), end="")
