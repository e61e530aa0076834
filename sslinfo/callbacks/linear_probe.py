"""LinearProbe: how much a linear classifier reads from the representation, while training and at the end."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from sslinfo.callbacks.knn_probe import NOT_FINITE
from sslinfo.distributed import rank, world_size
from sslinfo.evaluation.features import clean_features
from sslinfo.evaluation.probes import fit_linear
from sslinfo.outputs import StepOutputs
from sslinfo.ranges import check_range
from sslinfo.reporting.publishing import classes_of, note_once


class LinearProbe(Callback):
    """A linear classifier on the detached representation.

    In ``fit`` it learns online, with an optimizer of its own, from the representations that the training step has
    already made, gathered over ranks: the same weights on every rank, saved and resumed with the run. Logged on
    validation as ``probe/linear_top1``. In ``test`` a new one is fitted to convergence on the frozen features of all
    clean training images, with all, 10% and 1% of their labels: ``probe/linear_top1``, ``probe/linear_top1_10pct`` and
    ``probe/linear_top1_1pct``, of the weights that are there and never of a best epoch.

    Args:
        lr: learning rate of the online probe (AdamW), in (0, 1e3]; the features are standardised by a batch norm
            without weights.

    >>> LinearProbe(lr=0.003).lr
    0.003
    """

    fractions: ClassVar[dict[str, float]] = {"": 1.0, "_10pct": 0.1, "_1pct": 0.01}

    def __init__(self, lr: float = 3e-3) -> None:
        check_range("lr", lr, "(0, 1e3]")
        self.lr = lr
        self.head: nn.Sequential | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.loaded: dict[str, Any] | None = None
        self.tested: list[tuple[Tensor, Tensor]] = []
        self._absent = False  # this validation holds representations that are not finite

    # Online

    def _build(self, trainer: Trainer, module: LightningModule) -> None:
        if self.head is not None:
            return
        found = classes_of(trainer, "LinearProbe")
        if found is None:
            return
        _, classes = found
        width = int(module.num_features)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes))
        self.head = head.to(module.device)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=self.lr)
        self.metric = MulticlassAccuracy(classes, average="micro", sync_on_compute=False).to(module.device)
        if self.loaded is not None:
            self.head.load_state_dict(self.loaded["head"])
            self.optimizer.load_state_dict(self.loaded["optimizer"])
            self.optimizer.param_groups[0]["lr"] = self.lr  # the checkpoint's may be another
            self.loaded = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # another training than the last one, unless a checkpoint's state comes next
            self.head = self.optimizer = self.loaded = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._build(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = StepOutputs.of(outputs)
        if self.head is None or self.optimizer is None or step is None:
            return
        rows = step.whole("representations", "labels")
        views = rows.representations
        labels = rows.labels.repeat(len(views))
        known = labels >= 0
        if int(known.sum()) < 2:
            note_once(pl_module, "LinearProbe learns nothing: batches hold fewer than two labelled images")
            return
        features = torch.cat(views).float()[known]
        if not bool(features.isfinite().all()):  # its weights would never recover
            note_once(pl_module, "LinearProbe passes over batches whose representations hold NaN or infinity")
            return
        with torch.enable_grad(), torch.autocast(pl_module.device.type, enabled=False):
            self.head.train()
            logits = self.head(features)
            loss = nn.functional.cross_entropy(logits, labels[known])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        pl_module.log("probe/linear_loss", loss.detach(), batch_size=len(labels))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            if self.head is None and self.loaded is None:
                note_once(pl_module, "LinearProbe has no trained weights in this checkpoint: `test` fits new ones")
                return
            self._build(trainer, pl_module)
        self._absent = False
        if self.head is not None:
            self.metric.reset()

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
        if step is None or (self.head is None and not trainer.testing):
            return
        rows = step.whole("clean_representations", "labels")
        assert rows.clean_representations is not None
        known = rows.labels >= 0
        features, labels = rows.clean_representations.float()[known], rows.labels[known]
        if trainer.testing:
            self.tested.append((features.cpu(), labels.cpu()))
        elif not bool(features.isfinite().all()):
            self._absent = True
            note_once(pl_module, f"LinearProbe is left out at step {trainer.global_step}: {NOT_FINITE}")
        elif self.head is not None and len(labels):
            self.head.eval()
            with torch.autocast(pl_module.device.type, enabled=False):
                self.metric.update(self.head(features), labels)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._absent or trainer.sanity_checking:
            return
        if self.head is not None and self.metric.update_called:
            pl_module.log("probe/linear_top1", self.metric.compute(), prog_bar=True)

    def state_dict(self) -> dict[str, Any]:
        if self.head is None or self.optimizer is None:
            return self.loaded or {}
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict or None

    # To convergence

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.tested = []

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = classes_of(trainer, "LinearProbe")
        if found is None:
            self.tested = []
            return
        data, _ = found
        test, test_labels = (torch.cat(parts) for parts in zip(*self.tested, strict=True))
        self.tested = []
        train, train_labels = (part.cpu() for part in clean_features(data, pl_module, "train"))
        train, train_labels = train[train_labels >= 0], train_labels[train_labels >= 0]
        if len(train_labels.unique()) < 2 or not len(test_labels):
            note_once(pl_module, "LinearProbe is off: the images have no labels")
            return
        results = torch.zeros(len(self.fractions), dtype=torch.float64, device=pl_module.device)
        if rank() == 0:
            for number, fraction in enumerate(self.fractions.values()):
                rows = label_subset(train_labels, fraction)
                results[number] = fit_linear(train[rows], train_labels[rows]).accuracy(test, test_labels)
        if world_size() > 1:
            dist.broadcast(results, 0)
        for suffix, result in zip(self.fractions, results, strict=True):
            pl_module.log(f"probe/linear_top1{suffix}", result.float())


def label_subset(labels: Tensor, fraction: float) -> Tensor:
    """Rows of a class-balanced random part of the labels, at least one row a class, the same at each call.

    >>> labels = torch.tensor([0] * 50 + [1] * 50)
    >>> labels[label_subset(labels, 0.1)].bincount()
    tensor([5, 5])
    """
    generator = np.random.default_rng(0)
    rows = []
    for label in labels.unique().tolist():
        members = np.flatnonzero(labels.numpy() == label)
        rows.append(generator.permutation(members)[: max(1, round(fraction * len(members)))])
    return torch.from_numpy(np.sort(np.concatenate(rows)))
