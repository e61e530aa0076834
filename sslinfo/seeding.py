"""The seed of torch's own generators, for random numbers that a network or a user's transform draws."""

from __future__ import annotations

import torch


def seed_generators(seed: int) -> None:
    """``torch.manual_seed``, for the CPU and the accelerator that this machine has.

    torch's own function also notes the call stack for each kind of device that is not there: up to half a millisecond
    inside of a Trainer, which is much where every batch or every image has a seed.

    Args:
        seed: from 0 to 2^63 - 1.

    >>> seed_generators(7)
    >>> ours = torch.rand(3)
    >>> torch.equal(ours, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    True
    """
    torch.default_generator.manual_seed(seed)
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        module = torch.get_device_module(accelerator)
        getattr(module, "manual_seed_all", module.manual_seed)(seed)  # Apple's has one device
