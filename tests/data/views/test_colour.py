import pytest
import torch
from torchvision.transforms.v2 import functional as F

from sslinfo.data.views import colour
from sslinfo.errors import UserError

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
OPERATIONS = [
    # ours, torchvision's, smallest and largest parameter, tolerance
    (colour.adjust_brightness, F.adjust_brightness, 0.0, 2.5, 1e-5),
    (colour.adjust_contrast, F.adjust_contrast, 0.0, 2.5, 1e-5),
    (colour.adjust_saturation, F.adjust_saturation, 0.0, 2.5, 1e-5),
    (colour.adjust_hue, F.adjust_hue, -0.5, 0.5, 1e-4),
]


def batch(channels=3):
    """Random images, and the corners: grey, black, white, pure colours, nearly grey, two channels equal."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 3, 10, 14, generator=generator)
    images[1] = images[1, :1]
    images[2] = 0.0
    images[3] = 1.0
    images[4] = images[4].round()
    images[5] = 0.5 + 1e-6 * images[5]
    images[6, 1] = images[6, 2]
    images[7, 0] = images[7, 1]
    images[8] = (images[8] * 255).round() / 255
    return images[:, :channels].contiguous()


def parameters(low, high, n=12):
    inside = low + (high - low) * torch.rand(n - 3, generator=torch.Generator().manual_seed(1))
    return torch.cat((torch.tensor([low, high, max(low, min(high, 1.0))]), inside)).flip(0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("ours", "theirs", "low", "high", "tolerance"), OPERATIONS)
def test_operations_equal_torchvision(ours, theirs, low, high, tolerance, channels):
    images, values = batch(channels), parameters(low, high)
    for turned in (values, values.flip(0)):
        kept = images.clone()
        got = ours(images, turned)
        assert torch.equal(images, kept)
        for i, image in enumerate(images):
            torch.testing.assert_close(got[i], theirs(image, turned[i].item()), rtol=0.0, atol=tolerance)


@pytest.mark.parametrize(
    ("ours", "neutral"), [(op[0], 0.0 if op[0] is colour.adjust_hue else 1.0) for op in OPERATIONS]
)
def test_neutral_parameters_change_nothing(ours, neutral):
    images = batch()
    torch.testing.assert_close(ours(images, torch.full((12,), neutral)), images, rtol=0.0, atol=1e-6)


def test_grey_equals_torchvision():
    images = batch()
    torch.testing.assert_close(colour.rgb_to_grayscale(images), F.rgb_to_grayscale(images, 3), **TOLERANCE)
    assert torch.equal(colour.rgb_to_grayscale(batch(1)), batch(1))


@pytest.mark.parametrize("threshold", [0.0, 128 / 255, 1.0])
def test_solarize_equals_torchvision(threshold):
    images = batch()
    assert torch.equal(colour.solarize(images, threshold), F.solarize(images, threshold))


def test_normalize_equals_torchvision():
    images, mean, std = batch(), [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    want = F.normalize(images, mean, std)
    torch.testing.assert_close(colour.normalize(images, mean, std), want, **TOLERANCE)
    out = torch.empty_like(images)
    assert colour.normalize(images, mean, std, out=out) is out
    torch.testing.assert_close(out, want, **TOLERANCE)
    with pytest.raises(UserError, match="one value for each channel, got 1 and 1 for 3"):
        colour.normalize(images, [0.5], [0.5])


def test_noise_has_its_standard_deviation_and_is_clamped():
    # Far from the bounds: the standard error of a standard deviation over n values is sd / sqrt(2 n); 5 of them, 1e-6.
    normals = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    noisy = colour.noise(torch.full((1, 1, 100, 1000), 0.5), 0.05, normals)
    assert abs((noisy - 0.5).std().item() - 0.05) < 5 * 0.05 / (2 * 100_000) ** 0.5
    loud = colour.noise(torch.full((1, 1, 100, 1000), 0.5), 5.0, normals)
    assert (loud.min().item(), loud.max().item()) == (0.0, 1.0)


@pytest.mark.parametrize("operation", [colour.adjust_saturation, colour.adjust_hue])
def test_other_numbers_of_channels_are_refused_with_the_way_out(operation):
    with pytest.raises(UserError, match=r"1 or 3 channels, got 4.*jitter.*grey"):
        operation(torch.rand(2, 4, 5, 5), torch.ones(2))
    with pytest.raises(UserError, match="got 2"):
        colour.rgb_to_grayscale(torch.rand(2, 2, 5, 5))


@pytest.mark.parametrize("operation", [op[0] for op in OPERATIONS])
def test_no_images(operation):
    assert operation(torch.empty(0, 3, 8, 8), torch.empty(0)).shape == (0, 3, 8, 8)
