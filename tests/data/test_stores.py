"""Stores are compared with plain indexing of the arrays that went into them, and with torchvision's decoders."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake import pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms.v2.functional import pil_to_tensor

from sslinfo.data.stores import BadImage, FileStore, ImageStore, MemoryStore, WrappedStore, match_channels
from sslinfo.errors import UserError

IMAGES = torch.from_numpy(pixels(np.arange(12) % 3, (5, 4)))
LABELS = torch.arange(12) % 3


def files(folder: Path, images: torch.Tensor = IMAGES) -> list[Path]:
    paths = [folder / f"{i:02d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)
    return paths


class Items:
    """A map-style dataset of given items, which counts how often it is read."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items, self.reads = items, 0
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


def pil_items() -> list[Any]:
    return [(Image.fromarray(image.permute(1, 2, 0).numpy()), int(y)) for image, y in zip(IMAGES, LABELS, strict=True)]


@pytest.fixture(params=["memory", "file", "wrapped"])
def store(request, tmp_path) -> ImageStore:
    if request.param == "memory":
        return MemoryStore(IMAGES, LABELS, ["a", "b", "c"])
    if request.param == "file":
        return FileStore(files(tmp_path), LABELS, ["a", "b", "c"])
    return WrappedStore(Items(pil_items(), classes=["a", "b", "c"]))


def collate(batch):
    """As the loader gets it: one object for all indices."""
    return batch


def test_every_store_returns_what_went_in(store):
    assert len(store) == 12
    assert store.classes == ["a", "b", "c"]
    assert store.shape == (3, 5, 4)
    assert store.channels == 3
    assert store.skipped == 0
    for indices in ([0], [11, 3, 3, 0], list(range(12)), []):
        batch = store.__getitems__(indices)
        assert torch.equal(batch.images, IMAGES[indices])
        assert batch.labels.tolist() == [i % 3 for i in indices]
        assert batch.index.tolist() == indices
        assert batch.labels.dtype == batch.index.dtype == torch.int64
    image, label = store[5]
    assert torch.equal(pil_to_tensor(image), IMAGES[5])
    assert label == 2


def test_subsets_of_subsets_keep_identities(store):
    @given(st.lists(st.integers(0, 11), min_size=1, max_size=20), st.data())
    def check(first, data):
        second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, max_size=20))
        part = store.subset(torch.tensor(first)).subset(torch.tensor(second))
        expected = [first[i] for i in second]
        assert len(part) == len(expected)
        assert part.index.tolist() == expected
        assert part.labels.tolist() == [i % 3 for i in expected]
        batch = part.__getitems__(range(len(part)))
        assert torch.equal(batch.images, IMAGES[expected])
        assert batch.index.tolist() == expected

    check()
    assert len(store) == 12


def test_indices_out_of_range(store):
    part = store.subset(torch.arange(4))
    for indices in ([4], [-1], [0, 12]):
        with pytest.raises(IndexError, match=r"indices must lie in 0 ... 3"):
            part.__getitems__(indices)
        with pytest.raises(IndexError, match=r"indices must lie in 0 ... 3"):
            part.subset(torch.tensor(indices))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_asks_for_whole_batches(store, workers):
    loader = DataLoader(pickle.loads(pickle.dumps(store)), batch_size=5, num_workers=workers, collate_fn=collate)
    batches = list(loader)
    assert [len(batch.labels) for batch in batches] == [5, 5, 2]
    assert torch.equal(torch.cat([batch.images for batch in batches]), IMAGES)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (IMAGES.float(), LABELS, None, r"must be uint8 \(N, C, H, W\), got torch.float32"),
        (IMAGES[0], None, None, r"must be uint8 \(N, C, H, W\), got torch.uint8 of shape \(3, 5, 4\)"),
        (IMAGES, LABELS[1:], None, r"shape \(12,\), got torch.int64 of shape \(11,\)"),
        (IMAGES, LABELS.float(), None, r"must be integers"),
        (IMAGES, LABELS, ["a", "b"], r"below 2, the number of classes, got 0 ... 2"),
        (IMAGES, LABELS - 2, None, r"at least -1, got -2 ... 0"),
    ],
)
def test_memory_store_refuses(images, labels, classes, message):
    with pytest.raises(UserError, match=message):
        MemoryStore(images, labels, classes)


