"""The one place in ``sslinfo.information`` that talks to other processes."""

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(*tensors: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, ...]:
    """Sum each tensor over the process group in a single collective; without a process group return them unchanged.

    All tensors share a dtype and a device. The result carries no gradient.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return tensors
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    home = flat.device
    if dist.get_backend(group) == "nccl" and not flat.is_cuda:
        flat = flat.cuda()
    dist.all_reduce(flat, group=group)
    parts = flat.to(home).split([tensor.numel() for tensor in tensors])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))
