"""Everything that can be said of a representation, by name, each number with what it needs to be read."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sslinfo.information.checks import UndefinedEstimate, labels_of, paired, samples
from sslinfo.information.cholesky import cholesky_and_trace_of_inverse
from sslinfo.information.entropy import gaussian_entropy, logdet_entropy, pairwise_entropy, pairwise_entropy_cap
from sslinfo.information.geometry import alignment, feature_std, lidar, uniformity
from sslinfo.information.matrix_entropy import renyi_ceiling, renyi_entropy
from sslinfo.information.moments import Moments
from sslinfo.information.mutual_information import (
    gaussian_mutual_information,
    infonce,
    smoothed_view_information,
    view_information,
)
from sslinfo.information.spectrum import (
    SpectralDecay,
    covariance_spectrum,
    effective_rank,
    hadamard_gap,
    participation_ratio,
    rank_ceiling,
    rankme,
    spectral_decay,
    stable_rank,
)
from sslinfo.precision import full_precision


class Quantity(NamedTuple):
    """A number, the largest value that it could take (None without one), its unit, and what it was computed with."""

    value: float
    ceiling: float | None
    unit: str
    n: int
    d: int
    settings: str


@dataclass
class Report(Mapping[str, Quantity]):
    """Quantities by name, and the reasons for those that do not exist; prints as a table."""

    quantities: dict[str, Quantity] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    precision: str = ""

    def __getitem__(self, name: str) -> Quantity:
        if name in self.reasons:
            raise KeyError(f"{name}: {self.reasons[name]}")
        return self.quantities[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.quantities)

    def __len__(self) -> int:
        return len(self.quantities)

    def rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """(name, value, ceiling, unit, N x d, settings or the reason) of all quantities, as text."""
        rows = [
            (name, f"{q.value:.4g}", _text(q.ceiling), q.unit, f"{q.n} x {q.d}", q.settings)
            for name, q in self.quantities.items()
        ]
        return rows + [(name, "-", "", "", "", f"undefined: {reason}") for name, reason in self.reasons.items()]

    def __str__(self) -> str:
        rows = [("quantity", "value", "ceiling", "unit", "N x d", "settings"), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [self.precision] if self.precision else []
        for row in rows:
            cells = [
                cell.rjust(w) if 0 < i < 3 else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row[:5], widths, strict=True))
            ]
            lines.append("  ".join([*cells, row[5]]).rstrip())
        return "\n".join(lines)


class Scales(NamedTuple):
    """What the numbers of a report are taken at.

    beta: of the log-det entropy. variance: s2 / d of the pairwise entropy, s2 the variance of a component with rows on
    the sphere of radius sqrt(d). temperature: of InfoNCE's cosine critic.
    """

    beta: float = 1.0
    variance: float = 0.1
    temperature: float = 0.1


DEFAULT_SCALES = Scales()


def measure(
    views: Sequence[Tensor], moments: Moments | None = None, scales: Scales = DEFAULT_SCALES, window: int = 1
) -> Report:
    """All quantities of one layer.

    What needs second moments alone takes them from ``moments``, which may be of many more samples; what needs pairs of
    samples takes the views. Marginal quantities are of the first view, information is between the first two, and three
    or more are needed for LiDAR.

    Args:
        views: (N, d) each, one or more.
        moments: ``Moments.of(views[0])``, or joint ``Moments.of(views[0], views[1])``; without them the views serve.
        scales: beta, variance and temperature.
        window: training steps that the moments are of, named in the settings where more than one.

    Returns:
        The quantities by name; one that does not exist at this N and d is among the reasons instead.
    """
    dtype = str(views[0].dtype).removeprefix("torch.")
    eps = min(torch.finfo(views[0].dtype).eps, torch.finfo(torch.float32).eps)  # coarser samples are taken as they are
    report = Report(precision=f"samples in {dtype}, computed in float64")
    beta, variance, temperature = scales
    z1 = views[0]
    first: Tensor | Moments = z1 if moments is None else moments.view(0)
    joint = moments if moments is not None and len(moments.sizes) > 1 else None
    pair: tuple[Any, ...] = tuple(views[:2]) if joint is None else (joint,)
    few, d = z1.shape
    n = few if moments is None else moments.n
    ceiling = rank_ceiling(n, d)
    sphere = F.normalize(z1.double(), dim=1) * math.sqrt(d)
    component = variance * d
    on_sphere = f"rows on the sphere of radius sqrt(d), component variance {variance:g} d"
    both = few if joint is None else n
    steps = f", window of {window} steps" if window > 1 else ""

    def add(
        name: str,
        compute: Callable[[], float | Tensor],
        unit: str = "",
        settings: str = "",
        ceiling: float | None = None,
        count: int = n,
    ) -> None:
        try:
            value = float(compute())
        except UndefinedEstimate as error:
            report.reasons[name] = str(error)
            return
        if math.isfinite(value):
            about = settings + (steps if count == n else "")
            report.quantities[name] = Quantity(value, ceiling, unit, count, d, about)
        else:
            report.reasons[name] = f"{value} at N={count}, d={d}: a covariance is singular, or the views coincide"

    @functools.cache
    def mean_variance(of: Tensor | Moments) -> float:
        wide = of.double() if isinstance(of, Tensor) else of
        spread = wide.var(0) if isinstance(wide, Tensor) else wide.covariance().diagonal()
        mean = wide.mean(0) if isinstance(wide, Tensor) else wide.mean
        if float(spread.mean()) <= (64 * eps * float(mean.abs().max())) ** 2:
            count = len(wide) if isinstance(wide, Tensor) else wide.n
            raise UndefinedEstimate(f"all {count} samples are one point: there is no variance to divide by")
        return float(spread.mean())

    def above_rounding() -> Tensor:
        """Which eigenvalues are more than the samples' rounding makes, or, of float64 ones, the covariance's."""
        values = covariance_spectrum(first)
        mean = first.double().mean(0) if isinstance(first, Tensor) else first.mean
        size = max(float(values[0]), float(mean.square().max()))
        return values > d * max(eps**2 * size, torch.finfo(torch.float64).eps * float(values[0]))

    def nonsingular(compute: Callable[[], Tensor]) -> Tensor:
        if n > d and not bool(above_rounding()[-1]):
            raise UndefinedEstimate(f"the covariance is singular to {dtype}'s rounding at N={n}, d={d}")
        return compute()

    def mutual_information() -> Tensor:
        # Directions without variance are left out, and in float64 they are told from others.
        if views[0].dtype != torch.float64 and both > 2 * d:
            wide = Moments.of(z1) if isinstance(first, Tensor) else first
            covariance = wide.covariance()
            deviation = covariance.diagonal().clamp_min(1e-300).sqrt()
            noise = eps * float(((wide.mean.abs() + deviation) / deviation).max())
            correlation = covariance / torch.outer(deviation, deviation)
            floor = d * (8 * noise) ** 2
            clear = cholesky_and_trace_of_inverse(correlation)[1] * floor < 1
            if not clear and float(torch.linalg.eigvalsh(correlation)[0]) <= floor:
                raise UndefinedEstimate(f"the covariance is singular to {dtype}'s rounding at N={both}, d={d}")
        return gaussian_mutual_information(*pair)

    fitted: list[str] = []

    def decay() -> SpectralDecay:
        kept = min(100, int(above_rounding().sum()))
        if kept < 8:
            raise UndefinedEstimate(
                f"spectral_decay needs 3 eigenvalues in 6..100, and {kept} are above {dtype}'s rounding at N={n}, d={d}"
            )
        fitted.append(f"eigenvalues 6 to {kept}")
        return spectral_decay(first, stop=kept)

    def unit_variance() -> Tensor:
        return logdet_entropy(first, beta=beta / mean_variance(first))

    def say(name: str, *words: str) -> None:
        """Add to the settings of a quantity what its computation showed."""
        if name in report.quantities:
            q = report.quantities[name]
            report.quantities[name] = q._replace(settings=", ".join(filter(None, (q.settings, *words))))

    def below_cap(bound: Literal["lower", "upper"]) -> Tensor:
        return pairwise_entropy_cap(few, d, component) - pairwise_entropy(sphere, component, bound)

    add("logdet_entropy", lambda: logdet_entropy(first, beta=beta), "nats", f"beta {beta:g}, z as it is")
    add("logdet_entropy_unit_variance", unit_variance, "nats", f"beta {beta:g}, z of mean variance 1")
    add(
        "gaussian_entropy",
        lambda: nonsingular(lambda: gaussian_entropy(first, debias=True)),
        "nats",
        "finite-sample bias removed",
    )
    cap = float(pairwise_entropy_cap(few, d, component)) if few else None
    add("pairwise_entropy_lower", lambda: pairwise_entropy(sphere, component, "lower"), "nats", on_sphere, cap, few)
    add("pairwise_entropy_upper", lambda: pairwise_entropy(sphere, component, "upper"), "nats", on_sphere, cap, few)
    for bound in get_args(Literal["lower", "upper"]):
        add(
            f"pairwise_entropy_{bound}_below_cap",
            lambda bound=bound: below_cap(bound),  # type: ignore[misc]
            "nats",
            f"{on_sphere}; near 0 it says nothing of the data",
            math.log(max(few, 1)),
            few,
        )
    add(
        "von_neumann_entropy",
        lambda: renyi_entropy(sphere),
        "nats",
        "uncentred, rows on the unit sphere",
        renyi_ceiling(max(few, 1), d),
        few,
    )

    add("effective_rank", lambda: effective_rank(first), "dimensions", "centred", ceiling)
    add("rankme", lambda: rankme(first), "dimensions", "uncentred, eps 1e-7", _rankme_ceiling(min(n, d)))
    add("participation_ratio", lambda: participation_ratio(first), "dimensions", "centred", ceiling)
    add("stable_rank", lambda: stable_rank(first), "dimensions", "centred", ceiling)
    add("spectral_decay", lambda: decay().exponent, "exponent")
    say("spectral_decay", *fitted[:1])
    add("spectral_decay_r2", lambda: decay().r2, "R^2", "of that fit", 1.0)
    add("hadamard_gap", lambda: nonsingular(lambda: hadamard_gap(first)), "nats", "0 for a diagonal covariance")
    add("off_diagonal_covariance", lambda: _off_diagonal(first), "", "VICReg's c: sum of squares / d")
    add(
        "feature_std",
        lambda: feature_std(z1),
        "",
        "rows on the unit sphere",
        math.sqrt(few / (max(few - 1, 1) * d)),
        few,
    )
    add("uniformity", lambda: uniformity(z1, normalize=True), "", "t 2, rows on the unit sphere", 0.0, few)

    if len(views) > 1:
        z2 = views[1]
        other = F.normalize(z2.double(), dim=1) * math.sqrt(d)
        add("alignment", lambda: alignment(z1, z2, normalize=True), "", "rows on the unit sphere", None, few)
        add(
            "gaussian_mutual_information",
            mutual_information,
            "nats",
            "bias removed",
            None,
            both,
        )
        contrast: list[str] = []

        def infonce_value() -> Tensor:
            result = infonce(z1, z2, temperature)
            contrast.append("saturated" if result.saturated else "not saturated")
            return result.value

        add("infonce", infonce_value, "nats", f"temperature {temperature:g}", math.log(max(few, 1)), few)
        say("infonce", *contrast)
        information = report.quantities.get("gaussian_mutual_information")
        if information is not None and information.value > math.log(both):
            say(
                "gaussian_mutual_information",
                f"beyond log N = {math.log(both):.3g} it rests on the Gaussian assumption",
            )
        second = pair[1] if len(pair) > 1 else None
        own = z1 if joint is None else joint.view(0)
        logdet = functools.cache(lambda: smoothed_view_information(pair[0], second, beta / mean_variance(own)))
        kernel = functools.cache(lambda: view_information(sphere, other, "pairwise", variance=component))
        proxy = f"proxy: Gaussian views with noise of variance 1/beta, beta {beta:g}, z of mean variance 1"
        bound = f"lower bound for the empirical mixture, {on_sphere}"
        add("view_logdet_entropy", lambda: logdet().entropy, "nats", proxy, None, both)
        add("view_logdet_conditional", lambda: logdet().conditional, "nats", proxy, None, both)
        add("view_logdet_total", lambda: logdet().total, "nats", proxy, None, both)
        add("view_pairwise_entropy", lambda: kernel().entropy, "nats", bound, None, few)
        add("view_pairwise_conditional", lambda: kernel().conditional, "nats", bound, None, few)
        # Both halves pay for the components' noise: (d/2) log(2 pi e s) + log N against -(d/2) log(2 pi s) - d at most.
        top = math.log(max(few, 1)) - d / 2
        about = bound if top > 0 else f"{bound}; says nothing at d > 2 log N"
        add("view_pairwise_total", lambda: kernel().total, "nats", about, top, few)
    if len(views) > 2:
        images = torch.stack(list(views), dim=1)
        about, top = f"{len(views)} views an image, delta 1e-4", rank_ceiling(few, d)
        add("lidar", lambda: lidar(images), "dimensions", f"{about}, raw", top, few)
        add("lidar_debiased", lambda: lidar(images, debias=True), "dimensions", about, top, few)
    return report


@torch.no_grad()
def report(z1: Tensor, z2: Tensor | None = None, labels: Tensor | None = None) -> Report:
    """All diagnostics of representations given as arrays.

    Args:
        z1: (N, d) representations, a tensor or an array.
        z2: (N, d) those of a second view of the same images: adds the information between views.
        labels: (N,) integer classes, negative where unknown: adds the share of the variance between classes and
            leave-one-out k-NN accuracy.

    Returns:
        A mapping from names to :class:`Quantity`, with the reasons for what does not exist; ``print`` shows a table.

    Raises:
        ValueError: NaN, infinity, wrong or mismatched shapes, integer samples.
    Source: each estimator's own, see ``sslinfo.information``.

    >>> z = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    >>> found = report(z, z + 0.1 * torch.randn(500, 8, generator=torch.Generator().manual_seed(1)))
    >>> round(found["effective_rank"].value, 1), found["effective_rank"].ceiling
    (7.9, 8)
    """
    z1 = torch.as_tensor(z1)
    z2 = None if z2 is None else torch.as_tensor(z2)
    labels = None if labels is None else torch.as_tensor(labels)
    if z2 is None:
        samples(z1, torch.float64)
        found = measure([z1], Moments.of(z1))
    else:
        paired(z1, z2, torch.float64)
        found = measure([z1, z2], Moments.of(z1, z2))
    if labels is not None:
        _add_labels(found, z1.double(), labels_of(labels, len(z1)))
    return found


def _rankme_ceiling(rank: int, eps: float = 1e-7) -> float:
    """RankMe of ``rank`` equal singular values: eps is added to each share, so that it is not quite their number."""
    return math.exp(-(1 + rank * eps) * math.log(1 / rank + eps)) if rank else 0.0


def _text(ceiling: float | None) -> str:
    return "" if ceiling is None else f"{ceiling:.4g}"


def _off_diagonal(z: Tensor | Moments) -> Tensor:
    if isinstance(z, Tensor):
        centred = samples(z, torch.float64) - z.double().mean(0)
        gram = (centred @ centred.T if len(z) < z.shape[1] else centred.T @ centred) / (len(z) - 1)
        return (gram.square().sum() - centred.var(0).square().sum()) / z.shape[1]
    covariance = z.covariance()
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.d


def _add_labels(found: Report, z: Tensor, labels: Tensor) -> None:
    known = labels >= 0
    z, labels = z[known], labels[known]
    n, d = z.shape
    classes, members = labels.unique(return_inverse=True)
    if len(classes) < 2 or n < 3:
        reason = f"{n} labelled samples of {len(classes)} classes: two classes and three samples are needed"
        found.reasons.update({"class_share_of_variance": reason, "knn_top1": reason})
        return
    means = torch.stack([z[members == label].mean(0) for label in range(len(classes))])
    total = (z - z.mean(0)).square().sum()
    between = (means[members] - z.mean(0)).square().sum()
    about = f"{len(classes)} classes"
    if float(total) <= n * d * (64 * torch.finfo(z.dtype).eps * float(z.abs().max())) ** 2:
        found.reasons["class_share_of_variance"] = f"all {n} labelled samples are one point"
    else:
        found.quantities["class_share_of_variance"] = Quantity(float(between / total), 1.0, "share", n, d, about)
    unit = F.normalize(z, dim=1)
    right = 0
    with full_precision(z.device):
        for rows in torch.arange(n, device=z.device).split(1024):
            similarity = unit[rows] @ unit.T
            similarity[torch.arange(len(rows)), rows] = -torch.inf
            best, where = similarity.topk(min(20, n - 1), dim=1)
            votes = z.new_zeros(len(rows), len(classes))
            votes.scatter_add_(1, members[where], torch.softmax(best / 0.07, dim=1))
            right += int((votes.argmax(1) == members[rows]).sum())
    settings = "leave-one-out, k 20, temperature 0.07"
    found.quantities["knn_top1"] = Quantity(right / n, 1.0, "accuracy", n, d, settings)
