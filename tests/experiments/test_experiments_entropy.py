"""What the entropy and folder notebooks call: batch-norm statistics, features of views, snapshots, digits as files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from torch import nn

from sslinfo.data import TwoViewDataModule
from sslinfo.experiments import build, calibrate, digits, digits_folder, pairwise_terms, snapshots, view_features


@pytest.fixture(scope="module")
def data() -> TwoViewDataModule:
    data = digits()
    data.setup("fit")
    return data


def first_norm(model: nn.Module) -> nn.BatchNorm2d:
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_calibrated_statistics_are_means_over_the_batches_of_both_views(data):
    model = build("VICReg")
    seen = []
    handle = first_norm(model).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].double()))
    calibrate(model, data)
    handle.remove()
    assert len(seen) == 2 * (len(data.stores["train"]) // data.batch_size)
    expected = np.mean([batch.mean((0, 2, 3)).numpy() for batch in seen], axis=0)
    variance = np.mean([batch.transpose(0, 1).flatten(1).var(1).numpy() for batch in seen], axis=0)
    norm = first_norm(model)
    np.testing.assert_allclose(norm.running_mean.numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-4)


def test_calibrating_changes_neither_weights_nor_mode_nor_momentum(data):
    model = build("BYOL")
    model.eval()
    before = {name: value.clone() for name, value in model.named_parameters()}
    momentum = first_norm(model).momentum
    calibrate(model, data)
    assert not model.training
    assert first_norm(model).momentum == momentum
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_features_are_of_the_validation_images_in_order_and_do_not_depend_on_the_batch_size(data):
    model = build("SimCLR")
    features = view_features(model, data)
    assert model.training
    small = TwoViewDataModule("digits", batch_size=100, views="digits", val_fraction=0.25, seed=data.seed)
    small.setup("fit")
    # The views share the order of their colour operations within a batch, so only rows of the first batch compare.
    other = view_features(model, small)
    assert torch.equal(features.label, other.label)
    assert torch.equal(features.label, data.stores["val"].labels)
    assert len(features.representation) == len(features.embedding) == 2
    torch.testing.assert_close(features.representation[0][:100], other.representation[0][:100], rtol=1e-3, atol=1e-4)
    model.eval()
    torch.testing.assert_close(model.projector(features.representation[1]), features.embedding[1])


def test_features_of_one_network_are_the_same_at_each_call(data):
    model = build("VICReg")
    first, second = view_features(model, data), view_features(model, data)
    assert torch.equal(first.embedding[0], second.embedding[0])
    assert not torch.equal(first.embedding[0], first.embedding[1])


def test_measuring_does_not_change_the_training_and_seeds_repeat():
    often, seldom = snapshots("BYOL", seed=3, epochs=2, every=1), snapshots("BYOL", seed=3, epochs=2, every=2)
    assert list(often) == [0, 1, 2]
    assert list(seldom) == [0, 2]
    for epoch in (0, 2):
        torch.testing.assert_close(often[epoch].embedding[0], seldom[epoch].embedding[0])
    assert not torch.allclose(often[1].embedding[0], often[2].embedding[0], rtol=0.01)


@pytest.mark.parametrize(("bound", "scale"), [("upper", 2.0), ("lower", 8.0)])
@pytest.mark.parametrize("normalize", [True, False])
def test_pairwise_terms_against_a_direct_sum(bound, scale, normalize):
    rng = np.random.default_rng(0)
    views = [rng.normal(size=(40, 6)) + 1 for _ in range(2)]
    entropies = []
    for view in views:
        z = view / np.linalg.norm(view, axis=1, keepdims=True) * math.sqrt(6) if normalize else view
        distances = ((z[:, None] - z[None]) ** 2).sum(2)
        component = 0.3 * 6
        mean = np.mean(logsumexp(-distances / (scale * component), axis=1) - math.log(40))
        entropies.append(6 / 2 * math.log(2 * math.pi * math.e * component) - mean)
    entropy, below = pairwise_terms([torch.tensor(view) for view in views], 0.3, bound, normalize)
    assert entropy == pytest.approx(np.mean(entropies), rel=1e-9)
    assert entropy + below == pytest.approx(6 / 2 * math.log(2 * math.pi * math.e * 1.8) + math.log(40), rel=1e-9)


def test_folder_of_digits_has_every_image_in_its_class_at_many_sizes(tmp_path: Path):
    digits_folder(tmp_path, 200)
    target = load_digits().target[:200]
    files = sorted(tmp_path.glob("*/*.png"), key=lambda path: path.stem)
    assert [int(path.parent.name) for path in files] == target.tolist()
    images = [Image.open(path) for path in files]
    sides = {image.size for image in images}
    assert all(width == height for width, height in sides)
    assert {width for width, _ in sides} == set(range(12, 29))
    assert {image.mode for image in images} == {"L"}
    small = np.asarray(images[0].resize((8, 8), Image.Resampling.BOX), dtype=float)
    # Blurred by going up and down again, but the same digit.
    assert np.corrcoef(small.ravel(), load_digits().images[0].ravel())[0, 1] > 0.95


def test_the_folder_trains_as_an_image_folder(tmp_path: Path):
    digits_folder(tmp_path, 120)
    data = TwoViewDataModule("imagefolder", str(tmp_path), batch_size=32, views="digits", channels=1, image_size=16)
    data.setup("fit")
    features = view_features(build("VICReg"), data)
    assert features.representation[0].shape == (12, 128)
    assert set(features.label.tolist()) <= set(range(10))
