"""EMA targets and queues by themselves."""

import math

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from sslinfo.models import EMATarget, RingQueue, ema_momentum


@pytest.mark.parametrize(("base", "final"), [(0.99, 1.0), (0.99, 0.999), (0.5, 0.5)])
def test_the_momentum_is_half_a_cosine(base: float, final: float) -> None:
    found = [ema_momentum(step, 40, base, final) for step in (0, 10, 20, 40, 50)]
    quarter = final - (final - base) * (1 + math.sqrt(0.5)) / 2  # cos(pi / 4)
    assert found == pytest.approx([base, quarter, (base + final) / 2, final, final], rel=1e-12)
    assert ema_momentum(7, math.inf, base, final) == base


def test_a_target_draws_no_random_numbers_and_has_batch_statistics_of_its_own() -> None:
    online = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), DropPath(0.5))
    target = EMATarget(online)
    x = torch.randn(32, 6)
    torch.testing.assert_close(target(x), target(x), rtol=0, atol=0)
    assert not torch.equal(online(x), online(x))
    online(x)
    batches = [int(network[1].num_batches_tracked) for network in (target.network[0], online)]  # type: ignore[index]
    assert batches == [2, 3]
    assert not target(x).requires_grad


def test_a_target_is_a_copy() -> None:
    online = nn.Linear(3, 2)
    target = EMATarget(online)
    with torch.no_grad():
        online.weight.add_(1)
    before = target.network[0].weight.clone()  # type: ignore[operator]
    target.update(0.25, online)
    torch.testing.assert_close(target.network[0].weight, 0.25 * before + 0.75 * online.weight)
    assert all(parameter.requires_grad for parameter in online.parameters())
    assert not any(parameter.requires_grad for parameter in target.parameters())


@pytest.mark.parametrize("sizes", [[2, 2, 2], [3, 1, 5, 2], [9], [7, 7], [1] * 11])
def test_a_queue_holds_the_last_rows_whatever_comes_at_once(sizes: list[int]) -> None:
    queue = RingQueue(5, 2, torch.int64)
    pushed: list[int] = []
    for size in sizes:
        rows = torch.arange(len(pushed), len(pushed) + size)
        queue.push(torch.stack([rows, -rows], dim=1))
        pushed.extend(rows.tolist())
        assert sorted(queue.contents()[:, 0].tolist()) == pushed[-5:]
    copy = RingQueue(5, 2, torch.int64)
    copy.load_state_dict(queue.state_dict())
    assert torch.equal(copy.contents(), queue.contents())
    contents = queue.contents()
    queue.push(torch.full((5, 2), 99))
    assert not (contents == 99).any(), "what was read does not change"
