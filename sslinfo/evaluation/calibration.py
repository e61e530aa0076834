"""Batch-norm statistics that belong to the weights as they are now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def averaging_batch_norm(network: nn.Module) -> Iterator[None]:
    """The network's batch norms forget their statistics and average over all that passes through them in here.

    Statistics of an untrained network are placeholders, and in the first epochs the running averages lag behind the
    weights. Training itself does not use them. Modes and momenta are as before afterwards.

    >>> import torch
    >>> norm = nn.BatchNorm1d(1)
    >>> with averaging_batch_norm(norm):
    ...     for batch in ([[1.0], [3.0]], [[5.0], [7.0]]):
    ...         _ = norm(torch.tensor(batch))
    >>> norm.running_mean.item(), norm.running_var.item()  # means of 2 and 6, of 2 and 2
    (4.0, 2.0)
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = network.training
    network.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(was_training)
