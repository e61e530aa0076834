"""Layers of the projection head."""

from typing import Any

import pytest
import torch
from torch import nn

from sslinfo.errors import UserError
from sslinfo.models import projection_head


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_a_norm_and_relu_between_the_layers(norm: Any, kind: type) -> None:
    head = projection_head(6, [5, 4, 3], norm)
    assert [type(layer) for layer in head] == [nn.Linear, kind, nn.ReLU] * 2 + [nn.Linear]
    widths = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
    assert widths == [(6, 5), (5, 4), (4, 3)]
    # A bias before a batch norm would be cancelled by it.
    assert [layer.bias is None for layer in head if isinstance(layer, nn.Linear)][:2] == [norm == "batch"] * 2


def test_without_norm() -> None:
    head = projection_head(6, [5, 4], "none")
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
    x = torch.randn(7, 6)
    expected = (x @ head[0].weight.T + head[0].bias).clamp(min=0) @ head[2].weight.T
    if head[2].bias is not None:
        expected = expected + head[2].bias
    torch.testing.assert_close(head(x), expected)


def test_no_layers_is_the_identity() -> None:
    x = torch.randn(3, 6)
    assert projection_head(6, [])(x) is x


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="projector_norm='bacth' is not known: choose batch, layer or none"):
        projection_head(6, [5], "bacth")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a width of projector must be a whole number in .*, got 0"):
        projection_head(6, [5, 0])
