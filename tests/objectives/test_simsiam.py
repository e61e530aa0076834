"""SimSiam against the paper's formula in loops, small cases by hand, and the predictor's learning rate."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from finite_differences import central_differences
from lightning.pytorch import Callback, Trainer
from rank_trainer import QUIET, SmallNet
from torch import Tensor
from torch.utils.data import DataLoader

from sslinfo.errors import UserError
from sslinfo.objectives import LogDet, SimSiam, simsiam_loss
from sslinfo.optim import OptimizerConfig

SIZES = [(1, 4), (7, 4), (3, 10)]


def rows(n: int, d: int, count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(n + d)
    return [rng.standard_normal((n, d)) * rng.uniform(0.3, 3, (n, 1)) for _ in range(count)]


def published(p1: np.ndarray, p2: np.ndarray, z1: np.ndarray, z2: np.ndarray) -> float:
    """arXiv:2011.10566, equations 1 and 2: D(p1, z2) / 2 + D(p2, z1) / 2, D the negative cosine, mean over samples."""

    def distance(p: np.ndarray, z: np.ndarray) -> float:
        dot = sum(x * y for x, y in zip(p, z, strict=True))
        return -dot / math.sqrt(sum(x * x for x in p)) / math.sqrt(sum(y * y for y in z))

    return sum(distance(p1[i], z2[i]) / 2 + distance(p2[i], z1[i]) / 2 for i in range(len(p1))) / len(p1)


@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradient_are_the_published_ones_and_targets_have_none(size: tuple[int, int]) -> None:
    p1, p2, z1, z2 = rows(*size)
    tensors = [torch.tensor(each, requires_grad=True) for each in (p1, p2, z1, z2)]
    found = simsiam_loss(*tensors)["loss"]
    assert found.item() == pytest.approx(published(p1, p2, z1, z2), rel=1e-12)
    found.backward()
    slopes = central_differences(lambda a, b: published(a, b, z1, z2), p1, p2)
    for tensor, slope in zip(tensors[:2], slopes, strict=True):
        assert np.abs(slope).max() > 1e-3, "no slope: the test would show nothing"
        np.testing.assert_allclose(tensor.grad.numpy(), slope, rtol=1e-6, atol=1e-8)  # type: ignore[union-attr]
    assert tensors[2].grad is None
    assert tensors[3].grad is None


def loss_of(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> float:
    return simsiam_loss(p1, p2, z1, z2)["loss"].item()


def test_small_cases_by_hand() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert loss_of(a, b, z1=b, z2=a) == pytest.approx(-1)  # each predicts the other view
    assert loss_of(a, b, z1=a, z2=b) == pytest.approx(0)  # each its own view, at right angles to the other
    assert loss_of(a, b, z1=-b, z2=-a) == pytest.approx(1)
    assert loss_of(a, a, z1=a, z2=b) == pytest.approx(-0.5)  # cosines 0 and 1
    both = torch.cat([a, a])  # a mean over samples: cosines 1 and -1
    assert loss_of(both, both, torch.cat([a, -a]), torch.cat([a, -a])) == pytest.approx(0)


def test_what_does_not_change_it() -> None:
    p1, p2, z1, z2 = (torch.from_numpy(each) for each in rows(7, 4))
    expected = pytest.approx(loss_of(p1, p2, z1, z2), rel=1e-12)
    lengths = torch.rand(4, 7, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 0.01
    assert loss_of(*(length * each for length, each in zip(lengths, (p1, p2, z1, z2), strict=True))) == expected
    assert loss_of(p2, p1, z2, z1) == expected
    # and one thing that does: which projection belongs to which view
    assert loss_of(p1, p2, z2, z1) != expected


# The module


def small(**options: Any) -> SimSiam:
    arguments = {
        "backbone": SmallNet(1),
        "in_channels": 1,
        "projector": [6],
        "projector_norm": "none",
        "predictor": [5],
        "predictor_norm": "layer",
        "optimizer": OptimizerConfig("sgd", lr=0.5, batch_size_of_lr=4, weight_decay=0.01),
    }
    return SimSiam(**{**arguments, **options})


def loader(batches: int, size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batches * size, 2, 1, 8, 8, generator=generator)
    samples = [{"views": list(pair), "label": 0, "index": index} for index, pair in enumerate(images)]
    return DataLoader(samples, batch_size=size)  # type: ignore[arg-type]


def test_predictions_and_projections_are_of_their_own_view() -> None:
    model = small()
    views = [torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)]
    out = model.embed(views)
    assert sorted(out) == ["p1", "p2", "z1", "z2"]
    for number, view in zip("12", views, strict=True):
        z = model.projector(model.backbone(view))
        torch.testing.assert_close(out[f"z{number}"], z)
        torch.testing.assert_close(out[f"p{number}"], model.predictor(z))
    model.objective(views)[0]["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Rates(Callback):
    """The learning rate of every parameter at each step, by name."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        rate = {id(p): group["lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
        self.steps.append({name: rate[id(parameter)] for name, parameter in pl_module.named_parameters()})


