"""Entropy halves: what an objective maximises as H(Z).

Each half is called with the online projections of the views, whole batches z of shape (N, d), and returns named terms:
"loss", what is added to the host's loss (smaller is more entropy), and figures to log. ``prepare`` is applied by the
host to the projections before either of its halves sees them: a half whose estimate grows with scale asks for
embeddings on the sphere of radius sqrt(d), so that entropy is never bought by scale alone and a coordinate has mean
square 1 whatever the width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslinfo.errors import UserError
from sslinfo.information import epps_pulley, logdet_entropy, pairwise_entropy, pairwise_entropy_cap, renyi_entropy
from sslinfo.information.spectrum import off_diagonal_of
from sslinfo.ranges import check_range


class EntropyHalf(nn.Module):
    """Base class of the halves. A half of your own defines ``forward(*views) -> {"loss": ..., ...}``.

    Its constructor keeps each argument as an attribute of the same name, so that checkpoints can write it down.
    """

    has_plain_form = True
    normalize = False

    def prepare(self, z: Tensor) -> Tensor:
        """Embeddings (N, d) as the half wants them: unchanged, or on the sphere of radius sqrt(d)."""
        return F.normalize(z, dim=1) * z.shape[1] ** 0.5 if self.normalize else z


WEIGHT = "[0, 1e6]"  # a negative one would have the entropy minimised


class VarianceCovariance(EntropyHalf):
    """VICReg's own half: a hinge on each standard deviation and a penalty on covariances (arXiv:2105.04906, eq. 1-4).

    With C the covariance of a view (divisor N - 1): v = mean_j relu(1 - sqrt(C_jj + 1e-4)) and
    c = sum_{i != j} C_ij^2 / d; a surrogate of 1/2 log det C, in no unit.

    Args:
        variance: weight of v, in [0, 1e6].
        covariance: weight of c, in [0, 1e6].
        convention: ``paper`` adds v and c of both views (Algorithm 1); ``code`` is the authors' program, which averages
            v over the views and adds c. Weight 50 for v in ``code`` is weight 25 in ``paper``; c is the same in both.

    >>> half = VarianceCovariance(variance=25.0, covariance=1.0)
    >>> z = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> {name: round(term.item(), 4) for name, term in half(z, z).items()}  # variances 8/3, no covariance
    {'loss': 0.0, 'variance': 0.0, 'covariance': 0.0}
    """

    def __init__(
        self, variance: float = 25.0, covariance: float = 1.0, convention: Literal["paper", "code"] = "paper"
    ) -> None:
        super().__init__()
        if convention not in ("paper", "code"):
            raise UserError(f"convention={convention!r} is not known: choose paper or code")
        check_range("variance", variance, WEIGHT)
        check_range("covariance", covariance, WEIGHT)
        self.variance, self.covariance, self.convention = variance, covariance, convention

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        pairs = [variance_covariance(z) for z in views]
        v = torch.stack([pair[0] for pair in pairs])
        c = torch.stack([pair[1] for pair in pairs])
        v_total = v.sum() if self.convention == "paper" else v.mean()
        loss = self.variance * v_total + self.covariance * c.sum()
        return {"loss": loss, "variance": v.mean(), "covariance": c.mean()}


def variance_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg's v and c of one view z (N, d), in its own precision; see :class:`VarianceCovariance`.

    Raises:
        UserError: fewer than two samples.

    >>> v, c = variance_covariance(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]) / 2)  # C = [[.5, .5], [.5, .5]]
    >>> round(v.item(), 4), round(c.item(), 4)
    (0.2928, 0.25)
    """
    n = len(z)
    if n < 2:
        raise UserError(f"VarianceCovariance needs at least 2 samples a batch, got {n}: raise data.batch_size")
    centred = z - z.mean(0)
    variance = centred.square().sum(0) / (n - 1)
    covariance = off_diagonal_of(centred, variance)
    return torch.relu(1 - torch.sqrt(variance + 1e-4)).mean(), covariance


class LogDet(EntropyHalf):
    """Log-det entropy 1/2 log det(I + beta S) (arXiv:2303.00633; Zhouyin & Liu, arXiv:2105.03705).

    For Gaussian z it is the information that z keeps under noise of variance 1/beta, and up to constants the largest
    entropy of any z of covariance S; it is no bound of the differential entropy itself, since it moves with the scale.

    The loss is -weight * H / d, per dimension, so that a weight serves every width; H is the mean over the views.

    Args:
        weight: weight of H / d, in [0, 1e6].
        beta: inverse variance of the noise under which S is seen, in [1e-9, 1e9]; always a part of the number that is
            logged.
        normalize: embeddings on the sphere of radius sqrt(d), where tr S <= d N/(N - 1) and so
            H <= d/2 log(1 + beta N/(N - 1)); without it H grows with the logarithm of the scale.

    >>> half = LogDet(weight=1.0, beta=1.0, normalize=False)
    >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # S = 2/3 I
    >>> {name: round(term.item(), 4) for name, term in half(z, z).items()}  # H = log(5/3)
    {'loss': -0.2554, 'entropy': 0.5108}
    """

    def __init__(self, weight: float = 25.0, beta: float = 10.0, normalize: bool = True) -> None:
        super().__init__()
        check_range("weight", weight, WEIGHT)
        check_range("beta", beta, "[1e-9, 1e9]")
        self.weight, self.beta, self.normalize = weight, beta, normalize

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        entropy = torch.stack([logdet_entropy(z, beta=self.beta, dtype=z.dtype) for z in views]).mean()
        return {"loss": -self.weight * entropy / views[0].shape[1], "entropy": entropy}


