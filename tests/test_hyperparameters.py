"""What a checkpoint writes down of its model and data: plain values that a weights-only loader takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_trainer import SmallNet
from torch import Tensor, nn

from sslinfo.data import TwoViewDataModule, View
from sslinfo.hyperparameters import init_arguments, to_plain
from sslinfo.objectives import LogDet, PairDist, VICReg
from sslinfo.objectives.entropy import EntropyHalf
from sslinfo.optim import OptimizerConfig


class MyHalf(EntropyHalf):
    def __init__(self, power: float = 2.0, inner: EntropyHalf | None = None) -> None:
        super().__init__()
        self.power, self.inner = power, inner

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        return {"loss": views[0].pow(self.power).mean()}


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(entry) for key, entry in value.items())
    if isinstance(value, list):
        return all(plain(entry) for entry in value)
    return value is None or type(value) in (bool, int, float, str)


def test_numbers_strings_and_containers() -> None:
    value = {"a": (1, 2.5, None), "b": [True, {"c": "text"}], 3: ()}
    assert to_plain(value) == {"a": [1, 2.5, None], "b": [True, {"c": "text"}], "3": []}


def test_a_half_is_written_with_its_class_and_arguments() -> None:
    written = to_plain(LogDet(beta=3.0))
    assert written == {
        "class_path": "sslinfo.objectives.LogDet",
        "init_args": {"weight": 25.0, "beta": 3.0, "normalize": True},
    }
    nested = to_plain(MyHalf(inner=PairDist(bound="lower")))
    assert nested["class_path"] == f"{__name__}.MyHalf"
    assert nested["init_args"]["inner"]["init_args"]["bound"] == "lower"


@pytest.mark.parametrize("half", [LogDet(beta=2.0), PairDist(variance=0.3), MyHalf(power=4.0)])
def test_arguments_written_down_rebuild_the_object(half: EntropyHalf) -> None:
    again = type(half)(**init_arguments(half))
    z = torch.randn(5, 4)
    assert again(z)["loss"] == half(z)["loss"]


def test_a_dataclass_is_its_fields() -> None:
    config = OptimizerConfig("lars", options={"momentum": 0.9})
    assert OptimizerConfig(**to_plain(config)) == config


@pytest.mark.parametrize("value", [nn.Linear(1, 1), torch.zeros(1), object()])
def test_what_has_no_plain_form_is_said(value: Any) -> None:
    with pytest.raises(TypeError, match=f"{type(value).__name__} has no plain form"):
        to_plain({"deep": [value]})


def test_a_model_keeps_plain_values_alone() -> None:
    options = {"width": 8}
    model = VICReg(
        entropy=LogDet(beta=3.0),
        invariance=9.0,
        backbone="conv4",
        backbone_options=options,
        projector=(32, 16),
        optimizer=OptimizerConfig("lars", lr=0.3),
    )
    found = dict(model.hparams)
    assert plain(found)
    assert found["entropy"]["init_args"]["beta"] == 3.0
    assert (found["invariance"], found["projector"], found["backbone_options"]) == (9.0, [32, 16], options)
    assert found["optimizer"]["lr"] == 0.3
    assert found["_class_path"] == "sslinfo.objectives.VICReg"


def test_a_network_of_the_users_own_is_left_out() -> None:
    model = VICReg(backbone=SmallNet(), projector=[8], projector_norm="none")
    assert plain(dict(model.hparams))
    assert "backbone" not in model.hparams


def test_data_keeps_plain_values_alone(tmp_path: Path) -> None:
    data = TwoViewDataModule("digits", batch_size=32, views=[View(flip=0.5), View()], mean=[0.5], std=[0.25])
    found = dict(data.hparams)
    assert plain(found)
    assert (found["batch_size"], found["mean"]) == (32, [0.5])
    assert [entry["class_path"].split(".")[-1] for entry in found["views"]] == ["View", "View"]
    assert found["views"][0]["init_args"]["flip"] == 0.5
    torch.save(found, tmp_path / "data.pt")
    assert torch.load(tmp_path / "data.pt", weights_only=True) == found


def test_a_data_set_object_is_left_out() -> None:
    class Own(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1

    data = TwoViewDataModule(Own(), batch_size=1)
    assert plain(dict(data.hparams))
    assert "dataset" not in data.hparams
