"""Batch-norm statistics over all that passes, as numpy has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sslinfo.evaluation.calibration import averaging_batch_norm


def test_statistics_are_means_over_the_batches_and_modes_come_back() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5)).eval()
    network[1].running_mean.fill_(99.0)
    batches = [torch.randn(6, 3), 5 + torch.randn(8, 3)]
    with averaging_batch_norm(network):
        for batch in batches:
            network(batch)
    rows = [network[0](batch).detach().numpy() for batch in batches]
    np.testing.assert_allclose(network[1].running_mean, np.mean([r.mean(0) for r in rows], 0), rtol=1e-5)
    np.testing.assert_allclose(network[1].running_var, np.mean([r.var(0, ddof=1) for r in rows], 0), rtol=1e-5)
    assert network[1].momentum == 0.3
    assert not any(module.training for module in network.modules())


def test_an_error_leaves_the_network_as_it_was() -> None:
    norm = nn.BatchNorm1d(2, momentum=0.2).eval()
    with pytest.raises(RuntimeError, match="stop"), averaging_batch_norm(norm):
        raise RuntimeError("stop")
    assert (norm.momentum, norm.training) == (0.2, False)