class PairDist(EntropyHalf):
    """Pairwise-distance entropy of the mixture of one Gaussian a sample (Kolchinsky & Tracey 2017; arXiv:2303.00633).

    Each sample stands for N(z_i, s2 I) with s2 = variance * d, so that ``variance`` is a squared distance between unit
    vectors when the embeddings are normalised. The loss is -weight * H, H the mean over the views, in nats.

    Args:
        weight: weight of H, in [0, 1e6].
        variance: variance of a component, per dimension of the embedding, in [1e-6, 1e6].
        bound: ``upper`` (Kullback-Leibler) or ``lower`` (Bhattacharyya) bound of the mixture's entropy. With normalised
            embeddings the upper one has SimCLR's temperature = variance, the lower one 4 * variance.
        normalize: embeddings on the sphere of radius sqrt(d).

    >>> half = PairDist(variance=0.5)
    >>> z = half.prepare(torch.eye(4))  # r^2 = 8, s2 = 2: H = 4/2 log(4 pi e) + log 4 - log(1 + 3 exp(-2))
    >>> {name: round(term.item(), 3) for name, term in half(z, z).items()}
    {'loss': -8.108, 'entropy': 8.108, 'below_cap': 0.341}
    """

    def __init__(
        self,
        weight: float = 1.0,
        variance: float = 0.1,
        bound: Literal["lower", "upper"] = "upper",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_range("weight", weight, WEIGHT)
        check_range("variance", variance, "[1e-6, 1e6]")
        if bound not in ("lower", "upper"):
            raise UserError(f"bound={bound!r} is not known: choose lower or upper")
        self.weight, self.variance, self.bound, self.normalize = weight, variance, bound, normalize

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        n, d = views[0].shape
        if n < 2:
            raise UserError(f"PairDist needs at least 2 samples a batch, got {n}: raise data.batch_size")
        scale = self.variance * d
        entropy = torch.stack(
            [pairwise_entropy(z, variance=scale, bound=self.bound, dtype=z.dtype) for z in views]
        ).mean()
        cap = pairwise_entropy_cap(n, d, scale)
        return {"loss": -self.weight * entropy, "entropy": entropy, "below_cap": cap - entropy.detach()}


class VonNeumann(EntropyHalf):
    """Von Neumann entropy of the embeddings' autocorrelation (I-VNE+, arXiv:2304.01434).

    H = -sum lambda log lambda over the eigenvalues of Z^T Z / N, uncentred, of rows on the unit sphere, so that they
    sum to 1; between 0 and log min(N, d), in nats. The loss is -weight * H, H the mean over the views.
    Not a differential entropy.

    Args:
        weight: weight of H, in [0, 1e6].
        normalize: rows of equal length before the eigenvalues are taken; without it long rows count more.

    >>> half = VonNeumann()
    >>> z = half.prepare(torch.eye(4))
    >>> {name: round(term.item(), 4) for name, term in half(z, z).items()}  # four equal eigenvalues: log 4
    {'loss': -1.3863, 'entropy': 1.3863}
    """

    def __init__(self, weight: float = 1.0, normalize: bool = True) -> None:
        super().__init__()
        check_range("weight", weight, WEIGHT)
        self.weight, self.normalize = weight, normalize

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        if len(views[0]) < 2:
            raise UserError("VonNeumann needs at least 2 samples a batch, got 1: raise data.batch_size")
        entropy = torch.stack([renyi_entropy(z, dtype=z.dtype) for z in views]).mean()
        return {"loss": -self.weight * entropy, "entropy": entropy}


class SIGReg(EntropyHalf):
    """Sketched isotropic Gaussian regularization (LeJEPA, arXiv:2511.08544): each random slice of z is standard normal.

    The loss is weight * T, T the Epps-Pulley statistic of ``sslinfo.information.epps_pulley`` averaged over slices and
    views (17 knots of [0, 3], doubled); about 1.05 for a normal batch of any size, and growing with the whole batch's N
    for any other, so that a weight belongs to a batch size. N(0, I) has the largest entropy
    at its covariance; T is in no unit and is no entropy. Slices are new at every training step, equal on all ranks.

    Args:
        weight: weight of T, in [0, 1e6].
        slices: random directions a step, in [1, 1e6].
        seed: of the directions, in [0, 1e12].

    >>> half = SIGReg().eval()
    >>> z = torch.zeros(4, 2)  # one point, on every slice: the trapezoid of 4 (1 - exp(-t^2 / 2))^2 exp(-t^2 / 2)
    >>> {name: round(term.item(), 4) for name, term in half(z, z).items()}
    {'loss': 1.6082, 'statistic': 1.6082}
    """

    drawn: Tensor

    def __init__(self, weight: float = 1.0, slices: int = 256, seed: int = 0) -> None:
        super().__init__()
        check_range("weight", weight, WEIGHT)
        check_range("slices", slices, "[1, 1e6]", whole=True)
        check_range("seed", seed, "[0, 1e12]", whole=True)
        self.weight, self.slices, self.seed = weight, slices, seed
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        if len(views[0]) < 2:
            raise UserError("SIGReg needs at least 2 samples a batch, got 1: raise data.batch_size")
        # Runs of other seeds do not share directions within a million steps.
        seed = self.seed * 1_000_003 + int(self.drawn)
        statistic = torch.stack([epps_pulley(z, self.slices, seed, dtype=z.dtype) for z in views]).mean()
        if self.training:
            self.drawn += 1
        return {"loss": self.weight * statistic, "statistic": statistic}
