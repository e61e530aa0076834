"""BYOL against the paper's formula in loops, small cases by hand, and the target that follows after each step."""

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
from sslinfo.models import ema_momentum
from sslinfo.objectives import BYOL, LogDet, byol_loss
from sslinfo.optim import OptimizerConfig

SIZES = [(1, 4), (7, 4), (3, 10)]


def rows(n: int, d: int, count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(n + d)
    return [rng.standard_normal((n, d)) * rng.uniform(0.3, 3, (n, 1)) for _ in range(count)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def published(p1: np.ndarray, p2: np.ndarray, t1: np.ndarray, t2: np.ndarray) -> float:
    """arXiv:2006.07733, equation 2 and its symmetrisation: squared distances of unit vectors, mean over samples."""

    def distance(p: np.ndarray, t: np.ndarray) -> float:
        p, t = p / math.sqrt(p @ p), t / math.sqrt(t @ t)
        return sum((x - y) ** 2 for x, y in zip(p, t, strict=True))

    return sum(distance(p1[i], t2[i]) + distance(p2[i], t1[i]) for i in range(len(p1))) / len(p1)


@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradient_are_the_published_ones_and_targets_have_none(size: tuple[int, int]) -> None:
    p1, p2, t1, t2 = rows(*size)
    tensors = [torch.tensor(each, requires_grad=True) for each in (p1, p2, t1, t2)]
    found = byol_loss(*tensors)["loss"]
    assert found.item() == pytest.approx(published(p1, p2, t1, t2), rel=1e-12)
    found.backward()
    slopes = central_differences(lambda a, b: published(a, b, t1, t2), p1, p2)
    for tensor, slope in zip(tensors[:2], slopes, strict=True):
        assert np.abs(slope).max() > 1e-3, "no slope: the test would show nothing"
        np.testing.assert_allclose(tensor.grad.numpy(), slope, rtol=1e-6, atol=1e-8)  # type: ignore[union-attr]
    assert tensors[2].grad is None
    assert tensors[3].grad is None


def loss_of(p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> float:
    return byol_loss(p1, p2, t1, t2)["loss"].item()


def test_small_cases_by_hand() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert loss_of(a, b, t1=b, t2=a) == pytest.approx(0)  # each predicts the other view's target
    assert loss_of(a, b, t1=a, t2=b) == pytest.approx(4)  # each its own view's, at right angles to the other's: 2 + 2
    assert loss_of(a, b, t1=-b, t2=-a) == pytest.approx(8)  # (1 - -1)^2 twice
    assert loss_of(a, a, t1=a, t2=b) == pytest.approx(2)  # 2 of the first direction, 0 of the second
    # 60 degrees: |p - t|^2 = 2 - 2 / 2
    third = torch.tensor([[1.0, math.sqrt(3)]])
    assert loss_of(a, a, third, third) == pytest.approx(2)
    # a mean over samples, not a sum: 8 and 0
    both = torch.cat([a, a])
    assert loss_of(both, both, torch.cat([-a, a]), torch.cat([-a, a])) == pytest.approx(4)


def test_what_does_not_change_it() -> None:
    p1, p2, t1, t2 = (torch.from_numpy(each) for each in rows(7, 4))
    expected = pytest.approx(loss_of(p1, p2, t1, t2), rel=1e-12)
    lengths = torch.rand(4, 7, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 0.01
    assert loss_of(*(length * each for length, each in zip(lengths, (p1, p2, t1, t2), strict=True))) == expected
    assert loss_of(p2, p1, t2, t1) == expected
    # and one thing that does: which target belongs to which view
    assert loss_of(p1, p2, t2, t1) != expected


# The module


def small(**options: Any) -> BYOL:
    arguments = {
        "backbone": SmallNet(1),
        "in_channels": 1,
        "projector": [6],
        "projector_norm": "none",
        "predictor": [5],
        "predictor_norm": "none",
        "optimizer": OptimizerConfig("sgd", lr=0.5, batch_size_of_lr=4, options={"momentum": 0.9}),
    }
    return BYOL(**{**arguments, **options})


def loader(batches: int, size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batches * size, 2, 1, 8, 8, generator=generator)
    samples = [{"views": list(pair), "label": 0, "index": index} for index, pair in enumerate(images)]
    return DataLoader(samples, batch_size=size)  # type: ignore[arg-type]


def test_predictions_and_targets_are_of_their_own_view() -> None:
    model = small()
    views = [torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)]
    out = model.embed(views)
    assert sorted(out) == ["p1", "p2", "t1", "t2", "z1", "z2"]
    for number, view in zip("12", views, strict=True):
        z = model.projector(model.backbone(view))
        torch.testing.assert_close(out[f"z{number}"], z)
        torch.testing.assert_close(out[f"p{number}"], model.predictor(z))
        torch.testing.assert_close(out[f"t{number}"], z.detach())  # before the first step the target is the network
        assert not out[f"t{number}"].requires_grad
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(model.embed(views)["t1"], out["t1"])


def test_the_target_has_no_gradient_and_is_not_optimized() -> None:
    model = small()
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.fit(model, loader(1))
    model.objective([torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)])[0]["loss"].backward()
    target = list(model.target.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in target)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not optimized & {id(parameter) for parameter in target}
    online = [*model.backbone.parameters(), *model.projector.parameters(), *model.predictor.parameters()]
    assert {id(parameter) for parameter in online} == optimized
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in online)


class History(Callback):
    """Online and target weights before the training and after each batch, and the momentum that was logged."""

    def __init__(self) -> None:
        self.online: list[list[Tensor]] = []
        self.target: list[list[Tensor]] = []
        self.momentum: list[float] = []

    def note(self, model: Any) -> None:
        online = [*model.backbone.parameters(), *model.projector.parameters()]
        self.online.append([parameter.detach().clone() for parameter in online])
        self.target.append([parameter.detach().clone() for parameter in model.target.parameters()])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note(pl_module)
        self.momentum.append(float(trainer.callback_metrics.get("train/ema_momentum", math.nan)))


@pytest.mark.parametrize(
    ("options", "momenta"),
    [
        # final - (final - base) (1 + cos(pi k / 3)) / 2 with (1 + cos) / 2 = 1, 3/4, 1/4 at k = 0, 1, 2
        ({}, [0.99, 0.9925, 0.9975]),
        ({"momentum": 0.5, "final_momentum": 0.9}, [0.5, 0.6, 0.8]),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_target_follows_after_each_optimizer_step(
    options: dict[str, float], momenta: list[float], accumulate: int
) -> None:
    model, history = small(**options), History()
    trainer = Trainer(**QUIET, max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[history])
    trainer.fit(model, loader(3 * accumulate))
    assert trainer.global_step == 3
    expected = [weight.double() for weight in history.online[0]]
    for batch in range(1, 3 * accumulate + 1):
        if batch % accumulate == 0:
            m = momenta[batch // accumulate - 1]
            online = history.online[batch]
            assert not torch.equal(online[0], history.online[batch - 1][0]), "no step: the test would show nothing"
            expected = [m * t + (1 - m) * o.double() for t, o in zip(expected, online, strict=True)]
            assert history.momentum[batch - 1] == pytest.approx(m, rel=1e-6)
        for found, weight in zip(history.target[batch], expected, strict=True):
            torch.testing.assert_close(found.double(), weight, rtol=0, atol=1e-6)
    moved = max((a - b).abs().max().item() for a, b in zip(history.target[-1], history.target[0], strict=True))
    assert moved > 1e-5, "too little to see at this tolerance: the test would show nothing"


def test_the_schedules_ends_are_exact() -> None:
    assert ema_momentum(0, 1000, 0.99) == 0.99
    assert ema_momentum(1000, 1000, 0.99) == 1.0
    assert ema_momentum(1000, 1000, 0.99, 0.999) == 0.999
    assert ema_momentum(500, 1000, 0.9, 1.0) == pytest.approx(0.95, rel=1e-12)  # half way
    assert ema_momentum(5000, math.inf, 0.99) == 0.99  # a training without an end


def test_an_entropy_half_acts_on_the_projections() -> None:
    half = LogDet(weight=3.0, beta=2.0)
    terms, outputs = small(entropy=half).objective([torch.randn(9, 1, 8, 8), torch.randn(9, 1, 8, 8)])
    z = outputs.embeddings
    more = half(half.prepare(z["z1"]), half.prepare(z["z2"]))
    alone = published(*(z[name].double().numpy() for name in ("p1", "p2", "t1", "t2")))
    assert terms["loss"].item() == pytest.approx(alone + more["loss"].item(), rel=1e-5)
    assert terms["entropy"].item() == pytest.approx(more["entropy"].item(), rel=1e-6)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match=r"momentum must be in \[0, 1\], got 1.5"):
        small(momentum=1.5)
