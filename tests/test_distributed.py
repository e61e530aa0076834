"""Rows of every rank, in order, with the gradient of the whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sslinfo.distributed import gather, gather_uneven, rank, world_size


def rows(rank: int, count: int) -> dict[str, Tensor]:
    """Rows that tell rank, row and column."""
    start = 100.0 * rank + torch.arange(count, dtype=torch.float64)
    return {
        "z": start[:, None] + torch.arange(3) / 10,
        "label": start.long(),
        "maps": start[:, None, None].float() + torch.arange(4).view(2, 2) / 10,
        "score": start,
    }


def expected(counts: list[int]) -> dict[str, Tensor]:
    blocks = [rows(rank, count) for rank, count in enumerate(counts)]
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def assert_same(found: dict[str, Any], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        dtype, values = found[name]
        assert dtype == tensor.dtype
        assert values == tensor.tolist(), name


def listed(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.dtype, tensor.tolist()) for name, tensor in tensors.items()}


def even_rows(rank: int, world_size: int) -> dict[str, Any]:
    return listed(gather(rows(rank, 2)))


def uneven_rows(rank: int, world_size: int, counts: list[int]) -> dict[str, Any]:
    gathered = gather_uneven({name: tensor.requires_grad_(False) for name, tensor in rows(rank, counts[rank]).items()})
    return listed(gathered)


def place(number: int, size: int) -> tuple[int, int]:
    return rank(), world_size()


def gradient_of_own_rows(rank: int, world_size: int, same_loss: bool) -> list[Any]:
    z = rows(rank, 2)["z"].requires_grad_()
    whole = gather({"z": z, "other": 2 * z})
    weight = 1 if same_loss else rank + 1
    (weight * (whole["z"].square().sum() + whole["other"].sum())).backward()
    assert z.grad is not None
    return z.grad.tolist()


def test_order_names_shapes_and_types(ranks: Any) -> None:
    for found in ranks(3, even_rows):
        assert_same(found, expected([2, 2, 2]))


@pytest.mark.parametrize("counts", [[2, 0, 3], [0, 0, 1], [4, 4, 4], [0, 0, 0]])
def test_uneven_and_empty_ranks(ranks: Any, counts: list[int]) -> None:
    for found in ranks(3, uneven_rows, counts):
        assert_same(found, expected(counts))


@pytest.mark.parametrize("same_loss", [True, False])
def test_gradient_is_summed_over_ranks(ranks: Any, same_loss: bool) -> None:
    # d/dz of sum z^2 + 2 sum z is 2 z + 2; each rank adds its own multiple of it.
    total = 3 if same_loss else 1 + 2 + 3
    for number, found in enumerate(ranks(3, gradient_of_own_rows, same_loss)):
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), total * (2 * rows(number, 2)["z"] + 2))


def test_ranks_know_their_place(ranks: Any) -> None:
    assert ranks(2, place) == [(0, 2), (1, 2)]


def test_one_process_passes_tensors_through_with_their_gradient() -> None:
    z = torch.ones(2, 3, requires_grad=True)
    assert gather({"z": z})["z"] is z
    assert not gather_uneven({"z": z})["z"].requires_grad


def test_environment_variables_make_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), world_size()) == (0, 1)
