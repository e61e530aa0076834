"""The functions behind the notebooks on input noise, against scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kurtosis, norm, normaltest
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sslinfo.errors import UserError
from sslinfo.experiments import affine_fit, build, digits, gaussianity, pixel_distances, pretrain, validation_images


class Rectified(nn.Module):
    """max(0, x - at) of flattened images, in each column."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at, self.relu = at, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x.flatten(1) - self.at)


# Training


def test_a_run_depends_on_its_seed_alone_and_trains() -> None:
    runs = []
    for seed in (0, 0, 1):
        model = build("VICReg", seed=0, width=2)
        start = {name: value.clone() for name, value in model.named_parameters()}
        pretrain(model, digits(), epochs=2, seed=seed, limit_val_batches=0)
        assert not model.training
        assert all(not torch.equal(value, start[name]) for name, value in model.named_parameters() if "weight" in name)
        runs.append(model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert not all(torch.equal(value, runs[2][name]) for name, value in runs[0].items())


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(UserError, match="method must be one of VICReg, .*, got 'Vicreg'"):
        build("Vicreg")


# Images


def test_validation_images_are_sklearns_and_normalised() -> None:
    data = digits(batch_size=100)
    images = validation_images(data, 250)
    pixels = images * data.pipeline.std[0] + data.pipeline.mean[0]
    expected = load_digits().images[data.stores["val"].index[:250]] / 16
    np.testing.assert_allclose(pixels[:, 0], expected, atol=0.51 / 255)  # kept in 8 bits
    assert len(validation_images(data, 10_000)) == len(data.stores["val"])


# Gaussianity


def test_gaussianity_is_scipys() -> None:
    """Two columns: x itself, and max(0, x - 1), which is 0 under the small noise."""

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, (x - 1).clamp_min(0)], dim=1)

    images = torch.zeros(1, 4, dtype=torch.float64)
    found = gaussianity(Both(), images, sigmas=[0.1, 2.0], draws=200)
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small, large = (Both()(images + sigma * noise).numpy() for sigma in (0.1, 2.0))
    same = normaltest(small[:, :4]).pvalue.mean()
    both = normaltest(large).pvalue
    assert found.pvalue.tolist() == pytest.approx([same, both.mean()])
    # The normal columns have the p-value that they have under any noise.
    assert found.pvalue_same.tolist() == pytest.approx([same, same])
    assert found.constant.tolist() == [0.5, 0.0]
    # Half are far from Gaussian, half are: all of the former are rejected, none of the latter is.
    assert found.rejected.tolist() == [0.0, 0.5]
    middle = [np.sort(np.abs(kurtosis(z)))[count] for z, count in ((small[:, :4], 1), (large, 3))]  # the lower median
    assert found.kurtosis.tolist() == pytest.approx(middle)


# Distances


@pytest.mark.parametrize("block", [1, 7, 64])
def test_pixel_distances_are_scipys(block: int) -> None:
    images = torch.randn(33, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    found = pixel_distances(images, bins=20, block=block)
    pairs = pdist(images.flatten(1).double().numpy())
    whole = squareform(pairs) + np.diag(np.full(33, np.inf))
    np.testing.assert_allclose(found.nearest, whole.min(1), rtol=1e-12)
    np.testing.assert_array_equal(found.counts, np.histogram(pairs, bins=found.edges.numpy())[0])
    assert found.edges[-1] >= pairs.max()
    for radius in (0.0, 1.0, 1.5, 2.0, 9.0):
        assert found.separate(radius) == (whole.min(1) > 2 * radius).mean()


def test_equal_images_are_at_distance_0() -> None:
    found = pixel_distances(torch.full((5, 3), 1e4))
    assert found.nearest.tolist() == [0.0] * 5
    assert int(found.counts.sum()) == 10
    assert found.separate(0.0) == 0


def test_one_image_has_no_distance() -> None:
    with pytest.raises(UserError, match="images must be two or more, got 1"):
        pixel_distances(torch.zeros(1, 3))


# The affine map


def test_one_rectifier_switches_as_often_as_the_normal_distribution_says() -> None:
    """x = 1, the kink at 0: P(1 + sigma e > 0) = Phi(1 / sigma). 20000 draws: tolerance of 5 standard errors."""
    sigmas = [0.2, 1.0, 4.0]
    fit = affine_fit(Rectified(at=-1.0), torch.zeros(1, 1, dtype=torch.float64), sigmas, draws=20_000)
    expected = norm.cdf(1 / np.array(sigmas))
    assert fit.same_piece[:, 0].numpy() == pytest.approx(expected, abs=5 * 0.5 / 20_000**0.5)


def test_variance_of_a_rectified_gaussian() -> None:
    """Just above the kink the map is x -> x, and the variance of max(0, N(0, 1)) is 1/2 - 1/(2 pi) = .341."""
    fit = affine_fit(Rectified(at=-1e-9), torch.zeros(1, 1, dtype=torch.float64), [1.0], draws=100_000)
    expected = 0.5 - 0.5 / math.pi
    # Its standard error is .0025: five of them.
    assert fit.trace.item() == pytest.approx(expected, abs=0.0125)
    assert fit.error.item() == pytest.approx(1 - expected, abs=0.0125)


def test_the_floor_is_what_a_gaussian_gives() -> None:
    """Away from all kinks the output is Gaussian: root mean square of the error over 300 images against the floor.

    Each error has independent noise and a relative spread below 1/2, so that of the mean square is below
    2 x .5 / 300^.5 = 6 %, that of its root below 3 %: 15 % is five of those.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU()).double()
    nn.init.constant_(net[0].bias, 100.0)
    images = torch.zeros(300, 5, dtype=torch.float64)
    fit = affine_fit(net, images, [0.1, 1.0], draws=100)
    jacobian = net[0].weight.detach().numpy()
    covariance = jacobian @ jacobian.T
    floor = math.sqrt((1 + np.trace(covariance) ** 2 / (covariance**2).sum()) / 99)
    assert fit.floor.numpy() == pytest.approx(np.full((2, 300), floor))
    assert fit.error.square().mean(1).sqrt().numpy() == pytest.approx([floor, floor], rel=0.15)
    assert bool((fit.same_piece == 1).all())
    assert fit.trace.mean().item() == pytest.approx(1, abs=0.05)


def test_hooks_are_gone_afterwards_and_networks_without_rectifiers_refused() -> None:
    net = Rectified(at=-1.0)
    affine_fit(net, torch.zeros(1, 2), [0.1], draws=8)
    assert not net.relu._forward_hooks
    with pytest.raises(UserError, match=r"Linear has no nn.ReLU"):
        affine_fit(nn.Linear(2, 2), torch.zeros(1, 2), [0.1])
