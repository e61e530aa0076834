"""Sinkhorn against the paper's in plain space, the swapped prediction in loops, and the prototypes step by step."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from finite_differences import central_differences
from lightning.pytorch import Callback, Trainer
from rank_trainer import QUIET, SmallNet
from torch.utils.data import DataLoader

from sslinfo.errors import UserError
from sslinfo.objectives import LogDet, SwAV, sinkhorn, swav_loss
from sslinfo.optim import OptimizerConfig

SIZES = [(5, 4, 3), (3, 6, 7), (8, 3, 4)]  # samples, dimensions, prototypes


def rows(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * rng.uniform(0.3, 3, (n, 1))


def unit(z: np.ndarray) -> np.ndarray:
    return np.stack([row / math.sqrt(sum(x * x for x in row)) for row in z]) if len(z) else z


def plain_sinkhorn(scores: np.ndarray, epsilon: float = 0.05, iterations: int = 3) -> np.ndarray:
    """Appendix A.1 of arXiv:2006.09882: Q (K, N), prototypes' sums to 1 / K, then samples' to 1 / N; as (N, K)."""
    n, k = scores.shape
    q = np.exp(scores.T / epsilon)
    q = q / q.sum()
    for _ in range(iterations):
        for j in range(k):
            q[j] = q[j] / sum(q[j]) / k
        for i in range(n):
            q[:, i] = q[:, i] / sum(q[:, i]) / n
    return (q * n).T


def scores_of(z: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    return np.array([[sum(a * b for a, b in zip(row, c, strict=True)) for c in prototypes] for row in unit(z)])


def swapped(z1: np.ndarray, z2: np.ndarray, prototypes: np.ndarray, a1: np.ndarray, a2: np.ndarray, t: float) -> float:
    """arXiv:2006.09882, equations 1 and 2, halved: each view's cross-entropy with the other's assignment."""

    def cross_entropy(assigned: np.ndarray, scores: np.ndarray) -> float:
        total = 0.0
        for a, s in zip(assigned, scores, strict=True):
            normalizer = sum(math.exp(x / t) for x in s)
            total -= sum(a[k] * math.log(math.exp(s[k] / t) / normalizer) for k in range(len(s)))
        return total / len(scores)

    return (cross_entropy(a1, scores_of(z2, prototypes)) + cross_entropy(a2, scores_of(z1, prototypes))) / 2


def published(
    z1: np.ndarray,
    z2: np.ndarray,
    prototypes: np.ndarray,
    t: float,
    epsilon: float,
    iterations: int,
    *queues: np.ndarray,
) -> float:
    assigned = []
    for z, queue in zip((z1, z2), queues or (z1[:0], z2[:0]), strict=True):
        whole = np.concatenate([z, queue])
        assigned.append(plain_sinkhorn(scores_of(whole, prototypes), epsilon, iterations)[: len(z)])
    return swapped(z1, z2, prototypes, *assigned, t)


# Assignments


@pytest.mark.parametrize("shape", [(5, 3), (4, 9), (6, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_is_the_papers(shape: tuple[int, int], iterations: int, epsilon: float) -> None:
    scores = np.random.default_rng(0).uniform(-1, 1, shape)
    found = sinkhorn(torch.from_numpy(scores), epsilon, iterations).numpy()
    np.testing.assert_allclose(found, plain_sinkhorn(scores, epsilon, iterations), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)


def test_the_defaults_are_the_papers() -> None:
    scores = np.random.default_rng(0).uniform(-1, 1, (7, 4))
    found = sinkhorn(torch.from_numpy(scores)).numpy()
    np.testing.assert_allclose(found, plain_sinkhorn(scores, 0.05, 3), rtol=1e-9)


def test_prototypes_approach_equal_shares() -> None:
    scores = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (12, 5)))
    away = [(sinkhorn(scores, 0.2, count).sum(0) - 12 / 5).abs().max().item() for count in (1, 3, 10, 300)]
    assert away == sorted(away, reverse=True)
    assert away[0] > 0.1
    assert away[-1] < 1e-9


def test_the_limit_is_the_optimal_transport_plan() -> None:
    """Equation 3: max tr(Q^T S) + epsilon H(Q) has Q = diag(u) exp(S / epsilon) diag(v): log Q less S / epsilon is a
    sum of a part by row and a part by column, and any other balanced matrix has a smaller objective."""
    scores, epsilon = np.random.default_rng(2).uniform(-1, 1, (6, 4)), 0.3
    q = sinkhorn(torch.from_numpy(scores), epsilon, 500).numpy()
    rest = np.log(q) - scores / epsilon
    mixed = rest - rest.mean(0) - rest.mean(1, keepdims=True) + rest.mean()
    assert np.abs(mixed).max() < 1e-9

    def objective(plan: np.ndarray) -> float:
        return (plan * scores).sum() - epsilon * (plan * np.log(plan)).sum()

    for i, j, k, m in ((0, 1, 0, 1), (2, 5, 3, 1), (4, 3, 2, 0)):
        moved = q.copy()
        step = 0.3 * min(q[i, k], q[j, m])
        moved[i, k] -= step
        moved[j, m] -= step
        moved[i, m] += step
        moved[j, k] += step
        assert objective(moved) < objective(q)


def test_small_assignments_by_hand() -> None:
    # Symmetric scores are balanced already: the softmax of (a, 0) / epsilon.
    scores = torch.tensor([[0.3, 0.0], [0.0, 0.3]], dtype=torch.float64)
    p = 1 / (1 + math.exp(-0.3 / 0.1))
    expected = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, 0.1, 3), expected)
    # Scores that are the same for every sample say nothing once the prototypes are balanced.
    same = torch.tensor([[0.9, -0.2, 0.4]], dtype=torch.float64).expand(5, 3)
    torch.testing.assert_close(sinkhorn(same), torch.full((5, 3), 1 / 3, dtype=torch.float64))
    # One iteration of exp(S / epsilon) = [[3, 1], [1, 1]]: prototypes [[3/4, 1/2], [1/4, 1/2]], samples / 5/4, / 3/4.
    scores = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[3 / 5, 2 / 5], [1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, 1.0, 1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_ten_thousand_epsilon_do_not_overflow(dtype: torch.dtype) -> None:
    # exp(1e4) is infinite in any precision. Each sample has its own prototype: the assignment is that, exactly.
    own = torch.eye(3, dtype=dtype).repeat(2, 1) * 500
    assert torch.equal(sinkhorn(own, 0.05, 3), torch.eye(3, dtype=dtype).repeat(2, 1))
    assert torch.equal(sinkhorn(-own, 0.05, 3) < 0.51, torch.ones(6, 3, dtype=torch.bool))
    # What a prototype adds to all samples is balanced away by the first scaling: the plain-space result without it.
    scores = np.random.default_rng(3).uniform(-1, 1, (6, 3))
    shift = torch.tensor([500.0, -500.0, 0.0], dtype=dtype)
    found = sinkhorn(torch.from_numpy(scores).to(dtype) + shift, 0.05, 3)
    tolerance = 1e-9 if dtype == torch.float64 else 5e-3  # float32 holds 500 to 3e-5, which is 6e-4 of epsilon
    np.testing.assert_allclose(found.numpy(), plain_sinkhorn(scores), atol=tolerance)
    # One prototype that everyone wants by far, whatever else they want: rows still sum to 1.
    greedy = torch.from_numpy(np.random.default_rng(4).uniform(-500, 500, (8, 5))).to(dtype)
    assert sinkhorn(greedy, 0.05, 3).isfinite().all()
    torch.testing.assert_close(sinkhorn(greedy, 0.05, 3).sum(1), torch.ones(8, dtype=dtype))


# The loss


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("temperature", "epsilon", "iterations"), [(0.1, 0.05, 3), (0.5, 0.2, 1)])
@pytest.mark.parametrize("queued", [None, 0, 5])
def test_value_and_gradient_are_the_published_ones_and_assignments_have_none(
    size: tuple[int, int, int], temperature: float, epsilon: float, iterations: int, queued: int | None
) -> None:
    n, d, k = size
    z1 = rows(n, d, 1)
    z2 = z1 + 0.3 * rows(n, d, 2)
    prototypes = unit(rows(k, d, 3)) * 1.3  # taken as they are: any length
    queues = [] if queued is None else [unit(rows(queued, d, seed)) for seed in (4, 5)]
    tensors = [torch.tensor(each, requires_grad=True) for each in (z1, z2, prototypes)]
    found = swav_loss(*tensors, temperature, epsilon, iterations, *(torch.tensor(queue) for queue in queues))["loss"]
    expected = published(z1, z2, prototypes, temperature, epsilon, iterations, *queues)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    found.backward()
    # Assignments stand still while the embeddings and the prototypes move.
    assigned = [
        plain_sinkhorn(scores_of(np.concatenate([z, queue]), prototypes), epsilon, iterations)[:n]
        for z, queue in zip((z1, z2), queues or (z1[:0], z2[:0]), strict=True)
    ]
    slopes = central_differences(lambda a, b, c: swapped(a, b, c, *assigned, temperature), z1, z2, prototypes)
    for tensor, slope in zip(tensors, slopes, strict=True):
        assert np.abs(slope).max() > 1e-3, "no slope: the test would show nothing"
        np.testing.assert_allclose(tensor.grad.numpy(), slope, rtol=1e-6, atol=1e-7)  # type: ignore[union-attr]


def test_a_queue_takes_part_in_the_balance() -> None:
    z1, z2, prototypes = rows(5, 4, 1), rows(5, 4, 2), unit(rows(3, 4, 3))
    queues = [unit(rows(5, 4, seed)) for seed in (4, 5)]
    tensors = [torch.from_numpy(each) for each in (z1, z2, prototypes)]
    first, second = (torch.from_numpy(queue) for queue in queues)
    losses = {
        swav_loss(*tensors)["loss"].item(),
        swav_loss(*tensors, queue1=first, queue2=second)["loss"].item(),
        swav_loss(*tensors, queue1=second, queue2=first)["loss"].item(),
    }
    assert max(losses) - min(losses) > 1e-3
    assert len(losses) == 3


@pytest.mark.parametrize(("temperature", "epsilon"), [(0.1, 0.05), (1.0, 0.5)])
def test_small_losses_by_hand(temperature: float, epsilon: float) -> None:
    axes = torch.eye(2, dtype=torch.float64)
    # Assignment (1 - x, x) with x = 1 / (1 + exp(1 / epsilon)); the softmax of (1, 0) / t has log probabilities -l and
    # -l - 1 / t, l = log(1 + exp(-1 / t)): the cross-entropy is l + x / t.
    x = 1 / (1 + math.exp(1 / epsilon))
    expected = math.log(1 + math.exp(-1 / temperature)) + x / temperature
    found = swav_loss(axes, axes, axes, temperature, epsilon)["loss"].item()
    assert found == pytest.approx(expected, rel=1e-12)
    # Views that disagree: probabilities the other way round, l + (1 - x) / t.
    expected += (1 - 2 * x) / temperature
    assert swav_loss(axes, axes.flip(0), axes, temperature, epsilon)["loss"].item() == pytest.approx(
        expected, rel=1e-12
    )
    # All prototypes equal: a guess among seven.
    same = axes[:1].expand(7, 2)
    assert swav_loss(axes, axes, same, temperature, epsilon)["loss"].item() == pytest.approx(math.log(7), rel=1e-12)


def test_what_does_not_change_it() -> None:
    z1, z2, prototypes = (torch.from_numpy(each) for each in (rows(5, 4, 1), rows(5, 4, 2), unit(rows(3, 4, 3))))
    expected = pytest.approx(swav_loss(z1, z2, prototypes)["loss"].item(), rel=1e-10)
    lengths = torch.rand(2, 5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 0.01
    assert swav_loss(lengths[0] * z1, lengths[1] * z2, prototypes)["loss"].item() == expected
    assert swav_loss(z2, z1, prototypes)["loss"].item() == expected
    assert swav_loss(z1, z2, prototypes.flip(0))["loss"].item() == expected
    # and one thing that does: which views belong together
    assert swav_loss(z1, z2.roll(1, dims=0), prototypes)["loss"].item() != expected


# The module


def small(**options: Any) -> SwAV:
    arguments = {
        "backbone": SmallNet(1),
        "in_channels": 1,
        "projector": [6],
        "projector_norm": "none",
        "prototypes": 5,
        "optimizer": OptimizerConfig(
            "sgd", lr=0.5, batch_size_of_lr=4, weight_decay=0.1, schedule="constant", options={"momentum": 0.9}
        ),
    }
    return SwAV(**{**arguments, **options})


def loader(batches: int, size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batches * size, 2, 1, 8, 8, generator=generator)
    samples = [
        {"views": list(pair), "clean": pair[0], "keep": True, "label": 0, "index": index}
        for index, pair in enumerate(images)
    ]
    return DataLoader(samples, batch_size=size)  # type: ignore[arg-type]


class Steps(Callback):
    """Prototypes before the training and after each step, what each loss was computed from, and the loss."""

    def __init__(self) -> None:
        self.prototypes: list[np.ndarray] = []
        self.embeddings: list[dict[str, np.ndarray]] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.prototypes.append(pl_module.prototypes.weight.detach().double().numpy().copy())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.on_train_start(trainer, pl_module)
        self.embeddings.append({name: z.double().numpy() for name, z in outputs["outputs"].embeddings.items()})
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_prototypes_have_norm_1_after_every_step_and_are_still_while_frozen(frozen: int, accumulate: int) -> None:
    steps = Steps()
    model = small(freeze_prototypes_epochs=frozen)
    trainer = Trainer(**QUIET, max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[steps])
    trainer.fit(model, loader(2 * accumulate))
    assert trainer.global_step == 6
    after = steps.prototypes[::accumulate]
    for prototypes in after:
        np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), 1, atol=1e-6)
    moves = [np.abs(b - a).max() for a, b in pairwise(after)]
    assert max(moves[: 2 * frozen], default=0.0) < 1e-6  # rounding of the norm alone
    assert min(moves[2 * frozen :]) > 1e-4


def test_default_freezes_one_epoch() -> None:
    steps = Steps()
    Trainer(**QUIET, max_epochs=2, callbacks=[steps]).fit(small(), loader(1))
    moves = [np.abs(b - a).max() for a, b in pairwise(steps.prototypes)]
    assert moves[0] < 1e-6
    assert moves[1] > 1e-4


@pytest.mark.parametrize("size", [4, 6, 3], ids=["one batch", "no multiple", "less than a batch"])
def test_the_queue_holds_earlier_embeddings_and_counts_from_its_epoch(size: int) -> None:
    steps = Steps()
    model = small(queue=size, queue_start_epoch=1, epsilon=0.2, iterations=2, temperature=0.3)
    Trainer(**QUIET, max_epochs=2, callbacks=[steps]).fit(model, loader(3))
    earlier: list[list[np.ndarray]] = [[], []]
    for number, (embeddings, loss) in enumerate(zip(steps.embeddings, steps.losses, strict=True)):
        z = [embeddings["z1"], embeddings["z2"]]
        queues = [np.array(kept[-size:]).reshape(-1, 6) for kept in earlier]
        with_queue = published(*z, steps.prototypes[number], 0.3, 0.2, 2, *queues)
        without = published(*z, steps.prototypes[number], 0.3, 0.2, 2)
        used, unused = (with_queue, without) if number >= 3 else (without, with_queue)
        assert loss == pytest.approx(used, rel=1e-5)
        assert number == 0 or loss != pytest.approx(unused, rel=1e-4), "the test would show nothing"
        for kept, view in zip(earlier, z, strict=True):
            kept.extend(unit(view))


def test_evaluation_leaves_queue_and_prototypes_alone() -> None:
    model = small(queue=6, queue_start_epoch=0)
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.fit(model, loader(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.validate(model, loader(2), verbose=False)
    assert "val/loss" in trainer.callback_metrics
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_module_has_the_loss_at_its_settings() -> None:
    z1, z2 = rows(5, 6, 1), rows(5, 6, 2)
    for options, settings in (
        ({}, (0.1, 0.05, 3)),
        ({"temperature": 0.3, "epsilon": 0.2, "iterations": 1}, (0.3, 0.2, 1)),
    ):
        model = small(**options).double()
        found = model.loss(torch.from_numpy(z1), torch.from_numpy(z2))["loss"].item()
        prototypes = model.prototypes.weight.detach().numpy()
        assert found == pytest.approx(published(z1, z2, prototypes, *settings), rel=1e-9)


def test_an_entropy_half_is_added_with_its_weight() -> None:
    half = LogDet(weight=3.0, beta=2.0)
    model = small(entropy=half)
    terms, outputs = model.objective([torch.randn(9, 1, 8, 8), torch.randn(9, 1, 8, 8)])
    z1, z2 = (outputs.embeddings[name] for name in ("z1", "z2"))
    more = half(half.prepare(z1), half.prepare(z2))
    prototypes = model.prototypes.weight.detach().double().numpy()
    alone = published(z1.double().numpy(), z2.double().numpy(), prototypes, 0.1, 0.05, 3)
    assert terms["loss"].item() == pytest.approx(alone + more["loss"].item(), rel=1e-4)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="epsilon must be > 0, got 0"):
        sinkhorn(torch.zeros(2, 2), epsilon=0)
    with pytest.raises(UserError, match=r"prototypes must be a whole number in \[2, 1e7\], got 1"):
        small(prototypes=1)
    with pytest.raises(UserError, match="temperature must be in .*, got 0"):
        small(temperature=0)
