"""Random numbers as a function of where they are used, not of what was drawn before.

A generator with a state gives other views on another number of processes, or after a resume. Here a draw is a hash of
(seed, epoch, image index, view, operation, counter), in 64-bit integer arithmetic that wraps around in the same way on
a CPU and on a GPU. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection
of the 64-bit words.
"""

import functools
import hashlib
import math

import torch
from torch import Tensor

from sslinfo.errors import UserError

_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


def _signed(word: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit word."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _mix_int(word: int) -> int:
    for shift, factor in _MIX:
        word = ((word ^ (word >> shift)) * factor) & _WORD
    return word ^ (word >> _LAST_SHIFT)


def _shifted(words: Tensor, shift: int) -> Tensor:
    """Logical shift to the right: torch shifts int64 arithmetically, the mask clears the copies of the sign."""
    return (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)


def _mix(words: Tensor) -> Tensor:
    for shift, factor in _MIX:
        words = (words ^ _shifted(words, shift)).mul_(_signed(factor))
    return words ^ _shifted(words, _LAST_SHIFT)


@functools.lru_cache(maxsize=256)
def _word_of(operation: str) -> int:
    return int.from_bytes(hashlib.blake2b(operation.encode(), digest_size=8).digest(), "little")


def stream_keys(seed: int, epoch: int, index: Tensor, view: int, operation: str | int) -> Tensor:
    """One 64-bit key for each image: the start of the stream of random numbers of one operation on one view.

    Args:
        seed: any integer, taken modulo 2^64.
        epoch: any integer.
        index: (N,) int64, the position of each image in its data set.
        view: number of the view.
        operation: name or number of the operation.

    Returns:
        (N,) int64 on the device of ``index``. For fixed other arguments, different images have different keys.

    Raises:
        UserError: if ``index`` is not a vector of int64.

    Example:
        >>> stream_keys(0, 0, torch.arange(3), 0, "crop").unique().numel()
        3
    """
    if index.dtype != torch.int64 or index.ndim != 1:
        raise UserError(
            f"index must be a vector of int64, got shape {tuple(index.shape)} of {index.dtype}: "
            "pass each image's position in the data set, torch.as_tensor(positions, dtype=torch.int64)"
        )
    word = 0
    for part in (seed, epoch, view, _word_of(operation) if isinstance(operation, str) else operation):
        word = _mix_int(((word + _STEP) & _WORD) ^ (part & _WORD))
    return _mix(index ^ _signed(word + _STEP))


def _words(keys: Tensor, count: int) -> Tensor:
    counter = torch.arange(1, count + 1, device=keys.device).mul_(_signed(_STEP))
    return _mix(keys[:, None] + counter)


def uniforms_of(keys: Tensor, count: int) -> Tensor:
    """The first ``count`` uniform numbers of each stream: (N, count) float64 in [0, 1), multiples of 2^-53."""
    return _shifted(_words(keys, count), 11).to(torch.float64).mul_(2.0**-53)


def normals_of(keys: Tensor, count: int) -> Tensor:
    """The first ``count`` standard normal numbers of each stream, (N, count) float32, by Box and Muller's transform.

    The integers behind them are the same on every device; the logarithm and the cosine round differently in the last
    place. Both halves of a 64-bit word are used, so the tails end at 6.7 standard deviations.
    """
    pairs = _words(keys, (count + 1) // 2)
    # The radius needs a number above zero: (k + 1) / 2^32 is in (0, 1].
    radius = _shifted(pairs, 32).to(torch.float64).add_(1.0).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = pairs.bitwise_and_((1 << 32) - 1).to(torch.float64).mul_(2.0 * math.pi * 2.0**-32)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=2).flatten(1)[:, :count].float()


def uniforms(seed: int, epoch: int, index: Tensor, view: int, operation: str | int, count: int) -> Tensor:
    """Uniform random numbers of each image: a function of the arguments and of nothing else.

    Args:
        seed, epoch, index, view, operation: as in :func:`stream_keys`.
        count: how many numbers for each image; the first ones do not depend on it.

    Returns:
        (N, count) float64 in [0, 1) on the device of ``index``, the same bits on every device.

    Raises:
        UserError: if ``index`` is not a vector of int64.

    Source: derived; the mixing function is SplitMix64's.

    Example:
        >>> both = uniforms(0, 3, torch.tensor([7, 8]), 0, "crop", 2)
        >>> torch.equal(both[1:], uniforms(0, 3, torch.tensor([8]), 0, "crop", 2))
        True
        >>> mean = uniforms(0, 0, torch.arange(100_000), 0, "crop", 1).mean().item()
        >>> round(mean, 2)
        0.5
    """
    return uniforms_of(stream_keys(seed, epoch, index, view, operation), count)


def normals(seed: int, epoch: int, index: Tensor, view: int, operation: str | int, count: int) -> Tensor:
    """Standard normal random numbers of each image, (N, count) float32; see :func:`uniforms` and :func:`normals_of`.

    Example:
        >>> z = normals(0, 0, torch.arange(1000), 0, "noise", 64)
        >>> round(z.std().item(), 1)
        1.0
    """
    return normals_of(stream_keys(seed, epoch, index, view, operation), count)
