"""MoCo against the papers' formulas in loops, small cases by hand, the queue step by step, the target, the ViT."""

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
from sslinfo.models import RingQueue
from sslinfo.objectives import LogDet, MoCo, moco_loss, moco_queue_loss
from sslinfo.optim import OptimizerConfig
from sslinfo.outputs import StepOutputs

SIZES = [(2, 3), (6, 4), (3, 9)]
TEMPERATURES = [0.1, 0.2, 1.0]


def rows(n: int, d: int, count: int = 4) -> list[np.ndarray]:
    """Queries of both views, and keys that agree with them in part, of very different length."""
    rng = np.random.default_rng(n * d)
    base = rng.standard_normal((n, d))
    return [(base + rng.standard_normal((n, d))) * rng.uniform(0.3, 3, (n, 1)) for _ in range(count)]


def unit(z: np.ndarray) -> np.ndarray:
    return np.stack([row / math.sqrt(sum(x * x for x in row)) for row in z]) if len(z) else z


def v3(q1: np.ndarray, q2: np.ndarray, k1: np.ndarray, k2: np.ndarray, t: float) -> float:
    """Algorithm 1 of arXiv:2104.02057: ctr(q1, k2) + ctr(q2, k1), ctr = 2 t cross-entropy(q k^T / t, own index)."""

    def contrast(q: np.ndarray, k: np.ndarray) -> float:
        q, k = unit(q), unit(k)
        n = len(q)
        total = 0.0
        for i in range(n):
            logits = [q[i] @ k[j] / t for j in range(n)]
            total -= math.log(math.exp(logits[i]) / sum(math.exp(logit) for logit in logits))
        return 2 * t * total / n

    return contrast(q1, k2) + contrast(q2, k1)


def v2(
    q1: np.ndarray, q2: np.ndarray, k1: np.ndarray, k2: np.ndarray, queue1: np.ndarray, queue2: np.ndarray, t: float
) -> float:
    """arXiv:1911.05722, equation 1, in both directions: the positive key against the queue of its own view's keys."""

    def contrast(q: np.ndarray, k: np.ndarray, queue: np.ndarray) -> float:
        q, k, queue = unit(q), unit(k), unit(queue)
        total = 0.0
        for i in range(len(q)):
            positive = math.exp(q[i] @ k[i] / t)
            total -= math.log(positive / (positive + sum(math.exp(q[i] @ row / t) for row in queue)))
        return total / len(q)

    return (contrast(q1, k2, queue2) + contrast(q2, k1, queue1)) / 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_v3_value_and_gradient_are_the_published_ones_and_keys_have_none(
    size: tuple[int, int], temperature: float
) -> None:
    q1, q2, k1, k2 = rows(*size)
    tensors = [torch.tensor(each, requires_grad=True) for each in (q1, q2, k1, k2)]
    found = moco_loss(*tensors, temperature=temperature)["loss"]
    assert found.item() == pytest.approx(v3(q1, q2, k1, k2, temperature), rel=1e-12)
    found.backward()
    slopes = central_differences(lambda a, b: v3(a, b, k1, k2, temperature), q1, q2)
    for tensor, slope in zip(tensors[:2], slopes, strict=True):
        assert np.abs(slope).max() > 1e-4, "no slope: the test would show nothing"
        np.testing.assert_allclose(tensor.grad.numpy(), slope, rtol=1e-6, atol=1e-7)  # type: ignore[union-attr]
    assert tensors[2].grad is None
    assert tensors[3].grad is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("filled", [0, 1, 5])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_v2_value_and_gradient_are_the_published_ones_and_keys_have_none(
    size: tuple[int, int], filled: int, temperature: float
) -> None:
    q1, q2, k1, k2 = rows(*size)
    queue1, queue2 = (unit(row) for row in rows(filled, size[1], 2))
    tensors = [torch.tensor(each, requires_grad=True) for each in (q1, q2, k1, k2)]
    queues = [torch.tensor(each) for each in (queue1, queue2)]
    found = moco_queue_loss(*tensors, *queues, temperature=temperature)["loss"]
    assert found.item() == pytest.approx(v2(q1, q2, k1, k2, queue1, queue2, temperature), rel=1e-12, abs=1e-15)
    found.backward()
    slopes = central_differences(lambda a, b: v2(a, b, k1, k2, queue1, queue2, temperature), q1, q2)
    for tensor, slope in zip(tensors[:2], slopes, strict=True):
        assert filled == 0 or np.abs(slope).max() > 1e-4, "no slope: the test would show nothing"
        np.testing.assert_allclose(tensor.grad.numpy(), slope, rtol=1e-6, atol=1e-7)  # type: ignore[union-attr]
    assert tensors[2].grad is None
    assert tensors[3].grad is None


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_small_cases_by_hand(temperature: float) -> None:
    def v3_loss(*tensors: Tensor) -> float:
        return moco_loss(*tensors, temperature=temperature)["loss"].item()

    def v2_loss(*tensors: Tensor) -> float:
        return moco_queue_loss(*tensors, temperature=temperature)["loss"].item()

    e, f = torch.eye(2, dtype=torch.float64).split(1)
    e_to_f, inverse = torch.cat([e, f]), 1 / temperature
    # Own key at cosine 1, the other at 0; two directions.
    expected = 4 * temperature * math.log(1 + math.exp(-inverse))
    assert v3_loss(e_to_f, e_to_f, e_to_f, e_to_f) == pytest.approx(expected, rel=1e-12)
    # Keys of both views the wrong way round: own key at 0, the other at 1.
    wrong = e_to_f.flip(0)
    expected = 4 * temperature * math.log(1 + math.exp(inverse))
    assert v3_loss(e_to_f, e_to_f, wrong, wrong) == pytest.approx(expected, rel=1e-12)
    # All keys equal: a guess among three.
    three = e.expand(3, 2)
    assert v3_loss(three, three, three, three) == pytest.approx(4 * temperature * math.log(3), rel=1e-12)
    # Positive at 1; negatives at 0, 0 and -1: log(1 + 2 x + x^2) with x = exp(-1 / t).
    queue = torch.cat([f, -f, -e])
    assert v2_loss(e, e, e, e, queue, queue) == pytest.approx(2 * math.log(1 + math.exp(-inverse)), rel=1e-12)
    # A key is set against the queue of its own view: 0 against 0 in one direction, 1 against 1 in the other.
    assert v2_loss(e, e, e, f, e, f) == pytest.approx(math.log(2), rel=1e-12)
    # With the queues changed round: 0 against 1, and 1 against 0.
    expected = (math.log(1 + math.exp(inverse)) + math.log(1 + math.exp(-inverse))) / 2
    assert v2_loss(e, e, e, f, f, e) == pytest.approx(expected, rel=1e-12)
    # Nothing to confuse a key with.
    assert v2_loss(e, f, f, e, e[:0], e[:0]) == pytest.approx(0, abs=1e-15)


