"""Crop, resize, flip, blur and affine maps of whole batches, with their own parameters for each image.

Crop, resize and blur are linear in the image and separable: a matrix for the rows times the image times a matrix for
the columns, two batched products. The matrices hold the weights of torchvision's antialiased kernels, so the result is
``torchvision.transforms.v2.functional``'s on float32 images.
"""

import functools
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sslinfo.errors import UserError
from sslinfo.precision import full_precision

Interpolation = Literal["bilinear", "bicubic"]


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]; floating point images to float32 as they are.

    Raises:
        UserError: for other types.

    Example:
        >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    if images.dtype == torch.uint8:
        return images.float().div_(255.0)
    if images.is_floating_point():
        return images.float()
    raise UserError(f"images must be uint8, or floating point in [0, 1], got {images.dtype}: convert them first")


def _kernel(distance: Tensor, interpolation: str) -> Tensor:
    """Weight at a distance >= 0 from the centre, in units of the (stretched) pixel; the argument is overwritten.

    Bicubic is Keys' kernel with a = -1/2, as torchvision's with antialiasing. Its two pieces vanish at their common
    point, so that each can be evaluated everywhere with its argument clamped to its own interval.
    """
    if interpolation == "bilinear":
        return distance.neg_().add_(1.0).clamp_(min=0.0)
    near = distance.clamp(max=1.0)
    far = distance.clamp_(1.0, 2.0)
    inner = near.mul(1.5).sub_(1.0).mul_(near).sub_(1.0)  # (u - 1)(1.5 u^2 - u - 1)
    inner.mul_(near.sub_(1.0))
    outer = far.sub(2.0).square_().mul_(far.sub_(1.0))  # -(u - 1)(u - 2)^2 / 2
    return inner.sub_(outer.mul_(0.5))


def resample_matrix(
    start: Tensor,
    length: Tensor,
    size_in: int,
    size_out: int,
    interpolation: Interpolation = "bicubic",
    flip: Tensor | None = None,
) -> Tensor:
    """The matrices that cut ``length`` pixels from ``start`` on out of ``size_in`` and resize them to ``size_out``.

    Args:
        start, length: (N,) integers, the cut; 0 <= start, 1 <= length, start + length <= size_in.
        size_in, size_out: pixels before and after.
        interpolation: ``bilinear`` or ``bicubic``, antialiased where the cut shrinks.
        flip: (N,) bool, whether the result is mirrored.

    Returns:
        (N, size_out, size_in) float32; each row sums to one and is zero outside of the cut.

    Source: derived from the definition of torchvision's antialiased resize (the kernel is stretched by
    length / size_out where that is above one, and its weights on the pixels of the cut are normalised).

    Example:
        >>> resample_matrix(torch.tensor([1]), torch.tensor([2]), 4, 4, "bilinear")
        tensor([[[0.0000, 1.0000, 0.0000, 0.0000],
                 [0.0000, 0.7500, 0.2500, 0.0000],
                 [0.0000, 0.2500, 0.7500, 0.0000],
                 [0.0000, 0.0000, 1.0000, 0.0000]]])
    """
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(f"interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}")
    device = length.device
    scale = length.float().div_(size_out)[:, None]
    out = torch.arange(size_out, device=device, dtype=torch.float32).add_(0.5)
    # Pixels are counted from the start of the cut, in float32, as torchvision does: the same rounding.
    pixel = torch.arange(size_in, device=device) - start[:, None]
    center = scale * (out if flip is None else torch.where(flip[:, None], size_out - out, out))
    distance = pixel.float()[:, None, :] - center[:, :, None]
    distance.add_(0.5).mul_(scale.clamp(min=1.0).reciprocal_()[:, :, None]).abs_()
    outside = (pixel < 0) | (pixel >= length[:, None])
    distance.add_(outside.float().mul_(2.0)[:, None, :])  # from 2 on the kernels are zero
    weight = _kernel(distance, interpolation)
    return weight.mul_(weight.sum(-1, keepdim=True).reciprocal_())


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T for each image and channel, in full float32 precision.

    Args:
        images: (N, C, H, W) float32.
        rows: (N, H', H) float32.
        columns: (N, W', W) float32.

    Returns:
        (N, C, H', W') float32.

    Example:
        >>> eye = torch.eye(2)[None]
        >>> separable(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), eye, eye.flip(1)).flatten()
        tensor([2., 1., 4., 3.])
    """
    n, c, h, w = images.shape
    with full_precision(images.device):
        wide = torch.bmm(images.reshape(n, c * h, w), columns.mT).view(n, c, h, columns.shape[1])
        return torch.matmul(rows[:, None], wide)


def resized_crop(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    size: int,
    interpolation: Interpolation = "bicubic",
    flip: Tensor | None = None,
) -> Tensor:
    """Cut a box out of each image, resize it with antialiasing, and mirror it where asked.

    Bicubic weights can be negative: the result may leave [0, 1], as torchvision's does on float images.

    Args:
        images: (N, C, H, W) uint8, or float in [0, 1].
        top, left, height, width: (N,) integers, the boxes, inside the images.
        size: height and width of the result.
        interpolation: ``bilinear`` or ``bicubic``.
        flip: (N,) bool, which results are mirrored left to right.

    Returns:
        (N, C, size, size) float32.

    Source: equals ``torchvision.transforms.v2.functional.resized_crop(..., antialias=True)``.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4) / 16
        >>> box = [torch.tensor([v]) for v in (1, 1, 2, 2)]
        >>> resized_crop(image, *box, size=2).flatten() * 16
        tensor([ 5.,  6.,  9., 10.])
    """
    h, w = images.shape[-2:]
    rows = resample_matrix(top, height, h, size, interpolation)
    columns = resample_matrix(left, width, w, size, interpolation, flip)
    return separable(to_float(images), rows, columns)


def hflip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror left to right the images where ``flip``, (N,) bool, is set. Equals v2.functional.horizontal_flip.

    Example:
        >>> hflip(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), torch.tensor([True, False])).flatten()
        tensor([2, 1, 3, 4])
    """
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


