"""The logged quantities, each declared once: the report, the monitor and ``docs/quantities.md`` are made of this list.

A quantity of your own is one more :class:`Specification` in ``QUANTITIES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from sslinfo.information.entropy import gaussian_entropy, logdet_entropy, pairwise_entropy, pairwise_entropy_cap
from sslinfo.information.geometry import alignment, feature_std, lidar, uniformity
from sslinfo.information.labelled import class_share_of_variance, knn_top1
from sslinfo.information.layer import Layer, Needs
from sslinfo.information.matrix_entropy import renyi_ceiling, renyi_entropy
from sslinfo.information.mutual_information import (
    gaussian_mutual_information,
    infonce,
    smoothed_view_information,
    view_information,
)
from sslinfo.information.spectrum import (
    effective_rank,
    hadamard_gap,
    off_diagonal_covariance,
    participation_ratio,
    rank_ceiling,
    rankme,
    spectral_decay,
    stable_rank,
)

Value = float | Tensor


class Ceiling(NamedTuple):
    """The largest value that a quantity can take, in words and as a number."""

    words: str
    of: Callable[[Layer], float]


@dataclass(frozen=True)
class Specification:
    """A quantity: what it is called, what it says, and how it is computed of a layer.

    name: as it is logged.
    function: the estimator that defines it.
    meaning, distrust: what it is, and when not to trust it, a sentence or a part of one each.
    source: a paper, or "derived".
    needs: what it is computed from, which also says whether a layer has it and how many samples are behind it.
    compute: its value, or its value and words for the settings. Where it raises ``UndefinedEstimate`` or is not finite,
        the quantity is absent with that reason.
    unit: "" without one.
    settings: what else its reader needs to know, or a function of the layer that says so.
    ceiling: None without one. It is asked for where there is a value.
    """

    name: str
    function: Callable[..., Any]
    meaning: str
    distrust: str
    source: str
    needs: Needs
    compute: Callable[[Layer], Value | tuple[Value, str]]
    unit: str = ""
    settings: str | Callable[[Layer], str] = ""
    ceiling: Ceiling | None = None


# Settings

ON_UNIT_SPHERE = "rows on the unit sphere"


def _beta(about: str) -> Callable[[Layer], str]:
    return lambda layer: f"beta {layer.scales.beta:g}, {about}"


def _on_sphere(layer: Layer) -> str:
    return f"rows on the sphere of radius sqrt(d), component variance {layer.scales.variance:g} d"


def _near_cap(layer: Layer) -> str:
    return f"{_on_sphere(layer)}; near 0 it says nothing of the data"


def _logdet_proxy(layer: Layer) -> str:
    beta = layer.scales.beta
    return f"proxy: Gaussian views with noise of variance 1/beta, beta {beta:g}, z of mean variance 1"


def _mixture(layer: Layer) -> str:
    return f"lower bound for the empirical mixture, {_on_sphere(layer)}"


def _mixture_total(layer: Layer) -> str:
    return _mixture(layer) if _pairwise_total_top(layer) > 0 else f"{_mixture(layer)}; says nothing at d > 2 log N"


def _views(layer: Layer) -> str:
    return f"{len(layer.views)} views an image, delta 1e-4"


# Values


def _logdet_unit_variance(layer: Layer) -> Tensor:
    return logdet_entropy(layer.first, beta=layer.scales.beta / layer.mean_variance(layer.first))


def _below_cap(layer: Layer, bound: Literal["lower", "upper"]) -> Tensor:
    entropy = layer.pairwise(bound)
    return _pairwise_cap(layer) - entropy


def _decay(layer: Layer) -> tuple[Tensor, str]:
    return layer.decay().exponent, f"eigenvalues 6 to {layer.decay().stop}"


def _gaussian_information(layer: Layer) -> tuple[Tensor, str]:
    value, log_n = layer.gaussian_information(), math.log(layer.n_joint)
    beyond = float(value) > log_n
    return value, f"beyond log N = {log_n:.3g} it rests on the Gaussian assumption" if beyond else ""


def _contrast(layer: Layer) -> tuple[Tensor, str]:
    found = infonce(layer.views[0], layer.views[1], layer.scales.temperature)
    return found.value, "saturated" if found.saturated else "not saturated"


def _labelled_share(layer: Layer) -> tuple[Tensor, str]:
    assert layer.labels is not None
    classes = len(layer.labels[layer.labels >= 0].unique())
    return class_share_of_variance(layer.views[0], layer.labels), f"{classes} classes"


def _neighbours(layer: Layer) -> Tensor:
    assert layer.labels is not None
    return knn_top1(layer.views[0], layer.labels)


# Ceilings


def _logdet_top(n: int, d: int, beta: float) -> float:
    """1/2 logdet(I + beta S) at mean variance 1 is largest for equal eigenvalues, as many as n samples can show."""
    rank = rank_ceiling(n, d)
    return rank / 2 * math.log1p(beta * d / rank)


def _rankme_top(layer: Layer, eps: float = 1e-7) -> float:
    """RankMe of equal singular values: eps is added to each share, so that it is not quite their number."""
    rank = rank_ceiling(layer.n, layer.d, centered=False)
    return math.exp(-(1 + rank * eps) * math.log(1 / rank + eps))


def _pairwise_cap(layer: Layer) -> float:
    return float(pairwise_entropy_cap(layer.rows, layer.d, layer.component))


def _pairwise_total_top(layer: Layer) -> float:
    """Both halves pay for the components' noise: (d/2) log(2 pi e s) + log N against -(d/2) log(2 pi s) - d at most."""
    return math.log(layer.rows) - layer.d / 2