def test_what_does_not_change_it() -> None:
    tensors = [torch.from_numpy(each) for each in rows(6, 4)]
    lengths = torch.rand(4, 6, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 0.01
    scaled = [length * each for length, each in zip(lengths, tensors, strict=True)]
    queues = [torch.from_numpy(unit(each)) for each in rows(5, 4, 2)]
    q1, q2, k1, k2 = tensors
    expected = moco_loss(*tensors)["loss"].item()
    assert moco_loss(*scaled)["loss"].item() == pytest.approx(expected, rel=1e-12)
    assert moco_loss(q2, q1, k2, k1)["loss"].item() == pytest.approx(expected, rel=1e-12)
    expected = moco_queue_loss(*tensors, *queues)["loss"].item()
    assert moco_queue_loss(*scaled, *queues)["loss"].item() == pytest.approx(expected, rel=1e-12)
    assert moco_queue_loss(q2, q1, k2, k1, *reversed(queues))["loss"].item() == pytest.approx(expected, rel=1e-12)
    order = [queue.flip(0) for queue in queues]
    assert moco_queue_loss(*tensors, *order)["loss"].item() == pytest.approx(expected, rel=1e-12)


# The module


def small(**options: Any) -> MoCo:
    arguments = {
        "backbone": SmallNet(1),
        "in_channels": 1,
        "projector": [6],
        "projector_norm": "none",
        "predictor": None,
        "predictor_norm": "none",
        "optimizer": OptimizerConfig("sgd", lr=0.5, batch_size_of_lr=4, options={"momentum": 0.9}),
    }
    return MoCo(**{**arguments, **options})


def loader(batches: int, size: int = 4, shape: tuple[int, ...] = (1, 8, 8)) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batches * size, 2, *shape, generator=generator)
    samples = [
        {"views": list(pair), "clean": pair[0], "keep": True, "label": 0, "index": index}
        for index, pair in enumerate(images)
    ]
    return DataLoader(samples, batch_size=size)  # type: ignore[arg-type]


