"""ViewPipeline: the views of a recipe with their size and normalisation, made a whole batch at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from sslinfo.data.views import colour
from sslinfo.data.views.resample import Interpolation, to_float
from sslinfo.data.views.view import Parameters, View
from sslinfo.errors import UserError
from sslinfo.ranges import check_numbers, check_range

# Elements of the views that are worked on at a time. On a CPU they stay, with their temporaries, in a core's
# second-level cache and in memory that the C library keeps (larger pieces go back to the system and cost page faults);
# on a GPU the temporaries of a large batch stay within a few GB.
_CPU_CHUNK = 200_000
_GPU_CHUNK = 64_000_000


SIZES = "[1, 8192]"  # pixels of a view's side


def check_normalization(mean: Sequence[float] | None, std: Sequence[float] | None, prefix: str = "") -> None:
    """Refuse means outside [0, 1] and standard deviations outside [0.001, 10], those of pixels in [0, 1].

    A message has ``prefix`` before the argument's name.

    Raises:
        UserError: by name; or they are not of one length.

    Example:
        >>> check_normalization([123.675], None)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        sslinfo.errors.UserError: mean must be numbers in [0, 1], got [123.675]: pixels lie in [0, 1], so ...
    """
    hint = "pixels lie in [0, 1], so divide what was measured in levels by 255"
    if mean is not None:
        check_numbers(f"{prefix}mean", mean, "[0, 1]", hint=hint)
    if std is not None:
        check_numbers(f"{prefix}std", std, "[0.001, 10]", hint=hint)
    if mean is not None and std is not None and len(mean) != len(std):
        raise UserError(f"{prefix}mean and {prefix}std must be of one length, got {mean} and {std}")


class ViewPipeline:
    """Makes the views of a recipe, of one size and normalised.

    Images of one size are worked on where they are, on any device. Images of mixed sizes are cropped on the host first.

    Args:
        views: one :class:`View` for each view of an image.
        size: height and width of the views, in [1, 8192].
        mean: of each channel, for values in [0, 1]; in [0, 1] itself.
        std: standard deviation of each channel, in [0.001, 10].
        compile: compile the resampling weights and the colour jitter; on a CPU it needs a C++ compiler.

    Raises:
        UserError: for no views, a number out of its range, or a mean and std that do not fit each other.

    Example:
        >>> from sslinfo.data import views_preset
        >>> views = ViewPipeline(views_preset("vicreg"), 32, [0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
        >>> images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> one, two = views(images, seed=0, epoch=0, index=torch.arange(4), batch=0)
        >>> one.shape, one.dtype
        (torch.Size([4, 3, 32, 32]), torch.float32)
    """

    def __init__(
        self, views: Sequence[View], size: int, mean: Sequence[float], std: Sequence[float], compile: bool = False
    ) -> None:
        if not views:
            raise UserError("views must hold at least one View, got none: views_preset(name) has the published ones")
        check_range("size", size, SIZES, whole=True)
        check_normalization(mean, std)
        self.views = list(views)
        self.size = size
        self.mean = [float(v) for v in mean]
        self.std = [float(v) for v in std]
        self.compile = compile

    def __call__(
        self,
        images: Tensor | None = None,
        *,
        seed: int,
        epoch: int,
        index: Tensor,
        batch: int,
        crops: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Make all the views of a batch.

        Args:
            images: (N, C, H, W), uint8 or float in [0, 1].
            seed, epoch: integers.
            index: (N,) int64, positions of the images in their data set (on the CPU it saves a synchronisation).
            batch: number of the global batch within the epoch; the same on all ranks.
            crops: what :meth:`host_crops` returned for the same seed, epoch and index; used in place of ``images``.

        Returns:
            V tensors (N, C, size, size) float32, normalised, on the device of the images.

        Raises:
            UserError: if neither ``images`` nor ``crops`` is given, or their numbers do not fit.
        """
        sources = [images] * len(self.views) if crops is None else crops
        if len(sources) != len(self.views):
            raise UserError(f"crops must hold one tensor for each of {len(self.views)} views, got {len(sources)}")
        made = []
        for number, (view, source) in enumerate(zip(self.views, sources, strict=True)):
            if source is None:
                raise UserError("images and crops are both None: give images, or the result of host_crops")
            if source.ndim != 4 or len(source) != len(index):
                raise UserError(
                    f"images must be (N, C, H, W) with one index each, got shape {tuple(source.shape)} and "
                    f"{len(index)} indices"
                )
            height, width = source.shape[-2:]
            drawn = view.sample(
                seed=seed, epoch=epoch, index=index, view=number, batch=batch, height=height, width=width
            )
            if crops is not None:
                drawn |= _whole(len(source), height, width)
            made.append(self._make(view, source, drawn))
        return made

    def _make(self, view: View, images: Tensor, drawn: Parameters) -> Tensor:
        n, channels = images.shape[:2]
        out = torch.empty((n, channels, self.size, self.size), device=images.device, dtype=torch.float32)
        chunk = _CPU_CHUNK if images.device.type == "cpu" else _GPU_CHUNK
        step = max(1, chunk // (channels * self.size**2))
        for start in range(0, n, step):
            part = slice(start, start + step)
            some = {name: value if name == "order" else value[part] for name, value in drawn.items()}
            made = view.apply(images[part], some, self.size, self.compile)
            colour.normalize(made, self.mean, self.std, out=out[part])
        return out

    def clean(self, images: Tensor) -> Tensor:
        """The images without augmentation: central square, resized (bicubic, antialiased), normalised.

        Args:
            images: (N, C, H, W), uint8 or float in [0, 1].

        Returns:
            (N, C, size, size) float32.

        Example:
            >>> views = ViewPipeline([View()], 8, [0.5], [0.25])
            >>> views.clean(torch.full((2, 1, 9, 12), 0.75)).mean()
            tensor(1.)
        """
        return colour.normalize(self._square(to_float(images)), self.mean, self.std)

    def host_crops(self, images: Sequence[Tensor], *, seed: int, epoch: int, index: Tensor) -> list[Tensor]:
        """Crop images of mixed sizes on the host; ``__call__(crops=...)`` makes the views of the result.

        The boxes are those that the device would draw. The result is rounded to 8 bits, and differs by that alone.

        Args:
            images: N images (C, H, W) uint8 of any sizes.
            seed, epoch, index: as in ``__call__``.

        Returns:
            V tensors (N, C, size, size) uint8.
        """
        height = torch.tensor([image.shape[-2] for image in images], dtype=torch.int64)
        width = torch.tensor([image.shape[-1] for image in images], dtype=torch.int64)
        if not images:
            return [torch.empty((0, len(self.mean), self.size, self.size), dtype=torch.uint8) for _ in self.views]
        made = []
        for number, view in enumerate(self.views):
            boxes = view.boxes(seed=seed, epoch=epoch, index=index, view=number, height=height, width=width)
            sides = torch.stack(boxes, dim=1).tolist()
            cut = [_cut(image, box, self.size, view.interpolation) for image, box in zip(images, sides, strict=True)]
            made.append(torch.stack(cut))
        return made

    def host_clean(self, images: Sequence[Tensor]) -> Tensor:
        """The first step of :meth:`clean` for images of mixed sizes, on the host. Pass the result to ``clean``.

        Args:
            images: N images (C, H, W) of any sizes, uint8 or float in [0, 1].

        Returns:
            (N, C, size, size), the central squares resized: uint8, rounded, for uint8 images, else float32.
        """
        if not images:
            return torch.empty((0, len(self.mean), self.size, self.size), dtype=torch.uint8)
        return torch.stack([self._square(image) for image in images])

    def _square(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if (height, width) == (self.size, self.size):
            return images
        side = min(height, width)
        return _cut(images, ((height - side) // 2, (width - side) // 2, side, side), self.size, "bicubic")


def _cut(images: Tensor, box: Sequence[int], size: int, interpolation: Interpolation) -> Tensor:
    """One box out of an image or a batch. In float32: torchvision's 8-bit resize clamps between rows and columns."""
    top, left, height, width = box
    part = images[..., top : top + height, left : left + width].float()
    if part.numel() == 0:
        return images.new_empty((*images.shape[:-2], size, size))
    resized = reference.resize(part, [size, size], InterpolationMode(interpolation), antialias=True)
    if images.dtype == torch.uint8:
        return resized.clamp(0.0, 255.0).round_().to(torch.uint8)
    return resized.clamp(0.0, 1.0)


def _whole(n: int, height: int, width: int) -> Parameters:
    sides = {"top": 0, "left": 0, "height": height, "width": width}
    return {name: torch.full((n,), side) for name, side in sides.items()}
