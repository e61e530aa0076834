"""What tests of normality under input noise say, summarised for each noise level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslinfo.information import benjamini_hochberg

LEVEL = 0.05  # of the false-discovery rate


class NoiseTests(NamedTuple):
    """Each (S,), one entry a sigma: means over images and the dimensions that vary, and shares of dimensions."""

    sigmas: Tensor
    pvalue: Tensor
    kurtosis: Tensor
    rejected: Tensor
    constant: Tensor

    def __str__(self) -> str:
        head = ("sigma", "mean p-value", "rejected", "mean |excess kurtosis|", "constant")
        columns = (self.sigmas, self.pvalue, self.rejected, self.kurtosis, self.constant)
        lines = ["  ".join(head)]
        for row in zip(*(column.tolist() for column in columns), strict=True):
            lines.append("  ".join(f"{value:.4g}".rjust(len(name)) for name, value in zip(head, row, strict=True)))
        return "\n".join(lines)

    @classmethod
    def of(cls, sigmas: Sequence[float], pvalue: Tensor, excess_kurtosis: Tensor) -> NoiseTests:
        """Of tests (S, N, d), NaN where a dimension did not vary."""
        pvalue, kurtosis = pvalue.flatten(1), excess_kurtosis.flatten(1).abs()
        constant = pvalue.isnan().double().mean(1)
        # One family of tests a sigma: every dimension of every image.
        rejected = torch.stack([benjamini_hochberg(tests, LEVEL) for tests in pvalue]).double().mean(1)
        levels = torch.tensor(sigmas, dtype=torch.float64)
        return cls(levels, pvalue.nanmean(1), kurtosis.nanmean(1), rejected / (1 - constant), constant)
