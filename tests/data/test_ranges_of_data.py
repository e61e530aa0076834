"""What no number in a range is, for each class that takes numbers from a user in its data."""

import math

import pytest
import torch

from sslinfo.data import TwoViewDataModule, View, ViewPipeline
from sslinfo.errors import UserError

NEVER = [math.nan, math.inf, -math.inf, 1e30, -1e30, True, False, "1", None, [1]]
WHOLE = [*NEVER, -1, 0.5, 10**12]
# Each argument with values that its documented range leaves out, and two that it holds.
OF_VIEW = {
    **{name: ([*NEVER, -0.1, 1.1], [0, 1]) for name in ("flip", "jitter_probability", "grey", "blur", "solarize")},
    **{name: ([*NEVER, -0.1, 1.1], [0, 1]) for name in ("solarize_threshold", "translate", "noise")},
    "degrees": ([*NEVER, -1, 181], [0, 180]),
    "shear": ([*NEVER, -1, 90], [0, 89]),
    "blur_kernel": ([*[v for v in WHOLE if v is not None], 0, 4, 1025], [1, 23]),
}
PAIRS = {"crop_scale": (1e-9, 1), "crop_ratio": (0.01, 100), "blur_sigma": (0.01, 100), "scale": (0.01, 100)}
OF_DATA = {
    "batch_size": ([*WHOLE, 0], [1, 4096]),
    "val_fraction": ([*NEVER, -0.1, 1.0], [0, 0.999]),
    "num_workers": (WHOLE, [0, 64]),
    "split_seed": (WHOLE, [0, 2**32 - 1]),
    "seed": ([v for v in WHOLE if v is not None], [0, 2**32 - 1]),
    "image_size": ([*[v for v in WHOLE if v is not None], 0, 8193], [1, 8192]),
    "channels": ([math.nan, 0, 2, -1, True, "3"], [1, 3]),
    "in_memory": ([1, 0, "yes", math.nan], [True, "auto"]),
    "train_on": (["all", 1], ["train", "both"]),
    "on_bad_image": (["ignore", 1], ["error", "skip"]),
    "mean": ([[math.nan], [math.inf], [-0.1], [123.7], [True], ["0.5"], [], 0.5], [[0], [1.0]]),
    "std": ([[math.nan], [math.inf], [0], [-1], [0.0009], [1e30], [True], [], 0.5], [[0.001], [10]]),
    "views": ([[], [1], ["View"], "dino"], ["moco", [View()]]),
}


def cases(table):
    return [(name, value) for name, (wrong, _) in table.items() for value in wrong]


@pytest.mark.parametrize(("name", "value"), cases(OF_VIEW), ids=str)
def test_numbers_of_a_view(name, value):
    with pytest.raises(UserError, match=rf"{name} must be .*got|{name} must be odd"):
        View(**{name: value})


@pytest.mark.parametrize("name", PAIRS)
def test_intervals_of_a_view(name):
    low, high = PAIRS[name]
    numbers = [(high, low), (low, high, high), (low, 1.001 * high), (-low, high), (low, math.nan), (math.inf,) * 2]
    for wrong in (*numbers, (low,), 0.5, "ab", (low, True)):
        with pytest.raises(UserError, match=rf"{name} must be a smallest and a largest value in .*, got"):
            View(**{name: wrong})
    assert getattr(View(**{name: (low, high)}), name) == (low, high)


def test_jitter():
    for wrong in ((1, 1, 1), (1, 1, 1, math.nan), (math.inf, 0, 0, 0), (11, 0, 0, 0), (-1, 0, 0, 0), 0.5):
        with pytest.raises(UserError, match=r"jitter must be 4 numbers in \[0, 10\], got"):
            View(jitter=wrong)
    with pytest.raises(UserError, match=r"jitter's hue must be in \[0, 0.5\], got 0.6"):
        View(jitter=(0, 0, 0, 0.6))
    View(jitter=(10, 0, 0, 0.5))


@pytest.mark.parametrize(("name", "value"), cases(OF_DATA), ids=str)
def test_numbers_of_the_data(name, value):
    with pytest.raises(UserError, match=rf"data\.{name} must be|no preset 'dino'"):
        TwoViewDataModule("digits", **{name: value})


@pytest.mark.parametrize(("table", "make"), [(OF_VIEW, View), (OF_DATA, TwoViewDataModule)])
def test_ends_of_ranges_are_in_them(table, make):
    for name, (_, right) in table.items():
        for value in right:
            make(**{name: value})


@pytest.mark.parametrize("size", WHOLE)
def test_size_of_a_pipeline(size):
    with pytest.raises(UserError, match=r"size must be a whole number in \[1, 8192\], got"):
        ViewPipeline([View()], size, [0.5], [0.5])


def test_lengths_of_mean_and_std():
    with pytest.raises(UserError, match=r"mean and std must be of one length, got \[0.5\] and \[0.5, 0.5\]"):
        ViewPipeline([View()], 8, [0.5], [0.5, 0.5])


def test_every_number_of_a_view_at_its_ends_makes_finite_views():
    """A range that is accepted trains: no NaN, wherever the draws fall."""
    images = torch.randint(0, 256, (64, 3, 12, 12), dtype=torch.uint8)
    ends = [
        {"degrees": 180.0}, {"shear": 89.0}, {"translate": 1.0}, {"scale": (0.01, 0.01)}, {"scale": (100.0, 100.0)},
        {"noise": 1.0}, {"jitter": (10.0, 10.0, 10.0, 0.5), "jitter_probability": 1.0},
        {"blur": 1.0, "blur_sigma": (0.01, 0.01)}, {"blur": 1.0, "blur_sigma": (100.0, 100.0)},
        {"crop_scale": (1e-9, 1e-9)}, {"crop_scale": (0.5, 1.0), "crop_ratio": (0.01, 0.01)},
        {"crop_scale": (0.5, 1.0), "crop_ratio": (100.0, 100.0)},
        {"grey": 1.0, "solarize": 1.0, "solarize_threshold": 0.0},
    ]  # fmt: skip
    for arguments in ends:
        pipeline = ViewPipeline([View(**arguments)], 8, [0.0] * 3, [0.001] * 3)
        (view,) = pipeline(images, seed=0, epoch=0, index=torch.arange(64), batch=0)
        assert bool(view.isfinite().all()), arguments
        assert 0.0 <= float(view.min()) <= float(view.max()) <= 1000.001, arguments