def _logdet_views_top(layer: Layer) -> float:
    return _logdet_top(layer.n_joint, layer.d, layer.scales.beta)


def _noise_entropy(layer: Layer) -> float:
    return layer.d / 2 * math.log(2 * math.pi * math.e / layer.scales.beta)


ONE = Ceiling("1", lambda layer: 1.0)
LOG_N = Ceiling("log N", lambda layer: math.log(layer.rows))
RANK = Ceiling("min(N - 1, d)", lambda layer: rank_ceiling(layer.n, layer.d))
IMAGES_RANK = Ceiling("min(N - 1, d)", lambda layer: rank_ceiling(layer.rows, layer.d))
CAP = Ceiling("d/2 log(2 pi e s2) + log N, s2 the variance of a component", _pairwise_cap)

QUANTITIES: list[Specification] = [
    Specification(
        name="logdet_entropy",
        function=logdet_entropy,
        meaning="1/2 log det(I + beta S): information that Gaussian z keeps under noise of variance 1/beta",
        distrust="across scales of z or values of beta, which move it",
        source="Zhouyin & Liu, arXiv:2105.03705",
        needs=Needs.MOMENTS,
        compute=Layer.logdet,
        unit="nats",
        settings=_beta("z as it is"),
    ),
    Specification(
        name="logdet_entropy_unit_variance",
        function=logdet_entropy,
        meaning="log-det entropy of z divided by one number, which makes its mean variance 1",
        distrust="across values of beta, and across widths",
        source="Zhouyin & Liu, arXiv:2105.03705; ceiling derived",
        needs=Needs.MOMENTS,
        compute=_logdet_unit_variance,
        unit="nats",
        settings=_beta("z of mean variance 1"),
        ceiling=Ceiling(
            "r/2 log(1 + beta d/r), r = min(N - 1, d)",
            lambda layer: _logdet_top(layer.n, layer.d, layer.scales.beta),
        ),
    ),
    Specification(
        name="gaussian_entropy",
        function=gaussian_entropy,
        meaning="entropy of the Gaussian with the covariance of z, which no density of that covariance exceeds",
        distrust="as the entropy of data that is not Gaussian; the bias removed is exact for Gaussian data only",
        source="Cover & Thomas, theorem 8.6.5; bias derived",
        needs=Needs.MOMENTS,
        compute=lambda layer: gaussian_entropy(layer.nonsingular(), debias=True),
        unit="nats",
        settings="finite-sample bias removed",
    ),
    Specification(
        name="pairwise_entropy_lower",
        function=pairwise_entropy,
        meaning="lower bound of the entropy of the mixture of one Gaussian a sample",
        distrust="near its ceiling, where it is a function of N alone; as the entropy of the population",
        source="Kolchinsky & Tracey, arXiv:1706.02419",
        needs=Needs.SAMPLES,
        compute=lambda layer: layer.pairwise("lower"),
        unit="nats",
        settings=_on_sphere,
        ceiling=CAP,
    ),
    Specification(
        name="pairwise_entropy_upper",
        function=pairwise_entropy,
        meaning="upper bound of the entropy of the mixture of one Gaussian a sample",
        distrust="near its ceiling, where it is a function of N alone; as the entropy of the population",
        source="Kolchinsky & Tracey, arXiv:1706.02419",
        needs=Needs.SAMPLES,
        compute=lambda layer: layer.pairwise("upper"),
        unit="nats",
        settings=_on_sphere,
        ceiling=CAP,
    ),
    Specification(
        name="pairwise_entropy_lower_below_cap",
        function=pairwise_entropy_cap,
        meaning="what the lower bound is below its ceiling",
        distrust="near 0, where the bound says nothing of the data and has no gradient",
        source="derived",
        needs=Needs.SAMPLES,
        compute=lambda layer: _below_cap(layer, "lower"),
        unit="nats",
        settings=_near_cap,
        ceiling=LOG_N,
    ),
    Specification(
        name="pairwise_entropy_upper_below_cap",
        function=pairwise_entropy_cap,
        meaning="what the upper bound is below its ceiling",
        distrust="near 0, where the bound says nothing of the data and has no gradient",
        source="derived",
        needs=Needs.SAMPLES,
        compute=lambda layer: _below_cap(layer, "upper"),
        unit="nats",
        settings=_near_cap,
        ceiling=LOG_N,
    ),
    Specification(
        name="von_neumann_entropy",
        function=renyi_entropy,
        meaning="entropy of the eigenvalues of Z^T Z / N of unit vectors",
        distrust="as a differential entropy, which it is not",
        source="Sanchez Giraldo, Rao & Principe, arXiv:1211.2459",
        needs=Needs.SAMPLES,
        compute=lambda layer: renyi_entropy(layer.sphere(0)),
        unit="nats",
        settings=f"uncentred, {ON_UNIT_SPHERE}",
        ceiling=Ceiling("log min(N, d)", lambda layer: renyi_ceiling(layer.rows, layer.d)),
    ),
    Specification(
        name="effective_rank",
        function=effective_rank,
        meaning="number of dimensions in use: exp of the entropy of the covariance's eigenvalues",
        distrust="N below 10 d: white noise of d dimensions reads d exp(-d/2N)",
        source="Roy & Vetterli 2007",
        needs=Needs.MOMENTS,
        compute=lambda layer: effective_rank(layer.first),
        unit="dimensions",
        settings="centred",
        ceiling=RANK,
    ),
    Specification(
        name="rankme",
        function=rankme,
        meaning="number of dimensions in use, from uncentred singular values, as published",
        distrust="after a shift of the mean, which moves it; across methods",
        source="Garrido et al., arXiv:2210.02885",
        needs=Needs.MOMENTS,
        compute=lambda layer: rankme(layer.first),
        unit="dimensions",
        settings="uncentred, eps 1e-7",
        ceiling=Ceiling("min(N, d), but for eps", _rankme_top),
    ),
    Specification(
        name="participation_ratio",
        function=participation_ratio,
        meaning="tr^2 S / tr S^2: K for K equal eigenvalues",
        distrust="N below 10 d: white noise of d dimensions reads d/(1 + d/N)",
        source="Gao et al. 2017",
        needs=Needs.MOMENTS,
        compute=lambda layer: participation_ratio(layer.first),
        unit="dimensions",
        settings="centred",
        ceiling=RANK,
    ),
    Specification(
        name="stable_rank",
        function=stable_rank,
        meaning="all variance over that of the largest direction; also published as NESum",
        distrust="N below 10 d: white noise of d dimensions reads d/(1 + sqrt(d/N))^2",
        source="Rudelson & Vershynin 2007; He & Ozay 2022",
        needs=Needs.MOMENTS,
        compute=lambda layer: stable_rank(layer.first),
        unit="dimensions",
        settings="centred",
        ceiling=RANK,
    ),
    Specification(
        name="spectral_decay",
        function=spectral_decay,
        meaning="a where the eigenvalues fall as i^-a, fitted over i = 6..100 (alpha-ReQ)",
        distrust="`spectral_decay_r2` well below 1: there is no power law",
        source="Agrawal et al., NeurIPS 2022",
        needs=Needs.MOMENTS,
        compute=_decay,
        unit="exponent",
    ),
    Specification(
        name="spectral_decay_r2",
        function=spectral_decay,
        meaning="share of the spread of log eigenvalues that the power law of `spectral_decay` explains",
        distrust="few eigenvalues in the fit",
        source="Agrawal et al., NeurIPS 2022",
        needs=Needs.MOMENTS,
        compute=lambda layer: layer.decay().r2,
        unit="R^2",
        settings="of that fit",
        ceiling=ONE,
    ),
    Specification(
        name="hadamard_gap",
        function=hadamard_gap,
        meaning="sum_j log S_jj - log det S: what the diagonal of the covariance leaves out, 0 if there is no more",
        distrust="N near d: high by sampling",
        source="Hadamard's inequality; arXiv:2303.00633 for its part in VICReg",
        needs=Needs.MOMENTS,
        compute=lambda layer: hadamard_gap(layer.nonsingular()),
        unit="nats",
        settings="0 for a diagonal covariance",
    ),
    Specification(
        name="off_diagonal_covariance",
        function=off_diagonal_covariance,
        meaning="sum of the squared covariances of different features, over d: VICReg's c",
        distrust="across scales of z: it grows with the fourth power of z",
        source="Bardes, Ponce & LeCun, arXiv:2105.04906",
        needs=Needs.MOMENTS,
        compute=lambda layer: off_diagonal_covariance(layer.first),
        settings="VICReg's c: sum of squares / d",
    ),
    Specification(
        name="feature_std",
        function=feature_std,
        meaning="mean standard deviation of the features of unit vectors",
        distrust="as proof of many dimensions: it is blind to dimensional collapse",
        source="Chen & He, arXiv:2011.10566",
        needs=Needs.SAMPLES,
        compute=lambda layer: feature_std(layer.views[0]),
        settings=ON_UNIT_SPHERE,
        ceiling=Ceiling(
            "sqrt(N / ((N - 1) d))", lambda layer: math.sqrt(layer.rows / (max(layer.rows - 1, 1) * layer.d))
        ),
    ),
    Specification(
        name="uniformity",
        function=uniformity,
        meaning="log of the mean of exp(-2 r^2) over pairs of unit vectors; 0 at collapse to a point",
        distrust="across widths: unit vectors spread evenly read -3.08 at d = 8 and near -4 at large d",
        source="Wang & Isola, arXiv:2005.10242",
        needs=Needs.SAMPLES,
        compute=lambda layer: uniformity(layer.views[0], normalize=True),
        settings=f"t 2, {ON_UNIT_SPHERE}",
        ceiling=Ceiling("0", lambda layer: 0.0),
    ),
    Specification(
        name="alignment",
        function=alignment,
        meaning="mean squared distance between the two views of an image, as unit vectors",
        distrust="alone: it is 0 at collapse to a point",
        source="Wang & Isola, arXiv:2005.10242",
        needs=Needs.PAIRS,
        compute=lambda layer: alignment(layer.views[0], layer.views[1], normalize=True),
        settings=ON_UNIT_SPHERE,
    ),
    Specification(
        name="gaussian_mutual_information",
        function=gaussian_mutual_information,
        meaning="information between jointly Gaussian views, from their canonical correlations",
        distrust="above log N, where it states the assumption more than the data; views that are not Gaussian",
        source="Hotelling 1936; bias derived",
        needs=Needs.JOINT_MOMENTS,
        compute=_gaussian_information,
        unit="nats",
        settings="bias removed",
    ),
    Specification(
        name="infonce",
        function=infonce,
        meaning="contrastive lower bound, in expectation, on the information between the views",
        distrust="where the settings say saturated: past 95% of log N",
        source="van den Oord et al., arXiv:1807.03748; Poole et al., arXiv:1905.06922",
        needs=Needs.PAIRS,
        compute=_contrast,
        unit="nats",
        settings=lambda layer: f"temperature {layer.scales.temperature:g}, the first view finds the second",
        ceiling=LOG_N,
    ),
    Specification(
        name="view_logdet_entropy",
        function=smoothed_view_information,
        meaning="H(Z) of the paper's split: Gaussian views with noise of variance 1/beta",
        distrust="as the entropy of data that is not Gaussian: it is an upper bound",
        source="arXiv:2303.00633; noise in both halves derived",
        needs=Needs.JOINT_MOMENTS,
        compute=lambda layer: layer.logdet_views().entropy,
        unit="nats",
        settings=_logdet_proxy,
        ceiling=Ceiling(
            "r/2 log(1 + beta d/r) + d/2 log(2 pi e/beta), r = min(N - 1, d)",
            lambda layer: _logdet_views_top(layer) + _noise_entropy(layer),
        ),
    ),
    Specification(
        name="view_logdet_conditional",
        function=smoothed_view_information,
        meaning="E log q(z|z') of the same split, q the best Gaussian around the other view",
        distrust="alone: it is largest at collapse to a point",
        source="arXiv:2303.00633; noise in both halves derived",
        needs=Needs.JOINT_MOMENTS,
        compute=lambda layer: layer.logdet_views().conditional,
        unit="nats",
        settings=_logdet_proxy,
        ceiling=Ceiling(
            "-d/2 log(4 pi e/beta), views without a difference",
            lambda layer: -_noise_entropy(layer) - layer.d / 2 * math.log(2),
        ),
    ),
    Specification(
        name="view_logdet_total",
        function=smoothed_view_information,
        meaning="H(Z) + E log q(z|z') of the same split, a proxy of the information between the views",
        distrust="as a bound: H(Z) is an upper one, so the sum is none",
        source="arXiv:2303.00633; noise in both halves derived",
        needs=Needs.JOINT_MOMENTS,
        compute=lambda layer: layer.logdet_views().total,
        unit="nats",
        settings=_logdet_proxy,
        ceiling=Ceiling(
            "r/2 log(1 + beta d/r) - d/2 log 2, r = min(N - 1, d)",
            lambda layer: _logdet_views_top(layer) - layer.d / 2 * math.log(2),
        ),
    ),
    Specification(
        name="view_pairwise_entropy",
        function=view_information,
        meaning="H(Z) of the paper's split: a lower bound of the entropy of the mixture of one Gaussian a sample",
        distrust="as the entropy of the population; near the cap of the pairwise entropy",
        source="arXiv:2303.00633; noise in both halves derived",
        needs=Needs.PAIRS,
        compute=lambda layer: layer.pairwise_views().entropy,
        unit="nats",
        settings=_mixture,
    ),
    Specification(
        name="view_pairwise_conditional",
        function=view_information,
        meaning="E log q(z|z') of the same split, q a component around the other view",
        distrust="alone: it is largest at collapse to a point",
        source="arXiv:2303.00633; noise in both halves derived",
        needs=Needs.PAIRS,
        compute=lambda layer: layer.pairwise_views().conditional,
        unit="nats",
        settings=_mixture,
    ),
    Specification(
        name="view_pairwise_total",
        function=view_information,
        meaning="H(Z) + E log q(z|z') of the same split, a lower bound of the information about that mixture",
        distrust="d > 2 log N: the ceiling is below 0 and the bound says nothing",
        source="arXiv:2303.00633; noise in both halves derived",
        needs=Needs.PAIRS,
        compute=lambda layer: layer.pairwise_views().total,
        unit="nats",
        settings=_mixture_total,
        ceiling=Ceiling("log N - d/2", _pairwise_total_top),
    ),
    Specification(
        name="lidar",
        function=lidar,
        meaning="effective rank of the covariance between images in units of that between their views",
        distrust="pure noise reads near d",
        source="Thilak et al., arXiv:2312.04000",
        needs=Needs.THREE_VIEWS,
        compute=lambda layer: lidar(layer.images()),
        unit="dimensions",
        settings=lambda layer: f"{_views(layer)}, raw",
        ceiling=IMAGES_RANK,
    ),
    Specification(
        name="lidar_debiased",
        function=lidar,
        meaning="LiDAR without the noise that the mean of an image's views carries",
        distrust="few views an image",
        source="Thilak et al., arXiv:2312.04000; de-biased form derived",
        needs=Needs.THREE_VIEWS,
        compute=lambda layer: lidar(layer.images(), debias=True),
        unit="dimensions",
        settings=_views,
        ceiling=IMAGES_RANK,
    ),
    Specification(
        name="class_share_of_variance",
        function=class_share_of_variance,
        meaning="share of the variance that lies between the classes' means",
        distrust="few samples a class: without any difference it reads (classes - 1)/(N - 1)",
        source="Fisher 1925 (correlation ratio)",
        needs=Needs.LABELS,
        compute=_labelled_share,
        unit="share",
        ceiling=ONE,
    ),
    Specification(
        name="knn_top1",
        function=knn_top1,
        meaning="share of samples whose class their nearest neighbours name, each sample left out in turn",
        distrust="few samples a class; classes of very unequal size",
        source="Wu et al., arXiv:1805.01978",
        needs=Needs.LABELS,
        compute=_neighbours,
        unit="accuracy",
        settings="leave-one-out, k 20, temperature 0.07",
        ceiling=ONE,
    ),
]
