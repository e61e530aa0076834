"""Datasets of others are compared with the images and labels that their items were made of."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from store_images import IMAGES, LABELS, Items, broken, files, pil_items
from torch.utils.data import TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms.v2.functional import pil_to_tensor

from sslinfo.data import TwoViewDataModule
from sslinfo.data.stores import BadImage, MemoryStore
from sslinfo.data.stores.files import FileStore
from sslinfo.data.stores.wrapped import WrappedStore
from sslinfo.errors import UserError


def as_items(kind: str) -> list[Any]:
    numpy = IMAGES.permute(0, 2, 3, 1).numpy()
    return {
        "pil": [image for image, _ in pil_items()],
        "uint8": list(IMAGES),
        "float": list(IMAGES.float() / 255),
        "double": list(IMAGES.double() / 255),
        "numpy": list(numpy),
        "numpy float": list(numpy / 255),
    }[kind]


@pytest.mark.parametrize("form", ["image", "pair", "triple", "dict", "dict without label", "label tensor"])
@pytest.mark.parametrize("kind", ["pil", "uint8", "float", "double", "numpy", "numpy float"])
def test_items_of_every_kind(kind, form):
    wrap = {
        "image": lambda image, i: image,
        "pair": lambda image, i: (image, i % 3),
        "triple": lambda image, i: [image, np.int32(i % 3), "more"],
        "dict": lambda image, i: {"image": image, "label": i % 3},
        "dict without label": lambda image, i: {"image": image},
        "label tensor": lambda image, i: (image, torch.tensor(i % 3)),
    }[form]
    store = WrappedStore(Items([wrap(image, i) for i, image in enumerate(as_items(kind))]))
    batch = store.read([4, 2])
    if kind in ("float", "double", "numpy float"):
        assert batch.images.dtype == torch.float32
        # float64 / 255 and float32 / 255 differ by rounding alone.
        torch.testing.assert_close(batch.images, IMAGES[[4, 2]].float() / 255, rtol=1e-6, atol=0)
    else:
        assert torch.equal(batch.images, IMAGES[[4, 2]])
    has_label = form in ("pair", "triple", "dict", "label tensor")
    assert batch.labels.tolist() == ([1, 2] if has_label else [-1, -1])
    assert store.labels.tolist() == ([i % 3 for i in range(12)] if has_label else [-1] * 12)


def test_more_channels_and_grey_arrays():
    many = torch.rand(4, 13, 6, 6)
    store = WrappedStore(TensorDataset(many, torch.arange(4)))
    assert store.shape == (13, 6, 6)
    assert torch.equal(store.read(range(4)).images, many)
    assert torch.equal(store[2][0], many[2])
    grey = WrappedStore(Items(list(IMAGES[:, 0].numpy())))
    assert torch.equal(grey.read([1]).images, IMAGES[[1], :1])


def test_a_dataset_of_torchvision():
    dataset = FakeData(size=20, image_size=(3, 9, 7), num_classes=5)
    store = WrappedStore(dataset)
    images, labels = zip(*(dataset[i] for i in range(20)), strict=True)
    batch = store.read(range(20))
    assert torch.equal(batch.images, torch.stack([pil_to_tensor(image) for image in images]))
    assert batch.labels.tolist() == store.labels.tolist() == list(labels)


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize("make", [list, torch.tensor, np.array])
def test_listed_labels_are_taken_without_reading(name, make):
    dataset = Items(pil_items(), **{name: make([i % 3 for i in range(12)])})
    store = WrappedStore(dataset)
    before = dataset.reads
    assert store.subset(torch.tensor([5, 3])).labels.tolist() == [2, 0]
    assert dataset.reads == before


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": [9] * 12, "target_transform": lambda label: label % 3},
        {"targets": [9] * 11},
        {"targets": [[9, 9]] * 12},
        {"labels": ["a"] * 12},
        {},
    ],
)
def test_labels_are_read_once_where_the_listed_ones_may_differ(attributes):
    dataset = Items(pil_items(), **attributes)
    store = WrappedStore(dataset)
    before = dataset.reads
    assert store.subset(torch.tensor([5, 3])).labels.tolist() == [2, 0]
    assert dataset.reads == before + 12
    assert torch.equal(store.labels, LABELS)
    assert dataset.reads == before + 12


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("text", r"item 0 of Items: an image is a PIL image, .* got str"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"uint8, or float in \[0, 1\], got torch.int64"),
        (torch.zeros(2, 3, 4, 4), r"shape \(C, H, W\), got \(2, 3, 4, 4\)"),
        (torch.zeros(3, 0, 4), r"shape \(C, H, W\), got \(3, 0, 4\)"),
        (np.zeros((3, 32, 32), np.uint8), r"read as \(H, W, C\), got shape \(3, 32, 32\): transpose"),
        (torch.full((3, 4, 4), -0.5), r"values from -0.5 to -0.5: float images lie in \[0, 1\]"),
        (torch.full((3, 4, 4), 255.0), r"values from 255 to 255"),
        (torch.full((3, 4, 4), torch.nan), r"values from nan to nan"),
        (Image.new("F", (4, 4)), r"PIL mode F has no fixed range"),
        ({"img": 0}, r'dict without "image": it has \[\'img\'\]'),
        ((), r"item 0 of Items is empty"),
        ((torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)), r"label of item 0 .* must be an integer or None, got Tensor"),
        ((torch.zeros(3, 4, 4), 0.5), r"got float"),
    ],
)
def test_items_that_are_no_images(item, message):
    with pytest.raises(UserError, match=message):
        WrappedStore(Items([item]))


def test_no_map_style_dataset():
    with pytest.raises(UserError, match=r"generator is no map-style dataset"):
        WrappedStore(i for i in range(3))
    with pytest.raises(UserError, match=r"the dataset Items is empty"):
        WrappedStore(Items([]))


@pytest.mark.parametrize("length", [-1, 6.5, 6.0, "6", None, 2**63])
def test_a_length_that_is_no_number_of_items(length):
    class Counted(Items):
        def __len__(self):
            return length

    with pytest.raises(UserError, match=rf"^__len__ of the dataset Counted must return .* got {length!r}$"):
        WrappedStore(Counted(pil_items()))


def test_a_length_of_numpy_and_one_that_fails():
    class Counted(Items):
        def __len__(self):
            return np.int64(3)

    class Failing(Items):
        def __len__(self):
            raise TypeError("a fault of its own")

    assert len(WrappedStore(Counted(pil_items()))) == 3
    with pytest.raises(TypeError, match="a fault of its own"):
        WrappedStore(Failing(pil_items()))


def test_sizes_of_a_dataset():
    mixed = WrappedStore(Items([torch.zeros(3, 4, 4 + i) for i in range(3)]))
    assert mixed.shape is None
    assert [image.shape[2] for image in mixed.read([2, 0]).images] == [6, 4]
    items = [torch.zeros(3, 4, 4)] * 100
    items[2] = torch.zeros(3, 5, 4)
    late = WrappedStore(Items(items))
    assert late.shape == (3, 4, 4)
    assert isinstance(late.read([0, 1]).images, torch.Tensor)
    assert isinstance(late.read([0, 2]).images, list)


def test_channels_of_a_dataset():
    grey, colour = Image.new("L", (4, 4), 9), Image.new("RGB", (4, 4), (1, 2, 3))
    assert WrappedStore(Items([grey] * 3)).shape == (1, 4, 4)
    mixed = WrappedStore(Items([grey, colour, grey]))
    assert mixed.shape == (3, 4, 4)
    assert mixed.read([0, 1]).images[:, :, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]
    items = [grey] * 100
    items[2] = colour
    late = WrappedStore(Items(items))
    with pytest.raises(UserError, match=r"item 2 of Items has 3 channels, the images tried first have 1: set data"):
        late.read([1, 2])
    assert WrappedStore(Items(items), channels=3).read([1, 2]).images[1, :, 0, 0].tolist() == [1, 2, 3]
    assert WrappedStore(Items(items), channels=1).read([1, 2]).images.shape == (2, 1, 4, 4)


def test_mixed_dtypes_are_refused():
    store = WrappedStore(Items([IMAGES[0], IMAGES[1].float() / 255]))
    with pytest.raises(UserError, match=r"mixes uint8 and float"):
        store.read([0, 1])


def test_bad_items_of_a_dataset(tmp_path):
    path = files(tmp_path)[0]
    broken("truncated", path)
    items = [*pil_items(), (Image.open(path), 0), OSError("unrecognized data stream contents")]
    with pytest.raises(BadImage, match=r"item 12 of Items cannot be decoded"):
        WrappedStore(Items(items)).read([12])
    items[12] = (Image.open(path), 0)
    with pytest.warns(UserWarning, match=r"Skipped: item 12 of Items"):
        store = WrappedStore(Items(items), on_bad_image="skip")
    assert store.read([12, 11, 13]).index.tolist() == [11]
    assert store.labels.tolist()[-2:] == [-1, -1]
    assert store.skipped == 2


def test_faults_of_the_dataset_itself_are_not_skipped():
    for fault in (KeyError("name"), FileNotFoundError(2, "gone"), RuntimeError("bug")):
        items = [pil_items()[0]] * 100
        items[2] = fault
        store = WrappedStore(Items(items), on_bad_image="skip")
        with pytest.raises(type(fault)):
            store.read([2])
        assert store.skipped == 0


def test_a_dataset_is_put_into_memory():
    memory = WrappedStore(Items(pil_items())).to_memory()
    assert isinstance(memory, MemoryStore)
    assert torch.equal(memory.images, IMAGES)
    assert torch.equal(memory.labels, LABELS)
    floats = WrappedStore(Items(as_items("float")))
    assert floats.to_memory() is floats


def test_a_store_as_dataset_keeps_identities(tmp_path):
    paths = files(tmp_path)
    broken("empty", paths[1])
    inner = FileStore(paths, LABELS).subset(torch.tensor([7, 1, 4]))
    with pytest.warns(UserWarning, match=r"01.png cannot be decoded"):
        store = WrappedStore(inner, on_bad_image="skip")
    batch = store.read([2, 1, 0])
    assert batch.index.tolist() == [4, 7]
    assert torch.equal(batch.images, IMAGES[[4, 7]])
    assert store.labels.tolist() == [1, 1, 1]
    assert store.total == 12


@pytest.mark.parametrize("in_memory", ["auto", True])
def test_options_of_the_data_module_reach_datasets_of_others(in_memory):
    items = [*pil_items(), OSError("broken")]
    options: dict[str, Any] = {"val_fraction": 0.25, "in_memory": in_memory}
    with pytest.raises(BadImage, match=r"item 12 of Items cannot be decoded"):
        TwoViewDataModule(Items(items), **options).setup()
    data = TwoViewDataModule(Items(items), test_dataset=Items(items[1:]), on_bad_image="skip", **options)
    with pytest.warns(UserWarning, match=r"Skipped: item 1. of Items"):
        data.setup()
    kind = MemoryStore if in_memory is True else WrappedStore
    assert {type(store) for store in data.stores.values()} == {kind}
    test = data.stores["test"].read(range(len(data.stores["test"])))
    assert test.index.tolist() == list(range(11))
    assert torch.equal(test.images, IMAGES[1:])


def test_in_memory_is_refused_where_images_differ():
    mixed = Items([torch.zeros(3, 4, 4 + i) for i in range(8)])
    with pytest.raises(UserError, match=r"Items are not all uint8 and of one size: set data.in_memory: false"):
        TwoViewDataModule(mixed, in_memory=True).setup()