class Steps(Callback):
    """What every step computed its loss from, the loss, and the queues after it."""

    def __init__(self) -> None:
        self.embeddings: list[dict[str, np.ndarray]] = []
        self.losses: list[float] = []
        self.queues: list[list[np.ndarray]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.embeddings.append({name: z.double().numpy() for name, z in StepOutputs.of(outputs).embeddings.items()})
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.queues.append([queue.contents().double().numpy() for queue in pl_module.queues])


def by_first(queue: np.ndarray) -> np.ndarray:
    return queue[np.argsort(queue[:, 0])]


@pytest.mark.parametrize("size", [4, 6, 3, 100], ids=["one batch", "no multiple", "less than a batch", "never full"])
def test_queues_hold_the_last_keys_and_never_a_positive(size: int) -> None:
    steps = Steps()
    model = small(queue=size, temperature=0.3, momentum=0.5)
    Trainer(**QUIET, max_epochs=1, callbacks=[steps]).fit(model, loader(5))
    earlier: list[list[np.ndarray]] = [[], []]  # unit keys of views 1 and 2, the newest last
    for embeddings, loss, queues in zip(steps.embeddings, steps.losses, steps.queues, strict=True):
        q1, q2, k1, k2 = (embeddings[name] for name in ("q1", "q2", "k1", "k2"))
        held = [np.array(rows[-size:]).reshape(-1, 6) for rows in earlier]
        # Negatives are the keys of earlier batches alone: with this batch's own the loss would be another.
        assert loss == pytest.approx(v2(q1, q2, k1, k2, *held, 0.3), rel=1e-5, abs=1e-7)
        for rows, keys in zip(earlier, (k1, k2), strict=True):
            rows.extend(unit(keys))
        for queue, rows in zip(queues, earlier, strict=True):
            assert len(queue) == min(size, len(rows))
            np.testing.assert_allclose(by_first(queue), by_first(np.array(rows[-size:])), atol=1e-6)
    assert steps.losses[0] == pytest.approx(0, abs=1e-7)
    assert min(steps.losses[1:]) > 0.01


def test_a_queue_is_the_last_rows_whatever_was_pushed_at_a_time() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 3, 7):
        queue, pushed = RingQueue(size, 1), 0
        for count in [size + 2, 1, *rng.integers(0, 2 * size + 2, 30).tolist()]:
            queue.push(torch.arange(pushed, pushed + count).float()[:, None])
            pushed += count
            assert sorted(queue.contents().flatten().tolist()) == list(range(max(0, pushed - size), pushed))


def test_evaluation_leaves_the_queue_and_the_target_alone() -> None:
    model = small(queue=6)
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.fit(model, loader(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.validate(model, loader(2), verbose=False)
    assert "val/loss" in trainer.callback_metrics
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_queue_is_in_the_state_dict() -> None:
    model = small(queue=6)
    Trainer(**QUIET, max_epochs=1).fit(model, loader(2))
    again = small(queue=6)
    again.load_state_dict(model.state_dict())
    views = [torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)]
    expected = model.objective(views)[0]["loss"].item()
    assert expected > 0.1
    assert again.objective(views)[0]["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_without_a_queue_it_is_v3() -> None:
    model = small(predictor=[5], temperature=0.3)
    terms, outputs = model.objective([torch.randn(5, 1, 8, 8), torch.randn(5, 1, 8, 8)])
    q1, q2, k1, k2 = (outputs.embeddings[name].double().numpy() for name in ("q1", "q2", "k1", "k2"))
    assert terms["loss"].item() == pytest.approx(v3(q1, q2, k1, k2, 0.3), rel=1e-5)


@pytest.mark.parametrize("predictor", [None, [5]])
def test_queries_and_keys_are_of_their_own_view(predictor: list[int] | None) -> None:
    model = small(predictor=predictor)
    views = [torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)]
    out = model.embed(views)
    assert sorted(out) == ["k1", "k2", "q1", "q2", "z1", "z2"]
    for number, view in zip("12", views, strict=True):
        z = model.projector(model.backbone(view))
        torch.testing.assert_close(out[f"z{number}"], z)
        torch.testing.assert_close(out[f"q{number}"], z if predictor is None else model.predictor(z))
        torch.testing.assert_close(out[f"k{number}"], z.detach())  # before the first step the target is the network
        assert not out[f"k{number}"].requires_grad


class History(Callback):
    """Online and target weights before the training and after each step."""

    def __init__(self) -> None:
        self.online: list[list[Tensor]] = []
        self.target: list[list[Tensor]] = []

    def note(self, model: Any) -> None:
        online = [*model.backbone.parameters(), *model.projector.parameters()]
        self.online.append([parameter.detach().double() for parameter in online])
        self.target.append([parameter.detach().double() for parameter in model.target.parameters()])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note(pl_module)


@pytest.mark.parametrize("queue", [0, 6])
def test_the_target_follows_after_each_step_and_is_not_optimized(queue: int) -> None:
    history = History()
    model = small(queue=queue, momentum=0.5, final_momentum=0.9)
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[history])
    trainer.fit(model, loader(3))
    expected = history.online[0]
    # .9 - .4 (1 + cos(pi k / 3)) / 2, with (1 + cos) / 2 = 1, 3/4, 1/4 at k = 0, 1, 2
    for step, m in enumerate([0.5, 0.6, 0.8], start=1):
        expected = [m * t + (1 - m) * o for t, o in zip(expected, history.online[step], strict=True)]
        for found, weight in zip(history.target[step], expected, strict=True):
            torch.testing.assert_close(found, weight, rtol=0, atol=1e-6)
    moved = max((a - b).abs().max().item() for a, b in zip(history.target[-1], history.target[0], strict=True))
    assert moved > 1e-3, "too little to see at this tolerance: the test would show nothing"
    target = list(model.target.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in target)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not optimized & {id(parameter) for parameter in target}


