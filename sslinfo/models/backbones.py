"""Backbones: any timm model by name, the stem for small images, and conv4."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from sslinfo.errors import UserError
from sslinfo.ranges import check_range
from sslinfo.stored import not_finite
from sslinfo.torch_files import read_torch_file

# What torch.compile, activation checkpointing and FSDP put into names.
_WRAPPERS = re.compile(r"(?:(?<=^)|(?<=\.))(_orig_mod\.|_checkpoint_wrapped_module\.|_fsdp_wrapped_module\.)")
_AVERAGE = re.compile("ema|momentum|target|teacher|encoder_k|key|average|shadow")


class Conv4(nn.Module):
    """Four 3x3 convolutions (w, 2w, 4w, 8w; strides 1, 2, 2, 2), batch norm and ReLU after each, global average pool.

    Args:
        width: w, channels of the first convolution, in [1, 4096].
        in_channels: channels of the images, in [1, 65536].

    Shape: (N, in_channels, H, W) -> (N, 8 * width). Small enough to train on two CPU cores.

    >>> model = conv4(width=16)
    >>> model.num_features, model(torch.zeros(2, 3, 32, 32)).shape
    (128, torch.Size([2, 128]))
    """

    def __init__(self, width: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        check_range("width", width, "[1, 4096]", whole=True)
        check_range("in_channels", in_channels, "[1, 65536]", whole=True)
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
        in_channels: channels of the images, in [1, 65536].
        stem: ``cifar`` replaces a ResNet's first convolution by 3x3 with stride 1 and drops the max-pool, for images of
            about 32 pixels (arXiv:2002.05709, appendix B.9).
        stem_padding: padding of that convolution, in [0, 64]: 1 keeps the image size; 2 is what some public CIFAR
            code uses.
        weights: a local file with weights of this network (``.safetensors``, or a torch file, loaded weights-only);
            None starts from scratch.
        options: further keyword arguments of ``timm.create_model`` (``img_size``, ``drop_path_rate``, ...), or
            ``width`` of conv4.

    Raises:
        UserError: an unknown name, a number out of its range, a stem or an option that the network does not have,
            weights that are missing or do not fit.

    >>> build_backbone("resnet18", stem="cifar").num_features
    512
    """
    options = dict(options or {})
    check_range("in_channels", in_channels, "[1, 65536]", whole=True)
    check_range("stem_padding", stem_padding, "[0, 64]", whole=True)
    if name == "conv4":
        if stem != "default":
            raise UserError(f"stem={stem!r} is for ResNets, got backbone='conv4': leave stem out")
        model: nn.Module = _with_options(conv4, name, options, in_channels=in_channels)
    elif timm.is_model(name):
        fixed = {"pretrained": False, "in_chans": in_channels, "num_classes": 0}
        model = _with_options(timm.create_model, name, options, model_name=name, **fixed)
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


def _with_options(make: Callable[..., nn.Module], name: str, options: dict[str, Any], **fixed: Any) -> nn.Module:
    """The network that ``make`` builds; whatever it says against the options is a mistake of the user's."""
    try:
        return make(**fixed, **options)
    except UserError as error:
        raise UserError(f"backbone_options={options}: {error}") from error
    except Exception as error:
        if not options:
            raise
        raise UserError(f"backbone_options={options} do not fit backbone={name!r}: {error}") from error


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

    The network's names are looked for behind any beginning that they have in common, such as ``state_dict.module.`` or
    ``backbone.``; names that it does not have, of a classifier's head or a second network, are left out. Both are said.
    Torch files are read weights-only, so that a file cannot run code.

    Raises:
        UserError: the file is missing, unreadable or does not fit the network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights={str(path)!r} is not a file: check the path")
    content = _read(path)
    if not isinstance(content, dict):
        raise UserError(f"weights={str(path)!r} cannot be read as weights: it holds a {type(content).__name__}")
    state, wrappers = _unwrapped(_tensors(content))
    own = model.state_dict()
    beginning, others = _beginning(own, state)
    named = {name.removeprefix(beginning): tensor for name, tensor in state.items() if name.startswith(beginning)}
    missing = sorted(set(own) - set(named))
    wrong = sorted(name for name in own if name in named and own[name].shape != named[name].shape)
    if missing or wrong:
        raise UserError(
            f"weights={str(path)!r} do not fit: {len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(wrong)} of another shape ({', '.join(wrong[:3])}), and the file holds {', '.join(list(state)[:3])}, "
            "...: check backbone, stem, in_channels and options"
        )
    if names := not_finite({name: named[name] for name in own}):
        raise UserError(f"weights={str(path)!r} holds NaN or infinity ({names[0]}): take those of another training")
    model.load_state_dict({name: named[name] for name in own})
    left_out = [name for name in named if name not in own]
    parts = [
        f"{' and '.join([*wrappers, beginning] if beginning else wrappers)} is taken off the names"
        if wrappers or beginning
        else "",
        f"what begins with {' or '.join(others)} would fit too" if others else "",
        f"{len(left_out)} that the network does not have are left out ({', '.join(left_out[:3])})" if left_out else "",
    ]
    if said := "; ".join(part for part in parts if part):
        rank_zero_only(print)(f"note: weights={str(path)!r}: {said}", flush=True)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return read_torch_file(path)
    except Exception as error:
        raise UserError(f"weights={str(path)!r} cannot be read as weights: {error}") from error


def _tensors(content: Any) -> dict[str, Tensor]:
    """All tensors of a file by their dotted names."""
    found: dict[str, Tensor] = {}

    def look(value: Any, name: str, depth: int) -> None:
        if torch.is_tensor(value):
            found[name] = value
        elif isinstance(value, dict) and depth < 8:
            for key, entry in value.items():
                look(entry, f"{name}.{key}" if name else str(key), depth + 1)

    look(content, "", 0)
    return found


def _unwrapped(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the names that they had before modules were compiled or wrapped, and what was taken out."""
    plain = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    return plain, sorted({word for name in state for word in _WRAPPERS.findall(name)})


def _beginning(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> tuple[str, list[str]]:
    """What stands before the network's names in a file, and what else could be taken for it.

    Of two networks in a file it is the one that was trained, not its average; then the one with the shorter beginning.
    """
    fits: Counter[str] = Counter()
    for name, tensor in state.items():
        parts = name.split(".")
        for place in range(len(parts)):
            end = ".".join(parts[place:])
            if end in own:
                # A name of another shape still says where the network is, if nothing fits better.
                fits[name.removesuffix(end)] += 1000 if tensor.shape == own[end].shape else 1
    order = sorted(fits, key=lambda beginning: (-fits[beginning], bool(_AVERAGE.search(beginning)), len(beginning)))
    return (order or [""])[0], [other for other in order[1:] if fits[other] == fits[order[0]]]
