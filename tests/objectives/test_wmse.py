"""Whitening against numpy's covariance and scipy's triangular solve, the loss in loops, and what cannot be whitened."""

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from finite_differences import central_differences
from rank_trainer import SmallNet
from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.information import UndefinedEstimate
from sslinfo.objectives import WMSE, LogDet, whiten, wmse_loss

# Samples, dimensions, slice size: one slice, several, N no multiple of the slice, a slice larger than the batch.
CUTS = [(6, 3, 6), (12, 2, 4), (13, 2, 4), (11, 3, 5), (5, 3, 128)]


def pair(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated views with means."""
    rng = np.random.default_rng(n + d)
    z = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 2
    return z, z + 0.5 * rng.standard_normal((n, d))


def whitened(z: np.ndarray, eps: float) -> np.ndarray:
    """arXiv:2007.06346, equation 5: W (z - mean) with W the inverse of the Cholesky factor of the covariance."""
    d = z.shape[1]
    covariance = (1 - eps) * np.cov(z.T, ddof=1).reshape(d, d) + eps * np.eye(d)
    factor = np.linalg.cholesky(covariance)
    return np.stack([scipy.linalg.solve_triangular(factor, row - z.mean(0), lower=True) for row in z])


def published(z1: np.ndarray, z2: np.ndarray, slice_size: int, eps: float = 0.0) -> float:
    """Equation 6 on the unit sphere, each slice of the batch whitened by itself."""
    n = len(z1)
    total = 0.0
    for part in np.array_split(np.arange(n), max(1, n // slice_size)):
        for a, b in zip(whitened(z1[part], eps), whitened(z2[part], eps), strict=True):
            total += (((a / np.sqrt(a @ a)) - (b / np.sqrt(b @ b))) ** 2).sum()
    return total / n


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_value_and_gradient_of_both_views_are_the_published_ones(cut: tuple[int, int, int], eps: float) -> None:
    n, d, size = cut
    z1, z2 = pair(n, d)
    tensors = [torch.tensor(z, requires_grad=True) for z in (z1, z2)]
    found = wmse_loss(*tensors, slice_size=size, eps=eps)["loss"]
    assert found.item() == pytest.approx(published(z1, z2, size, eps), rel=1e-9)
    found.backward()
    slopes = central_differences(lambda a, b: published(a, b, size, eps), z1, z2)
    for tensor, slope in zip(tensors, slopes, strict=True):
        assert np.abs(slope).max() > 1e-3, "no slope: the test would show nothing"
        np.testing.assert_allclose(tensor.grad.numpy(), slope, rtol=1e-5, atol=1e-7)  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(3, 2), (9, 8), (50, 7), (2, 1)])
def test_whitened_rows_have_mean_0_and_covariance_identity(shape: tuple[int, int]) -> None:
    z, _ = pair(*shape)
    found = whiten(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(np.cov(found.T), np.eye(shape[1]).squeeze(), atol=1e-9)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(found, whitened(z, 0.0), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("eps", [0.01, 0.5])
def test_shrinkage_is_towards_the_identity(eps: float) -> None:
    z, _ = pair(12, 4)
    np.testing.assert_allclose(whiten(torch.from_numpy(z), eps).numpy(), whitened(z, eps), rtol=1e-8, atol=1e-10)
    few, _ = pair(3, 6)  # a covariance of rank 2, which shrinkage mends
    np.testing.assert_allclose(whiten(torch.from_numpy(few), eps).numpy(), whitened(few, eps), rtol=1e-7, atol=1e-9)


def loss_of(z1: Tensor, z2: Tensor, slice_size: int = 128, eps: float = 0.0) -> float:
    return wmse_loss(z1, z2, slice_size, eps)["loss"].item()


def test_small_cases_by_hand() -> None:
    # One dimension, two samples: whitened to +-1 / sqrt(2) and normalised to +-1, in the same order or the other.
    low_high = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    assert loss_of(low_high, 10 * low_high - 7) == pytest.approx(0, abs=1e-12)
    assert loss_of(low_high, low_high.flip(0)) == pytest.approx(4, rel=1e-12)
    # The corners of a square have covariance 4/3 I: whitened they are the corners again. With the first coordinate's
    # sign turned each corner is at right angles to itself: 2 - 0; with both turned it is opposite: 2 + 2.
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(whiten(square), square * 0.75**0.5)
    assert loss_of(square, square) == pytest.approx(0, abs=1e-12)
    assert loss_of(square, square * torch.tensor([-1.0, 1.0])) == pytest.approx(2, rel=1e-12)
    assert loss_of(square, -square) == pytest.approx(4, rel=1e-12)
    # Two slices, of which one agrees and one is opposite.
    both = torch.cat([square, 3 * square + 1])
    assert loss_of(both, torch.cat([square, -square]), slice_size=4) == pytest.approx(2, rel=1e-12)


def test_what_does_not_change_it() -> None:
    z1, z2 = (torch.from_numpy(z) for z in pair(13, 3))
    expected = pytest.approx(loss_of(z1, z2), rel=1e-9)
    assert loss_of(z2, z1) == expected
    # Cholesky whitening undoes every lower-triangular map with a positive diagonal, and every shift.
    lower = torch.tensor([[2.0, 0.0, 0.0], [-1.0, 0.5, 0.0], [3.0, 1.0, 1.5]], dtype=torch.float64)
    assert loss_of(z1 @ lower.T + 5, z2) == expected
    assert loss_of(z1 @ lower.T + 5, z1) == pytest.approx(0, abs=1e-9)
    # Slices are whitened by themselves: a map for each.
    pieces = [part * factor for part, factor in zip(z1.tensor_split(3), (1, 5, 0.2), strict=True)]
    assert loss_of(torch.cat(pieces), z2, slice_size=4) == pytest.approx(loss_of(z1, z2, slice_size=4), rel=1e-9)
    # and one thing that does: which views belong together
    assert loss_of(z1, z2.roll(1, dims=0)) != expected


# What cannot be whitened


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (4, 4), (4, 16)])
def test_slices_not_larger_than_the_width_are_refused(shape: tuple[int, int], dtype: torch.dtype) -> None:
    z = torch.randn(*shape, dtype=dtype)
    with pytest.raises(UndefinedEstimate, match=rf"{shape[0]} samples .* {shape[1]} dimensions cannot.*model.eps"):
        whiten(z)
    several = torch.randn(3 * shape[0], shape[1], dtype=dtype)
    with pytest.raises(UndefinedEstimate, match=r"raise data.batch_size or model.slice_size above|model.eps"):
        wmse_loss(several, several, slice_size=shape[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distinct", [1, 2, 4])
def test_identical_images_are_refused_however_the_rounding_falls(distinct: int, dtype: torch.dtype) -> None:
    """Sixteen samples that are only so many different ones: rank below 4, up to rounding of either sign."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(distinct, 4, generator=generator, dtype=dtype).repeat(16 // distinct, 1) + 0.5
        with pytest.raises(UserError, match=r"singular.*model\.eps"):
            whiten(z)


def test_a_singular_batch_passes_with_shrinkage() -> None:
    z = torch.ones(6, 3)
    assert torch.equal(whiten(z, eps=0.1), torch.zeros(6, 3))
    few = torch.randn(4, 6, dtype=torch.float64)
    assert loss_of(few, few, eps=0.1) == pytest.approx(0, abs=1e-9)


# The module


def small(**options: Any) -> WMSE:
    arguments = {"backbone": SmallNet(1), "in_channels": 1, "projector": [3], "projector_norm": "none"}
    return WMSE(**{**arguments, **options})


@pytest.mark.parametrize(
    ("options", "size", "eps"), [({}, 128, 0.0), ({"slice_size": 6, "eps": 0.02}, 6, 0.02)], ids=["default", "set"]
)
def test_the_module_has_the_loss_at_its_settings(options: dict[str, float], size: int, eps: float) -> None:
    z1, z2 = pair(300, 3)
    found = small(**options).loss(torch.from_numpy(z1), torch.from_numpy(z2))["loss"].item()
    assert found == pytest.approx(published(z1, z2, size, eps), rel=1e-8)


def test_both_views_reach_the_network() -> None:
    model = small()
    views = [torch.randn(9, 1, 8, 8).requires_grad_() for _ in range(2)]
    model.objective(views)[0]["loss"].backward()
    for view in views:
        assert view.grad is not None
        assert view.grad.abs().max() > 0


def test_an_entropy_half_is_added_with_its_weight() -> None:
    half = LogDet(weight=3.0, beta=2.0)
    terms, outputs = small(entropy=half, eps=0.1).objective([torch.randn(9, 1, 8, 8), torch.randn(9, 1, 8, 8)])
    z1, z2 = (outputs.embeddings[name] for name in ("z1", "z2"))
    more = half(half.prepare(z1), half.prepare(z2))
    alone = published(z1.double().numpy(), z2.double().numpy(), 128, 0.1)
    assert terms["loss"].item() == pytest.approx(alone + more["loss"].item(), rel=1e-4)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="slice_size must be a whole number in .*, got 1"):
        small(slice_size=1)
    with pytest.raises(UserError, match=r"eps must be in \[0, 1\), got 1"):
        small(eps=1)
