"""Projection heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from sslinfo.errors import UserError
from sslinfo.ranges import check_range

Norm = Literal["batch", "layer", "none"]


def projection_head(
    in_features: int, widths: Sequence[int], norm: Norm = "batch", last_norm: bool = False, name: str = "projector"
) -> nn.Sequential:
    """Linear layers of the given widths with a norm and ReLU between them; the last is linear alone.

    Args:
        in_features: width of the representation.
        widths: width of each layer, in [1, 1e5], the last being the embedding's; an empty list gives the identity.
        norm: ``batch`` (as published for most methods), ``layer``, or ``none``. A layer followed by batch norm has no
            bias, which the norm would cancel; nor has the last one, as in VICReg's own program: no objective of
            covariances and distances gives it a gradient. (SimCLR, BYOL, MoCo v2 and SwAV have one there as published.)
        last_norm: that norm, without scale and shift of its own, after the last layer too (SimSiam, MoCo v3).
        name: of the head, for messages.

    Raises:
        UserError: a width out of its range, or a norm that is not known.

    Shape: (N, in_features) -> (N, widths[-1]).

    >>> import torch
    >>> projection_head(128, [512, 64])(torch.zeros(2, 128)).shape
    torch.Size([2, 64])
    """
    norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": None}
    if norm not in norms:
        raise UserError(f"{name}_norm={norm!r} is not known: choose batch, layer or none")
    for width in widths:
        check_range(f"a width of {name}", width, "[1, 1e5]", whole=True)
    if last_norm and norm == "none":
        raise UserError("projector_last_norm=True has no norm to put last: set projector_norm to batch or layer")
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        last = number == len(widths) - 1
        layers.append(nn.Linear(in_features, width, bias=norm != "batch" and not last))
        if not last:
            make = norms[norm]
            layers += ([make(width)] if make is not None else []) + [nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(
                nn.BatchNorm1d(width, affine=False)
                if norm == "batch"
                else nn.LayerNorm(width, elementwise_affine=False)
            )
        in_features = width
    return nn.Sequential(*layers)
