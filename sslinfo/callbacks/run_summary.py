"""RunSummary: at the end of a training, what was learned, as a table in the terminal and a figure in a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sslinfo.evaluation.features import clean_features, data_of
from sslinfo.evaluation.probes import Mean, knn_scores, label_efficiency
from sslinfo.information import covariance_spectrum, effective_rank, logdet_entropy

# A longer training is thinned to at most this many points of a curve, so that nothing grows with its length.
MOST_POINTS = 1000


class RunSummary(Callback):
    """Compares the representation with raw pixels, and shows how the run went.

    The table holds, for both: accuracy on the validation images of linear probes fitted on a few labels a class and on
    all of them (mean and standard error over random draws of the labels), k-NN, log-det entropy at beta = 1 of the
    features as they are and of features divided by their root mean square, and effective rank. The figure holds the
    training curves and the covariance spectrum at the start and at the end.

    Args:
        labels_per_class: numbers of labels a class for the linear probes; all labels are always tried too.
        draws: random draws of the labels.
        limit: at most so many training and validation images each.

    >>> RunSummary(labels_per_class=[1]).labels_per_class
    [1]
    """

    def __init__(self, labels_per_class: tuple[int, ...] = (3, 10), draws: int = 100, limit: int = 5000) -> None:
        self.labels_per_class = list(labels_per_class)
        self.draws, self.limit = draws, limit
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.stride = 1
        self.first_spectrum: Tensor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer, "RunSummary")
        if data is not None and self.first_spectrum is None:
            self.first_spectrum = _spectrum(clean_features(data, pl_module, "val", self.limit)[0])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch % self.stride:
            return
        self._note(trainer, "train/")
        if max(map(len, self.curves.values()), default=0) > MOST_POINTS:
            self.stride *= 2
            self.curves = {name: points[::2] for name, points in self.curves.items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._note(trainer, "probe/")

    def _note(self, trainer: Trainer, prefix: str) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(prefix) and name != "train/lr":
                self.curves.setdefault(name, []).append((trainer.global_step, float(value)))

    def state_dict(self) -> dict[str, Any]:
        return {"curves": self.curves, "stride": self.stride, "first_spectrum": self.first_spectrum}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves = {name: [tuple(p) for p in points] for name, points in state_dict["curves"].items()}  # type: ignore[misc]
        self.stride, self.first_spectrum = state_dict["stride"], state_dict["first_spectrum"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer, "RunSummary")
        if data is None or self.first_spectrum is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        sets = {
            name: (
                *clean_features(data, pl_module, "train", self.limit, pixels),
                *clean_features(data, pl_module, "val", self.limit, pixels),
            )
            for name, pixels in (("raw pixels", True), ("representation", False))
        }
        logs = trainer.log_dir  # asks all ranks
        if not trainer.is_global_zero:
            return
        columns = {}
        for name, (x, y, tx, ty) in sets.items():
            columns[name] = self.measure(x.cpu(), y.cpu(), tx.cpu(), ty.cpu(), data.num_classes)
        folder = Path(logs or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        spectra = {"start": self.first_spectrum, "end": _spectrum(sets["representation"][2].cpu())}
        figure = self.draw(spectra, folder / "summary.png")
        counts = f"{len(sets['representation'][1])} training, {len(sets['representation'][3])} validation images"
        self.show(columns, counts)
        print(f"figure: {figure}")
        if logs is not None:
            print(f"to look further: tensorboard --logdir {logs}")

    def measure(
        self, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, num_classes: int | None
    ) -> dict[str, str]:
        """One column of the table: named figures of features (N, d) and (M, d)."""
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

    def draw(self, spectra: dict[str, Tensor], path: Path) -> Path:
        """Draw the figure to a file."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        losses = [name for name in self.curves if name.startswith("train/")]
        probes = [name for name in self.curves if name in ("probe/linear_top1", "probe/knn_top1")]
        panels = len(losses) + bool(probes) + 1
        rows = math.ceil(panels / 3)
        figure = Figure(figsize=(12, 3.4 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = iter(figure.subplots(rows, 3, squeeze=False).ravel())
        for name in losses:
            axis = next(axes)
            axis.plot(*zip(*self.curves[name], strict=True))
            axis.set(title=name, xlabel="optimizer step", ylabel="nats" if "entropy" in name else "loss term")
        if probes:
            axis = next(axes)
            for name in probes:
                axis.plot(*zip(*self.curves[name], strict=True), marker=".", label=name.removeprefix("probe/"))
            axis.set(title="probes on validation images", xlabel="optimizer step", ylabel="top-1 accuracy")
            axis.legend()
        axis = next(axes)
        for name, spectrum in spectra.items():
            shares = spectrum / spectrum.sum().clamp(min=1e-300)
            axis.semilogy(range(1, len(shares) + 1), shares.clamp(min=1e-12), label=f"{name} of training")
        axis.set(title="covariance spectrum of the representation", xlabel="eigenvalue number")
        axis.set(ylabel="eigenvalue as a share of the variance")
        axis.legend()
        for axis in axes:
            axis.set_axis_off()
        figure.savefig(path, dpi=110)
        return path


def _or_undefined(figure: Callable[[], str]) -> str:
    """A figure, or that it does not exist: for one image, or for features that are all equal."""
    try:
        return figure()
    except ValueError:
        return "undefined"


def _spectrum(features: Tensor) -> Tensor:
    return covariance_spectrum(features).cpu() if len(features) > 1 else torch.zeros(features.shape[1])


def _percent(value: Mean, repetitions: int) -> str:
    return f"{100 * value.mean:.1f}" + (f" ± {100 * value.error:.1f} %" if repetitions > 1 else " %")
