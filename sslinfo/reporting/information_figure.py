"""The pictures of InformationMonitor, and how loggers take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from lightning.pytorch import LightningModule
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sslinfo.information import Moments
from sslinfo.reporting.publishing import note_once

Picture = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]

PANELS = ("spectrum", "covariance", "standard_deviations")
MOST_PIXELS = 256  # of a side of the covariance's image


def draw(layer: str, spectra: Sequence[tuple[int, Tensor]], moments: Moments) -> Figure:
    """Spectra over training, covariance of the features, and their standard deviations, of one layer.

    Args:
        layer: its name, for the titles.
        spectra: (optimizer step, eigenvalues (d,) in descending order), oldest first.
        moments: of the layer's samples now.
    """
    figure = Figure(figsize=(15, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(1, len(PANELS))  # of one width, which ``panels`` relies on
    left, middle, right = (part.subplots() for part in parts)
    covariance = moments.covariance().cpu()
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    for part in parts:
        about = f"{moments.n} validation images, {moments.d} dimensions"
        part.suptitle(f"{layer}, step {spectra[-1][0]}\n{about}", fontsize=11)

    colours = colormaps["viridis"]
    scale = Normalize(spectra[0][0], max(spectra[-1][0], spectra[0][0] + 1))
    for step, spectrum in spectra:
        shares = spectrum / spectrum.sum().clamp_min(1e-30)
        shares = torch.where(shares > 1e-12, shares, torch.nan)  # below rounding: the curve ends there
        left.semilogy(range(1, len(shares) + 1), shares.numpy(), color=colours(scale(step)), linewidth=1.2)
    left.set(title="covariance spectrum over training", xlabel="eigenvalue number", ylabel="share of the variance")
    left.grid(alpha=0.3)
    if len(spectra) > 1:
        parts[0].colorbar(ScalarMappable(scale, colours), ax=left, label="optimizer step")

    shown = covariance[:MOST_PIXELS, :MOST_PIXELS]
    end = float(covariance.diagonal().mean()) or 1.0
    image = middle.imshow(shown.numpy(), cmap="RdBu_r", vmin=-end, vmax=end, interpolation="nearest")
    part = f", first {MOST_PIXELS}" if moments.d > MOST_PIXELS else ""
    middle.set(title=f"covariance of the features{part}", xlabel="feature", ylabel="feature")
    parts[1].colorbar(image, ax=middle, label="covariance (colours end at the mean variance)", extend="both")

    right.hist(deviation.numpy(), bins=min(60, max(10, moments.d // 8)))
    right.set(title="standard deviations of the features", xlabel="standard deviation", ylabel="number of features")
    return figure


def render(figure: Figure) -> Picture:
    """The figure's pixels (H, W, 3), drawn once for the file and all loggers."""
    figure.canvas.draw()  # type: ignore[attr-defined]
    return numpy.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def panels(picture: Picture) -> dict[str, Picture]:
    """The parts of the figure by name, each a picture of a size that a logger's cards show."""
    width = picture.shape[1] // len(PANELS)
    return {name: picture[:, number * width : (number + 1) * width] for number, name in enumerate(PANELS)}


def save(picture: Picture, path: Path) -> None:
    """Write a PNG file."""
    Image.fromarray(picture).save(path)


def log_to(
    logger: Any, module: LightningModule, pictures: Mapping[str, Picture], text: str, step: int, prefix: str = "info"
) -> None:
    """Give the pictures by name and the text to a logger that takes them; say once which does not."""
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_image"):
        for name, picture in pictures.items():
            experiment.add_image(f"{prefix}/{name}", picture, step, dataformats="HWC")
        experiment.add_text(f"{prefix}/settings", "```\n" + text + "\n```", step)
    elif hasattr(logger, "log_image"):
        for name, picture in pictures.items():
            logger.log_image(f"{prefix}/{name}", [picture], step=step)
        note_once(module, f"{type(logger).__name__} takes the pictures; the table of settings is in the run's folder")
    else:
        note_once(module, f"{type(logger).__name__} takes no pictures: they are files in the run's folder")
