"""What labels add, against values by hand; against numpy they stand in the test of the report."""

from __future__ import annotations

import math

import pytest
import torch
from information_data import normal
from torch import Tensor

from sslinfo.information import UndefinedEstimate, class_share_of_variance, knn_top1

LABELS = torch.arange(30) % 3


def test_share_of_two_pairs() -> None:
    """Means 1 and 11 about 6: 4 * 25 of 36 + 16 + 16 + 36."""
    z = torch.tensor([[0.0], [2.0], [10.0], [12.0], [1e6]])
    labels = torch.tensor([5, 5, 2, 2, -1])  # the last is unknown
    assert class_share_of_variance(z, labels).item() == pytest.approx(100 / 104, rel=1e-12)


def test_share_has_the_gradient_of_finite_differences() -> None:
    z = normal(30, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(class_share_of_variance(z, LABELS), z)
    direction = normal(30, 4, 1)
    step = 1e-5
    with torch.no_grad():
        up, down = (class_share_of_variance(z + sign * step * direction, LABELS) for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-6)


def test_one_neighbour_on_a_circle() -> None:
    """At 0, 10, 25, 90 and 95 degrees the nearest others are at 10, 0, 10, 95 and 90."""
    angle = torch.tensor([0.0, 10.0, 25.0, 90.0, 95.0], dtype=torch.float64) * math.pi / 180
    z = torch.stack([angle.cos(), angle.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1], [2.0], [3.0]])
    assert knn_top1(z, torch.tensor([0, 0, 0, 1, 1]), k=1).item() == 1
    assert knn_top1(z, torch.tensor([0, 0, 1, 1, 1]), k=1).item() == pytest.approx(4 / 5)
    assert knn_top1(z, torch.tensor([0, 1, 0, 1, 1]), k=1).item() == pytest.approx(2 / 5)


def test_near_neighbours_outvote_many_where_the_temperature_is_low() -> None:
    """One other of the same class at 10 degrees against three at 60 degrees."""
    angle = torch.tensor([0.0, 10.0, 60.0, 62.0, 64.0], dtype=torch.float64) * math.pi / 180
    z, labels = torch.stack([angle.cos(), angle.sin()], dim=1), torch.tensor([0, 0, 1, 1, 1])
    assert knn_top1(z, labels, k=4, temperature=0.07).item() == 1
    assert knn_top1(z, labels, k=4, temperature=100.0).item() == pytest.approx(3 / 5)


@pytest.mark.parametrize("function", [class_share_of_variance, knn_top1])
@pytest.mark.parametrize("labels", [torch.zeros(30, dtype=torch.long), torch.full((30,), -1)])
def test_one_class_is_undefined(function: object, labels: Tensor) -> None:
    with pytest.raises(UndefinedEstimate, match="two classes"):
        function(normal(30, 3), labels)  # type: ignore[operator]


def test_bad_arguments() -> None:
    z = normal(30, 3)
    with pytest.raises(ValueError, match="integer tensor of shape"):
        class_share_of_variance(z, LABELS[:29])
    with pytest.raises(ValueError, match="k must be an integer"):
        knn_top1(z, LABELS, k=0)
    with pytest.raises(ValueError, match="temperature"):
        knn_top1(z, LABELS, temperature=0.0)
    with pytest.raises(UndefinedEstimate, match="one point"):
        class_share_of_variance(torch.ones(30, 3), LABELS)
