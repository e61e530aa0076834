"""Backbones: any timm model by name, the stem for small images, and conv4."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from sslinfo.errors import UserError


class Conv4(nn.Module):
    """Four 3x3 convolutions (w, 2w, 4w, 8w; strides 1, 2, 2, 2), batch norm and ReLU after each, global average pool.

    Shape: (N, in_channels, H, W) -> (N, 8 * width). Small enough to train on two CPU cores.

    >>> model = conv4(width=16)
    >>> model.num_features, model(torch.zeros(2, 3, 32, 32)).shape
    (128, torch.Size([2, 128]))
    """

    def __init__(self, width: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        widths = [in_channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for stride, before, after in zip((1, 2, 2, 2), widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.num_features = 8 * width

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


def conv4(width: int = 16, in_channels: int = 3) -> Conv4:
    """The small convolutional network of :class:`Conv4`; ``width=16`` gives 128 features."""
    return Conv4(width, in_channels)


def build_backbone(
    name: str,
    *,
    in_channels: int = 3,
    stem: Literal["default", "cifar"] = "default",
    stem_padding: int = 1,
    weights: str | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A network from images (N, in_channels, H, W) to representations (N, num_features).

    Args:
        name: ``conv4`` or any name that timm knows.
        in_channels: channels of the images.
        stem: ``cifar`` replaces a ResNet's first convolution by 3x3 with stride 1 and drops the max-pool, for images of
            about 32 pixels (arXiv:2002.05709, appendix B.9).
        stem_padding: padding of that convolution: 1 keeps the image size; 2 is what some public CIFAR code uses.
        weights: a local file with weights of this network (``.safetensors``, or a torch file, loaded weights-only);
            None starts from scratch.
        options: further keyword arguments of ``timm.create_model`` (``img_size``, ``drop_path_rate``, ...), or
            ``width`` of conv4.

    Raises:
        UserError: an unknown name, a stem that the network does not have, weights that are missing or do not fit.

    >>> build_backbone("resnet18", stem="cifar").num_features
    512
    """
    options = dict(options or {})
    if name == "conv4":
        if stem != "default":
            raise UserError(f"stem={stem!r} is for ResNets, got backbone='conv4': leave stem out")
        model: nn.Module = conv4(in_channels=in_channels, **options)
    elif timm.is_model(name):
        model = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0, **options)
        # pre-logits layers make the output wider than num_features in some families; timm's own word on it:
        model.num_features = int(getattr(model, "head_hidden_size", None) or model.num_features)  # type: ignore[arg-type, assignment]
        if stem == "cifar":
            _cifar_stem(model, name, in_channels, stem_padding)
    else:
        close = difflib.get_close_matches(name, ["conv4", *timm.list_models()], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`timm.list_models()` lists them all"
        if "." in name:
            hint = f"for a network of your own say --model.backbone.class_path {name}"
        raise UserError(f"backbone={name!r} is neither conv4 nor a timm model: {hint}")
    if weights is not None:
        load_weights(model, weights)
    return model


def check_image_size(backbone: nn.Module, size: int) -> None:
    """See that images of a size fit a network that takes one size alone, as most of timm's transformers do.

    Raises:
        UserError: they do not; the message names the option.

    >>> check_image_size(build_backbone("vit_tiny_patch16_224", options={"img_size": 32}), 32)
    """
    patches = getattr(backbone, "patch_embed", None)
    taken = getattr(patches, "img_size", None)
    if taken is not None and not getattr(patches, "strict_img_size", True):
        return
    settings = getattr(backbone, "pretrained_cfg", None) or {}
    if taken is None and settings.get("fixed_input_size"):
        taken = settings["input_size"][-2:]
    if taken is not None and tuple(taken) != (size, size):
        raise UserError(
            f"the backbone takes images of {taken[0]} x {taken[1]} pixels, and data gives {size} x {size}: set "
            f"--model.backbone_options '{{img_size: {size}}}' (and a patch_size that divides it), or --data.image_size "
            f"{taken[0]}"
        )


def _cifar_stem(model: nn.Module, name: str, in_channels: int, padding: int) -> None:
    conv = getattr(model, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(getattr(model, "maxpool", None), nn.Module):
        raise UserError(f"stem='cifar' needs a ResNet with one stem convolution, got backbone={name!r}: leave stem out")
    model.conv1 = nn.Conv2d(in_channels, conv.out_channels, 3, 1, padding, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights of a backbone from a local file.

    A classifier's head in the file is left out; a Lightning checkpoint's ``backbone.`` part is found. Torch files are
    read weights-only, so that a file cannot run code.

    Raises:
        UserError: the file is missing, unreadable or does not fit the network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights={str(path)!r} is not a file: check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"weights={str(path)!r} cannot be read as weights: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UserError(f"weights={str(path)!r} cannot be read as weights: it holds a {type(state).__name__}")
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    prefix = "backbone."
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    wrong = sorted(key for key in own if key in state and own[key].shape != state[key].shape)
    if missing or wrong:
        raise UserError(
            f"weights={str(path)!r} do not fit: {len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(wrong)} of another shape ({', '.join(wrong[:3])}), and the file holds {', '.join(list(state)[:3])}, "
            "...: check backbone, stem, in_channels and options"
        )
    model.load_state_dict({key: state[key] for key in own})
