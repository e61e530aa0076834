"""KNNProbe: weighted k-nearest-neighbour accuracy of clean representations."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from sslinfo.evaluation.features import clean_features
from sslinfo.evaluation.probes import knn_scores
from sslinfo.objectives.finite import NotFinite
from sslinfo.outputs import StepOutputs
from sslinfo.ranges import check_range
from sslinfo.reporting.publishing import classes_of, note_once

NOT_FINITE = "representations of the validation images hold NaN or infinity"


class KNNProbe(Callback):
    """k-NN accuracy on validation and test images, voted by a bank of clean training images.

    Logged as ``probe/knn_top1``. It costs one forward pass over the bank at each validation that it takes part in.

    Args:
        k: neighbours, in [1, 1e9].
        temperature: a neighbour votes with weight exp(cosine / temperature) (arXiv:1805.01978), in [1e-4, 1e4].
        bank_size: at most so many training images, chosen at random once, in [1, 1e9].
        every_n_validations: take part in every n-th validation of a training, in [1, 1e9]; always outside training.

    >>> KNNProbe(k=20).bank_size
    10000
    """

    def __init__(
        self, k: int = 20, temperature: float = 0.07, bank_size: int = 10_000, every_n_validations: int = 1
    ) -> None:
        check_range("k", k, "[1, 1e9]", whole=True)
        check_range("temperature", temperature, "[1e-4, 1e4]")
        check_range("bank_size", bank_size, "[1, 1e9]", whole=True)
        check_range("every_n_validations", every_n_validations, "[1, 1e9]", whole=True)
        self.k, self.temperature = k, temperature
        self.bank_size, self.every_n_validations = bank_size, every_n_validations
        self.validations = 0
        self.bank: tuple[Tensor, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # another training than the last one, unless a checkpoint's state comes next
            self.validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]

    def _start(self, trainer: Trainer, module: LightningModule) -> None:
        self.bank = None
        found = classes_of(trainer, "KNNProbe")
        if found is None:
            return
        data, classes = found
        try:
            features, labels = clean_features(data, module, "train", limit=self.bank_size)
        except NotFinite as error:
            if trainer.state.fn != "fit":
                raise
            note_once(module, f"KNNProbe is left out at step {trainer.global_step}: {error}")
            return
        known = labels >= 0
        self.bank = features[known], labels[known]
        self.metric = MulticlassAccuracy(classes, average="micro", sync_on_compute=False).to(module.device)

    def _update(self, features: Tensor, labels: Tensor) -> None:
        known = labels >= 0
        if self.bank is None or not bool(known.any()):
            return
        classes = int(self.metric.num_classes)  # type: ignore[arg-type]
        scores = knn_scores(features[known].float(), *self.bank, classes, self.k, self.temperature)
        self.metric.update(scores, labels[known])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        fitting = trainer.state.fn == "fit"
        if not fitting or self.validations % self.every_n_validations == 0:
            self._start(trainer, pl_module)

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
        if self.bank is not None and step is not None:
            rows = step.whole("clean_representations", "labels")
            assert rows.clean_representations is not None
            if bool(rows.clean_representations.isfinite().all()):
                self._update(rows.clean_representations, rows.labels)
            else:  # of a training: outside one the objective has refused them
                self.bank = None
                note_once(pl_module, f"KNNProbe is left out at step {trainer.global_step}: {NOT_FINITE}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bank is not None and self.metric.update_called:
            pl_module.log("probe/knn_top1", self.metric.compute(), prog_bar=True)
        self.bank = None
        # Counted at its end: one that is broken off is made again.
        self.validations += trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
