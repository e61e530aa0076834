"""All quantities of one layer: which estimator, of which samples, with which ceiling."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslinfo.information.checks import UndefinedEstimate, unit_rows
from sslinfo.information.cholesky import cholesky_and_trace_of_inverse
from sslinfo.information.entropy import gaussian_entropy, logdet_entropy, pairwise_entropy, pairwise_entropy_cap
from sslinfo.information.geometry import alignment, feature_std, lidar, uniformity
from sslinfo.information.matrix_entropy import renyi_ceiling, renyi_entropy
from sslinfo.information.moments import Moments
from sslinfo.information.mutual_information import (
    ViewInformation,
    gaussian_mutual_information,
    infonce,
    smoothed_view_information,
    view_information,
)
from sslinfo.information.quantities import Quantity, Report
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

EPS64 = torch.finfo(torch.float64).eps
ON_UNIT_SPHERE = "rows on the unit sphere"


class Scales(NamedTuple):
    """What the numbers of a report are taken at.

    beta: of the log-det entropy; at 10, which the recipes train at, the noise has a tenth of the variance. variance:
    s2 / d of the pairwise entropy, s2 the variance of a component with rows on the sphere of radius sqrt(d).
    temperature: of InfoNCE's cosine critic.
    """

    beta: float = 10.0
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
    layer = _Layer(views, moments, scales, window)
    _entropies(layer)
    _spectrum(layer)
    _geometry(layer)
    if len(views) > 1:
        _between_views(layer)
    if len(views) > 2:
        _lidar(layer)
    return layer.report


class _Layer:
    """The samples and moments of one layer, what several quantities share, and the report that takes them.

    first: samples or moments of the first view. n: samples behind second moments of one view, both: of both views.
    few: samples behind everything else. eps: rounding of the samples as they came.
    """

    def __init__(self, views: Sequence[Tensor], moments: Moments | None, scales: Scales, window: int) -> None:
        self.views, self.scales, self.window = views, scales, window
        self.z1 = views[0]
        self.few, self.d = self.z1.shape
        self.first: Tensor | Moments = self.z1 if moments is None else moments.view(0)
        self.n = self.few if moments is None else moments.n
        self.joint = moments if moments is not None and len(moments.sizes) > 1 else None
        self.both = self.few if self.joint is None else self.n
        self.dtype = str(self.z1.dtype).removeprefix("torch.")
        # Samples coarser than float32 are taken as they are.
        self.eps = min(torch.finfo(self.z1.dtype).eps, torch.finfo(torch.float32).eps)
        self.component = scales.variance * self.d
        self._spheres: dict[int, Tensor] = {}
        self.report = Report(precision=f"samples in {self.dtype}, computed in float64")

    def add(
        self,
        name: str,
        compute: Callable[[], float | Tensor | tuple[Tensor, str]],
        unit: str = "",
        settings: str = "",
        ceiling: float | None = None,
        count: int | None = None,
    ) -> None:
        """Compute a quantity, of ``count`` samples (n without it), into the report, or the reason why it is absent.

        The computation may return words for the settings beside its value.
        """
        count = self.n if count is None else count
        try:
            found = compute()
        except UndefinedEstimate as error:
            self.report.reasons[name] = str(error)
            return
        number, words = found if isinstance(found, tuple) else (found, "")
        value = float(number)
        if math.isfinite(value):
            window = f"window of {self.window} steps" if self.window > 1 and count == self.n else ""
            about = ", ".join(filter(None, (settings, words, window)))
            self.report.quantities[name] = Quantity(value, ceiling, unit, count, self.d, about)
        else:
            reason = f"{value} at N={count}, d={self.d}: a covariance is singular, or the views coincide"
            self.report.reasons[name] = reason

    def sphere(self, view: int) -> Tensor:
        """Rows of a view on the sphere of radius sqrt(d), in float64."""
        if view not in self._spheres:
            self._spheres[view] = unit_rows(self.views[view].double(), f"view {view + 1}") * math.sqrt(self.d)
        return self._spheres[view]

    def mean_variance(self, of: Tensor | Moments) -> float:
        """Mean over the dimensions, where it is more than the samples' rounding."""
        wide = of.double() if isinstance(of, Tensor) else of
        spread = wide.var(0) if isinstance(wide, Tensor) else wide.covariance().diagonal()
        mean = wide.mean(0) if isinstance(wide, Tensor) else wide.mean
        if float(spread.mean()) <= (64 * self.eps * float(mean.abs().max())) ** 2:
            count = len(wide) if isinstance(wide, Tensor) else wide.n
            raise UndefinedEstimate(f"all {count} samples are one point: there is no variance to divide by")
        return float(spread.mean())

    def above_rounding(self) -> Tensor:
        """Which eigenvalues are more than the samples' rounding makes, or, of float64 ones, the covariance's."""
        values = covariance_spectrum(self.first)
        mean = self.first.double().mean(0) if isinstance(self.first, Tensor) else self.first.mean
        size = max(float(values[0]), float(mean.square().max()))
        return values > self.d * max(self.eps**2 * size, EPS64 * float(values[0]))

    def nonsingular(self, compute: Callable[[Tensor | Moments], Tensor]) -> Tensor:
        """A quantity of the first view that needs all directions to be more than rounding."""
        if self.n > self.d and not bool(self.above_rounding()[-1]):
            raise UndefinedEstimate(f"the covariance is singular to {self.dtype}'s rounding at N={self.n}, d={self.d}")
        return compute(self.first)


