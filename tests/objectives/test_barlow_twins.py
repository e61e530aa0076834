"""Barlow Twins against the paper's formula in loops, on both sides of N = d, and small cases by hand."""

import math

import numpy as np
import pytest
import torch
from finite_differences import central_differences
from rank_trainer import SmallNet
from torch import Tensor

from sslinfo.objectives import BarlowTwins, LogDet, barlow_twins_loss

SIZES = [(12, 5), (5, 9), (6, 6)]  # more and fewer samples than dimensions
EPS = 1e-5

# Three columns of mean 0 and biased variance 1, orthogonal to each other.
WHITE = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)


def pair(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Views that agree in part, with means, and standard deviations that differ by dimension."""
    rng = np.random.default_rng(10 * n + d)
    z = rng.standard_normal((n, d)) * np.linspace(0.3, 2, d) + 0.5
    return z, z + 0.5 * rng.standard_normal((n, d))


def published(z1: np.ndarray, z2: np.ndarray, weight: float, scale: float = 1.0) -> tuple[float, float, float]:
    """Algorithm 1 of arXiv:2103.03230 with batch norm's biased variance and epsilon: loss, on and off the diagonal."""
    n, d = z1.shape

    def normalised(z: np.ndarray) -> np.ndarray:
        out = np.zeros_like(z)
        for j in range(d):
            mean = sum(z[i, j] for i in range(n)) / n
            variance = sum((z[i, j] - mean) ** 2 for i in range(n)) / n
            out[:, j] = (z[:, j] - mean) / math.sqrt(variance + EPS)
        return out

    a, b = normalised(z1), normalised(z2)
    on = off = 0.0
    for j in range(d):
        for k in range(d):
            c = sum(a[i, j] * b[i, k] for i in range(n)) / n
            if j == k:
                on += (1 - c) ** 2
            else:
                off += c**2
    return scale * (on + weight * off), on, off


def terms_of(z1: Tensor, z2: Tensor, **options: float) -> dict[str, float]:
    terms = barlow_twins_loss(z1, z2, **options)
    assert all(term.dim() == 0 for term in terms.values())
    return {name: term.item() for name, term in terms.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("weight", "scale"), [(0.0051, 1.0), (0.7, 0.1)])
def test_value_and_gradient_are_the_published_ones(size: tuple[int, int], weight: float, scale: float) -> None:
    z1, z2 = pair(*size)
    t1, t2 = (torch.tensor(z, requires_grad=True) for z in (z1, z2))
    found = barlow_twins_loss(t1, t2, off_diagonal=weight, scale=scale)
    loss, on, off = published(z1, z2, weight, scale)
    expected = {"loss": loss, "on_diagonal": on, "off_diagonal": off}
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected, rel=1e-11)
    found["loss"].backward()
    slopes = central_differences(lambda a, b: published(a, b, weight, scale)[0], z1, z2)
    for tensor, slope in zip((t1, t2), slopes, strict=True):
        assert np.abs(slope).max() > 1e-3, "no slope: the test would show nothing"
        np.testing.assert_allclose(tensor.grad.numpy(), slope, rtol=1e-5, atol=1e-8)  # type: ignore[union-attr]


def test_the_defaults_are_the_published_weights() -> None:
    z1, z2 = pair(12, 5)
    found = terms_of(torch.from_numpy(z1), torch.from_numpy(z2))
    assert found["loss"] == pytest.approx(published(z1, z2, 0.0051)[0], rel=1e-11)


def test_identical_white_views_cost_nothing() -> None:
    found = terms_of(WHITE, WHITE, off_diagonal=1.0)
    # C = I / (1 + eps): the diagonal misses 1 by eps / (1 + eps), three times.
    assert found["on_diagonal"] == pytest.approx(3 * (EPS / (1 + EPS)) ** 2, rel=1e-4)
    assert found["off_diagonal"] == pytest.approx(0, abs=1e-14)
    assert found["loss"] == pytest.approx(0, abs=1e-9)


