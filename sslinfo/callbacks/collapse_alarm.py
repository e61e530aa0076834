"""CollapseAlarm: says while there is time that a training loses its representation, how, and what usually helps."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.cluster import KMeans
from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.spectrum import covariance_spectrum, effective_rank
from sslinfo.outputs import StepOutputs
from sslinfo.ranges import check_range
from sslinfo.reporting.publishing import Publication, publish, run_folder

Kind = Literal["complete", "dimensional", "cluster"]

REMEDY: dict[Kind, str] = {
    "complete": "something must keep the embeddings apart: an entropy half (VICReg's variance, LogDet, PairDist), or a "
    "predictor with stop-gradient targets (BYOL, SimSiam); where there is one already, raise its weight or lower the "
    "learning rate",
    "dimensional": "something must decorrelate the dimensions: VICReg's covariance weight, the LogDet half, Barlow "
    "Twins' off-diagonal term; where there is one already, raise its weight, lower that of the invariance or the "
    "learning rate, or take more samples a batch",
    "cluster": "more prototypes than there are kinds of images, assignments that stay balanced (a lower epsilon, more "
    "Sinkhorn iterations, a queue for small batches), prototypes frozen at first; or an entropy half beside the "
    "objective",
}

ON_A_POINT = 3e-3  # 1 - |mean of the unit rows|^2 below which all embeddings are one direction
NARROW = 0.1  # of the same number: below it lengths are told apart from directions
SHRUNK = 1 / 3  # of the standard deviation at the start
FEW_RANKS, ONE_DIRECTION = 2.5, 0.75  # effective rank; share of the standardised variance in one direction
FEWEST_DIMENSIONS = 8  # fewer are few from the beginning
FEW_CLUSTERS, MOST_CLUSTERS = 4.0, 8
TIGHT, APART, INDISTINCT = 0.05, 0.2, 0.3


@dataclass(frozen=True)
class Evidence:
    """What one batch of embeddings says.

    spread: 1 - |mean of the unit rows|^2. std: root mean variance of a dimension. noise: share of the variance in which
    two views of one image differ, None with one view. rank: effective rank. one_direction: largest eigenvalue's share
    of the correlation. clusters: how many tight clusters there are, None if it is not a few.
    """

    spread: float
    std: float
    noise: float | None
    rank: float
    one_direction: float
    dimensions: int
    clusters: int | None

    @classmethod
    def of(cls, z1: Tensor, z2: Tensor | None = None) -> Evidence:
        """Evidence of embeddings (N, d), N >= 2, and of those of a second view."""
        z1 = z1.double()
        unit = F.normalize(z1, dim=1)
        spread = float(1 - unit.mean(0).square().sum())
        centred = z1 - z1.mean(0)
        std = float(centred.square().sum().div(centred.numel() - z1.shape[1]).sqrt())
        noise = None
        if z2 is not None:
            z2 = z2.double()
            total = centred.square().sum() + (z2 - z2.mean(0)).square().sum()
            noise = float((z1 - z2).square().sum() / total.clamp_min(1e-300))
        # In a narrow cone the variance is of the lengths, which a loss of angles does not see.
        shape, other = (unit, z2 if z2 is None else F.normalize(z2, dim=1)) if spread < NARROW else (z1, z2)
        possible = min(len(z1) - 1, z1.shape[1])
        try:
            rank = float(effective_rank(shape))
        except UndefinedEstimate:  # all on one point
            return cls(spread, std, noise, 1.0, 1.0, possible, None)
        deviation = shape.std(0)
        correlation = covariance_spectrum(shape / torch.where(deviation > 0, deviation, 1))
        return cls(
            spread,
            std,
            noise,
            rank,
            float(correlation[0] / correlation.sum()),
            possible,
            tight_clusters(shape, other),
        )

    def kind(self, start: Evidence, before: Evidence, used: float | None = None) -> tuple[Kind, str] | None:
        """The collapse that this is, with the evidence in words; None without one.

        Args:
            start: of the first batch of the training.
            before: of the check before this one.
            used: clusters in use, where the objective assigns images to clusters.
        """
        if self.spread < ON_A_POINT:
            return "complete", f"the embeddings of all images have a cosine of {1 - self.spread:.5f} on average"
        shrinks = self.std < SHRUNK * start.std and self.std < 0.9 * before.std
        if shrinks and self.noise is not None and start.noise is not None and self.noise > start.noise / 2:
            return "complete", (
                f"the standard deviation fell to {self.std:.2g}, {self.std / start.std:.0%} of {start.std:.2g} at the "
                f"start, and still {min(self.noise, 1):.0%} of the variance differs between two views of one image"
            )
        if used is not None and used < FEW_CLUSTERS:
            return "cluster", (
                f"the objective assigns the images to {used:.1f} clusters, which say at most log {used:.1f} = "
                f"{math.log(used):.2f} nats about an image"
            )
        if self.clusters is not None:
            return "cluster", (
                f"the embeddings lie on {self.clusters} points with less than {TIGHT:.0%} of the variance around them, "
                "and the images of one point are not told apart"
            )
        few = self.rank < FEW_RANKS and self.one_direction > ONE_DIRECTION
        if few and self.dimensions >= FEWEST_DIMENSIONS:
            return "dimensional", (
                f"effective rank {self.rank:.1f} where {self.dimensions} are possible, and {self.one_direction:.0%} of "
                "the standardised variance lies in one direction"
            )
        return None


def tight_clusters(z1: Tensor, z2: Tensor | None = None) -> int | None:
    """How many clusters (2 to 8) hold all but 5% of the variance of z1 (N, d), None where that is not so.

    They must be clusters and not a line cut into pieces: the last one divides the variance around them by five at
    least, and within them the second view z2 (N, d) does not find its own image again (correlation below 0.3).

    >>> corners = torch.eye(3).repeat(20, 1)
    >>> tight_clusters(corners + 0.01 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0)))
    3
    """
    n = len(z1)
    squared = torch.cdist(z1, z1).square()
    # k clusters put a share of at least 1/k of all pairs within clusters.
    if n <= 2 * MOST_CLUSTERS or float((squared < 0.1 * squared.mean()).double().mean()) < 1 / MOST_CLUSTERS:
        return None
    total = float((z1 - z1.mean(0)).square().sum())
    previous = 1.0
    rows = z1.cpu().numpy()
    for k in range(2, MOST_CLUSTERS + 1):
        found = KMeans(k, n_init=4, random_state=0).fit(rows)
        around = float(found.inertia_) / total
        if around < TIGHT and around < APART * previous:
            members = torch.as_tensor(found.labels_, dtype=torch.int64, device=z1.device)
            return k if z2 is None or _correlation(z1, z2, members, k) < INDISTINCT else None
        previous = around
    return None


def _correlation(z1: Tensor, z2: Tensor, members: Tensor, k: int) -> float:
    """Correlation between the views of what the clusters leave over."""
    one_hot = F.one_hot(members, k).to(z1)
    share = one_hot / one_hot.sum(0).clamp_min(1)
    first, second = (z - one_hot @ (share.T @ z) for z in (z1, z2))
    return float((first * second).sum() / (first.norm() * second.norm()).clamp_min(1e-300))


class CollapseAlarm(Callback):
    """Warns of a collapse of the embedding, or stops the training: complete, dimensional and cluster told apart.

    Complete: all images at one point, or ever nearer to each other without the views of one image being nearer.
    Dimensional: the embeddings on one line. Cluster: a few points, or an objective (SwAV) that assigns the images to
    fewer than four clusters. A collapse is one when two checks in a row agree. It is looked for in the first view's
    embeddings of the whole batch, the same on every rank, once every so many optimizer steps. What it says stands in
    ``alarm.txt`` in the run's folder and in TensorBoard's text too.

    Args:
        every_n_steps: optimizer steps between two checks, in [1, 1e9].
        action: ``warn``, once for each kind, or ``stop`` the training.

    Source: derived; thresholds chosen on runs that collapse and on healthy ones (tests/callbacks).

    >>> alarm = CollapseAlarm(action="stop")
    >>> alarm.every_n_steps, alarm.alarms
    (25, {})
    """

    def __init__(self, every_n_steps: int = 25, action: Literal["warn", "stop"] = "warn") -> None:
        check_range("every_n_steps", every_n_steps, "[1, 1e9]", whole=True)
        if action not in ("warn", "stop"):
            raise UserError(f"action must be warn or stop, got {action!r}")
        self.every_n_steps, self.action = every_n_steps, action
        self.alarms: dict[Kind, str] = {}  # what was said
        self._start: Evidence | None = None
        self._before: Evidence | None = None
        self._suspected: Kind | None = None
        self._checked = 0
        self._not_finite = ""  # what was said of such embeddings
        self._folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # another training than the last one, unless a checkpoint's state comes next
            self.alarms, self._start, self._before, self._suspected, self._checked = {}, None, None, None, 0
            self._not_finite = ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here and not at an alarm: nothing may be asked of all ranks where one of them may see no collapse.
        self._folder = run_folder(trainer)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._checked or (step % self.every_n_steps and self._start is not None):
            return
        outputs_of_step = StepOutputs.of(outputs)
        if outputs_of_step is None:
            return
        views = outputs_of_step.whole("embeddings").projections
        if not views or len(views[0]) < 2:
            return
        bad = int(torch.stack([~z.isfinite().all(1) for z in views[:2]]).any(0).sum())
        if bad:
            self._say_not_finite(trainer, f"{bad} of {len(views[0])} images at step {step}")
            return
        self._checked = step
        now = Evidence.of(*views[:2])
        if self._start is None or self._before is None:
            self._start = self._before = now
            return
        clusters = outputs_of_step.clusters
        found = now.kind(self._start, self._before, None if clusters is None else float(clusters))
        self._before = now
        if found is None:
            self._suspected = None
            return
        kind, evidence = found
        if kind == self._suspected and kind not in self.alarms:
            self._raise(
                trainer,
                kind,
                f"{kind} collapse of the embedding at step {step}: {evidence}. What usually helps: {REMEDY[kind]}.",
            )
        self._suspected = kind

    def _raise(self, trainer: Trainer, kind: Kind, message: str) -> None:
        stops = self.action == "stop"
        self.alarms[kind] = f"{message} The training stops here." if stops else message
        self._publish(trainer, self.alarms[kind])
        if stops:
            trainer.should_stop = True

    def _say_not_finite(self, trainer: Trainer, which: str) -> None:
        """Once: it is no collapse, and what is to be done about it is for the model's ``non_finite`` to say."""
        if not self._not_finite:
            self._not_finite = (
                f"the embeddings of {which} hold NaN or infinity: nothing can be said of a collapse there. Lower the "
                "learning rate, or look at these images."
            )
            self._publish(trainer, self._not_finite)

    def _publish(self, trainer: Trainer, message: str) -> None:
        if trainer.is_global_zero:
            # Without the line of code that a warning shows, which says nothing to who trains.
            warnings.warn_explicit(message, UserWarning, "CollapseAlarm", 1)
        said = "\n".join(filter(None, (*self.alarms.values(), self._not_finite)))
        publish(trainer, lambda: Publication("alarm", tag="info/alarm", text=said), self._folder)

    def state_dict(self) -> dict[str, Any]:
        if self._start is None or self._before is None:
            return {}
        seen = {"start": asdict(self._start), "before": asdict(self._before)}
        return {**seen, "suspected": self._suspected, "checked": self._checked, "alarms": dict(self.alarms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._start, self._before = Evidence(**state_dict["start"]), Evidence(**state_dict["before"])
            self._suspected, self._checked = state_dict["suspected"], state_dict["checked"]
            self.alarms = dict(state_dict["alarms"])
