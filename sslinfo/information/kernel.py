"""Log-sum-exp of a Gaussian kernel over all pairs, in O(N x block) memory forward and backward.

The pairwise, von Mises-Fisher and uniformity estimators are this one quantity with different constants.
"""

import torch
from torch import Tensor

from sslinfo.precision import full_precision

# Elements of one block of rows against all keys: on a CPU it stays near the caches, on a GPU it fills the device.
_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 24}


def kernel_logsumexp(z: Tensor, scale: float, leave_one_out: bool = False) -> Tensor:
    """Return log sum_j exp(-scale ||z_i - z_j||^2) for each row i of z (N, d), with or without j = i: shape (N,).

    Distances are taken after centring and clamped at 0. Blocks of rows are recomputed in the backward pass.
    """
    return _KernelLogSumExp.apply(z, scale, leave_one_out)


def _blocks(z: Tensor) -> list[slice]:
    n = len(z)
    rows = max(1, min(n, _BLOCK_ELEMENTS.get(z.device.type, 1 << 20) // n))
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def _augment(z: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Two (N, d + 2) factors whose product is -scale r^2: the whole distance comes out of one matrix product."""
    z = (z - z.mean(0)) * scale**0.5
    norm, one = z.square().sum(1, keepdim=True), z.new_ones(len(z), 1)
    return torch.cat([2 * z, -norm, one], dim=1), torch.cat([z, one, -norm], dim=1)


def _logits(queries: Tensor, keys: Tensor, rows: slice, leave_one_out: bool) -> Tensor:
    logits = (queries[rows] @ keys.T).clamp_(max=0)
    # Exactly zero distance to itself, whatever the rounding; or no self at all.
    logits.diagonal(rows.start).fill_(-torch.inf if leave_one_out else 0)
    return logits


class _KernelLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, scale: float, leave_one_out: bool) -> Tensor:
        with full_precision(z.device):
            queries, keys = _augment(z, scale)
            result = z.new_empty(len(z))
            for rows in _blocks(z):
                logits = _logits(queries, keys, rows, leave_one_out)
                # With itself in the sum the largest term is exp(0): no maximum need be subtracted.
                result[rows] = logits.logsumexp(1) if leave_one_out else logits.exp_().sum(1).log_()
        ctx.save_for_backward(z, result)
        ctx.scale, ctx.leave_one_out = scale, leave_one_out
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        z, result = ctx.saved_tensors
        with full_precision(z.device):
            queries, keys = _augment(z, ctx.scale)
            centered = z - z.mean(0)
            gradient = torch.empty_like(z)
            for rows in _blocks(z):
                logits = _logits(queries, keys, rows, ctx.leave_one_out)
                # Row i pulls on z_i through its own sum and through those of all others: kernel weights are symmetric.
                if ctx.leave_one_out:
                    own = (logits - result[rows, None]).exp_().mul_(grad[rows, None])
                    weight = logits.sub_(result).exp_().mul_(grad).add_(own)
                else:
                    pull = grad * (-result).exp()
                    weight = logits.exp_().mul_(pull[rows, None] + pull)
                torch.addmm(weight.sum(1, keepdim=True) * centered[rows], weight, centered, beta=-1, out=gradient[rows])
        return gradient.mul_(2 * ctx.scale), None, None