@pytest.mark.parametrize("constant", [None, True, False])
@pytest.mark.parametrize("warmup", [0, 2])
def test_the_predictors_learning_rate_is_constant(constant: bool | None, warmup: int) -> None:
    rates = Rates()
    config = OptimizerConfig("sgd", lr=0.5, batch_size_of_lr=4, weight_decay=0.01, warmup_steps=warmup)
    model = small(optimizer=config, **({} if constant is None else {"constant_predictor_lr": constant}))
    Trainer(**QUIET, max_epochs=1, callbacks=[rates]).fit(model, loader(warmup + 3))
    # A warm-up from 0, then half a cosine over three steps: (1 + cos(pi k / 3)) / 2.
    others = [0.5 * factor for factor in [[], [], [0, 0.5]][warmup] + [1, 0.75, 0.25]]
    assert {name.split(".")[0] for name in rates.steps[0]} == {"backbone", "projector", "predictor"}
    for step, other in zip(rates.steps, others, strict=True):
        for name, rate in step.items():
            still = name.startswith("predictor.") and constant is not False
            assert rate == pytest.approx(0.5 if still else other, rel=1e-12), name


def test_groups_of_the_predictor_keep_its_weight_decay() -> None:
    model = small()
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.fit(model, loader(1))
    decay = {id(p): group["weight_decay"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.01 if parameter.dim() > 1 else 0), name


def test_an_entropy_half_acts_on_the_projections_with_gradient() -> None:
    half = LogDet(weight=3.0, beta=2.0)
    views = [torch.randn(9, 1, 8, 8), torch.randn(9, 1, 8, 8)]
    terms, outputs = small(entropy=half).objective(views)
    z = outputs.embeddings
    more = half(half.prepare(z["z1"]), half.prepare(z["z2"]))
    alone = published(*(z[name].double().numpy() for name in ("p1", "p2", "z1", "z2")))
    assert terms["loss"].item() == pytest.approx(alone + more["loss"].item(), rel=1e-5)
    # The stopped gradient is the similarity's alone: the half's own reaches the projector.
    model = small(entropy=half)
    torch.manual_seed(0)
    gradients = []
    for weight in (0.0, 3.0):
        half.weight = weight
        model.zero_grad()
        model.objective(views)[0]["loss"].backward()
        gradients.append(model.projector[0].weight.grad.clone())  # type: ignore[union-attr, operator]
    z1, z2 = (model.projector(model.backbone(view)) for view in views)
    (own,) = torch.autograd.grad(half(half.prepare(z1), half.prepare(z2))["loss"], [model.projector[0].weight])  # type: ignore[list-item]
    torch.testing.assert_close(gradients[1] - gradients[0], own, rtol=1e-3, atol=1e-5)
    assert own.abs().max() > 1e-3


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match=r"predictor=None: SimSiam has one"):
        small(predictor=None)