def test_without_labels():
    assert MemoryStore(IMAGES).labels.tolist() == [-1] * 12


def test_mapped_and_strided_images():
    columns_first = MemoryStore(IMAGES.mT.contiguous().mT, LABELS)
    batch = columns_first.__getitems__([3, 1])
    assert torch.equal(batch.images, IMAGES[[3, 1]])
    assert batch.images.is_contiguous()


# Files


def of_mode(mode: str) -> tuple[Image.Image, torch.Tensor]:
    """A picture, and by the definition of its mode the RGB values (3, H, W) that it shows."""
    values = pixels(np.array([0]), (64, 48), 4)[0]
    grey = values[:1].repeat(3, axis=0)
    if mode == "1":
        return Image.fromarray(values[0] > 128), torch.from_numpy(np.where(grey > 128, 255, 0))
    if mode == "L":
        return Image.fromarray(values[0]), torch.from_numpy(grey)
    if mode == "LA":
        return Image.fromarray(np.stack([values[0], values[1]], 2), "LA"), torch.from_numpy(grey)
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
    return Image.fromarray(values[: len(mode)].transpose(1, 2, 0).copy()), torch.from_numpy(values[:3])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_modes_of_pil(tmp_path, mode, channels):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture, shown = of_mode(mode)
    assert picture.mode == mode
    picture.save(path)
    image = FileStore([path], channels=channels).__getitems__([0]).images[0].double()
    expected = shown.double()
    if channels == 1:
        expected = (expected * torch.tensor([0.299, 0.587, 0.114]).double().view(3, 1, 1)).sum(0, keepdim=True)
    # Rounding once moves a value by half a level, after CMYK was rounded too by one more at most.
    exact = mode != "CMYK" and (channels == 3 or mode in ("1", "L", "LA", "I;16"))
    assert (image - expected).abs().max() <= (1e-5 if exact else 1.51 if mode == "CMYK" else 0.51)
    assert image.shape == (channels, 64, 48)


def test_mixed_sizes_come_as_a_list(tmp_path):
    paths = files(tmp_path)
    Image.new("RGB", (7, 6), (1, 2, 3)).save(paths[4])
    store = FileStore(paths)
    assert store.shape is None
    batch = store.__getitems__([3, 4])
    assert isinstance(batch.images, list)
    assert torch.equal(batch.images[0], IMAGES[3])
    assert batch.images[1].shape == (3, 6, 7)
    assert batch.images[1][:, 0, 0].tolist() == [1, 2, 3]
    assert isinstance(store.__getitems__([0, 1]).images, list)
    assert store.to_memory() is store


