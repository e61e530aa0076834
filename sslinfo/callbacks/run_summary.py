"""RunSummary: at the end of a training, what was learned, as a table in the terminal and a figure in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sslinfo.evaluation.features import clean_features
from sslinfo.evaluation.probes import Mean, knn_scores, label_efficiency
from sslinfo.information import covariance_spectrum, effective_rank, logdet_entropy
from sslinfo.lightning_compat import is_dry_run
from sslinfo.objectives.finite import NotFinite
from sslinfo.ranges import check_range
from sslinfo.reporting.history import History
from sslinfo.reporting.publishing import Publication, data_of, note_once, publish, render

# A longer training is thinned to at most this many points of a curve, so that nothing grows with its length.
MOST_POINTS = 1000


class RunSummary(Callback):
    """Compares the representation with raw pixels, and shows how the run went.

    The table holds, for both: accuracy on the validation images of linear probes fitted on a few labels a class and on
    all of them (mean and standard error over random draws of the labels), k-NN, log-det entropy at beta = 1 of the
    features as they are and of features divided by their root mean square, and effective rank. The figure holds the
    training curves and the covariance spectrum at the start and at the end.

    Args:
        labels_per_class: numbers of labels a class for the linear probes, in [1, 1e9]; all labels are always tried too.
        draws: random draws of the labels, in [1, 1e6].
        limit: at most so many training and validation images each, in [2, 1e9].

    >>> RunSummary(labels_per_class=[1]).labels_per_class
    [1]
    """

    def __init__(self, labels_per_class: tuple[int, ...] = (3, 10), draws: int = 100, limit: int = 5000) -> None:
        for count in labels_per_class:
            check_range("a number of labels_per_class", count, "[1, 1e9]", whole=True)
        check_range("draws", draws, "[1, 1e6]", whole=True)
        check_range("limit", limit, "[2, 1e9]", whole=True)
        self.labels_per_class = list(labels_per_class)
        self.draws, self.limit = draws, limit
        self.curves: dict[str, History[tuple[int, float]]] = {}
        self.first_spectrum: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # another training than the last one, unless a checkpoint's state comes next
            self.curves, self.first_spectrum = {}, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer, "RunSummary")
        if data is not None and self.first_spectrum is None:
            try:
                self.first_spectrum = _spectrum(clean_features(data, pl_module, "val", self.limit)[0])
            except NotFinite as error:
                note_once(pl_module, f"RunSummary is off: {error}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, "train/")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._note(trainer, "probe/")

    def _note(self, trainer: Trainer, prefix: str) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(prefix) and name != "train/lr":
                self.curves.setdefault(name, History(MOST_POINTS)).add((trainer.global_step, float(value)))

    def state_dict(self) -> dict[str, Any]:
        curves = {name: curve.state_dict(list) for name, curve in self.curves.items()}
        return {"curves": curves, "first_spectrum": self.first_spectrum}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves = {}
        for name, state in state_dict["curves"].items():
            self.curves[name] = History(MOST_POINTS)
            if isinstance(state, dict):
                self.curves[name].load_state_dict(state, tuple)
            else:  # of version 0.1.0: the points alone
                for point in state:
                    self.curves[name].add(tuple(point))
        self.first_spectrum = state_dict["first_spectrum"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer, "RunSummary")
        if data is None or self.first_spectrum is None or is_dry_run(trainer):
            return
        try:
            sets = {
                name: (
                    *clean_features(data, pl_module, "train", self.limit, pixels),
                    *clean_features(data, pl_module, "val", self.limit, pixels),
                )
                for name, pixels in (("raw pixels", True), ("representation", False))
            }
        except NotFinite as error:
            note_once(pl_module, f"RunSummary has nothing to show: {error}")
            return
        logs = trainer.log_dir  # asks all ranks
        folder = publish(trainer, lambda: self._publication(sets["representation"][2].cpu()))
        if folder is not None:
            columns = {}
            for name, (x, y, tx, ty) in sets.items():
                columns[name] = self.measure(x.cpu(), y.cpu(), tx.cpu(), ty.cpu(), data.num_classes)
            counts = f"{len(sets['representation'][1])} training, {len(sets['representation'][3])} validation images"
            self.show(columns, counts)
            print(f"figure: {folder / 'summary.png'}")
            if logs is not None:
                print(f"to look further: tensorboard --logdir {logs}")
        trainer.strategy.barrier("RunSummary")  # a rank that leaves ends the one that still measures

    def _publication(self, features: Tensor) -> Publication:
        from sslinfo.reporting.summary_figure import draw

        assert self.first_spectrum is not None
        picture = render(draw(self.curves, {"start": self.first_spectrum, "end": _spectrum(features)}))
        return Publication("summary", tag="summary/text", files={"summary": picture}, panels={"summary/run": picture})

    def measure(
        self, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, num_classes: int | None
    ) -> dict[str, str]:
        """One column of the table: named numbers of features (N, d) and (M, d)."""
        column: dict[str, str] = {}
        known, test_known = train_labels >= 0, test_labels >= 0
        if num_classes is not None and len(train_labels[known].unique()) > 1 and bool(test_known.any()):
            x, y, tx, ty = train[known], train_labels[known], test[test_known], test_labels[test_known]
            for per_class in [*self.labels_per_class, None]:
                top1 = label_efficiency(x, y, tx, ty, per_class, self.draws)
                name = f"linear probe, {per_class or 'all'} labels" + (" a class" if per_class else "")
                column[name] = _percent(top1, self.draws if per_class else 1)
            votes = knn_scores(tx, x, y, num_classes).argmax(1)
            column["k-NN (k = 20)"] = _percent(Mean(float((votes == ty).double().mean()), 0.0), 1)
        centred = test.double() - test.double().mean(0)
        scale = centred.square().mean().sqrt().clamp(min=1e-12)
        column["log-det entropy (nats, beta = 1)"] = _or_undefined(lambda: f"{float(logdet_entropy(centred)):.1f}")
        column["  at unit mean variance"] = _or_undefined(lambda: f"{float(logdet_entropy(centred / scale)):.1f}")
        ceiling = min(len(test) - 1, test.shape[1])
        column["effective rank"] = _or_undefined(lambda: f"{float(effective_rank(centred)):.1f} of {ceiling}")
        return column

    def show(self, columns: dict[str, dict[str, str]], counts: str) -> None:
        """Print the table."""
        table = Table(title=f"What was learned ({counts})", title_justify="left")
        table.add_column("")
        for name in columns:
            table.add_column(name, justify="right")
        for row in next(iter(columns.values())):
            table.add_row(row, *(column[row] for column in columns.values()))
        console = Console()
        console.print()
        console.print(table)


def _or_undefined(number: Callable[[], str]) -> str:
    """A number, or that it does not exist: for one image, or for features that are all equal."""
    try:
        return number()
    except ValueError:
        return "undefined"


def _spectrum(features: Tensor) -> Tensor:
    return covariance_spectrum(features).cpu() if len(features) > 1 else torch.zeros(features.shape[1])


def _percent(value: Mean, repetitions: int) -> str:
    return f"{100 * value.mean:.1f}" + (f" ± {100 * value.error:.1f} %" if repetitions > 1 else " %")
