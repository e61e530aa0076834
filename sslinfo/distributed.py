"""What crosses ranks: rows gathered with gradient, uneven rows gathered for evaluation.

Exactness (derived). Let W ranks hold row blocks z_r of the whole batch z, and let every rank compute the same
L(z). The gather's backward sums the gradients of all ranks and keeps the own slice, W dL/dz_r; DDP then averages the
parameter gradients over ranks, so each parameter receives sum_r (dz_r/dtheta)^T dL/dz_r: the gradient of one process
on the union.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of ranks of the default process group, 1 without one (environment variables alone make no rank).

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank in the default process group, 0 without one.

    >>> rank()
    0
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def shared_store(name: str) -> Any:
    """A store of keys that all ranks of the default process group share, with a connection of its own.

    A thread may wait in it while collectives go on.
    """
    from torch.distributed import distributed_c10d

    return dist.PrefixStore(name, distributed_c10d._get_default_store()).clone()


def take_buffers_of_rank_0(module: nn.Module) -> None:
    """Give every rank rank 0's buffers, which are those of a checkpoint: batch statistics that are not synchronised."""
    if world_size() > 1:
        with torch.no_grad():
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        whole = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(whole, rows.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed[rank() * ctx.count : (rank() + 1) * ctx.count]


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of every rank, in the order of ranks, with gradient; one collective for each dtype.

    Args:
        tensors: name -> (n, ...), with the same n on every rank.

    Returns:
        name -> (world_size * n, ...), the tensors themselves on one rank.

    >>> gather({"z1": torch.ones(2, 3)})["z1"].shape
    torch.Size([2, 3])
    """
    if world_size() == 1:
        return dict(tensors)
    out: dict[str, Tensor] = {}
    for group in _by_dtype(tensors):
        flat = {name: tensors[name].flatten(1) if tensors[name].dim() > 1 else tensors[name][:, None] for name in group}
        whole = _GatherRows.apply(torch.cat(list(flat.values()), dim=1))
        parts = whole.split([part.shape[1] for part in flat.values()], dim=1)
        for name, part in zip(group, parts, strict=True):
            out[name] = part.reshape(len(part), *tensors[name].shape[1:])
    return {name: out[name] for name in tensors}


def gather_uneven(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Like :func:`gather`, without gradient, for row counts that differ between ranks (0 included).

    Args:
        tensors: name -> (n_r, ...), the same n_r for all names of one rank.

    Returns:
        name -> (sum_r n_r, ...), in the order of ranks.

    >>> gather_uneven({"label": torch.arange(3)})["label"]
    tensor([0, 1, 2])
    """
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    if world_size() == 1 or not tensors:
        return tensors
    first = next(iter(tensors.values()))
    counts = torch.zeros(world_size(), dtype=torch.int64, device=first.device)
    counts[rank()] = len(first)
    dist.all_reduce(counts)
    sizes = counts.tolist()
    longest = max(sizes)
    padded = {
        name: torch.cat([tensor, tensor.new_zeros((longest - len(tensor), *tensor.shape[1:]))])
        for name, tensor in tensors.items()
    }
    whole = gather(padded)
    return {
        name: torch.cat([block[:size] for block, size in zip(tensor.split(max(longest, 1)), sizes, strict=True)])
        if longest
        else tensor
        for name, tensor in whole.items()
    }


def _by_dtype(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    groups: dict[torch.dtype, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(tensor.dtype, []).append(name)
    return list(groups.values())
