"""Modes of PIL are compared with their definitions, channels with PIL's own conversion."""

import numpy as np
import pytest
import torch
from fake import pixels
from PIL import Image
from store_images import IMAGES, pil_items
from torchvision.transforms.v2.functional import pil_to_tensor

from sslinfo.data.stores.files import FileStore
from sslinfo.data.stores.pixels import match_channels
from sslinfo.errors import UserError


def of_mode(mode: str) -> tuple[Image.Image, torch.Tensor]:
    """A picture, and by the definition of its mode the RGB values (3, H, W) that it shows before white."""
    values = pixels(np.array([0]), (64, 48), 4)[0]
    grey = values[:1].repeat(3, axis=0)
    if mode == "1":
        return Image.fromarray(values[0] > 128), torch.from_numpy(np.where(grey > 128, 255, 0))
    if mode == "L":
        return Image.fromarray(values[0]), torch.from_numpy(grey)
    if mode == "LA":
        return Image.fromarray(np.stack([values[0], values[1]], 2), "LA"), before_white(grey, values[1])
    if mode == "I;16":
        wide = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) * 21
        return Image.fromarray(wide), torch.from_numpy(np.rint(wide / 65535 * 255)).expand(3, -1, -1)
    if mode == "P":
        picture = Image.fromarray(values[0] % 16, "L").convert("P")
        palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
        picture.putpalette(palette.tobytes())
        return picture, torch.from_numpy(palette[values[0] % 16].transpose(2, 0, 1).copy())
    if mode == "CMYK":
        picture = Image.merge("CMYK", [Image.fromarray(channel) for channel in values])
        left = 255 - values.astype(np.float64)
        return picture, torch.from_numpy(left[:3] * left[3] / 255)
    assert mode in ("RGB", "RGBA")
    shown = torch.from_numpy(values[:3]) if mode == "RGB" else before_white(values[:3], values[3])
    return Image.fromarray(values[: len(mode)].transpose(1, 2, 0).copy()), shown


def before_white(colours: np.ndarray, alpha: np.ndarray) -> torch.Tensor:
    """The "over" operator with white behind: alpha x colour + (1 - alpha) x 255."""
    share = alpha / 255
    return torch.from_numpy(share * colours + (1 - share) * 255)


@pytest.mark.filterwarnings("ignore:.*files of 16 bits are scaled")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_modes_of_pil(tmp_path, mode, channels):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture, shown = of_mode(mode)
    assert picture.mode == mode
    picture.save(path)
    image = FileStore([path], channels=channels).read([0]).images[0].double()
    expected = shown.double()
    if channels == 1:
        expected = (expected * torch.tensor([0.299, 0.587, 0.114]).double().view(3, 1, 1)).sum(0, keepdim=True)
    # Rounding once moves a value by half a level, after CMYK or alpha was rounded too by one more at most.
    twice = mode in ("CMYK", "LA", "RGBA")
    exact = not twice and (channels == 3 or mode in ("1", "L", "I;16"))
    assert (image - expected).abs().max() <= (1e-5 if exact else 1.51 if twice else 0.51)
    assert image.shape == (channels, 64, 48)


def test_match_channels_is_luma_and_refuses_the_rest():
    by_pil = torch.stack([pil_to_tensor(image.convert("L")) for image, _ in pil_items()])
    assert torch.equal(match_channels(IMAGES, 1), by_pil)
    floats = (IMAGES.float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    # The integers are the weights to 1 / 65536.
    torch.testing.assert_close(match_channels(IMAGES.float(), 1), floats, rtol=0, atol=3 * 255 / 65536)
    assert match_channels(IMAGES, None) is IMAGES
    with pytest.raises(UserError, match=r"images with 13 channels cannot become images with 3"):
        match_channels(torch.zeros(13, 2, 2), 3)
