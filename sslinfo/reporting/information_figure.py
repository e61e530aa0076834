"""The pictures of InformationMonitor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from sslinfo.information import Moments
from sslinfo.reporting.publishing import Picture

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


def panels(picture: Picture) -> dict[str, Picture]:
    """The parts of the figure by name, each a picture of a size that a logger's cards show."""
    width = picture.shape[1] // len(PANELS)
    return {name: picture[:, number * width : (number + 1) * width] for number, name in enumerate(PANELS)}
