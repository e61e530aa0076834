"""Deterministic networks under input noise: normality, distances in pixel space, the local affine map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslinfo.errors import UserError
from sslinfo.information import benjamini_hochberg, local_affine, noise_normality


class Gaussianity(NamedTuple):
    """Normality of a representation under input noise, each (S,), one entry a sigma.

    ``pvalue``, ``rejected`` (share, at false-discovery rate 5%) and ``kurtosis`` (median of the absolute excess) are
    over images and the dimensions that vary under that noise, ``constant`` is the share of those that do not, and
    ``pvalue_same`` is over the dimensions that vary under the smallest noise, the same ones for each sigma.
    """

    pvalue: Tensor
    pvalue_same: Tensor
    rejected: Tensor
    kurtosis: Tensor
    constant: Tensor


def gaussianity(model: nn.Module, images: Tensor, sigmas: Sequence[float], draws: int = 512) -> Gaussianity:
    """``noise_normality`` of a network in evaluation mode at images (N, ...), summarised for each of the sigmas.

    >>> found = gaussianity(torch.nn.ReLU(), torch.full((1, 16), 5.0), sigmas=[0.1, 10.0])
    >>> [round(share, 1) for share in found.rejected.tolist()]
    [0.0, 1.0]
    """
    found = noise_normality(model, images, sigmas, draws)
    pvalue, kurtosis = found.pvalue.flatten(1), found.excess_kurtosis.flatten(1).abs()
    varying = ~pvalue.isnan()
    same = varying[int(found.sigmas.argmin())]
    rejected = torch.stack([benjamini_hochberg(tests) for tests in pvalue])
    return Gaussianity(
        pvalue.nanmean(1),
        pvalue[:, same].nanmean(1),
        rejected.sum(1) / varying.sum(1),
        kurtosis.nanmedian(1).values,
        found.constant_share,
    )


class PixelDistances(NamedTuple):
    """Distances between images as vectors: ``nearest`` (N,), and of all pairs ``counts`` (bins,) at ``edges``."""

    nearest: Tensor
    counts: Tensor
    edges: Tensor

    def separate(self, radius: float) -> float:
        """Share of the images whose ball of this radius meets the ball of no other image."""
        return float((self.nearest > 2 * radius).double().mean())


def pixel_distances(images: Tensor, bins: int = 100, block: int = 256) -> PixelDistances:
    """Euclidean distances between images (N, ...): of each to its nearest other, and a histogram of all pairs.

    Of pixels as vectors, in float64, ``block`` rows at a time: O(N x block) memory, whatever the number of pairs.

    >>> found = pixel_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    >>> [round(r, 2) for r in found.nearest.tolist()], int(found.counts.sum()), found.separate(radius=1.0)
    ([1.0, 4.24, 1.0], 3, 0.3333333333333333)
    """
    rows = images.flatten(1).double()
    if len(rows) < 2:
        raise UserError(f"images must be two or more, got {len(rows)}")
    farthest = 2 * torch.linalg.vector_norm(rows - rows.mean(0), dim=1).max().clamp_min(1e-300)
    edges = torch.linspace(0, float(farthest), bins + 1, dtype=torch.float64)
    counts, nearest = torch.zeros(bins, dtype=torch.float64), []
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        distance = torch.cdist(part, rows, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(part))
        # Each pair once: of later images alone.
        later = torch.arange(len(rows)) > (start + own)[:, None]
        counts += torch.histogram(distance[later], edges).hist
        distance[own, start + own] = torch.inf
        nearest.append(distance.min(1).values)
    return PixelDistances(torch.cat(nearest), counts, edges)


class AffineFit(NamedTuple):
    """How well the local affine map J predicts the output under noise, each (S, N): one entry a sigma and image.

    ``error`` is ||C - sigma^2 J J^T||_F / ||sigma^2 J J^T||_F, C the covariance of the draws; ``floor`` the root mean
    square of it that draws of a Gaussian of covariance J J^T would give; ``trace`` is tr C / (sigma^2 tr J J^T);
    ``same_piece`` the share of draws with every rectifier on the side that it has at the image.
    """

    error: Tensor
    floor: Tensor
    trace: Tensor
    same_piece: Tensor


@torch.no_grad()
def affine_fit(
    model: nn.Module, images: Tensor, sigmas: Sequence[float], draws: int = 4096, seed: int = 0
) -> AffineFit:
    """Monte Carlo of the output covariance against the local affine map, at each of images (N, ...) and each sigma.

    The floor is the Wishart distribution's: E ||C - S||_F^2 = (||S||_F^2 + (tr S)^2) / (draws - 1).
    Source: arXiv:2303.00633, theorem on the output density, covariance form derived.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU())
    >>> fit = affine_fit(net.double(), torch.ones(1, 4, dtype=torch.float64), sigmas=[1e-6])
    >>> fit.same_piece.item(), fit.error.item() < 3 * fit.floor.item()
    (1.0, True)
    """
    jacobian = local_affine(model, images).jacobian
    predicted = jacobian @ jacobian.mT
    length, trace = torch.linalg.matrix_norm(predicted), predicted.diagonal(dim1=1, dim2=2).sum(1)
    floor = ((1 + (trace / length) ** 2) / (draws - 1)).sqrt()
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(3, len(sigmas), len(images), dtype=torch.float64)
    with _Pieces(model) as pieces:
        for number, image in enumerate(images):
            noise = torch.randn(draws, *image.shape, generator=generator, dtype=images.dtype)
            model(image[None])
            here = pieces.take()
            for level, sigma in enumerate(sigmas):
                z = model(image + sigma * noise).double()
                covariance = z.T.cov().reshape(z.shape[1], -1) / sigma**2
                found[0, level, number] = torch.linalg.matrix_norm(covariance - predicted[number]) / length[number]
                found[1, level, number] = covariance.trace() / trace[number]
                found[2, level, number] = (pieces.take() == here).all(1).double().mean()
    error, ratio, same = found
    return AffineFit(error, floor.expand_as(error), ratio, same)


class _Pieces:
    """Which rectifiers of a network let their input through, for each sample of the last forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.rectifiers = [part for part in model.modules() if isinstance(part, nn.ReLU)]
        if not self.rectifiers:
            raise UserError(f"{type(model).__name__} has no nn.ReLU, which its affine pieces are counted by")
        self.seen: list[Tensor] = []

    def __enter__(self) -> _Pieces:
        self.hooks = [part.register_forward_hook(self._note) for part in self.rectifiers]
        return self

    def __exit__(self, *args: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, part: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen.append((output > 0).flatten(1))

    def take(self) -> Tensor:
        """(N, rectifiers) of the forward pass since the last call."""
        seen, self.seen = self.seen, []
        return torch.cat(seen, dim=1)
