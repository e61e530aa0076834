"""One random view of each image of a batch: what is drawn, and how it is applied.

The parameters are a function of (seed, epoch, image index, view number, operation). They are applied in the published
order: crop, (affine map), colour jitter, grey, blur, solarise, (noise). The flip is part of the crop: it commutes with
all that follows but the affine map, whose distribution is symmetric.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sslinfo.data.keyed_random import normals_of, stream_keys, uniforms
from sslinfo.data.views import colour
from sslinfo.data.views.resample import Interpolation, affine, gaussian_blur, resample_matrix, separable, to_float
from sslinfo.errors import UserError
from sslinfo.ranges import check_ends, check_numbers, check_range

Parameters = dict[str, Tensor]
Box = tuple[Tensor, Tensor, Tensor, Tensor]

_ATTEMPTS = 10
_JITTER = {
    "brightness": colour.adjust_brightness,
    "contrast": colour.adjust_contrast,
    "saturation": colour.adjust_saturation,
    "hue": colour.adjust_hue,
}


@functools.cache
def _kernel(function: Callable[..., Tensor], compile: bool) -> Callable[..., Tensor]:
    """The function, compiled where asked: each by itself, since the colour operations come in 24 orders."""
    if not compile:
        return function
    compiled = torch.compile(function, dynamic=True)

    def run(*args: Any) -> Tensor:
        try:
            return compiled(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise RuntimeError(
                f"{function.__name__} could not be compiled: install a C++ compiler and name it in the environment "
                "variable CXX, or leave the views uncompiled (compile=False)"
            ) from error

    return run


def crop_boxes(
    draws: Tensor, height: Tensor, width: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Boxes of random area and aspect ratio, distributed as torchvision's ``RandomResizedCrop`` draws them.

    Ten attempts at an area, uniform, and an aspect ratio, log-uniform; the first box that fits is placed uniformly.
    If none fits: the largest central box whose ratio is within bounds.

    Args:
        draws: (N, 22) uniform numbers.
        height, width: (N,) int64, sizes of the images.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width over height.

    Returns:
        top, left, height and width of the boxes, (N,) int64 each.

    Example:
        >>> sizes = torch.tensor([32])
        >>> [int(v) for v in crop_boxes(torch.full((1, 22), 0.5).double(), sizes, sizes, (0.25, 0.25), (1.0, 1.0))]
        [8, 8, 16, 16]
    """
    area = (height * width).double()[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[:, :_ATTEMPTS])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * draws[:, _ATTEMPTS : 2 * _ATTEMPTS]).exp_()
    w = (area * aspect).sqrt_().round_()
    h = (area / aspect).sqrt_().round_()
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    found, first = fits.max(1)
    w, h = w.gather(1, first[:, None])[:, 0], h.gather(1, first[:, None])[:, 0]
    top = (draws[:, -2] * (height - h + 1)).floor()
    left = (draws[:, -1] * (width - w + 1)).floor()
    if not found.all():
        shape = width.double() / height.double()
        central_h = torch.where(shape < ratio[0], (width / ratio[0]).round(), height.double())
        central_w = torch.where(shape > ratio[1], (height * ratio[1]).round(), width.double())
        # A ratio far from the image's would leave no pixel of the shorter side.
        h = torch.where(found, h, central_h.clamp(min=1))
        w = torch.where(found, w, central_w.clamp(min=1))
        top = torch.where(found, top, ((height - h) / 2).floor())
        left = torch.where(found, left, ((width - w) / 2).floor())
    return top.long(), left.long(), h.long(), w.long()


