"""Pixels of PIL images, numpy arrays and tensors as tensors (C, H, W), with the number of channels asked for.

Transparent pixels show white, the colour of paper: what colour a file keeps below them is anybody's guess.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslinfo.errors import UserError

_GREY_MODES = ("1", "L", "LA", "La")
BEHIND = "white"  # what transparent pixels show


def match_channels(images: Tensor, channels: int | None) -> Tensor:
    """Images (..., C, H, W) with this many channels: grey is repeated to 3, RGB is weighed to grey; None leaves them.

    Raises:
        UserError: where the numbers are others than 1 and 3 and differ.

    Example:
        >>> match_channels(torch.full((1, 1, 1), 9, dtype=torch.uint8), 3).flatten().tolist()
        [9, 9, 9]
    """
    have = images.shape[-3]
    if channels is None or have == channels:
        return images
    if (have, channels) == (1, 3):
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:]).contiguous()
    if (have, channels) == (3, 1):
        # PIL's integers for 0.299 R + 0.587 G + 0.114 B, so that a data set is the same in memory and in files.
        luma = torch.tensor([19595, 38470, 7471]).view(3, 1, 1)
        if images.is_floating_point():
            return (images * luma / 65536).sum(-3, keepdim=True)
        return (((images * luma).sum(-3, keepdim=True) + 32768) >> 16).to(images.dtype)
    raise UserError(
        f"images with {have} channels cannot become images with {channels}: data.channels converts 1 into 3 and back"
    )


def _converted(image: Image.Image, channels: int | None) -> Image.Image:
    """The image as "L" or "RGB"; with None, grey stays grey."""
    if channels not in (None, 1, 3):
        raise UserError(f"PIL images have 1 or 3 channels here, not {channels}: return a tensor (C, H, W) for more")
    if is_16_bit_grey(image):
        # PIL would clip at 255.
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(
            f"PIL mode {image.mode} has no fixed range; convert it to 8 or 16 bits, or return a float tensor (C, H, W) "
            "in [0, 1] from a data set class of your own"
        )
    if channels is None:
        channels = 1 if image.mode in _GREY_MODES else 3
    mode = "L" if channels == 1 else "RGB"
    if image.has_transparency_data:
        image = _before(image, BEHIND)
    return image if image.mode == mode else image.convert(mode)


def is_16_bit_grey(image: Image.Image) -> bool:
    """Whether a PIL image has one channel of 16 bits, which some readers of PIL keep in 32."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _before(image: Image.Image, colour: str) -> Image.Image:
    """A transparent image before one colour, as RGB."""
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    if straight is not None:
        image = image.convert(straight)
    behind = Image.new("RGBA", image.size, colour)
    behind.alpha_composite(image.convert("RGBA"))
    return behind.convert("RGB")


def _pil_to_tensor(image: Image.Image) -> Tensor:
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def to_tensor(image: object, channels: int | None) -> Tensor:
    """uint8 or float32 (C, H, W) of what a dataset may return; UserError says what is wrong with it."""
    if isinstance(image, Image.Image):
        return _pil_to_tensor(_converted(image, channels))
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
            raise UserError(f"a numpy image is read as (H, W, C), got shape {image.shape}: transpose it")
        if image.ndim == 3:
            image = image.transpose(2, 0, 1)
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, Tensor):
        raise UserError(f"an image is a PIL image, a tensor or a numpy array, got {type(image).__name__}")
    tensor = image.detach().as_subclass(Tensor)
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3 or tensor.numel() == 0:
        raise UserError(f"an image has shape (C, H, W), got {tuple(tensor.shape)}")
    if tensor.is_floating_point():
        tensor = tensor.float()
    elif tensor.dtype != torch.uint8:
        raise UserError(f"an image is uint8, or float in [0, 1], got {tensor.dtype}")
    return match_channels(tensor, channels)


def presented(image: Tensor) -> Image.Image | Tensor:
    """An image in the form that per-image transforms take: PIL for 1 or 3 channels, else the tensor."""
    if image.dtype != torch.uint8 or image.shape[0] not in (1, 3):
        return image
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
