"""The picture of RunSummary: curves of the training, probes, and the spectrum at the start and at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

Curve = Sequence[tuple[int, float]]


def draw(curves: Mapping[str, Curve], spectra: Mapping[str, Tensor]) -> Figure:
    """A panel for each term of the loss, one for the probes, one for the spectra.

    Args:
        curves: (optimizer step, value) by logged name: ``train/<term>``, ``probe/<name>``.
        spectra: eigenvalues (d,) of the covariance of the representation, by when: "start", "end".
    """
    losses = [name for name in curves if name.startswith("train/")]
    probes = [name for name in curves if name in ("probe/linear_top1", "probe/knn_top1")]
    panels = len(losses) + bool(probes) + 1
    rows = math.ceil(panels / 3)
    figure = Figure(figsize=(12, 3.4 * rows), dpi=110, layout="constrained")
    axes = iter(figure.subplots(rows, 3, squeeze=False).ravel())
    for name in losses:
        axis = next(axes)
        axis.plot(*zip(*curves[name], strict=True))
        axis.set(title=name, xlabel="optimizer step", ylabel="nats" if "entropy" in name else "loss term")
    if probes:
        axis = next(axes)
        for name in probes:
            axis.plot(*zip(*curves[name], strict=True), marker=".", label=name.removeprefix("probe/"))
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
    return figure