def _entropies(layer: _Layer) -> None:
    d, few, scales, component = layer.d, layer.few, layer.scales, layer.component
    beta = f"beta {scales.beta:g}"
    on_sphere = f"rows on the sphere of radius sqrt(d), component variance {scales.variance:g} d"
    cap = float(pairwise_entropy_cap(few, d, component)) if few else None

    def unit_variance() -> Tensor:
        return logdet_entropy(layer.first, beta=scales.beta / layer.mean_variance(layer.first))

    layer.add("logdet_entropy", lambda: _logdet_entropy(layer), "nats", f"{beta}, z as it is")
    top = _logdet_ceiling(layer.n, d, scales.beta)
    layer.add("logdet_entropy_unit_variance", unit_variance, "nats", f"{beta}, z of mean variance 1", top)
    layer.add(
        "gaussian_entropy",
        lambda: layer.nonsingular(lambda z: gaussian_entropy(z, debias=True)),
        "nats",
        "finite-sample bias removed",
    )
    lower = functools.cache(lambda: pairwise_entropy(layer.sphere(0), component, "lower"))
    upper = functools.cache(lambda: pairwise_entropy(layer.sphere(0), component, "upper"))
    layer.add("pairwise_entropy_lower", lower, "nats", on_sphere, cap, few)
    layer.add("pairwise_entropy_upper", upper, "nats", on_sphere, cap, few)
    if cap is not None:
        about, top = f"{on_sphere}; near 0 it says nothing of the data", math.log(few)
        layer.add("pairwise_entropy_lower_below_cap", lambda: cap - lower(), "nats", about, top, few)
        layer.add("pairwise_entropy_upper_below_cap", lambda: cap - upper(), "nats", about, top, few)
    top = renyi_ceiling(max(few, 1), d)
    about = f"uncentred, {ON_UNIT_SPHERE}"
    layer.add("von_neumann_entropy", lambda: renyi_entropy(layer.sphere(0)), "nats", about, top, few)


def _logdet_entropy(layer: _Layer) -> Tensor:
    """Where beta S is so large that the rounding of its eigenvalues counts beside 1, there is no such number."""
    beta = layer.scales.beta
    wide = Moments.of(layer.first) if isinstance(layer.first, Tensor) else layer.first
    size = beta * float(wide.covariance().diagonal().sum())
    if not size < 1e9:
        values = beta * covariance_spectrum(layer.first)
        rounding = 8 * EPS64 * float(values[0])
        if not float((rounding / (1 + values)).clamp_max(1).sum() / 2) < 1e-3:
            raise UndefinedEstimate(f"beta times the variance is {size:.2g}: its rounding in float64 counts beside 1")
    return logdet_entropy(layer.first, beta=beta)


