"""The whole loss against the paper's, and what the module adds to the function."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sslinfo.objectives import LogDet, PairDist, VarianceCovariance, VICReg, vicreg_loss
from sslinfo.objectives.entropy import EntropyHalf


def pair(n: int = 11, d: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 1.5, d).double()
    return z, z + 0.4 * torch.randn(n, d, generator=generator, dtype=torch.float64)


def published(z1: np.ndarray, z2: np.ndarray, weights: tuple[float, float, float]) -> float:
    """Algorithm 1 of arXiv:2105.04906, in loops: invariance averaged over samples and dimensions."""
    n, d = z1.shape
    invariance = sum((z1[i, j] - z2[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    variance = covariance = 0.0
    for z in (z1, z2):
        c = np.cov(z.T, ddof=1)
        variance += sum(max(0.0, 1 - np.sqrt(c[j, j] + 1e-4)) for j in range(d)) / d
        covariance += sum(c[j, k] ** 2 for j in range(d) for k in range(d) if j != k) / d
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (3.0, 0.5, 7.0)])
def test_the_loss_is_the_published_one(weights: tuple[float, float, float]) -> None:
    z1, z2 = pair()
    half = VarianceCovariance(variance=weights[1], covariance=weights[2])
    found = vicreg_loss(z1, z2, half, invariance=weights[0])
    assert found["loss"].item() == pytest.approx(published(z1.numpy(), z2.numpy(), weights), rel=1e-12)


def test_the_defaults_are_the_published_weights() -> None:
    z1, z2 = pair()
    model = VICReg(backbone="conv4", projector=[6])
    found = model.loss(z1, z2)
    assert found["loss"].item() == pytest.approx(published(z1.numpy(), z2.numpy(), (25.0, 25.0, 1.0)), rel=1e-12)


def test_a_half_on_the_sphere_sees_both_terms_there() -> None:
    z1, z2 = pair()
    cosine = torch.nn.functional.cosine_similarity(z1, z2).mean().item()
    for half in (LogDet(), PairDist()):
        found = vicreg_loss(z1, z2, half)
        # Mean over d coordinates of a squared distance on the sphere of radius sqrt(d).
        assert found["invariance"].item() == pytest.approx(2 * (1 - cosine), rel=1e-12)
        assert vicreg_loss(5 * z1, 0.1 * z2, half)["loss"].item() == pytest.approx(found["loss"].item(), rel=1e-9)


@pytest.mark.parametrize("half", [VarianceCovariance(), LogDet(), LogDet(normalize=False), PairDist(bound="lower")])
def test_loss_is_the_sum_of_its_halves(half: EntropyHalf) -> None:
    z1, z2 = pair()
    found = vicreg_loss(z1, z2, half, invariance=4.0)
    p1, p2 = half.prepare(z1), half.prepare(z2)
    expected = 4 * ((p1 - p2) ** 2).sum() / p1.numel() + half(p1, p2)["loss"]
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert set(found) == {"invariance"} | set(half(p1, p2))


@pytest.mark.parametrize("half", [VarianceCovariance(), LogDet(), PairDist()])
def test_gradients_are_finite_differences(half: EntropyHalf) -> None:
    z1, z2 = (z.requires_grad_() for z in pair())
    assert torch.autograd.gradcheck(lambda a, b: vicreg_loss(a, b, half)["loss"], (z1, z2), atol=1e-6)


def test_any_half_serves() -> None:
    class Constant(EntropyHalf):
        def forward(self, *views: Tensor) -> dict[str, Tensor]:
            return {"loss": views[0].new_tensor(2.5), "mine": views[0].new_tensor(1.0)}

    z1, _ = pair()
    found = vicreg_loss(z1, z1, Constant())
    assert {name: term.item() for name, term in found.items()} == {"loss": 2.5, "invariance": 0.0, "mine": 1.0}
