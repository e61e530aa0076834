"""Shapes, sizes and parameter counts by hand, feature widths as timm's networks have them, weights from files."""

import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from sslinfo.errors import UserError
from sslinfo.models import build_backbone, conv4, load_weights
from sslinfo.objectives import VICReg


def convolved(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


@pytest.mark.parametrize(("width", "in_channels"), [(16, 3), (8, 1), (24, 6)])
def test_conv4_is_as_defined(width: int, in_channels: int) -> None:
    model = conv4(width, in_channels)
    widths = [in_channels, width, 2 * width, 4 * width, 8 * width]
    convolutions = sum(9 * before * after for before, after in pairwise(widths))
    norms = sum(2 * after for after in widths[1:])
    assert sum(parameter.numel() for parameter in model.parameters()) == convolutions + norms
    size = 32
    for stride in (1, 2, 2, 2):
        size = convolved(size, 3, stride, 1)
    images = torch.randn(2, in_channels, 32, 32)
    assert size == 4
    assert model.layers(images).shape == (2, 8 * width, size, size)
    assert model(images).shape == (2, model.num_features) == (2, 8 * width)
    torch.testing.assert_close(model.eval()(images), model.layers(images).flatten(2).mean(2))
    kinds = [type(layer) for layer in model.layers]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 4


def test_conv4_by_name_takes_its_width() -> None:
    assert build_backbone("conv4", options={"width": 4}, in_channels=2)(torch.zeros(2, 2, 8, 8)).shape == (2, 32)


@pytest.mark.parametrize(("padding", "sizes"), [(1, [32, 32, 16, 8, 4]), (2, [34, 34, 17, 9, 5])])
def test_cifar_stem_keeps_small_images(padding: int, sizes: list[int]) -> None:
    expected = [convolved(32, 3, 1, padding)]
    for stride in (1, 2, 2, 2):
        expected.append(convolved(expected[-1], 3, stride, 1))
    assert expected == sizes
    model = build_backbone("resnet18", stem="cifar", stem_padding=padding, in_channels=1)
    seen: list[Tensor] = []
    for part in (model.conv1, model.layer1, model.layer2, model.layer3, model.layer4):
        part.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 512)
    assert [tuple(output.shape[2:]) for output in seen] == [(size, size) for size in sizes]
    assert model.conv1.weight.shape == (64, 1, 3, 3)


def test_the_default_stem_shrinks_them_to_a_point() -> None:
    assert build_backbone("resnet18").eval().forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 1, 1)


def test_a_vit_for_small_images_by_its_options() -> None:
    options = {"img_size": 32, "patch_size": 8, "depth": 2}
    model = build_backbone("vit_tiny_patch16_224", options=options)
    assert model.patch_embed.num_patches == 16
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, model.num_features) == (2, 192)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3_small_050",
        "resnet10t",
        "convnext_atto",
        "ghostnet_050",
        "lcnet_035",
        "efficientnet_b0",
        "pit_ti_224",
    ],
)
def test_the_reported_width_is_that_of_the_output(name: str) -> None:
    model = build_backbone(name)
    size = 224 if name.startswith("pit") else 64
    assert model.eval()(torch.zeros(1, 3, size, size)).shape == (1, model.num_features)


def test_a_network_whose_head_is_wider_than_its_features() -> None:
    plain = timm.create_model("mobilenetv3_small_050", num_classes=0)
    assert plain.head_hidden_size != plain.num_features, "timm has changed: this test needs another network"
    model = VICReg(backbone="mobilenetv3_small_050", projector=[8])
    assert model.num_features == plain.head_hidden_size
    assert model.embed([torch.zeros(2, 3, 64, 64)])["z1"].shape == (2, 8)


def save(state: dict[str, Any], path: Path) -> None:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["conv4", "lcnet_035"])
def test_weights_from_a_local_file(tmp_path: Path, name: str, suffix: str) -> None:
    torch.manual_seed(1)
    source = build_backbone(name)
    for buffer in source.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.1)
    path = tmp_path / f"weights{suffix}"
    save(source.state_dict(), path)
    torch.manual_seed(2)
    loaded = build_backbone(name, weights=str(path))
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(build_backbone(name).eval()(images), source.eval()(images))
    assert torch.equal(loaded.eval()(images), source(images))


