"""GeneralizationBound: a certificate on what a linear classifier will do with the representation, while it trains."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from sslinfo.data.datamodule import TwoViewDataModule
from sslinfo.data.stores.overlap import images_in_both
from sslinfo.errors import UserError
from sslinfo.evaluation.bound_split import Split
from sslinfo.information import Bound, LeastSquares, PairSums, generalization_bound
from sslinfo.outputs import StepOutputs
from sslinfo.ranges import check_range
from sslinfo.reporting.history import History
from sslinfo.reporting.publishing import Publication, data_of, log_numbers, note_once, publish, render, step_of

MOST_POINTS = 100  # of the history: older ones are thinned, so that nothing grows with the training's length
SAMPLING = (
    "The validation images are taken as independent draws. Each validation holds with its probability by itself: "
    "choosing a checkpoint by its bound among N asks for delta / N."
)
FORMS = ("certified", "corollary", "sharp", "top1_error", "best_constant", "vacuous")


class GeneralizationBound(Callback):
    """The generalization bound of a linear classifier on the representation, in every validation.

    A hash of their index splits the validation images into labelled ones S (40%), pairs S' (50%) and held-out ones
    (10%, at most 4096) on which the risk is measured. Clean representations make the certificate, in which a third of
    the pairs' images are firsts, at most 10,000, each with another image of its class as partner, in the order of that
    hash, since neighbours in a folder may resemble each other. A first without partner counts with the largest
    distance, 2 R, which keeps the bound valid, and is reported. Two augmented views of each of the pairs'
    images make the paper's sum. All is logged as ``bound/<term>``: ``certified``, ``corollary``, ``sharp`` (for at
    most 20,000 labelled images), ``top1_error``, ``best_constant``, ``vacuous`` (0 or 1), ``measured_risk``,
    ``measured_top1_error`` and every term of the certificate; ``paper`` and ``paper_<term>`` of the augmentation
    pairs. What does not exist is absent, and its reason stands in ``bound.txt`` in the run's folder and in
    TensorBoard's text; ``bound.png`` stacks the sharp form over training (the corollary without it).

    The network is frozen to the bound: no validation image may be among the training images. Where some are (the same
    pixels; the same size and middle 4096 bytes for files that do not fit into memory) there is no certificate, and the
    text says how many. Without labels there is the paper's sum alone, with stand-ins for the residuals.

    Memory does not grow with the images but for the numbers of those seen: (d, d) sums, and the features of at most
    54,096. Each validation costs about N d^2 operations and three eigenvalue problems of size d.

    Args:
        delta: probability with which the bound may fail, in (0, 1).
        radius: R, the length that representations are brought to, in [1e-9, 1e9].
        treatment: ``normalize`` gives all that length. A representation has no scale of its own, and one taken from the
            data would void the certificate; ``clip`` shortens longer ones only, for a scale known beforehand.
        weight_norm: largest ||W||_F of the certified form, in (0, 1e9]; null takes sqrt(K) / radius, which depends
            on no data.

    >>> GeneralizationBound(delta=0.1).treatment
    'normalize'
    """

    def __init__(
        self,
        delta: float = 0.05,
        radius: float = 1.0,
        treatment: Literal["normalize", "clip"] = "normalize",
        weight_norm: float | None = None,
    ) -> None:
        check_range("delta", delta, "(0, 1)")
        check_range("radius", radius, "[1e-9, 1e9]")
        if weight_norm is not None:
            check_range("weight_norm", weight_norm, "(0, 1e9]")
        if treatment not in ("normalize", "clip"):
            raise UserError(f"treatment must be normalize or clip, got {treatment!r}")
        self.delta, self.radius, self.treatment, self.weight_norm = delta, radius, treatment, weight_norm
        self.bound: Bound | None = None  # of pairs of one class
        self.paper: Bound | None = None  # of augmentations
        self.values: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        self.history: History[dict[str, Any]] = History(MOST_POINTS)
        self._overlap: int | None = None  # validation images that are trained on, counted once a run
        self._split: Split | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._overlap = None
        if stage == "fit":  # another training than the last one, unless a checkpoint's state comes next
            self.history = History(MOST_POINTS)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._split = None
        if trainer.sanity_checking:
            return
        data = data_of(trainer, "GeneralizationBound")
        if data is not None:
            self._split = Split(_classes_of(data), self.radius, self.treatment)

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        step = StepOutputs.of(outputs)
        if self._split is None or step is None or step.clean_representations is None:
            return
        rows = step.whole("clean_representations", "representations", "labels", "indices")
        assert rows.clean_representations is not None
        self._split.add(rows.clean_representations, rows.representations[:2], rows.labels, rows.indices)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        split, self._split = self._split, None
        if split is None:
            return
        if split.labelled is None:
            note_once(pl_module, "GeneralizationBound is off: it needs a JointEmbedding")
            return
        data = data_of(trainer, "GeneralizationBound")
        assert data is not None
        if self._overlap is None:
            self._overlap = images_in_both(data.stores["val"], data.stores["pretrain"])
        self._measure(split, self._overlap, len(data.stores["val"]))
        log_numbers(pl_module, {f"bound/{name}": value for name, value in self.values.items()})
        self._keep(step_of(trainer))
        publish(trainer, lambda: self._publication(step_of(trainer), split))

    def _measure(self, split: Split, overlap: int, images: int) -> None:
        """Sets bound, paper, values and reasons."""
        self.bound = self.paper = None
        self.values, self.reasons = {}, {}
        if split.error or split.labelled is None or not split.labelled.n:
            reason = split.error or f"none of {split.count} validation images is among the labelled part"
            self.reasons = dict.fromkeys(("paper", *FORMS), reason)
            return
        trained = f"{overlap} of {images} validation images are among the training images: the network depends on them"
        same_class, views = split.pairs_of_a_class(), split.views
        if split.classes is None:
            self.reasons |= dict.fromkeys(FORMS, "the validation images have no labels, or all the same")
        elif same_class is None:
            self.reasons |= dict.fromkeys(FORMS, f"none of {split.count} validation images is among the pairs")
        else:
            self.bound = self._bound(split.labelled, same_class, "class", overlap, split.mean_residual())
            self.reasons |= {name: self.bound.reasons[name] for name in FORMS if name in self.bound.reasons}
            if overlap:
                self.reasons |= dict.fromkeys(self.reasons, trained)
            found = {name: getattr(self.bound, name) for name in FORMS}
            self.values |= {name: float(value) for name, value in found.items() if value is not None}
            counts = {"labelled": self.bound.n, "pairs": self.bound.m, "unmatched": split.unmatched}
            self.values |= self.bound.terms | {name: float(count) for name, count in counts.items()}
        if views is None or not views.n:
            self.reasons["paper"] = f"none of {split.count} validation images is among the pairs, in two views"
        else:
            self.paper = self._bound(split.labelled, views, "image", overlap)
            if self.paper.paper is None:
                self.reasons["paper"] = trained
            else:
                parts = {f"paper_{name}": value for name, value in self.paper.contributions["paper"].items()}
                self.values |= {"paper": self.paper.paper, **parts}
        measured = split.measure()
        if measured is None:
            self.reasons["measured_risk"] = "no labelled image is held out"
        else:
            self.values |= {"measured_risk": measured[0], "measured_top1_error": measured[1]}

    def _bound(
        self, labelled: LeastSquares, pairs: PairSums, pairs_of: Any, overlap: int, mean_residual: float | None = None
    ) -> Bound:
        return generalization_bound(
            labelled,
            None,
            pairs,
            delta=self.delta,
            radius=self.radius,
            weight_norm=self.weight_norm,
            complexity=None if overlap else 0.0,
            treatment=self.treatment,
            pairs_of=pairs_of,
            mean_residual=mean_residual,
        )

    def _keep(self, step: int) -> None:
        """Add the stack of now to the history."""
        for form, bound in (("sharp", self.bound), ("corollary", self.bound), ("paper", self.paper)):
            if bound is not None and form in bound.contributions:
                entry = {"step": step, "form": form, "contributions": dict(bound.contributions[form])}
                break
        else:
            return
        entry |= {name: self.values.get(name) for name in ("measured_risk", "best_constant")}
        self.history.add(entry)

    # What a person reads

    def text(self, split: Split) -> str:
        """Both tables, what was measured, and the reasons for what is absent."""
        blocks = []
        if self.bound is not None:
            blocks.append(f"Pairs of one class (the certificate)\n{self.bound}")
        if self.paper is not None:
            blocks.append(f"Pairs of augmentations (the paper's sum)\n{self.paper}")
        lines = []
        if "measured_risk" in self.values:
            risk, error = self.values["measured_risk"], self.values["measured_top1_error"]
            lines.append(
                f"measured on {split.held_out.count} held-out images: risk {risk:.4f}, top-1 error {error:.4f}"
            )
        if self.bound is not None:
            lines.append(f"{split.unmatched} of {self.bound.m} pairs found no partner of their class and count as 2 R")
        if split.unlabelled:
            lines.append(f"{split.unlabelled} of {split.count} validation images have no label and are left out")
        lines += [f"no bound/{name}: {reason}" for name, reason in self.reasons.items()]
        return "\n\n".join([*blocks, "\n".join([*lines, SAMPLING])])

    def _publication(self, step: int, split: Split) -> Publication:
        from sslinfo.reporting.bound_figure import draw

        text = f"step {step}\n\n{self.text(split)}\n"
        if not self.history:
            return Publication("bound", tag="bound/settings", text=text)
        some = self.bound or self.paper
        about = f"delta {self.delta:g}" + (f", n={some.n}, m={some.m}, d={some.d}" if some else "")
        picture = render(draw(self.history, about))
        return Publication(
            "bound", tag="bound/settings", text=text, files={"bound": picture}, panels={"bound/stack": picture}
        )

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history.state_dict(dict)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.load_state_dict(state_dict["history"], dict)


def _classes_of(data: TwoViewDataModule) -> int | None:
    """Classes of the training and validation images, None where the latter have no labels or all have one."""
    labels = data.stores["val"].labels
    if not len(labels) or int(labels.max()) < 0:
        return None
    classes = max(int(labels.max()) + 1, data.num_classes or 0)
    return classes if classes > 1 else None
