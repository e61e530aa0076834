"""Stores are compared with plain indexing of the arrays that went into them."""

import pickle
import warnings

import pytest
import torch
from fake import write_stl10
from hypothesis import given
from hypothesis import strategies as st
from store_images import IMAGES, LABELS, Items, broken, files, pil_items
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from sslinfo.data import TwoViewDataModule
from sslinfo.data.stores import ImageStore, JoinedStore, MemoryStore
from sslinfo.data.stores.files import FileStore
from sslinfo.data.stores.wrapped import WrappedStore
from sslinfo.errors import UserError


@pytest.fixture(params=["memory", "file", "wrapped", "joined"])
def store(request, tmp_path) -> ImageStore:
    if request.param == "memory":
        return MemoryStore(IMAGES, LABELS, ["a", "b", "c"])
    if request.param == "file":
        return FileStore(files(tmp_path), LABELS, ["a", "b", "c"])
    if request.param == "joined":
        first = MemoryStore(IMAGES[:7], LABELS[:7], ["a", "b", "c"])
        return JoinedStore(first, FileStore(files(tmp_path, IMAGES[7:]), LABELS[7:]))
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
        batch = store.read(indices)
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
        batch = part.read(range(len(part)))
        assert torch.equal(batch.images, IMAGES[expected])
        assert batch.index.tolist() == expected

    check()
    assert len(store) == 12


def test_indices_out_of_range(store):
    part = store.subset(torch.arange(4))
    for indices in ([4], [-1], [0, 12]):
        with pytest.raises(IndexError, match=r"indices must lie in 0 ... 3"):
            part.read(indices)
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
    batch = columns_first.read([3, 1])
    assert torch.equal(batch.images, IMAGES[[3, 1]])
    assert batch.images.is_contiguous()


def test_stores_do_not_warn(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.read([1, 2])
        assert store.labels.shape == (12,)


# Joined stores


def test_joined_subsets_keep_identities_apart():
    """The first one's `index` counts to 12 however few of its images are left."""
    first = MemoryStore(IMAGES, LABELS, ["a", "b", "c"]).subset(torch.tensor([8, 2, 5]))
    store = JoinedStore(first, MemoryStore(IMAGES.flip(0)).subset(torch.tensor([4, 0])))
    assert store.index.tolist() == [8, 2, 5, 16, 12]
    assert store.labels.tolist() == [2, 2, 2, -1, -1]
    batch = store.subset(torch.tensor([4, 1, 3])).read([2, 0, 1, 0])
    assert batch.index.tolist() == [16, 12, 2, 12]
    assert batch.labels.tolist() == [-1, -1, 2, -1]
    assert torch.equal(batch.images, IMAGES[[7, 11, 2, 11]])
    thrice = JoinedStore(store, MemoryStore(IMAGES))
    assert thrice.index.tolist() == [8, 2, 5, 16, 12, *range(24, 36)]
    assert torch.equal(thrice.read([16, 4, 0]).images, IMAGES[[11, 11, 8]])


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_file_of_an_image_by_its_identity(tmp_path, in_memory):
    paths = files(tmp_path)
    store = FileStore(paths).subset(torch.tensor([5, 2, 9]))
    if in_memory:
        store = store.to_memory()
    assert [store.file_of(identity) for identity in store.index.tolist()] == [str(paths[row]) for row in (5, 2, 9)]
    joined = JoinedStore(MemoryStore(IMAGES), store)
    assert [joined.file_of(identity) for identity in (3, 12 + 9)] == [None, str(paths[9])]


def test_joined_without_copying():
    first, second = MemoryStore(IMAGES.clone()), MemoryStore(IMAGES.clone())
    store = JoinedStore(first, second)
    first.images[1], second.images[2] = 3, 4
    batch = store.read([14, 1])
    assert batch.images.flatten(1).float().mean(1).tolist() == [4, 3]


def test_joined_skips_bad_images(tmp_path):
    paths = files(tmp_path)
    for i in (1, 9):
        broken("truncated", paths[i])
    with pytest.warns(UserWarning, match="cannot be decoded"):
        first = FileStore(paths[:4], LABELS[:4], on_bad_image="skip").to_memory()
    assert first.index.tolist() == [0, 2, 3]
    store = JoinedStore(first, FileStore(paths[4:], LABELS[4:], on_bad_image="skip"))
    assert store.index.tolist() == [0, 2, 3, *range(4, 12)]
    with pytest.warns(UserWarning, match="09.png cannot be decoded"):
        batch = store.read([8, 10, 8, 0, 3, 10])
    assert batch.index.tolist() == [11, 0, 4, 11]
    assert torch.equal(batch.images, IMAGES[[11, 0, 4, 11]])
    assert batch.labels.tolist() == [2, 0, 1, 2]
    assert store.read([8, 8]).images.shape == (0, 3, 5, 4)
    assert store.skipped == 2


def test_joined_sizes_and_channels():
    small = MemoryStore(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    mixed = JoinedStore(MemoryStore(IMAGES), small)
    assert mixed.shape is None
    assert [tuple(image.shape) for image in mixed.read([13, 0]).images] == [(3, 4, 4), (3, 5, 4)]
    assert isinstance(mixed.read([0, 1]).images, list)
    with pytest.raises(UserError, match=r"memory has 3 channels and grey has 1: only stores with as many"):
        JoinedStore(small, MemoryStore(IMAGES[:, :1], where="grey"))
    floats = WrappedStore(Items(list(IMAGES.float() / 255)))
    assert torch.equal(JoinedStore(floats, floats).read([12]).images, IMAGES[[0]].float() / 255)
    with pytest.raises(UserError, match=r"memory and Items mixes uint8 and float"):
        JoinedStore(MemoryStore(IMAGES), floats).read([0, 12])


def test_pretraining_on_labelled_and_unlabelled_images(tmp_path):
    """Those held out for validation are in neither part; what is read is what was written."""
    written = write_stl10(tmp_path, 20, 10, 30)
    data = TwoViewDataModule("stl10", str(tmp_path), batch_size=8, val_fraction=0.5, train_on="both")
    data.setup()
    store, held_out = data.stores["pretrain"], data.stores["val"].index.tolist()
    assert store.index.tolist() == [i for i in range(50) if i not in held_out]
    assert len(held_out) == 10
    both = torch.cat([torch.from_numpy(written[split].images) for split in ("train", "unlabelled")])
    assert torch.equal(store.read(range(40)).images, both[store.index])
    assert store.labels.tolist() == [i % 10 for i in store.index.tolist()[:10]] + [-1] * 30
    assert sum(len(batch["index"]) for batch in data.train_dataloader()) == 40
