"""The picture of NoiseNormality: tests against the noise level, over training."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sslinfo.evaluation.noise_tests import NoiseTests


def draw(history: Sequence[tuple[int, NoiseTests]], about: str) -> Figure:
    """Mean p-value, share rejected and mean absolute excess kurtosis against sigma, one curve a step.

    Args:
        history: (optimizer step, what was measured), oldest first.
        about: what was measured with, for the title.
    """
    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 3)
    figure.suptitle(f"Gaussianity of the representation under input noise: {about}, step {history[-1][0]}")
    colours = colormaps["viridis"]
    scale = Normalize(history[0][0], max(history[-1][0], history[0][0] + 1))
    names = {"pvalue": "mean p-value", "rejected": "share of dimensions rejected", "kurtosis": "mean |excess kurtosis|"}
    for axis, (name, label) in zip(panels, names.items(), strict=True):
        for step, measured in history:
            axis.semilogx(
                measured.sigmas, getattr(measured, name), color=colours(scale(step)), marker=".", linewidth=1.2
            )
        axis.set(title=label, xlabel="noise sigma, standard deviations of the pixels", ylabel=label)
        axis.grid(alpha=0.3)
    panels[0].axhline(0.5, color="grey", linestyle="--", linewidth=1)
    panels[0].set_ylim(0, 0.6)
    panels[0].text(float(history[-1][1].sigmas[0]), 0.51, "Gaussian", color="grey", va="bottom")
    panels[1].set_ylim(-0.02, 1.02)
    figure.colorbar(ScalarMappable(scale, colours), ax=panels[2], label="optimizer step")
    return figure