def test_fewer_samples_than_dimensions_cannot_be_white() -> None:
    # Each column twice: C is 1 at the six places where a column meets its double. Less is impossible: C has trace
    # d = 6 and rank N - 1 = 3, so |C|^2 >= 6^2 / 3 = 12, of which the diagonal takes 6.
    z = torch.cat([WHITE, WHITE], dim=1)
    found = terms_of(z, z, off_diagonal=0.5)
    assert found["off_diagonal"] == pytest.approx(6 / (1 + EPS) ** 2, rel=1e-12)
    assert found["loss"] == pytest.approx(3, rel=1e-4)


def test_small_cases_by_hand() -> None:
    # Opposite views: C = -I, (1 + 1)^2 three times.
    assert terms_of(WHITE, -WHITE)["on_diagonal"] == pytest.approx(12, rel=1e-4)
    # Dimensions in another order, a cycle of three: nothing on the diagonal, three ones off it.
    found = terms_of(WHITE, WHITE.roll(1, dims=1), off_diagonal=0.1)
    assert found == pytest.approx({"loss": 3.3, "on_diagonal": 3, "off_diagonal": 3}, rel=1e-4)
    # Every dimension the same one: C is all ones.
    same = WHITE[:, :1].expand(4, 3)
    assert terms_of(same, same, off_diagonal=0.1) == pytest.approx(
        {"loss": 0.6, "on_diagonal": 0, "off_diagonal": 6}, rel=1e-4, abs=1e-8
    )


def test_a_constant_dimension_costs_its_diagonal_and_has_finite_gradients() -> None:
    z = WHITE.clone()
    z[:, 0] = 7.0
    z.requires_grad_()
    terms = barlow_twins_loss(z, z)
    assert terms["on_diagonal"].item() == pytest.approx(1, rel=1e-4)
    terms["loss"].backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("size", SIZES)
def test_what_does_not_change_it(size: tuple[int, int]) -> None:
    z1, z2 = (torch.from_numpy(z) for z in pair(*size))
    expected = terms_of(z1, z2)
    assert terms_of(z2, z1) == pytest.approx(expected, rel=1e-11)
    assert terms_of(z1 + 3, z2 - 5) == pytest.approx(expected, rel=1e-9)
    order = torch.randperm(size[0], generator=torch.Generator().manual_seed(0))
    assert terms_of(z1[order], z2[order]) == pytest.approx(expected, rel=1e-11)
    # The scale of a dimension counts through epsilon alone.
    widths = torch.linspace(2, 50, size[1], dtype=torch.float64)
    assert terms_of(z1 * widths, z2 * widths.flip(0)) == pytest.approx(expected, rel=1e-3)
    # and one thing that does: which views belong together
    assert terms_of(z1, z2.roll(1, dims=0))["loss"] != pytest.approx(expected["loss"], rel=1e-3)


def small(**options: object) -> BarlowTwins:
    arguments = {"backbone": SmallNet(1), "in_channels": 1, "projector": [6], "projector_norm": "none"}
    return BarlowTwins(**{**arguments, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "weight", "scale"), [({}, 0.0051, 1.0), ({"off_diagonal": 0.02, "scale": 0.1}, 0.02, 0.1)]
)
def test_the_module_has_the_loss_with_its_weights(options: dict[str, float], weight: float, scale: float) -> None:
    z1, z2 = pair(12, 6)
    found = small(**options).loss(torch.from_numpy(z1), torch.from_numpy(z2))["loss"].item()
    assert found == pytest.approx(published(z1, z2, weight, scale)[0], rel=1e-11)


def test_an_entropy_half_is_added_with_its_weight() -> None:
    views = [torch.randn(9, 1, 8, 8), torch.randn(9, 1, 8, 8)]
    half = LogDet(weight=3.0, beta=2.0)
    terms, outputs = small(entropy=half, scale=0.1).objective(views)
    z1, z2 = (outputs.embeddings[name] for name in ("z1", "z2"))
    more = half(half.prepare(z1), half.prepare(z2))
    alone = barlow_twins_loss(z1, z2, scale=0.1)
    # The scale is Barlow Twins' own and does not touch the half.
    assert terms["loss"].item() == pytest.approx((alone["loss"] + more["loss"]).item(), rel=1e-5)
    assert terms["entropy"].item() == pytest.approx(more["entropy"].item(), rel=1e-6)
    assert terms["on_diagonal"].item() == pytest.approx(alone["on_diagonal"].item(), rel=1e-6)
