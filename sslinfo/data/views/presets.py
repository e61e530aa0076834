"""The views of the published recipes, and ours for the digits."""

from typing import Literal

from sslinfo.data.views.view import View
from sslinfo.errors import UserError

Preset = Literal["simclr", "swav", "moco", "simsiam", "barlow_twins", "byol", "mocov3", "vicreg", "wmse", "digits"]

_STRONG = (0.8, 0.8, 0.8, 0.2)
_MEDIUM = (0.4, 0.4, 0.4, 0.1)
_MILD = (0.4, 0.4, 0.2, 0.1)
# Crop scale, jitter, blur and solarise of both views; all flip with .5 and turn grey with .2.
_PUBLISHED = {
    "simclr": ((0.08, 1.0), _STRONG, (0.5, 0.5), (0.0, 0.0)),
    "swav": ((0.08, 1.0), _STRONG, (0.5, 0.5), (0.0, 0.0)),
    "moco": ((0.08, 1.0), _MEDIUM, (0.5, 0.5), (0.0, 0.0)),
    "simsiam": ((0.08, 1.0), _MEDIUM, (0.5, 0.5), (0.0, 0.0)),
    "barlow_twins": ((0.08, 1.0), _MILD, (0.0, 0.0), (0.0, 0.2)),
    "byol": ((0.08, 1.0), _MILD, (0.0, 0.0), (0.0, 0.2)),
    "mocov3": ((0.08, 1.0), _MILD, (0.0, 0.0), (0.0, 0.2)),
    "vicreg": ((0.2, 1.0), _MILD, (0.0, 0.0), (0.1, 0.1)),
    "wmse": ((0.2, 1.0), _STRONG, (0.0, 0.0), (0.0, 0.0)),
}


def views_preset(name: Preset) -> list[View]:
    """The two views of a published recipe, or ours for the digits.

    The CIFAR recipes published with solo-learn (arXiv:2108.01775), by method: ``simclr``, ``swav``, ``moco`` (MoCo
    v2+), ``simsiam``, ``barlow_twins``, ``byol``, ``mocov3``, ``vicreg``, ``wmse``. ``digits`` is for grey images of
    8 x 8 pixels, where a crop or a flip would change the digit: a small rotation, shift, magnification and shear,
    mild brightness and contrast, noise.

    Raises:
        UserError: for another name.

    Example:
        >>> [view.solarize for view in views_preset("byol")]
        [0.0, 0.2]
    """
    if name == "digits":
        view = View(jitter=(0.2, 0.2, 0.0, 0.0), degrees=12.0, translate=0.125, scale=(0.9, 1.1), shear=5.0, noise=0.05)
        return [view, view]
    if name not in _PUBLISHED:
        raise UserError(f"there is no preset {name!r}: choose one of {', '.join((*_PUBLISHED, 'digits'))}")
    scale, jitter, blurs, solarizes = _PUBLISHED[name]
    return [
        View(crop_scale=scale, flip=0.5, jitter=jitter, grey=0.2, blur=blur, solarize=solarize)
        for blur, solarize in zip(blurs, solarizes, strict=True)
    ]