@functools.lru_cache(maxsize=16)
def _reflected_taps(size: int, kernel_size: int) -> Tensor:
    """(kernel_size, size * size): which pixel tap t of output i reads, the border reflected without repeating it."""
    half = kernel_size // 2
    source = torch.arange(size)[None, :] + torch.arange(-half, half + 1)[:, None]
    source = size - 1 - (size - 1 - source.abs()).abs()
    return F.one_hot(source, size).float().flatten(1)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Gaussian blur with a standard deviation for each image, in pixels; borders are reflected.

    Args:
        images: (N, C, H, W) float32.
        sigma: (N,) above 0.
        kernel_size: odd number of taps; its half must be smaller than H and W.

    Returns:
        (N, C, H, W) float32.

    Raises:
        UserError: if ``kernel_size`` is even, not positive or too large.

    Source: equals ``torchvision.transforms.v2.functional.gaussian_blur``.

    Example:
        >>> image = torch.zeros(1, 1, 5, 5)
        >>> image[..., 2, 2] = 1.0
        >>> gaussian_blur(image, torch.tensor([1.0]), 3)[0, 0, 2, 1:4]
        tensor([0.1238, 0.2042, 0.1238])
    """
    h, w = images.shape[-2:]
    if kernel_size < 1 or kernel_size % 2 == 0 or kernel_size // 2 >= min(h, w):
        raise UserError(
            f"kernel_size must be odd, positive and at most {2 * min(h, w) - 1} on images of {h} x {w} pixels, "
            f"got {kernel_size}: choose another blur_kernel"
        )
    half = kernel_size // 2
    tap = torch.arange(-half, half + 1, device=images.device, dtype=torch.float32)
    weight = torch.softmax((tap / sigma.float()[:, None]).square().mul(-0.5), dim=1)

    def matrix(size: int) -> Tensor:
        return torch.matmul(weight, _reflected_taps(size, kernel_size).to(images.device)).view(len(weight), size, size)

    with full_precision(images.device):
        rows = matrix(h)
        columns = rows if h == w else matrix(w)
    return separable(images, rows, columns)


def affine(
    images: Tensor,
    angle: Tensor,
    dx: Tensor,
    dy: Tensor,
    scale: Tensor,
    shear: Tensor,
    interpolation: Literal["nearest", "bilinear"] = "bilinear",
) -> Tensor:
    """Rotate, scale, shear and shift each image about its centre; what comes from outside is zero.

    Args:
        images: (N, C, H, W) float32.
        angle: (N,) degrees, clockwise.
        dx, dy: (N,) shifts in pixels, to the right and down.
        scale: (N,) above 0.
        shear: (N,) degrees, parallel to the x axis.
        interpolation: ``nearest`` or ``bilinear``.

    Returns:
        (N, C, H, W) float32.

    Source: equals ``torchvision.transforms.v2.functional.affine`` with its default fill.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> affine(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), zero, one, zero, one, zero).flatten()
        tensor([0., 1., 0., 3.])
    """
    n, _, h, w = images.shape
    turn, slope = torch.deg2rad(angle.double()), torch.deg2rad(shear.double()).tan()
    cos, sin, factor = turn.cos(), turn.sin(), scale.double()
    # Output to input: the inverse of rotation . scale . shear about the centre, after the shift is taken back.
    inverse = torch.stack((cos - sin * slope, sin + cos * slope, -sin, cos), dim=1).view(n, 2, 2)
    inverse = inverse / factor[:, None, None]
    shift = -inverse @ torch.stack((dx, dy), dim=1).double()[:, :, None]
    theta = torch.cat((inverse, shift), dim=2).float()
    half = theta.new_tensor([0.5 * w, 0.5 * h])
    x = torch.arange(w, device=images.device, dtype=torch.float32).sub_((w - 1) / 2)
    y = torch.arange(h, device=images.device, dtype=torch.float32).sub_((h - 1) / 2)
    base = torch.stack((x.expand(h, w), y[:, None].expand(h, w), theta.new_ones(h, w)), dim=2)
    with full_precision(images.device):
        grid = torch.matmul(base.view(1, h * w, 3), (theta / half[:, None]).mT).view(n, h, w, 2)
    return F.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
