"""What a checkpoint holds is data: from Python too, nothing that it names is imported or opened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import __version__ as version
from rank_trainer import SmallNet
from torch import Tensor

from sslinfo.data import TwoViewDataModule, View
from sslinfo.errors import UserError
from sslinfo.objectives import EntropyHalf, JointEmbedding, LogDet, VICReg
from sslinfo.stored import as_data, known_class, not_finite

TINY: dict[str, Any] = {"backbone": "conv4", "backbone_options": {"width": 2}, "in_channels": 1, "projector": [8, 4]}


class OwnHalf(EntropyHalf):
    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        return {"loss": views[0].pow(self.power).mean()}


def write(model: JointEmbedding | None = None, data: TwoViewDataModule | None = None, **changed: Any) -> str:
    model, data = model or VICReg(LogDet(beta=3.0), **TINY), data or TwoViewDataModule("digits", views=[View(flip=0.5)])
    content = {
        "state_dict": model.state_dict(),
        "pytorch-lightning_version": version,
        "hyper_parameters": {**model.hparams, **changed.pop("model_values", {})},
        "datamodule_hyper_parameters": {**data.hparams, **changed.pop("data_values", {})},
        **changed,
    }
    torch.save(content, "x.ckpt")
    return "x.ckpt"


@pytest.fixture
def evil(in_tmp: Path) -> Any:
    """evil.py in the working folder, which leaves a file where it is imported, and files that name its class."""
    Path("evil.py").write_text(
        "open('imported', 'w').close()\nimport torch\nfrom sslinfo.objectives import EntropyHalf\n"
        "class Half(EntropyHalf): pass\nclass Net(torch.nn.Identity): num_features = 64\n"
        "class Data(torch.utils.data.Dataset): pass\ndef function(image): return image\n"
    )
    for name in ("ent.yaml", " ent.yaml", "digits", "conv4"):
        Path(name).write_text("class_path: evil.Half\n")
    sys.path.insert(0, str(in_tmp))
    yield in_tmp
    sys.path.remove(str(in_tmp))
    assert not Path("imported").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "values",
    [
        {"entropy": {"class_path": "evil.Half", "init_args": {}}},
        {"entropy": {"class_path": "subprocess.Popen", "init_args": {"args": "touch imported"}}},
        {"entropy": {"class_path": "sslinfo.objectives.base.torch"}},
        {"entropy": "evil.Half"},
        {"entropy": " ent.yaml"},
        {"entropy": "{class_path: evil.Half}"},
        {"backbone": {"class_path": "evil.Net"}},
        {"optimizer": " ent.yaml"},
        {"backbone_options": {"act_layer": {"class_path": "evil.Net"}}},
        {"_class_path": "evil.Half"},
        {"_class_path": "sslinfo.objectives.LogDet"},
        {"_class_path": ["evil.Half"]},
    ],
)
def test_an_objective_is_not_made_of_foreign_classes(evil: Path, values: dict[str, Any]) -> None:
    path = write(model_values=values)
    for kind in (VICReg, JointEmbedding):
        with pytest.raises(
            UserError, match=r"which is (not sslinfo's: .* pass it|no \w+ of sslinfo's or of this program)"
        ):
            kind.load_from_checkpoint(path)


@pytest.mark.parametrize(
    "values",
    [
        {"dataset": "evil.Data"},
        {"dataset": {"class_path": "evil.Data"}},
        {"transform": "evil.function"},
        {"views": [{"class_path": "evil.Half"}]},
        {"test_dataset": "evil.Data"},
        {"views": [" ent.yaml"]},
    ],
)
def test_data_is_not_made_of_foreign_classes(evil: Path, values: dict[str, Any]) -> None:
    path = write(data_values=values)
    with pytest.raises(UserError, match="pass it"):
        TwoViewDataModule.load_from_checkpoint(path)
    (name,) = values
    given = {"views": "digits", "transform": None, "test_dataset": None, "dataset": "digits"}[name]
    assert TwoViewDataModule.load_from_checkpoint(path, **{name: given}).dataset == "digits"


def test_text_stays_text(evil: Path) -> None:
    """Where a name is due, a file of that name is not looked at, nor is text with one in it."""
    assert VICReg.load_from_checkpoint(write()).hparams["backbone"] == "conv4"
    with pytest.raises(UserError, match=r"backbone=' ent\.yaml' is neither conv4 nor a timm model"):
        VICReg.load_from_checkpoint(write(model_values={"backbone": " ent.yaml"}))
    assert TwoViewDataModule.load_from_checkpoint(write(data_values={"root": "evil.Data"})).root == "evil.Data"


def test_classes_of_ours_and_of_the_program_are_made(in_tmp: Path) -> None:
    assert VICReg.load_from_checkpoint(write()).entropy.beta == 3.0  # type: ignore[union-attr]
    again = JointEmbedding.load_from_checkpoint(write(VICReg(OwnHalf(power=4.0), **TINY)))
    assert type(again) is VICReg
    assert (type(again.entropy), again.entropy.power) == (OwnHalf, 4.0)  # type: ignore[union-attr]
    data = TwoViewDataModule.load_from_checkpoint("x.ckpt")
    assert [(type(view), view.flip) for view in data.views] == [(View, 0.5)]


def test_weights_of_the_stored_configuration_are_not_opened(in_tmp: Path) -> None:
    model = VICReg.load_from_checkpoint(write(model_values={"weights": "gone.safetensors"}))
    assert torch.equal(model.projector[0].weight, torch.load("x.ckpt")["state_dict"]["projector.0.weight"])  # type: ignore[index, union-attr]


def test_an_object_that_the_checkpoint_lacks_is_given(in_tmp: Path) -> None:
    path = write(
        VICReg(backbone=SmallNet(1), projector=[8], projector_norm="none"), sslinfo_left_out=["model.backbone"]
    )
    with pytest.raises(UserError, match=r"backbone of this run was an object .* pass it: .*backbone=\.\.\."):
        VICReg.load_from_checkpoint(path)
    assert isinstance(VICReg.load_from_checkpoint(path, backbone=SmallNet(1)).backbone, SmallNet)


@pytest.mark.parametrize("kind", [VICReg, TwoViewDataModule])
def test_files_that_are_no_checkpoint(in_tmp: Path, kind: Any) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, ("ran", "w")

    torch.save({"state_dict": {}, "more": Runs()}, "runs.ckpt")
    for weights_only in (None, True, False):
        with pytest.raises(UserError, match=r"checkpoint_path='runs\.ckpt' cannot be read .* could run code"):
            kind.load_from_checkpoint("runs.ckpt", weights_only=weights_only)
    assert not Path("ran").exists()
    with pytest.raises(UserError, match="is an address: fetch the file"):
        kind.load_from_checkpoint("http://localhost/x.ckpt")
    with pytest.raises(UserError, match="pytorch-lightning_version is None"):
        kind.load_from_checkpoint(write(**{"pytorch-lightning_version": None}))


def test_what_has_no_end_is_no_configuration() -> None:
    itself: list[Any] = []
    itself.append(itself)
    doubled: Any = "x"
    for _ in range(40):
        doubled = [doubled, doubled]  # 2^40 values in 40 lists
    for value in (itself, doubled):
        with pytest.raises(UserError, match="larger than any configuration"):
            as_data(value)
    for value in (torch.zeros(1), {1: 2}, {"a": {1, 2}}, 10**400):
        with pytest.raises(UserError, match=" in it"):
            as_data(value)


def test_only_classes_that_a_module_defines_are_known() -> None:
    assert known_class("sslinfo.objectives.LogDet") is known_class("sslinfo.objectives.entropy.LogDet") is LogDet
    assert known_class(f"{__name__}.OwnHalf") is OwnHalf
    for path in (
        "sslinfo.data.datamodule.os.system",
        "sslinfo.data.datamodule.Dataset",
        "os.system",
        "antigravity.fly",
    ):
        assert known_class(path) is None
    for path in (None, 3, "", "LogDet", "sslinfo.", "sslinfo..objectives.LogDet", " sslinfo.objectives.LogDet"):
        assert known_class(path) is None
    assert "antigravity" not in sys.modules


def test_weights_that_are_not_finite() -> None:
    inf = torch.inf
    state = {
        "good": torch.zeros(2),
        "mask": torch.tensor([0.0, -inf]),
        "nan": torch.tensor([0.0, torch.nan]),
        "overflown": torch.tensor([-inf, inf], dtype=torch.float16),
        "eight": torch.tensor([1.0, torch.nan]).to(torch.float8_e5m2),
        "steps": torch.tensor(3),
    }
    assert not_finite(state) == ["nan", "overflown", "eight"]
