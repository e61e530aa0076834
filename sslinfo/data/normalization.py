"""Mean and standard deviation of a data set's images, channel by channel: published, or measured."""

from typing import NamedTuple

from torch import Tensor

from sslinfo.data.stores import ImageStore, MemoryStore

_MOST_IMAGES = 10_000  # that are measured, evenly spaced
_SMALLEST_STD = 1e-3


class Normalization(NamedTuple):
    """One mean and one standard deviation for each channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalization_of(train: ImageStore, published: Normalization | None = None) -> Normalization:
    """The constants that training images are normalised with.

    They are the published ones where those have the images' channels. Else they are measured on images in memory.
    Images on disk take ImageNet's, or mean 1/2 and standard deviation 1/4 where they are not RGB.

    Args:
        train: the training images.
        published: what the literature has for this data set.

    Example:
        >>> import torch
        >>> store = MemoryStore(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
        >>> mean, std = normalization_of(store)
        >>> mean, round(std[0], 4)
        ((0.5,), 0.7071)
    """
    if published is not None and len(published.mean) == train.channels:
        return published
    if isinstance(train, MemoryStore):
        images = train.read(range(0, len(train), max(1, len(train) // _MOST_IMAGES))).images
        assert isinstance(images, Tensor)
        pixels = images.double().transpose(0, 1).flatten(1) / 255
        return Normalization(tuple(pixels.mean(1).tolist()), tuple(pixels.std(1).clamp(min=_SMALLEST_STD).tolist()))
    if train.channels == 3:
        return _IMAGENET
    return Normalization((0.5,) * train.channels, (0.25,) * train.channels)
