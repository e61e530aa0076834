"""Colour operations on whole batches, with their own parameters for each image.

Images are (N, C, H, W) float32 in [0, 1] and parameters are (N,) tensors on the same device. Each function equals its
namesake in ``torchvision.transforms.v2.functional`` on one float32 image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslinfo.errors import UserError

_RED, _GREEN, _BLUE = 0.2989, 0.587, 0.114


def _per_image(values: Tensor) -> Tensor:
    return values.float()[:, None, None, None]


def _require_rgb(images: Tensor, operation: str) -> None:
    if images.shape[1] != 3:
        raise UserError(
            f"{operation} needs images of 1 or 3 channels, got {images.shape[1]}: set the saturation and hue of "
            "`jitter` and the probability `grey` to 0, or convert the images"
        )


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return red.mul(_RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE)[:, None]


def rgb_to_grayscale(images: Tensor) -> Tensor:
    """The grey image on as many channels as came in; images of one channel are returned as they are.

    Raises:
        UserError: if the images have neither 1 nor 3 channels.

    Example:
        >>> rgb_to_grayscale(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).flatten()
        tensor([0.2989, 0.2989, 0.2989])
    """
    if images.shape[1] == 1:
        return images
    _require_rgb(images, "rgb_to_grayscale")
    return _luma(images).expand_as(images)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor * image, clamped to [0, 1].

    Example:
        >>> adjust_brightness(torch.tensor([0.25, 0.75]).view(1, 1, 1, 2), torch.tensor([2.0])).flatten()
        tensor([0.5000, 1.0000])
    """
    return images.mul(_per_image(factor)).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """factor * image + (1 - factor) * (mean of the grey image), clamped; the mean of all channels if not RGB.

    Example:
        >>> adjust_contrast(torch.tensor([0.25, 0.75]).view(1, 1, 1, 2), torch.tensor([0.5])).flatten()
        tensor([0.3750, 0.6250])
    """
    factor = _per_image(factor)
    mean = images.mean((2, 3), keepdim=True)
    mean = _luma(mean) if images.shape[1] == 3 else mean.mean(1, keepdim=True)
    return images.mul(factor).add_(mean.mul_(1.0 - factor)).clamp_(0.0, 1.0)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """factor * image + (1 - factor) * grey image, clamped; images of one channel are returned as they are.

    Raises:
        UserError: if the images have neither 1 nor 3 channels.

    Example:
        >>> adjust_saturation(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.tensor([0.0])).flatten()
        tensor([0.2989, 0.2989, 0.2989])
    """
    if images.shape[1] == 1:
        return images
    _require_rgb(images, "adjust_saturation")
    factor = _per_image(factor)
    return images.mul(factor).add_(_luma(images).mul_(1.0 - factor)).clamp_(0.0, 1.0)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift``, in full turns within [-1/2, 1/2]; images of one channel are returned as they are.

    With maximum M, minimum m and hue h of a pixel in turns, a channel centred at c (red 0, green 1/3, blue 2/3) is
    M - (M - m) clamp(2 - 6 dist(h, c + 1/2), 0, 1), where dist is measured around the circle, at most 1/2.

    Raises:
        UserError: if the images have neither 1 nor 3 channels.

    Source: derived from the definition of HSV.

    Example:
        >>> adjust_hue(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.tensor([1 / 3])).flatten().round()
        tensor([0., 1., 0.])
    """
    if images.shape[1] == 1:
        return images
    _require_rgb(images, "adjust_hue")
    red, green, blue = images.unbind(1)
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    high, low = torch.maximum(high, blue, out=high), torch.minimum(low, blue, out=low)
    chroma = high - low
    # The hue's distance from red, in sixths of a turn, is 2 + (green + blue - red - M) / (M - m); green and blue
    # say on which side. A grey pixel has no hue: any finite one will do, since its chroma is zero.
    sixths = (green - high).add_(blue).sub_(red).div_(chroma.clamp(min=1e-20)).add_(2.0)
    hue = torch.copysign(sixths, green - blue).mul_(1 / 6).add_(shift.float()[:, None, None])
    opposite = images.new_tensor([1 / 2, 1 / 6, -1 / 6])[:, None, None]
    distance = hue[:, None] + opposite
    distance.sub_(distance.round()).abs_().mul_(6.0).clamp_(1.0, 2.0)
    low = torch.sub(high, chroma, alpha=2.0, out=low)
    return distance.mul_(chroma[:, None]).add_(low[:, None])


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert the values at or above the threshold.

    Example:
        >>> solarize(torch.tensor([0.25, 0.75]).view(1, 1, 1, 2), 0.5).flatten()
        tensor([0.2500, 0.2500])
    """
    return torch.where(images >= threshold, 1.0 - images, images)


def noise(images: Tensor, sigma: float, normals: Tensor) -> Tensor:
    """Add ``sigma`` times standard normal numbers of the images' number of elements; clamped to [0, 1].

    Example:
        >>> noise(torch.tensor([[[[0.5, 0.5]]]]), 0.1, torch.tensor([1.0, -9.0])).flatten()
        tensor([0.6000, 0.0000])
    """
    return images.add(normals.view_as(images), alpha=sigma).clamp_(0.0, 1.0)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], out: Tensor | None = None) -> Tensor:
    """(image - mean) / std with one mean and standard deviation for each channel.

    Raises:
        UserError: if their numbers are not the number of channels.

    Example:
        >>> normalize(torch.tensor([0.5, 1.0]).view(1, 1, 1, 2), [0.5], [0.25]).flatten()
        tensor([0., 2.])
    """
    if not len(mean) == len(std) == images.shape[1]:
        raise UserError(
            f"mean and std need one value for each channel, got {len(mean)} and {len(std)} for {images.shape[1]} "
            "channels: give the statistics of this data set"
        )
    center = torch.tensor(mean, device=images.device, dtype=torch.float32)[:, None, None]
    width = torch.tensor(std, device=images.device, dtype=torch.float32)[:, None, None]
    return torch.sub(images, center, out=out).div_(width)