def test_the_head_of_a_classifier_is_left_out(tmp_path: Path) -> None:
    classifier = timm.create_model("resnet18", num_classes=7)
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "classifier.pth")
    model = build_backbone("resnet18", weights=str(tmp_path / "classifier.pth"))
    images = torch.randn(2, 3, 64, 64)
    features = classifier.eval().forward_head(classifier.forward_features(images), pre_logits=True)
    assert torch.equal(model.eval()(images), features)


def test_the_backbone_of_a_whole_models_checkpoint_is_found(tmp_path: Path) -> None:
    trained = VICReg(backbone="conv4", projector=[8])
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "run.ckpt")
    loaded = build_backbone("conv4", weights=str(tmp_path / "run.ckpt"))
    for name, tensor in trained.backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_weights_that_do_not_fit_are_refused_and_leave_the_network_alone(tmp_path: Path) -> None:
    save(conv4(width=8).state_dict(), tmp_path / "narrow.pt")
    model = conv4(width=16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"narrow.pt' do not fit: 0 missing .*, 20 of another shape \(layers.0.weight"):
        load_weights(model, tmp_path / "narrow.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match=r"do not fit: 24 missing"):
        build_backbone("conv4", weights=str(_saved(tmp_path / "other.pt", {"w": torch.zeros(1)})))


def _saved(path: Path, state: dict[str, Any]) -> Path:
    save(state, path)
    return path


class Payload:
    def __reduce__(self) -> Any:
        return print, ("this code must not run",)


def test_files_that_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"missing.pt' is not a file"):
        build_backbone("conv4", weights=str(tmp_path / "missing.pt"))
    (tmp_path / "noise.pt").write_bytes(b"no weights at all")
    with pytest.raises(UserError, match=r"noise.pt' cannot be read as weights"):
        build_backbone("conv4", weights=str(tmp_path / "noise.pt"))
    (tmp_path / "noise.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(UserError, match=r"noise.safetensors' cannot be read as weights"):
        build_backbone("conv4", weights=str(tmp_path / "noise.safetensors"))
    torch.save([1.0, 2.0], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"list.pt' cannot be read as weights"):
        build_backbone("conv4", weights=str(tmp_path / "list.pt"))
    torch.save({"layers.0.weight": "text"}, tmp_path / "text.pt")
    with pytest.raises(UserError, match=r"text.pt' do not fit"):
        build_backbone("conv4", weights=str(tmp_path / "text.pt"))
    torch.save(Payload(), tmp_path / "code.pt")
    (tmp_path / "code.pickle").write_bytes(pickle.dumps(Payload()))
    for name in ("code.pt", "code.pickle"):
        with pytest.raises(UserError, match=f"{name}' cannot be read as weights"):
            build_backbone("conv4", weights=str(tmp_path / name))
    assert capsys.readouterr().out == ""


def test_misspelt_names_and_stems() -> None:
    with pytest.raises(
        UserError, match=r"backbone='resnet81' is neither conv4 nor a timm model: did you mean .*resnet18"
    ):
        build_backbone("resnet81")
    with pytest.raises(UserError, match=r"did you mean .*conv4"):
        build_backbone("conv_4")
    with pytest.raises(UserError, match=r"list_models"):
        build_backbone("qqqqqqqqqqqq")
    for name in ("conv4", "vit_tiny_patch16_224", "resnet18d"):
        with pytest.raises(UserError, match="leave stem out"):
            build_backbone(name, stem="cifar")


def torchvision_state() -> dict[str, Tensor]:
    return torchvision.models.resnet18(num_classes=5).state_dict()


def nested(state: dict[str, Tensor], beginning: str) -> dict[str, Any]:
    """The tensors with a beginning before their names."""
    return {f"{beginning}{name}": tensor for name, tensor in state.items()}


# What wraps a network elsewhere, by the beginning that is said to be taken off.
ELSEWHERE: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "_orig_mod.": lambda state: nested(state, "_orig_mod."),
    "module.": lambda state: nested(state, "module."),
    "backbone.": lambda state: nested(state, "backbone."),
    "encoder.": lambda state: nested(state, "encoder."),
    "model.": lambda state: nested(state, "model."),
    "state_dict.": lambda state: {"epoch": 3, "arch": "resnet18", "state_dict": state},
    "state_dict.module.encoder_q.": lambda state: {
        "state_dict": nested(state, "module.encoder_q.") | nested(state, "module.encoder_k.")
    },
    "model.module.": lambda state: {"model": nested(state, "module."), "optimizer": {"state": {0: torch.zeros(2)}}},
    "_orig_mod. and module.": lambda state: nested(state, "module._orig_mod."),
    "student.backbone.": lambda state: {
        "teacher": nested(state, "backbone."),
        "student": nested(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(2, 2)},
    },
}


