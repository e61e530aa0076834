"""NT-Xent against Algorithm 1 of the paper in loops, small cases by hand, and what the module adds."""

import math

import numpy as np
import pytest
import torch
from finite_differences import central_differences
from rank_trainer import SmallNet
from torch import Tensor

from sslinfo.objectives import LogDet, SimCLR, nt_xent_loss

SIZES = [(2, 3), (7, 4), (3, 10)]
TEMPERATURES = [0.1, 0.2, 1.0]


def pair(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Views that agree in part, with rows of very different length."""
    rng = np.random.default_rng(n + d)
    z = rng.standard_normal((n, d))
    return z * rng.uniform(0.3, 3, (n, 1)), z + 0.6 * rng.standard_normal((n, d))


def published(z1: np.ndarray, z2: np.ndarray, temperature: float) -> float:
    """arXiv:2002.05709, equation 1 and Algorithm 1: the mean of l(i, j) over both anchors of each positive pair."""
    z = np.concatenate([z1, z2])
    n = len(z1)

    def similarity(i: int, k: int) -> float:
        return float(z[i] @ z[k]) / math.sqrt(z[i] @ z[i]) / math.sqrt(z[k] @ z[k])

    total = 0.0
    for i in range(2 * n):
        denominator = sum(math.exp(similarity(i, k) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(similarity(i, (i + n) % (2 * n)) / temperature) / denominator)
    return total / (2 * n)


def loss_of(z1: Tensor, z2: Tensor, temperature: float = 0.2) -> float:
    return nt_xent_loss(z1, z2, temperature)["loss"].item()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_value_and_gradient_are_the_published_ones(size: tuple[int, int], temperature: float) -> None:
    z1, z2 = pair(*size)
    t1, t2 = (torch.tensor(z, requires_grad=True) for z in (z1, z2))
    found = nt_xent_loss(t1, t2, temperature)["loss"]
    assert found.item() == pytest.approx(published(z1, z2, temperature), rel=1e-12)
    found.backward()
    slopes = central_differences(lambda a, b: published(a, b, temperature), z1, z2)
    for tensor, slope in zip((t1, t2), slopes, strict=True):
        assert np.abs(slope).max() > 1e-4, "no slope: the test would show nothing"
        np.testing.assert_allclose(tensor.grad.numpy(), slope, rtol=1e-6, atol=1e-7)  # type: ignore[union-attr]


def test_terms_are_scalars() -> None:
    terms = nt_xent_loss(torch.randn(4, 3), torch.randn(4, 3))
    assert "loss" in terms
    assert all(term.dim() == 0 for term in terms.values())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_small_cases_by_hand(temperature: float) -> None:
    axes = torch.eye(2, dtype=torch.float64)
    inverse = 1 / temperature
    # Each anchor: its positive at similarity 1, two others at 0.
    assert loss_of(axes, axes, temperature) == pytest.approx(math.log(1 + 2 * math.exp(-inverse)), rel=1e-12)
    # Each anchor: its positive at 0, one other at 0 and one at 1.
    assert loss_of(axes, axes.flip(0), temperature) == pytest.approx(math.log(2 + math.exp(inverse)), rel=1e-12)
    # Two samples at opposite poles, both views alike: positive at 1, two others at -1.
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    assert loss_of(poles, poles, temperature) == pytest.approx(math.log(1 + 2 * math.exp(-2 * inverse)), rel=1e-12)
    # One sample alone has no negatives.
    assert loss_of(axes[:1], axes[1:], temperature) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_equal_embeddings_leave_a_guess_among_all_others(n: int) -> None:
    z = torch.tensor([[3.0, -1.0, 2.0]]).expand(n, 3)
    assert loss_of(z, z) == pytest.approx(math.log(2 * n - 1), abs=1e-6)


def test_what_does_not_change_it() -> None:
    z1, z2 = (torch.from_numpy(z) for z in pair(7, 4))
    expected = pytest.approx(loss_of(z1, z2), rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(2, 7, 1, generator=generator, dtype=torch.float64) * 5 + 0.01
    assert loss_of(lengths[0] * z1, lengths[1] * z2) == expected
    assert loss_of(z2, z1) == expected
    order = torch.randperm(7, generator=generator)
    assert loss_of(z1[order], z2[order]) == expected
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    assert loss_of(z1 @ rotation, z2 @ rotation) == expected
    # and one thing that does: which views belong together
    assert loss_of(z1, z2.roll(1, dims=0)) != expected


def test_a_tiny_temperature_does_not_overflow() -> None:
    axes = torch.eye(2)  # similarity / temperature = 1000: the exponential is infinite in float32
    assert loss_of(axes, axes, 1e-3) == pytest.approx(0, abs=1e-6)
    assert loss_of(axes, axes.flip(0), 1e-3) == pytest.approx(1000, rel=1e-6)


def small(**options: object) -> SimCLR:
    arguments = {"backbone": SmallNet(1), "in_channels": 1, "projector": [6], "projector_norm": "none"}
    return SimCLR(**{**arguments, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "temperature"), [({}, 0.2), ({"temperature": 0.5}, 0.5)])
def test_the_module_has_the_loss_at_its_temperature(options: dict[str, float], temperature: float) -> None:
    z1, z2 = pair(7, 6)
    found = small(**options).loss(torch.from_numpy(z1), torch.from_numpy(z2))["loss"].item()
    assert found == pytest.approx(published(z1, z2, temperature), rel=1e-12)


def test_an_entropy_half_is_added_with_its_weight() -> None:
    views = [torch.randn(9, 1, 8, 8), torch.randn(9, 1, 8, 8)]
    half = LogDet(weight=3.0, beta=2.0)
    model = small(entropy=half)
    terms, outputs = model.objective(views)
    z1, z2 = (outputs.embeddings[name] for name in ("z1", "z2"))
    more = half(half.prepare(z1), half.prepare(z2))
    alone = published(z1.double().numpy(), z2.double().numpy(), 0.2)
    assert terms["loss"].item() == pytest.approx(alone + more["loss"].item(), rel=1e-5)
    assert terms["entropy"].item() == pytest.approx(more["entropy"].item(), rel=1e-6)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