def _logdet_ceiling(n: int, d: int, beta: float) -> float:
    """1/2 logdet(I + beta S) at mean variance 1 is largest for equal eigenvalues, as many as n samples can show."""
    rank = rank_ceiling(n, d)
    return rank / 2 * math.log1p(beta * d / rank) if rank > 0 else 0.0


def _spectrum(layer: _Layer) -> None:
    first, top = layer.first, rank_ceiling(layer.n, layer.d)

    def decay() -> SpectralDecay:
        kept = min(100, int(layer.above_rounding().sum()))
        if kept < 8:
            raise UndefinedEstimate(
                f"spectral_decay needs 3 eigenvalues in 6..100, and {kept} are above {layer.dtype}'s rounding at "
                f"N={layer.n}, d={layer.d}"
            )
        return spectral_decay(first, stop=kept)

    layer.add("effective_rank", lambda: effective_rank(first), "dimensions", "centred", top)
    layer.add("rankme", lambda: rankme(first), "dimensions", "uncentred, eps 1e-7", _rankme_ceiling(layer.n, layer.d))
    layer.add("participation_ratio", lambda: participation_ratio(first), "dimensions", "centred", top)
    layer.add("stable_rank", lambda: stable_rank(first), "dimensions", "centred", top)
    layer.add("spectral_decay", lambda: (decay().exponent, f"eigenvalues 6 to {decay().stop}"), "exponent")
    layer.add("spectral_decay_r2", lambda: decay().r2, "R^2", "of that fit", 1.0)
    layer.add("hadamard_gap", lambda: layer.nonsingular(hadamard_gap), "nats", "0 for a diagonal covariance")
    layer.add("off_diagonal_covariance", lambda: _off_diagonal(first), "", "VICReg's c: sum of squares / d")


def _rankme_ceiling(n: int, d: int, eps: float = 1e-7) -> float:
    """RankMe of equal singular values: eps is added to each share, so that it is not quite their number."""
    rank = rank_ceiling(n, d, centered=False)
    return math.exp(-(1 + rank * eps) * math.log(1 / rank + eps)) if rank else 0.0


def _off_diagonal(z: Tensor | Moments) -> Tensor:
    if isinstance(z, Tensor):
        centred = z.double() - z.double().mean(0)
        gram = (centred @ centred.T if len(z) < z.shape[1] else centred.T @ centred) / (len(z) - 1)
        return (gram.square().sum() - centred.var(0).square().sum()) / z.shape[1]
    covariance = z.covariance()
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.d


def _geometry(layer: _Layer) -> None:
    z, few = layer.z1, layer.few
    top = math.sqrt(few / (max(few - 1, 1) * layer.d))
    layer.add("feature_std", lambda: feature_std(z), "", ON_UNIT_SPHERE, top, few)
    layer.add("uniformity", lambda: uniformity(z, normalize=True), "", f"t 2, {ON_UNIT_SPHERE}", 0.0, few)