@pytest.mark.parametrize("beginning", ELSEWHERE)
def test_weights_from_elsewhere(tmp_path: Path, beginning: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = torchvision_state()
    torch.save(ELSEWHERE[beginning](state), tmp_path / "elsewhere.pth")
    model = build_backbone("resnet18", weights=str(tmp_path / "elsewhere.pth"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    said = capsys.readouterr().out
    assert said.startswith("note: ")
    assert f" {beginning} is taken off the names" in said
    assert "2 that the network does not have are left out (fc.weight, fc.bias)" in said
    assert len(said.splitlines()) == 1


def test_of_two_networks_in_a_file_the_trained_one_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, average = conv4(width=2).state_dict(), conv4(width=2).state_dict()
    torch.save({"target": average, "online_backbone": trained}, tmp_path / "byol.pt")
    model = build_backbone("conv4", weights=str(tmp_path / "byol.pt"), options={"width": 2})
    assert torch.equal(model.state_dict()["layers.0.weight"], trained["layers.0.weight"])
    assert "online_backbone. is taken off the names; what begins with target. would fit too" in capsys.readouterr().out


def test_modules_that_were_compiled_and_wrapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = conv4(width=2)
    wrapped = nn.Module()
    wrapped.backbone = torch.compile(nn.parallel.DataParallel(source))  # type: ignore[assignment]
    assert "backbone._orig_mod.module.layers.0.weight" in wrapped.state_dict()
    torch.save({"state_dict": wrapped.state_dict()}, tmp_path / "wrapped.pt")
    save_file(wrapped.state_dict(), tmp_path / "wrapped.safetensors")
    for name, said in (("wrapped.pt", "state_dict.backbone.module."), ("wrapped.safetensors", "backbone.module.")):
        model = build_backbone("conv4", weights=str(tmp_path / name), options={"width": 2})
        assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert f"_orig_mod. and {said} is taken off the names\n" in capsys.readouterr().out


def test_nothing_is_said_of_weights_that_fit_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(conv4().state_dict(), tmp_path / "plain.pt")
    build_backbone("conv4", weights=str(tmp_path / "plain.pt"))
    assert capsys.readouterr().out == ""


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    state = conv4().state_dict()
    state["layers.3.weight"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"holds NaN or infinity \(layers\.3\.weight\)"):
        build_backbone("conv4", weights=str(tmp_path / "nan.pt"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("conv4", {"width": 0}, r"backbone_options=\{'width': 0\}: width must be a whole number in .*, got 0"),
        ("conv4", {"wdth": 3}, r"backbone_options=\{'wdth': 3\} do not fit backbone='conv4': .*'wdth'"),
        ("resnet18", {"wdth": 3}, r"backbone_options=\{'wdth': 3\} do not fit backbone='resnet18': .*'wdth'"),
        ("vit_tiny_patch16_224", {"patch_size": 0}, "backbone_options=.* do not fit backbone='vit_tiny"),
    ],
)
def test_options_that_a_network_does_not_take(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(name, options=options)