def test_a_frozen_patch_embedding_is_frozen_and_nothing_else() -> None:
    def vit(freeze: bool) -> MoCo:
        return small(
            backbone="vit_tiny_patch16_224",
            in_channels=3,
            backbone_options={"img_size": 32, "patch_size": 8, "depth": 1},
            predictor=[5],
            freeze_patch_embedding=freeze,
        )

    def frozen(model: MoCo) -> set[str]:
        named = model.named_parameters()
        return {name for name, p in named if not p.requires_grad and not name.startswith("target.")}

    assert frozen(vit(freeze=False)) == set()
    model = vit(freeze=True)
    patches = {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
    assert frozen(model) == patches
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    Trainer(**QUIET, max_epochs=1).fit(model, loader(2, shape=(3, 32, 32)))
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert patches <= still
    weights = {name for name in before if name.endswith("weight") and not name.startswith("target.")}
    assert not (weights - patches) & still


def test_an_entropy_half_acts_on_the_projections() -> None:
    half = LogDet(weight=3.0, beta=2.0)
    model = small(entropy=half, predictor=[5])
    terms, outputs = model.objective([torch.randn(9, 1, 8, 8), torch.randn(9, 1, 8, 8)])
    z = outputs.embeddings
    more = half(half.prepare(z["z1"]), half.prepare(z["z2"]))
    alone = v3(*(z[name].double().numpy() for name in ("q1", "q2", "k1", "k2")), 0.2)
    assert terms["loss"].item() == pytest.approx(alone + more["loss"].item(), rel=1e-5)


def test_an_images_own_earlier_keys_are_left_out() -> None:
    """Two epochs of 12 images and a queue that holds both: in the second every query has a key of its own in there."""
    steps = Steps()
    model = small(queue=100, temperature=0.3, momentum=0.5)
    Trainer(**QUIET, max_epochs=2, callbacks=[steps]).fit(model, loader(3))
    held: list[list[tuple[int, np.ndarray]]] = [[], []]  # image and unit key, of views 1 and 2
    for number, (embeddings, loss) in enumerate(zip(steps.embeddings, steps.losses, strict=True)):
        images = [4 * (number % 3) + row for row in range(4)]
        expected = []
        for q, k, keys in (("q1", "k2", held[1]), ("q2", "k1", held[0])):
            for image, query, own in zip(images, unit(embeddings[q]), unit(embeddings[k]), strict=True):
                others = [query @ key for other, key in keys if other != image]
                scores = np.array([query @ own, *others]) / 0.3
                expected.append(np.log(np.exp(scores).sum()) - scores[0])
        assert loss == pytest.approx(np.mean(expected), rel=1e-5, abs=1e-7)
        for keys, name in zip(held, ("k1", "k2"), strict=True):
            keys.extend(zip(images, unit(embeddings[name]), strict=True))
    assert any(other == 0 for other, _ in held[0][12:])


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match=r"queue=8 with a predictor is no version of MoCo"):
        small(queue=8, predictor=[5])
    with pytest.raises(UserError, match="freeze_patch_embedding=True, but SmallNet has no patch_embed"):
        small(freeze_patch_embedding=True)
    with pytest.raises(UserError, match="queue must be a whole number in .*, got -1"):
        small(queue=-1)
    with pytest.raises(UserError, match="temperature must be in .*, got 0"):
        small(temperature=0)