def _between_views(layer: _Layer) -> None:
    z1, z2 = layer.views[:2]
    few, d, both, component = layer.few, layer.d, layer.both, layer.component
    beta, variance, temperature = layer.scales
    log_n = math.log(max(few, 1))

    def contrast() -> tuple[Tensor, str]:
        result = infonce(z1, z2, temperature)
        return result.value, "saturated" if result.saturated else "not saturated"

    @functools.cache
    def logdet() -> ViewInformation:
        """Of views scaled to a mean variance of 1 over both, so that the halves do not depend on the unit either."""
        views = (z1, z2) if layer.joint is None else (layer.joint.view(0), layer.joint.view(1))
        size = sum(layer.mean_variance(z) for z in views) / 2
        if layer.joint is None:
            found = smoothed_view_information(z1, z2, beta / size)
        else:
            found = smoothed_view_information(layer.joint, beta=beta / size)
        unit = d / 2 * math.log(size)
        return found._replace(entropy=found.entropy - unit, conditional=found.conditional + unit)

    kernel = functools.cache(lambda: view_information(layer.sphere(0), layer.sphere(1), "pairwise", variance=component))
    layer.add("alignment", lambda: alignment(z1, z2, normalize=True), "", ON_UNIT_SPHERE, None, few)
    information = functools.partial(_mutual_information, layer)
    layer.add("gaussian_mutual_information", information, "nats", "bias removed", None, both)
    about = f"temperature {temperature:g}, the first view finds the second"
    layer.add("infonce", contrast, "nats", about, log_n, few)

    about = f"proxy: Gaussian views with noise of variance 1/beta, beta {beta:g}, z of mean variance 1"
    top = _logdet_ceiling(both, d, beta)
    noise = d / 2 * math.log(2 * math.pi * math.e / beta)
    layer.add("view_logdet_entropy", lambda: logdet().entropy, "nats", about, top + noise, both)
    of_noise = -noise - d / 2 * math.log(2)  # views without a difference: the noise of both is left
    layer.add("view_logdet_conditional", lambda: logdet().conditional, "nats", about, of_noise, both)
    layer.add("view_logdet_total", lambda: logdet().total, "nats", about, top - d / 2 * math.log(2), both)

    about = (
        "lower bound for the empirical mixture, rows on the sphere of radius sqrt(d), component variance "
        f"{variance:g} d"
    )
    layer.add("view_pairwise_entropy", lambda: kernel().entropy, "nats", about, None, few)
    layer.add("view_pairwise_conditional", lambda: kernel().conditional, "nats", about, None, few)
    # Both halves pay for the components' noise: (d/2) log(2 pi e s) + log N against -(d/2) log(2 pi s) - d at most.
    top = log_n - d / 2
    about = about if top > 0 else f"{about}; says nothing at d > 2 log N"
    layer.add("view_pairwise_total", lambda: kernel().total, "nats", about, top, few)


def _mutual_information(layer: _Layer) -> tuple[Tensor, str]:
    """Gaussian mutual information, of samples coarser than float64 only where no direction is their rounding."""
    n, d = layer.both, layer.d
    if layer.dtype != "float64" and n > 2 * d:
        wide = Moments.of(layer.first) if isinstance(layer.first, Tensor) else layer.first
        covariance = wide.covariance()
        # A constant feature has no direction to lose; it is left out there too.
        used = covariance.diagonal() > (64 * EPS64 * wide.mean).square()
        covariance, mean = covariance[used][:, used], wide.mean[used]
        deviation = covariance.diagonal().sqrt()
        noise = layer.eps * float(((mean.abs() + deviation) / deviation).max()) if bool(used.any()) else 0.0
        correlation = covariance / torch.outer(deviation, deviation)
        floor = d * (8 * noise) ** 2
        clear = cholesky_and_trace_of_inverse(correlation)[1] * floor < 1
        if not clear and float(torch.linalg.eigvalsh(correlation)[0]) <= floor:
            raise UndefinedEstimate(f"the covariance is singular to {layer.dtype}'s rounding at N={n}, d={d}")
    pair = layer.views[:2] if layer.joint is None else (layer.joint,)
    value = gaussian_mutual_information(*pair)
    beyond = float(value) > math.log(n)
    return value, f"beyond log N = {math.log(n):.3g} it rests on the Gaussian assumption" if beyond else ""


def _lidar(layer: _Layer) -> None:
    images, few = torch.stack(list(layer.views), dim=1), layer.few
    about, top = f"{len(layer.views)} views an image, delta 1e-4", rank_ceiling(few, layer.d)
    layer.add("lidar", lambda: lidar(images), "dimensions", f"{about}, raw", top, few)
    layer.add("lidar_debiased", lambda: lidar(images, debias=True), "dimensions", about, top, few)
