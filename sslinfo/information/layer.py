"""One layer as it is measured: its samples and moments, and what several quantities of it share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from sslinfo.information import checks
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.cholesky import cholesky_and_trace_of_inverse
from sslinfo.information.entropy import logdet_entropy, pairwise_entropy
from sslinfo.information.moments import Moments
from sslinfo.information.mutual_information import (
    ViewInformation,
    gaussian_mutual_information,
    smoothed_view_information,
    view_information,
)
from sslinfo.information.spectrum import SpectralDecay, covariance_spectrum, spectral_decay

P = ParamSpec("P")
T = TypeVar("T")

EPS64 = torch.finfo(torch.float64).eps


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


class Needs(Enum):
    """What a quantity is computed from; its value says so in words.

    Moments may be of many more samples than there are views: each need has a count of samples of its own.
    """

    MOMENTS = "second moments of one view"
    JOINT_MOMENTS = "joint second moments of two views"
    SAMPLES = "samples of one view"
    PAIRS = "samples of two views"
    THREE_VIEWS = "samples of three views or more"
    LABELS = "samples of one view, and labels"


def shared(compute: Callable[Concatenate[Layer, P], T]) -> Callable[Concatenate[Layer, P], T]:
    """A computation that several quantities of one layer ask for: done once for each layer and arguments."""

    @functools.wraps(compute)
    def once(layer: Layer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (once, args, tuple(kwargs.items()))
        if key not in layer.results:
            layer.results[key] = compute(layer, *args, **kwargs)
        return layer.results[key]

    return once


class Layer:
    """The views and moments of one layer, and the computations that more than one quantity needs.

    Args:
        views: (N, d) each, one or more.
        moments: of the first view, or joint ones of the first two; without them the views serve.
        scales: beta, variance and temperature.
        window: training steps that the moments are of.
        labels: (N,) integer classes, negative where unknown.
    """

    def __init__(
        self,
        views: Sequence[Tensor],
        moments: Moments | None = None,
        scales: Scales = DEFAULT_SCALES,
        window: int = 1,
        labels: Tensor | None = None,
    ) -> None:
        self.views, self.scales, self.window, self.labels = tuple(views), scales, window, labels
        self.rows, self.d = self.views[0].shape
        # Samples or moments of the first view, and how many samples those are; the same of the first two views.
        self.first: Tensor | Moments = self.views[0] if moments is None else moments.view(0)
        self.n = self.rows if moments is None else moments.n
        self.joint = moments if moments is not None and len(moments.sizes) > 1 else None
        self.n_joint = self.rows if self.joint is None else self.n
        self.dtype = str(self.views[0].dtype).removeprefix("torch.")
        # Samples coarser than float32 are taken as they are.
        self.eps = min(torch.finfo(self.views[0].dtype).eps, torch.finfo(torch.float32).eps)
        self.component = scales.variance * self.d
        self.results: dict[Any, Any] = {}

    def has(self, needs: Needs) -> bool:
        """Whether this layer has what such a quantity is computed from."""
        views = {Needs.JOINT_MOMENTS: 2, Needs.PAIRS: 2, Needs.THREE_VIEWS: 3}.get(needs, 1)
        return len(self.views) >= views and (needs is not Needs.LABELS or self.labels is not None)

    def count(self, needs: Needs) -> int:
        """Number of samples behind such a quantity."""
        if needs is Needs.LABELS and self.labels is not None:
            return int((self.labels >= 0).sum())
        return {Needs.MOMENTS: self.n, Needs.JOINT_MOMENTS: self.n_joint}.get(needs, self.rows)

    def pair(self) -> tuple[Tensor | Moments, Tensor | None]:
        """What functions of two views take: joint moments, or the samples where there are none."""
        return (self.views[0], self.views[1]) if self.joint is None else (self.joint, None)

    @shared
    def sphere(self, view: int) -> Tensor:
        """Rows of a view on the sphere of radius sqrt(d), in float64."""
        return checks.unit_rows(self.views[view].double(), f"view {view + 1}") * math.sqrt(self.d)

    @shared
    def images(self) -> Tensor:
        """(N, V, d): the views of each image beside one another."""
        return torch.stack(self.views, dim=1)

    @shared
    def pairwise(self, bound: Literal["lower", "upper"]) -> Tensor:
        """Pairwise entropy of the first view on that sphere."""
        return pairwise_entropy(self.sphere(0), self.component, bound)

    @shared
    def pairwise_views(self) -> ViewInformation:
        """The paper's split with the pairwise entropy, of both views on that sphere."""
        return view_information(self.sphere(0), self.sphere(1), "pairwise", variance=self.component)

    @shared
    def logdet_views(self) -> ViewInformation:
        """The paper's split with noise in both halves, of views scaled by one number to a mean variance of 1.

        So the halves do not depend on the unit either.
        """
        views = self.views[:2] if self.joint is None else (self.joint.view(0), self.joint.view(1))
        size = sum(self.mean_variance(z) for z in views) / 2
        found = smoothed_view_information(*self.pair(), self.scales.beta / size)
        unit = self.d / 2 * math.log(size)
        return found._replace(entropy=found.entropy - unit, conditional=found.conditional + unit)

    def mean_variance(self, of: Tensor | Moments) -> float:
        """Mean over the dimensions, where it is more than the samples' rounding."""
        wide = checks.samples(of, torch.float64) if isinstance(of, Tensor) else of
        spread = wide.var(0) if isinstance(wide, Tensor) else wide.covariance().diagonal()
        mean = wide.mean(0) if isinstance(wide, Tensor) else wide.mean
        if float(spread.mean()) <= (64 * self.eps * float(mean.abs().max())) ** 2:
            count = len(wide) if isinstance(wide, Tensor) else wide.n
            raise UndefinedEstimate(f"all {count} samples are one point: there is no variance to divide by")
        return float(spread.mean())

    @shared
    def moments(self) -> Moments:
        """Moments of the first view, also where only its samples are given."""
        return Moments.of(self.first) if isinstance(self.first, Tensor) else self.first

    @shared
    def above_rounding(self) -> Tensor:
        """Which eigenvalues are more than the samples' rounding makes, or, of float64 ones, the covariance's."""
        values = covariance_spectrum(self.first)
        mean = self.first.double().mean(0) if isinstance(self.first, Tensor) else self.first.mean
        size = max(float(values[0]), float(mean.square().max()))
        return values > self.d * max(self.eps**2 * size, EPS64 * float(values[0]))

    def nonsingular(self) -> Tensor | Moments:
        """The first view, for a quantity that needs all directions to be more than rounding."""
        if self.n > self.d and not bool(self.above_rounding()[-1]):
            raise UndefinedEstimate(f"the covariance is singular to {self.dtype}'s rounding at N={self.n}, d={self.d}")
        return self.first

    @shared
    def decay(self) -> SpectralDecay:
        """The power law of the eigenvalues that are more than rounding."""
        kept = min(100, int(self.above_rounding().sum()))
        if kept < 8:
            raise UndefinedEstimate(
                f"spectral_decay needs 3 eigenvalues in 6..100, and {kept} are above {self.dtype}'s rounding at "
                f"N={self.n}, d={self.d}"
            )
        return spectral_decay(self.first, stop=kept)

    def logdet(self) -> Tensor:
        """Log-det entropy, which does not exist where beta S is so large that its rounding counts beside 1."""
        beta = self.scales.beta
        size = beta * float(self.moments().covariance().diagonal().sum())
        if not size < 1e9:
            values = beta * covariance_spectrum(self.first)
            rounding = 8 * EPS64 * float(values[0])
            if not float((rounding / (1 + values)).clamp_max(1).sum() / 2) < 1e-3:
                raise UndefinedEstimate(
                    f"beta times the variance is {size:.2g}: its rounding in float64 counts beside 1"
                )
        return logdet_entropy(self.first, beta=beta)

    def gaussian_information(self) -> Tensor:
        """Gaussian mutual information, of samples coarser than float64 only where no direction is their rounding."""
        n, d = self.n_joint, self.d
        if self.dtype != "float64" and n > 2 * d:
            covariance, mean = self.moments().covariance(), self.moments().mean
            # A constant feature has no direction to lose; it is left out there too.
            used = covariance.diagonal() > (64 * EPS64 * mean).square()
            covariance, mean = covariance[used][:, used], mean[used]
            deviation = covariance.diagonal().sqrt()
            noise = self.eps * float(((mean.abs() + deviation) / deviation).max()) if bool(used.any()) else 0.0
            correlation = covariance / torch.outer(deviation, deviation)
            floor = d * (8 * noise) ** 2
            clear = cholesky_and_trace_of_inverse(correlation)[1] * floor < 1
            if not clear and float(torch.linalg.eigvalsh(correlation)[0]) <= floor:
                raise UndefinedEstimate(f"the covariance is singular to {self.dtype}'s rounding at N={n}, d={d}")
        return gaussian_mutual_information(*self.pair())
