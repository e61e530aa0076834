import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sslinfo.data.views.resample import affine, gaussian_blur, hflip, resample_matrix, resized_crop, to_float
from sslinfo.errors import UserError

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def batch(n, c, h, w, seed=0):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


def boxes(n, h, w, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(4, n, generator=generator)
    height, width = 1 + (u[0] * h).long(), 1 + (u[1] * w).long()
    top, left = (u[2] * (h - height + 1)).long(), (u[3] * (w - width + 1)).long()
    return top, left, height, width


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("h", "w", "c", "size"), [(32, 32, 3, 32), (48, 40, 3, 16), (8, 8, 1, 8), (20, 37, 2, 64), (250, 300, 3, 96)]
)
def test_resized_crop_equals_torchvision(interpolation, h, w, c, size):
    images, box = batch(12, c, h, w), boxes(12, h, w)
    got = resized_crop(images, *box, size, interpolation)
    assert got.dtype == torch.float32
    for i, (image, sides) in enumerate(zip(images, torch.stack(box, 1).tolist(), strict=True)):
        want = F.resized_crop(image, *sides, [size, size], InterpolationMode(interpolation), antialias=True)
        torch.testing.assert_close(got[i], want, **TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["bilinear", "bicubic"]), st.data())
def test_resample_matrix_equals_torchvision_at_any_size(size_in, size_out, interpolation, data):
    length = data.draw(st.integers(1, size_in))
    start = data.draw(st.integers(0, size_in - length))
    matrix = resample_matrix(torch.tensor([start]), torch.tensor([length]), size_in, size_out, interpolation)[0]
    # The rows of the identity are the impulse responses of the pixels; resizing along one side alone.
    impulses = torch.eye(size_in)[:, None, :].expand(-1, 2, -1)[:, None]
    want = F.resized_crop(
        impulses, 0, start, 2, length, [2, size_out], InterpolationMode(interpolation), antialias=True
    )[:, 0, 0]
    torch.testing.assert_close(matrix, want.mT, **TOLERANCE)


def test_bicubic_overshoots_as_torchvision_does():
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 4:] = 1.0
    got = resized_crop(edge, *(torch.tensor([v]) for v in (0, 0, 8, 8)), 16)
    assert got.max() > 1.0
    assert got.min() < 0.0


def test_uint8_images_are_their_floats():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_float(images), F.to_dtype(images, torch.float32, scale=True))
    box = boxes(4, 16, 16)
    torch.testing.assert_close(
        resized_crop(images, *box, 8), resized_crop(F.to_dtype(images, torch.float32, scale=True), *box, 8)
    )
    with pytest.raises(UserError, match="int64"):
        to_float(images.long())


def test_the_whole_image_at_its_own_size_is_unchanged():
    images = batch(3, 3, 17, 17)
    whole = [torch.full((3,), v) for v in (0, 0, 17, 17)]
    for interpolation in ("bilinear", "bicubic"):
        assert torch.equal(resized_crop(images, *whole, 17, interpolation), images)


def test_flips():
    images, flip = batch(6, 3, 9, 12), torch.tensor([True, False, True, True, False, False])
    for i, mirrored in enumerate(hflip(images, flip)):
        assert torch.equal(mirrored, F.horizontal_flip(images[i]) if flip[i] else images[i])
    box = boxes(6, 9, 12)
    torch.testing.assert_close(
        resized_crop(images, *box, 7, flip=flip), hflip(resized_crop(images, *box, 7), flip), **TOLERANCE
    )


@pytest.fixture
def matmul():
    """torch's settings for matrix products, put back afterwards."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    yield backends
    for backend, precision in zip(backends, before, strict=True):
        backend.fp32_precision = precision


@pytest.mark.parametrize("way", ["for all", "by backend"])
def test_reduced_precision_of_products_does_not_reach_the_images(way, matmul):
    # Small products stay in float32 by themselves: the images are large.
    images, box = batch(2, 3, 256, 256), boxes(2, 256, 256)
    want = resized_crop(images, *box, 224)
    if way == "for all":
        torch.set_float32_matmul_precision("medium")
    else:
        for backend in matmul:
            backend.fp32_precision = "tf32"
    now = [backend.fp32_precision for backend in matmul]
    assert torch.equal(resized_crop(images, *box, 224), want)
    assert [backend.fp32_precision for backend in matmul] == now


@pytest.mark.parametrize(("h", "w", "taps"), [(32, 32, 3), (20, 31, 7), (64, 48, 23)])
def test_gaussian_blur_equals_torchvision(h, w, taps):
    images, sigma = batch(5, 3, h, w), torch.tensor([0.1, 0.5, 1.0, 1.7, 2.0])
    got = gaussian_blur(images, sigma, taps)
    for i, image in enumerate(images):
        want = F.gaussian_blur(image, [taps, taps], [float(sigma[i])] * 2)
        torch.testing.assert_close(got[i], want, **TOLERANCE)


@pytest.mark.parametrize("taps", [0, 4, -1, 17])
def test_a_wrong_blur_kernel_is_named(taps):
    with pytest.raises(UserError, match=f"kernel_size must be odd.*got {taps}"):
        gaussian_blur(batch(1, 1, 8, 12), torch.ones(1), taps)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize(("h", "w", "c"), [(8, 8, 1), (24, 33, 3)])
def test_affine_equals_torchvision(interpolation, h, w, c):
    n = 16
    images, u = batch(n, c, h, w), torch.rand(5, n, generator=torch.Generator().manual_seed(1)) * 2 - 1
    angle, dx, dy = 40 * u[0], (3 * u[1]).round(), (3 * u[2]).round()
    scale, shear = 1 + 0.4 * u[3], 20 * u[4]
    got = affine(images, angle, dx, dy, scale, shear, interpolation)
    for i, image in enumerate(images):
        want = F.affine(
            image,
            angle=angle[i].item(),
            translate=[dx[i].item(), dy[i].item()],
            scale=scale[i].item(),
            shear=[shear[i].item(), 0.0],
            interpolation=InterpolationMode(interpolation),
        )
        torch.testing.assert_close(got[i], want, **TOLERANCE)


def test_no_images():
    empty, none = torch.empty(0, 3, 16, 16), torch.empty(0, dtype=torch.int64)
    assert resized_crop(empty.byte(), none, none, none, none, 8, flip=none.bool()).shape == (0, 3, 8, 8)
    assert gaussian_blur(empty, none.float(), 3).shape == (0, 3, 16, 16)
    assert affine(empty, *[none.float()] * 5).shape == (0, 3, 16, 16)


def test_a_wrong_interpolation_is_named():
    one = torch.tensor([1])
    with pytest.raises(UserError, match="'nearest'"):
        resample_matrix(one, one, 4, 4, "nearest")
