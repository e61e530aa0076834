"""How what a diagnostic found reaches people: numbers in the logs, text and pictures in files and loggers, notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from sslinfo.data import TwoViewDataModule
from sslinfo.lightning_compat import datamodule_of, is_dry_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]


@dataclass
class Publication:
    """What a diagnostic has to show after one measurement.

    Attributes:
        name: of the diagnostic; its text is ``<name>.txt`` in the run's folder.
        tag: under which loggers take the text.
        text: as a person reads it; lines that stand below one another keep their columns.
        files: pictures (H, W, 3) of the run's folder, by file name without ending.
        panels: pictures (H, W, 3) for the loggers, by tag.
        histograms: values (n,) for the loggers that draw them, by tag.
    """

    name: str
    tag: str
    text: str = ""
    files: Mapping[str, Picture] = field(default_factory=dict)
    panels: Mapping[str, Picture] = field(default_factory=dict)
    histograms: Mapping[str, Tensor] = field(default_factory=dict)


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files are. Every rank has to ask, since the loggers' folder is that of rank 0."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def publish(trainer: Trainer, make: Callable[[], Publication], folder: Path | None = None) -> Path | None:
    """Write a diagnostic's text and pictures into the run's folder and give them to every logger.

    It happens on rank 0 and in no dry run, and only there is ``make`` called.

    Args:
        trainer: whose run it is.
        make: what there is to show.
        folder: the run's folder, where :func:`run_folder` was asked before. Without it every rank has to call.

    Returns:
        The run's folder where something was written, else None.
    """
    folder = run_folder(trainer) if folder is None else folder
    if not trainer.is_global_zero or is_dry_run(trainer):
        return None
    made, step = make(), step_of(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    if made.text:
        (folder / f"{made.name}.txt").write_text(made.text.rstrip("\n") + "\n")
    for name, picture in made.files.items():
        save(picture, folder / f"{name}.png")
    for logger in trainer.loggers:
        _give(logger, made, trainer.lightning_module, step)
    return folder


def _give(logger: Any, made: Publication, module: LightningModule, step: int) -> None:
    """What a logger takes of it; what it does not take is said once."""
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_image"):
        for tag, picture in made.panels.items():
            experiment.add_image(tag, picture, step, dataformats="HWC")
        for tag, values in made.histograms.items():
            experiment.add_histogram(tag, values, step)
        if made.text:
            columns = "\n" in made.text.strip()
            experiment.add_text(made.tag, f"```\n{made.text}\n```" if columns else made.text, step)
        return
    if not made.panels:
        return
    if hasattr(logger, "log_image"):
        for tag, picture in made.panels.items():
            logger.log_image(tag, [picture], step=step)
        note_once(module, f"{type(logger).__name__} takes the pictures; the text beside them is in the run's folder")
    else:
        note_once(module, f"{type(logger).__name__} takes no pictures: they are files in the run's folder")


def render(figure: Figure) -> Picture:
    """The pixels (H, W, 3) of a matplotlib figure, drawn once for the file and all loggers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return numpy.asarray(canvas.buffer_rgba())[..., :3].copy()


def data_of(trainer: Trainer, wanted_by: str) -> TwoViewDataModule | None:
    """The trainer's TwoViewDataModule, None (with a note naming who wanted it) if it has another kind of data."""
    data = datamodule_of(trainer)
    if isinstance(data, TwoViewDataModule):
        return data
    note_once(trainer.lightning_module, f"{wanted_by} is off: it needs a TwoViewDataModule")
    return None


def classes_of(trainer: Trainer, wanted_by: str) -> tuple[TwoViewDataModule, int] | None:
    """The data and their number of classes, None (with a note) where the training images have fewer than two."""
    data = data_of(trainer, wanted_by)
    if data is None:
        return None
    if data.num_classes is None or data.num_classes < 2:
        reason = "the training images have no labels" if data.num_classes is None else "all images are of one class"
        note_once(trainer.lightning_module, f"{wanted_by} is off: {reason}")
        return None
    return data, data.num_classes


def save(picture: Picture, path: Path) -> None:
    """Write a PNG file."""
    Image.fromarray(picture).save(path)


def step_of(trainer: Trainer) -> int:
    """Optimizer steps behind the weights: of the training, or outside one of the checkpoint that was loaded."""
    return trainer.global_step or int(getattr(trainer.lightning_module, "loaded_step", 0))


def log_numbers(module: LightningModule, numbers: Mapping[str, float], logger: bool | None = None) -> None:
    """Log numbers that are the same on all ranks, in float64: of Python's own numbers Lightning keeps float32."""
    for name, number in numbers.items():
        module.log(name, torch.tensor(number, dtype=torch.float64), batch_size=1, logger=logger)


def note_once(module: LightningModule, message: str) -> None:
    """Print a note once for each module, on rank 0."""
    noted = module.__dict__.setdefault("_sslinfo_notes", set())
    if message not in noted:
        noted.add(message)
        if module.global_rank == 0:
            print(f"note: {message}")