def broken(kind: str, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-40], "empty": b"", "text": b"not an image", "header": whole[:20]}[kind])


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "header"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_bad_files(tmp_path, kind, suffix):
    paths = [tmp_path / f"{i:02d}{suffix}" for i in range(40)]
    for path in paths:
        Image.fromarray(pixels(np.array([1]), (24, 24))[0].transpose(1, 2, 0)).save(path)
    for i in (7, 20):
        broken(kind, paths[i])
    with pytest.raises(BadImage, match=rf"07{suffix} cannot be decoded .* set data.on_bad_image: skip"):
        FileStore(paths[6:9]).__getitems__([0, 1])
    with pytest.raises(BadImage, match=r"cannot be decoded"):
        FileStore(paths).to_memory()

    store = FileStore(paths, torch.arange(40), on_bad_image="skip")
    with pytest.warns(UserWarning, match=rf"Skipped: .*20{suffix} cannot be decoded"):
        batch = store.__getitems__([20, 8, 6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.__getitems__([7, 20]).images.shape == (0, 3, 24, 24)
        assert store.__getitems__([7, 20]).labels.shape == (0,)
        assert store.shape == (3, 24, 24)
    assert batch.index.tolist() == batch.labels.tolist() == [8, 6]
    assert len(batch.images) == 2
    assert store.skipped == 2
    assert store.subset(torch.arange(10)).index.tolist() == list(range(10))

    with pytest.warns(UserWarning, match="cannot be decoded"):
        memory = FileStore(paths, torch.arange(40), on_bad_image="skip").to_memory()
    assert isinstance(memory, MemoryStore)
    assert memory.skipped == 2
    good = [i for i in range(40) if i not in (7, 20)]
    assert memory.index.tolist() == memory.labels.tolist() == good
    assert memory.subset(torch.tensor([7])).__getitems__([0]).index.tolist() == [8]


def test_a_bad_file_is_tried_once(tmp_path):
    paths = files(tmp_path)
    whole = paths[5].read_bytes()
    broken("truncated", paths[5])
    store = FileStore(paths, on_bad_image="skip")
    with pytest.warns(UserWarning, match=r"05.png cannot be decoded"):
        assert store.__getitems__([5]).index.tolist() == []
    paths[5].write_bytes(whole)
    assert store.__getitems__([4, 5]).index.tolist() == [4]
    assert store.skipped == 1


def test_nothing_can_be_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    store = FileStore([tmp_path / "a.png"], on_bad_image="skip")
    with (
        pytest.warns(UserWarning, match="a.png cannot be decoded"),
        pytest.raises(UserError, match=r"none of 1 images tried in .* can be decoded"),
    ):
        store.to_memory()


def test_a_vanished_file_is_no_bad_image(tmp_path):
    paths = files(tmp_path)
    store = FileStore(paths, on_bad_image="skip")
    paths[3].unlink()
    with pytest.raises(FileNotFoundError, match=r"03.png"):
        store.__getitems__([3])
    assert store.skipped == 0


@pytest.mark.parametrize("size", [(5, 4), (120, 100)])
def test_to_memory(tmp_path, size):
    """The larger size is decoded by several threads."""
    images = torch.from_numpy(pixels(np.zeros(600 if size[0] == 5 else 300, dtype=np.int64), size))
    store = FileStore(files(tmp_path, images), torch.arange(len(images)))
    memory = store.to_memory()
    assert isinstance(memory, MemoryStore)
    assert torch.equal(memory.images, images)
    assert torch.equal(memory.labels, torch.arange(len(images)))
    part = store.subset(torch.tensor([9, 2])).to_memory()
    assert isinstance(part, MemoryStore)
    assert torch.equal(part.images, images[[9, 2]])
    assert part.index.tolist() == [9, 2]
    assert store.to_memory(limit=images.numel() - 1) is store


@pytest.mark.parametrize("size", [(5, 4), (120, 100)])
def test_to_memory_gives_way_to_a_late_other_size(tmp_path, size):
    images = torch.from_numpy(pixels(np.zeros(60, dtype=np.int64), size))
    paths = files(tmp_path, images)
    Image.new("RGB", (3, 3)).save(paths[50])
    store = FileStore(paths)
    assert store.to_memory() is store
    assert store.shape is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": []}, r"there are no image files .*: check data.root"),
        ({"paths": ["a.png"], "channels": 4}, r"channels must be 1 or 3 for image files, got 4"),
        ({"paths": ["a.png"], "on_bad_image": "ignore"}, r"on_bad_image must be one of .*, got 'ignore'"),
    ],
)
def test_file_store_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        FileStore(**arguments)


# Datasets of others


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
    batch = store.__getitems__([4, 2])
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
    assert torch.equal(store.__getitems__(range(4)).images, many)
    assert torch.equal(store[2][0], many[2])
    grey = WrappedStore(Items(list(IMAGES[:, 0].numpy())))
    assert torch.equal(grey.__getitems__([1]).images, IMAGES[[1], :1])


def test_a_dataset_of_torchvision():
    dataset = FakeData(size=20, image_size=(3, 9, 7), num_classes=5)
    store = WrappedStore(dataset)
    images, labels = zip(*(dataset[i] for i in range(20)), strict=True)
    batch = store.__getitems__(range(20))
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
    with pytest.raises(TypeError, match=r"generator is no map-style dataset"):
        WrappedStore(i for i in range(3))
    with pytest.raises(UserError, match=r"the dataset Items is empty"):
        WrappedStore(Items([]))


def test_sizes_of_a_dataset():
    mixed = WrappedStore(Items([torch.zeros(3, 4, 4 + i) for i in range(3)]))
    assert mixed.shape is None
    assert [image.shape[2] for image in mixed.__getitems__([2, 0]).images] == [6, 4]
    items = [torch.zeros(3, 4, 4)] * 100
    items[2] = torch.zeros(3, 5, 4)
    late = WrappedStore(Items(items))
    assert late.shape == (3, 4, 4)
    assert isinstance(late.__getitems__([0, 1]).images, torch.Tensor)
    assert isinstance(late.__getitems__([0, 2]).images, list)


