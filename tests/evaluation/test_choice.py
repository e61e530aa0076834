"""The choice of images by a hash of their index."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslinfo.evaluation.bound_split import PURPOSE as OF_THE_BOUND
from sslinfo.evaluation.bound_split import part_of
from sslinfo.evaluation.choice import Chosen, first, keys_of


def rows(index: Tensor) -> dict[str, Tensor]:
    return {"index": index, "value": 10.0 * index[:, None]}


def test_the_smallest_keys_are_chosen_in_their_order() -> None:
    index = torch.arange(100, 400)
    expected = sorted(index.tolist(), key=lambda i: int(keys_of(torch.tensor([i]), "test")))[:20]
    chosen = first(rows(index), 20, "test")
    assert chosen["index"].tolist() == expected
    assert chosen["value"][:, 0].tolist() == [10.0 * i for i in expected]
    assert len(first(rows(index), 1000, "test")["index"]) == 300
    assert first(rows(index[:0]), 20, "test")["value"].shape == (0, 1)


@pytest.mark.parametrize("limit", [1, 8, 100, 5000])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_batches_of_any_size_in_any_order_give_one_choice(limit: int, size: int) -> None:
    whole = first(rows(torch.arange(1000)), limit, "test")
    for index in (torch.arange(1000), torch.arange(1000).flip(0)):
        chosen = Chosen(limit, "test")
        for part in index.split(size):
            chosen.add(rows(part))
            assert chosen.count <= 1.25 * limit
        taken = chosen.take()
        assert all(torch.equal(taken[name], whole[name]) for name in whole)
        assert chosen.count == len(whole["index"])
        assert torch.equal(chosen.take()["index"], whole["index"])


def test_nothing_is_chosen_of_nothing() -> None:
    chosen = Chosen(3, "test")
    assert chosen.take() == {}
    assert chosen.count == 0


def test_what_is_chosen_can_change_without_the_choice() -> None:
    batch = rows(torch.arange(4))
    chosen = Chosen(10, "test")
    chosen.add(batch)
    batch["value"].zero_()
    assert chosen.take()["value"].sum() == 60


def test_images_are_spread_over_the_set() -> None:
    """Of 1000 images twenty, chosen by index alone; all in one half would be chance of 2 to the -19."""
    chosen = first({"index": torch.arange(1000)}, 20, "noise normality")["index"]
    assert len(chosen.unique()) == 20
    assert 0 < int((chosen < 500).sum()) < 20
    # Purposes are independent: of 20 and 20 of 1000 images, 5 or more are shared with probability 4e-5.
    assert len(set(chosen.tolist()) & set(first({"index": torch.arange(1000)}, 20, "other")["index"].tolist())) < 5


def test_choices_of_published_runs_stay() -> None:
    """Written down when each user had an implementation of its own."""
    index = {"index": torch.arange(1000)}
    assert first(index, 8, "noise normality")["index"].tolist() == [271, 599, 852, 228, 524, 987, 830, 612]
    assert first(index, 8, OF_THE_BOUND)["index"].tolist() == [975, 891, 633, 447, 939, 213, 395, 554]
    assert part_of(torch.arange(12)).tolist() == [2, 3, 0, 0, 3, 0, 2, 3, 2, 2, 0, 2]