def _central_boxes(height: Tensor, width: Tensor) -> Box:
    side = torch.minimum(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


class View:
    """One random view. The defaults change nothing but the size: each argument adds an operation.

    Args:
        crop_scale: smallest and largest share of the image's area that a random crop keeps, in (0, 1]; None takes the
            central square.
        crop_ratio: smallest and largest width over height of the crop, in [0.01, 100].
        interpolation: of the resize after the crop, ``bilinear`` or ``bicubic``; clamped to [0, 1].
        flip: probability of a mirrored view, in [0, 1].
        jitter: strengths of brightness, contrast, saturation and hue, in [0, 10], that of hue at most 0.5; None for no
            jitter. Images of one channel have neither saturation nor hue.
        jitter_probability: probability that an image is jittered, in [0, 1].
        grey: probability of a grey view, in [0, 1].
        blur: probability of a Gaussian blur, in [0, 1].
        blur_sigma: smallest and largest standard deviation in pixels of the view, in [0.01, 100].
        blur_kernel: odd number of taps, in [1, 1023]; None is a tenth of the view's size, at least 3.
        solarize: probability that values at or above ``solarize_threshold`` are inverted, in [0, 1].
        solarize_threshold: in [0, 1].
        degrees: largest rotation either way, in [0, 180].
        translate: largest shift either way, as a share of the view's size, in [0, 1], rounded to whole pixels.
        scale: smallest and largest magnification, in [0.01, 100].
        shear: largest shear along x either way, in degrees, in [0, 89].
        noise: standard deviation of Gaussian noise on each value, in [0, 1]; the sum is clamped to [0, 1].

    A probability is in [0, 1]. NaN, infinity, true and false are no numbers here.

    Raises:
        UserError: for a value out of its range, by name.

    Source: the distributions are those of torchvision's ``RandomResizedCrop``, ``ColorJitter``, ``RandomGrayscale``,
    ``GaussianBlur``, ``RandomSolarize``, ``RandomAffine``, but that the colour operations of a batch share one order.

    Example:
        >>> view = View(crop_scale=(0.2, 1.0), flip=0.5)
        >>> drawn = view.sample(seed=0, epoch=0, index=torch.arange(1000), view=0, batch=0, height=32, width=32)
        >>> round(drawn["flip"].float().mean().item(), 1)
        0.5
        >>> view.apply(torch.rand(1000, 3, 32, 32), drawn, 24).shape
        torch.Size([1000, 3, 24, 24])
    """

    has_plain_form = True

    def __init__(
        self,
        crop_scale: tuple[float, float] | None = None,
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
        flip: float = 0.0,
        jitter: tuple[float, float, float, float] | None = None,
        jitter_probability: float = 0.8,
        grey: float = 0.0,
        blur: float = 0.0,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_kernel: int | None = None,
        solarize: float = 0.0,
        solarize_threshold: float = 128 / 255,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self.crop_scale = crop_scale
        self.crop_ratio = crop_ratio
        self.interpolation = interpolation
        self.flip = flip
        self.jitter = jitter
        self.jitter_probability = jitter_probability
        self.grey = grey
        self.blur = blur
        self.blur_sigma = blur_sigma
        self.blur_kernel = blur_kernel
        self.solarize = solarize
        self.solarize_threshold = solarize_threshold
        self.degrees = degrees
        self.translate = translate
        self.scale = scale
        self.shear = shear
        self.noise = noise
        self._check()

    def _check(self) -> None:
        for name in ("flip", "jitter_probability", "grey", "blur", "solarize", "solarize_threshold"):
            check_range(name, getattr(self, name), "[0, 1]")
        for name in ("translate", "noise"):
            check_range(name, getattr(self, name), "[0, 1]")
        check_range("degrees", self.degrees, "[0, 180]")
        check_range("shear", self.shear, "[0, 89]")
        if self.crop_scale is not None:
            check_ends("crop_scale", self.crop_scale, "(0, 1]")
        for name in ("crop_ratio", "blur_sigma", "scale"):
            check_ends(name, getattr(self, name), "[0.01, 100]")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"interpolation must be 'bilinear' or 'bicubic', got {self.interpolation!r}")
        if self.jitter is not None:
            hint = "the strengths of brightness, contrast, saturation and hue, hue at most 0.5"
            check_numbers("jitter", self.jitter, "[0, 10]", count=4, hint=hint)
            check_range("jitter's hue", self.jitter[3], "[0, 0.5]")
        if self.blur_kernel is not None:
            check_range("blur_kernel", self.blur_kernel, "[1, 1023]", whole=True)
            if self.blur_kernel % 2 == 0:
                raise UserError(f"blur_kernel must be odd and positive, got {self.blur_kernel}")

    def __repr__(self) -> str:
        return f"View({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @property
    def _is_affine(self) -> bool:
        return bool(self.degrees or self.translate or self.shear or tuple(self.scale) != (1.0, 1.0))

    def boxes(
        self, *, seed: int, epoch: int, index: Tensor, view: int, height: int | Tensor, width: int | Tensor
    ) -> Box:
        """The crops of images of the given sizes: top, left, height and width, (N,) int64 each, on the CPU."""
        index = index.cpu()
        heights = torch.as_tensor(height, dtype=torch.int64).expand(index.shape)
        widths = torch.as_tensor(width, dtype=torch.int64).expand(index.shape)
        if self.crop_scale is None:
            return _central_boxes(heights, widths)
        draws = uniforms(seed, epoch, index, view, "crop", 2 * _ATTEMPTS + 2)
        return crop_boxes(draws, heights, widths, self.crop_scale, self.crop_ratio)

    def sample(
        self,
        *,
        seed: int,
        epoch: int,
        index: Tensor,
        view: int,
        batch: int,
        height: int | Tensor,
        width: int | Tensor,
    ) -> Parameters:
        """Draw the parameters of each image, on the CPU, so that every device has the same.

        Args:
            seed, epoch: integers.
            index: (N,) int64, positions of the images in their data set.
            view: number of this view.
            batch: number of the global batch within the epoch, on which the order of the colour operations depends.
            height, width: of the images, one value or (N,) int64.

        Returns:
            Tensors by name, (N,) each but ``order``: the box (``top``, ``left``, ``height``, ``width``) and ``flip``;
            where the view has them ``brightness``, ``contrast``, ``saturation`` (factors) and ``hue`` (turns), neutral
            where an image is not jittered, with ``order``, a permutation of these four; ``grey``; ``sigma`` (0: no
            blur); ``solarize``; ``angle``, ``dx``, ``dy``, ``scale``, ``shear``; ``noise`` (key of a stream of normal
            numbers). ``dx`` and ``dy`` are shares of the view's size.
        """
        index = index.cpu()

        def draw(operation: str, count: int = 1) -> Tensor:
            return uniforms(seed, epoch, index, view, operation, count)

        box = self.boxes(seed=seed, epoch=epoch, index=index, view=view, height=height, width=width)
        drawn = dict(zip(("top", "left", "height", "width"), box, strict=True))
        drawn["flip"] = draw("flip")[:, 0] < self.flip
        if self.jitter is not None:
            number = torch.tensor([batch], dtype=torch.int64)
            drawn["order"] = uniforms(seed, epoch, number, view, "order", 4)[0].argsort()
            which, *factors = draw("jitter", 5).unbind(1)
            on = which < self.jitter_probability
            for name, strength, u in zip(_JITTER, self.jitter, factors, strict=True):
                neutral = 0.0 if name == "hue" else 1.0
                low = -strength if name == "hue" else max(0.0, 1.0 - strength)
                if strength:
                    drawn[name] = torch.where(on, low + (neutral + strength - low) * u, neutral).float()
        if self.grey:
            drawn["grey"] = draw("grey")[:, 0] < self.grey
        if self.blur:
            which, u = draw("blur", 2).unbind(1)
            low, high = self.blur_sigma
            drawn["sigma"] = torch.where(which < self.blur, low + (high - low) * u, 0.0).float()
        if self.solarize:
            drawn["solarize"] = draw("solarize")[:, 0] < self.solarize
        if self._is_affine:
            u = draw("affine", 5)
            sides = 2.0 * u - 1.0
            drawn["angle"] = sides[:, 0] * self.degrees
            drawn["dx"], drawn["dy"] = sides[:, 1] * self.translate, sides[:, 2] * self.translate
            drawn["scale"] = self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 3]
            drawn["shear"] = sides[:, 4] * self.shear
        if self.noise:
            drawn["noise"] = stream_keys(seed, epoch, index, view, "noise")
        return drawn

    def apply(self, images: Tensor, drawn: Parameters, size: int, compile: bool = False) -> Tensor:
        """Apply drawn parameters.

        Args:
            images: (N, C, H, W), uint8 or float in [0, 1], on any device.
            drawn: what :meth:`sample` returned.
            size: height and width of the view.
            compile: compile the resampling weights and the colour jitter.

        Returns:
            (N, C, size, size) float32 in [0, 1].

        Raises:
            UserError: for images of other than 1 or 3 channels where saturation, hue or grey is asked for.
            RuntimeError: if they cannot be compiled.
        """
        device = images.device
        on_device = {name: value.to(device) for name, value in drawn.items() if name not in _ON_HOST}
        height, width = images.shape[-2:]
        matrix = _kernel(resample_matrix, compile)
        rows = matrix(on_device["top"], on_device["height"], height, size, self.interpolation)
        columns = matrix(on_device["left"], on_device["width"], width, size, self.interpolation, on_device["flip"])
        x = separable(to_float(images), rows, columns).clamp_(0.0, 1.0)
        if "angle" in drawn:
            dx, dy = ((on_device[name] * size).round() for name in ("dx", "dy"))
            x = affine(x, on_device["angle"], dx, dy, on_device["scale"], on_device["shear"])
        names = tuple(_JITTER)
        for position in drawn["order"].tolist() if "order" in drawn else ():
            name = names[position]
            if name in drawn:
                x = _kernel(_JITTER[name], compile)(x, on_device[name])
        if "grey" in drawn and x.shape[1] != 1:
            chosen = _chosen(drawn["grey"], device)
            x[chosen] = colour.rgb_to_grayscale(x[chosen])
        if "sigma" in drawn:
            taps = max(3, size // 10 | 1) if self.blur_kernel is None else self.blur_kernel
            chosen = _chosen(drawn["sigma"], device)
            x[chosen] = gaussian_blur(x[chosen], on_device["sigma"][chosen], taps)
        if "solarize" in drawn:
            chosen = _chosen(drawn["solarize"], device)
            x[chosen] = colour.solarize(x[chosen], self.solarize_threshold)
        if "noise" in drawn:
            x = colour.noise(x, self.noise, normals_of(on_device["noise"], math.prod(x.shape[1:])))
        return x


# What the host alone reads: the order of the operations, and which images an operation is done on.
_ON_HOST = ("order", "grey", "solarize")


def _chosen(which: Tensor, device: torch.device) -> Tensor:
    """Numbers of the images that an operation is done on, found on the host so that a GPU need not be waited for."""
    return which.nonzero()[:, 0].to(device)