def test_channels_of_a_dataset():
    grey, colour = Image.new("L", (4, 4), 9), Image.new("RGB", (4, 4), (1, 2, 3))
    assert WrappedStore(Items([grey] * 3)).shape == (1, 4, 4)
    mixed = WrappedStore(Items([grey, colour, grey]))
    assert mixed.shape == (3, 4, 4)
    assert mixed.__getitems__([0, 1]).images[:, :, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]
    items = [grey] * 100
    items[2] = colour
    late = WrappedStore(Items(items))
    with pytest.raises(UserError, match=r"item 2 of Items has 3 channels, the images tried first have 1: set data"):
        late.__getitems__([1, 2])
    assert WrappedStore(Items(items), channels=3).__getitems__([1, 2]).images[1, :, 0, 0].tolist() == [1, 2, 3]
    assert WrappedStore(Items(items), channels=1).__getitems__([1, 2]).images.shape == (2, 1, 4, 4)


def test_match_channels_is_luma_and_refuses_the_rest():
    by_pil = torch.stack([pil_to_tensor(image.convert("L")) for image, _ in pil_items()])
    assert torch.equal(match_channels(IMAGES, 1), by_pil)
    floats = (IMAGES.float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    # The integers are the weights to 1 / 65536.
    torch.testing.assert_close(match_channels(IMAGES.float(), 1), floats, rtol=0, atol=3 * 255 / 65536)
    assert match_channels(IMAGES, None) is IMAGES
    with pytest.raises(UserError, match=r"images with 13 channels cannot become images with 3"):
        match_channels(torch.zeros(13, 2, 2), 3)


def test_mixed_dtypes_are_refused():
    store = WrappedStore(Items([IMAGES[0], IMAGES[1].float() / 255]))
    with pytest.raises(UserError, match=r"mixes uint8 and float"):
        store.__getitems__([0, 1])


def test_bad_items_of_a_dataset(tmp_path):
    path = files(tmp_path)[0]
    broken("truncated", path)
    items = [*pil_items(), (Image.open(path), 0), OSError("unrecognized data stream contents")]
    with pytest.raises(BadImage, match=r"item 12 of Items cannot be decoded"):
        WrappedStore(Items(items)).__getitems__([12])
    items[12] = (Image.open(path), 0)
    with pytest.warns(UserWarning, match=r"Skipped: item 12 of Items"):
        store = WrappedStore(Items(items), on_bad_image="skip")
    assert store.__getitems__([12, 11, 13]).index.tolist() == [11]
    assert store.labels.tolist()[-2:] == [-1, -1]
    assert store.skipped == 2


def test_faults_of_the_dataset_itself_are_not_skipped():
    for fault in (KeyError("name"), FileNotFoundError(2, "gone"), RuntimeError("bug")):
        items = [pil_items()[0]] * 100
        items[2] = fault
        store = WrappedStore(Items(items), on_bad_image="skip")
        with pytest.raises(type(fault)):
            store.__getitems__([2])
        assert store.skipped == 0


def test_transform_has_the_last_word():
    store = WrappedStore(Items(pil_items()), transform=lambda image: pil_to_tensor(image).float() - 100)
    assert torch.equal(store.__getitems__([3]).images, IMAGES[[3]].float() - 100)
    turned = WrappedStore(Items(pil_items()), transform=lambda image: image.rotate(180))
    assert torch.equal(turned.__getitems__([3]).images, IMAGES[[3]].flip(2, 3))
    assert turned.to_memory() is turned
    numpy = WrappedStore(Items(as_items("numpy")), transform=lambda image: image[::-1].copy())
    assert torch.equal(numpy.__getitems__([3]).images, IMAGES[[3]].flip(2))
    with pytest.raises(UserError, match=r"what the transform returned for item 0 of Items: .* got NoneType"):
        WrappedStore(Items(pil_items()), transform=lambda image: None)


def test_a_dataset_is_put_into_memory():
    memory = WrappedStore(Items(pil_items())).to_memory()
    assert isinstance(memory, MemoryStore)
    assert torch.equal(memory.images, IMAGES)
    assert torch.equal(memory.labels, LABELS)
    floats = WrappedStore(Items(as_items("float")))
    assert floats.to_memory() is floats


def test_stores_do_not_warn(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.__getitems__([1, 2])
        assert store.labels.shape == (12,)
