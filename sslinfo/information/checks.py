"""What every estimator asks of its input: errors name the argument, the value and the way out."""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


class UndefinedEstimate(ValueError):
    """The quantity does not exist at this number of samples and dimensions; whoever logs skips it with this reason."""


def tensor(z: Tensor, dtype: torch.dtype, name: str, axes: str) -> Tensor:
    """Return z cast to ``dtype`` once it is a finite floating-point tensor with the named axes, "N, d" for instance."""
    if not isinstance(z, Tensor):
        way_out = "convert it with torch.as_tensor" if hasattr(z, "__len__") else "this needs the samples themselves"
        raise TypeError(f"{name} must be a torch.Tensor, got {type(z).__name__}: {way_out}")
    if not z.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {z.dtype}: convert it with {name}.double()")
    if z.ndim != axes.count(",") + 1:
        raise ValueError(f"{name} must have shape ({axes}), got {tuple(z.shape)}: reshape it, one sample a row")
    if z.shape[-1] == 0:
        raise ValueError(f"{name} has no features, got shape {tuple(z.shape)}: pass at least one column")
    z = z.to(dtype)
    # A sum that is finite proves every entry finite in one pass without a mask; a sum may also overflow by itself.
    if not bool(z.detach().sum().isfinite()) and not bool(z.detach().isfinite().all()):
        bad = int((~z.detach().isfinite()).sum())
        raise ValueError(f"{name} holds {bad} NaN or infinite values: drop those samples or find the divergence")
    return z


def samples(z: Tensor, dtype: torch.dtype, name: str = "z", minimum: int = 2) -> Tensor:
    """Return z (N, d) cast to ``dtype``, with at least ``minimum`` rows."""
    z = tensor(z, dtype, name, "N, d")
    if z.shape[0] < minimum:
        raise UndefinedEstimate(f"{name} needs at least {minimum} samples, got {z.shape[0]}: pass a larger batch")
    return z


def paired(z1: Tensor, z2: Tensor, dtype: torch.dtype, *, same_width: bool = True) -> tuple[Tensor, Tensor]:
    """Return two views of the same samples, cast to ``dtype``."""
    z1, z2 = samples(z1, dtype, "z1"), samples(z2, dtype, "z2")
    if z1.shape[0] != z2.shape[0] or (same_width and z1.shape != z2.shape):
        raise ValueError(f"z1 {tuple(z1.shape)} and z2 {tuple(z2.shape)} do not match: row i of both is one sample")
    return z1, z2


def _plain(name: str, value: Any) -> Any:
    """The Python number in a 0-d tensor, anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim:
        return value
    if value.requires_grad:
        raise ValueError(f"{name} is a number here, through which no gradient flows: pass {name}.detach()")
    return value.item()


def positive(name: str, value: Any, *, or_zero: bool = False) -> float:
    """Return value, a real number of any kind or a 0-d tensor, as a float once it is finite and above zero."""
    number = _plain(name, value)
    number = float(number) if isinstance(number, Real) else math.nan
    if not (math.isfinite(number) and (number > 0 or (or_zero and number == 0))):
        allowed = ">= 0" if or_zero else "above 0"
        raise ValueError(f"{name} must be a finite number {allowed}, got {value!r}: pass a positive {name}")
    return number


def at_least(name: str, value: Any, minimum: int) -> int:
    """Return value, an integer of any kind or a 0-d tensor of one, as an int once it is no smaller than ``minimum``."""
    number = _plain(name, value)
    if isinstance(number, bool) or not isinstance(number, Integral) or int(number) < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}: pass {name}={minimum} or more")
    return int(number)


def labels_of(labels: Tensor, n: int) -> Tensor:
    """Return labels (n,) as int64 once they are integers, one for each sample."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (n,):
        found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be an integer tensor of shape ({n},), got {found}: -1 for unknown")
    return labels.long()


def unit_rows(z: Tensor, name: str = "z") -> Tensor:
    """Return z (N, d) with every row divided by its length."""
    length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    if bool((length.detach() == 0).any()):
        zeros = int((length.detach() == 0).sum())
        raise UndefinedEstimate(f"{name} holds {zeros} rows of length 0, which have no direction: drop those samples")
    return z / length
