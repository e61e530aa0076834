"""Every layout read here is compared with torchvision's reader of it, or with what the generator wrote."""

import hashlib
import os
import pickle
import sys
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from fake import write_cifar, write_imagefolder, write_stl10, write_tinyimagenet
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as torchvision_datasets
from torchvision.transforms.v2.functional import pil_to_tensor

from sslinfo.data import TwoViewDataModule, datasets
from sslinfo.data.datasets import MissingData, fetch, from_class_path, is_class_path, load
from sslinfo.data.stores import BadImage, Fetched, ImageStore, MemoryStore
from sslinfo.data.stores.files import FileStore
from sslinfo.errors import UserError


def everything(store: ImageStore) -> tuple[torch.Tensor, torch.Tensor]:
    batch = store.read(range(len(store)))
    assert isinstance(batch.images, torch.Tensor)
    return batch.images, batch.labels


def fetched_all(store: ImageStore) -> tuple[Fetched, ImageStore]:
    return store.read(range(len(store))), store


def torchvision_pairs(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    items = [dataset[i] for i in range(len(dataset))]
    return torch.stack([pil_to_tensor(image) for image, _ in items]), torch.tensor([label for _, label in items])


def test_digits_are_scikit_learns():
    (split,) = load("digits").values()
    images, labels = everything(split)
    reference = load_digits()
    assert torch.equal(labels, torch.from_numpy(reference.target).long())
    # Rounding to 0 ... 255 moves a pixel by at most half a step.
    difference = images[:, 0].double() * 16 / 255 - torch.from_numpy(reference.images)
    assert difference.abs().max() <= 0.5 * 16 / 255 + 1e-12
    assert images.min() == 0
    assert images.max() == 255


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_equals_torchvision(tmp_path, monkeypatch, classes):
    written = write_cifar(tmp_path, classes)
    kind = {10: torchvision_datasets.CIFAR10, 100: torchvision_datasets.CIFAR100}[classes]
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(kind, "_load_meta", lambda self: None)
    splits = load(f"cifar{classes}", tmp_path)
    assert list(splits) == ["train", "test"]
    for split, store in splits.items():
        images, labels = everything(store)
        reference = torchvision_pairs(kind(tmp_path, train=split == "train"))
        assert torch.equal(images, reference[0])
        assert torch.equal(labels, reference[1])
        assert np.array_equal(images.numpy(), written[split].images)
        assert torch.equal(store.labels, labels)
        assert store.classes == [f"class{i}" for i in range(classes)]
    inside = next(tmp_path.iterdir())
    assert torch.equal(everything(load(f"cifar{classes}", inside)["test"])[0], everything(splits["test"])[0])


def test_a_pickle_cannot_run_code(tmp_path):
    write_cifar(tmp_path)
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(canary),)

    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({"data": Evil()}, protocol=2))
    with pytest.raises(UserError, match=r"data_batch_3 cannot be unpickled.*mkdir"):
        load("cifar10", tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize("damage", ["truncated", "other keys", "other shape"])
def test_damaged_cifar_names_the_file_and_the_way_out(tmp_path, damage):
    write_cifar(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    content = {
        "truncated": batch.read_bytes()[:1000],
        "other keys": pickle.dumps({"labels": [0]}),
        "other shape": pickle.dumps({"data": np.zeros((2, 7), np.uint8), "labels": [0, 1]}, protocol=2),
    }[damage]
    batch.write_bytes(content)
    with pytest.raises(UserError, match=r"test_batch .*data.download: true"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("in_memory", ["auto", False])
def test_stl10_equals_torchvision(tmp_path, monkeypatch, in_memory):
    write_stl10(tmp_path, 11, 12, 13)
    monkeypatch.setattr(torchvision_datasets.STL10, "_check_integrity", lambda self: True)
    splits = load("stl10", tmp_path, in_memory=in_memory)
    assert {split: len(store) for split, store in splits.items()} == {"train": 11, "test": 12, "unlabelled": 13}
    for split, store in splits.items():
        images, labels = everything(store)
        reference = torchvision_datasets.STL10(tmp_path, split={"unlabelled": "unlabeled"}.get(split, split))
        expected = torchvision_pairs(reference)
        assert torch.equal(images, expected[0])
        assert torch.equal(labels, expected[1])
        assert images.is_contiguous()
        assert store.classes == reference.classes


def test_stl10_above_the_limit_is_mapped(tmp_path, monkeypatch):
    write_stl10(tmp_path, 10, 10, 20)
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 15 * 3 * 96 * 96)
    splits = load("stl10", tmp_path)
    # A mapped file keeps its order of columns before rows, a copy in memory is made contiguous.
    layout = {split: store.images.is_contiguous() for split, store in splits.items() if isinstance(store, MemoryStore)}
    assert layout == {"train": True, "test": True, "unlabelled": False}


def test_truncated_stl10(tmp_path):
    write_stl10(tmp_path)
    path = tmp_path / "stl10_binary" / "unlabeled_X.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"unlabeled_X.bin has 552955 bytes"):
        load("stl10", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_missing_files_name_path_and_way_out(tmp_path, name):
    with pytest.raises(MissingData, match=r"is missing: check data.root, or set data.download: true") as caught:
        load(name, tmp_path / "nowhere")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, UserError)
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_download_unpacks_and_is_left_alone_when_complete(tmp_path, monkeypatch):
    """torchvision takes an archive that lies there with the right checksum: nothing is fetched in this test."""
    written = write_cifar(tmp_path / "made")
    kind = torchvision_datasets.CIFAR10
    archive = tmp_path / "root" / kind.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / kind.base_folder, kind.base_folder)
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    TwoViewDataModule("cifar10", str(tmp_path / "root")).prepare_data()
    assert not (tmp_path / "root" / kind.base_folder).exists()
    TwoViewDataModule("cifar10", str(tmp_path / "root"), download=True).prepare_data()
    assert (tmp_path / "root" / kind.base_folder).is_dir()
    store = load("cifar10", tmp_path / "root", download=True)["train"]
    assert np.array_equal(everything(store)[0].numpy(), written["train"].images)

    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets, "download_and_extract_archive", refuse)
    fetch("cifar10", tmp_path / "root")
    with pytest.raises(UserError, match=rf"no route to host.*{kind.filename} into .*elsewhere by hand"):
        fetch("cifar10", tmp_path / "elsewhere")


@pytest.mark.parametrize("inside", [False, True])
def test_tinyimagenet(tmp_path, inside):
    expected = write_tinyimagenet(tmp_path)
    splits = load("tinyimagenet", tmp_path / "tiny-imagenet-200" if inside else tmp_path)
    assert {split: store.labels.tolist() for split, store in splits.items()} == expected
    # Colours belong to classes: the labels are those of the pictures, in both splits, whatever the generator says.
    # 16 = four times what JPEG and the mean of 4096 noisy pixels (standard error 0.4) may move a mean colour by.
    means = {}
    for split, store in splits.items():
        images, labels = everything(store)
        assert store.shape == (3, 64, 64)
        coloured = (images[:, 0] != images[:, 1]).flatten(1).any(1)
        assert 0 < int(coloured.sum()) < len(store)
        colours = images.double().mean((2, 3))
        means[split] = torch.stack([colours[coloured & (labels == label)].mean(0) for label in range(4)])
    assert (means["train"] - means["val"]).abs().max() < 4
    assert torch.pdist(means["train"]).min() > 16
    assert splits["val"].classes == [f"thing n{1000 + 7 * i:08d}, example" for i in range(4)]


def test_tinyimagenet_of_some_classes_only(tmp_path):
    write_tinyimagenet(tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    (folder / "words.txt").unlink()
    (folder / "wnids.txt").write_text("n00001000\nn00001007\nn00001014\nn00001021\nn12345678\n")
    listed = (folder / "val" / "val_annotations.txt").read_text()
    (folder / "val" / "val_annotations.txt").write_text(listed + "val_9999.JPEG\tn12345678\t0\t0\t63\t63\n")
    assert load("tinyimagenet", tmp_path)["val"].classes == ["n00001000", "n00001007", "n00001014", "n00001021"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no annotations", r"val_annotations.txt is missing"),
        ("unlisted", r"val_0.JPEG is not listed in .*val_annotations.txt"),
        ("unknown class", r"val_0.JPEG is of class n7, which train/ lacks"),
        ("no train", r"train is missing: check data.root"),
        ("empty class", r"the class folder .*n00001007 has no images \(1 other"),
        ("empty val", r"there are no images in .*val"),
    ],
)
def test_damaged_tinyimagenet(tmp_path, damage, message):
    write_tinyimagenet(tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    annotations = folder / "val" / "val_annotations.txt"
    lines = annotations.read_text().splitlines(keepends=True)
    if damage == "no annotations":
        annotations.unlink()
    elif damage == "unlisted":
        annotations.write_text("".join(lines[1:]))
    elif damage == "unknown class":
        annotations.write_text("".join(["val_0.JPEG\tn7\t0\t0\t1\t1\n", *lines[1:]]))
    elif damage == "no train":
        (folder / "train").rename(folder / "elsewhere")
    elif damage == "empty class":
        for path in (folder / "train" / "n00001007" / "images").iterdir():
            path.unlink()
    else:
        for path in (folder / "val" / "images").iterdir():
            path.unlink()
    with pytest.raises(UserError, match=message):
        load("tinyimagenet", tmp_path)


@pytest.mark.parametrize("in_memory", ["auto", False])
@pytest.mark.parametrize("suffix", [".png", ".JPG", ".bmp"])
def test_imagefolder_equals_torchvision(tmp_path, in_memory, suffix):
    write_imagefolder(tmp_path, ("train", "val", "test"), suffix=suffix)
    # A folder whose name sorts before the files beside it, while torchvision puts its images after them.
    nested = tmp_path / "train" / "class1" / "000" / "deeper"
    nested.mkdir(parents=True)
    (tmp_path / "train" / "class1" / f"000{suffix}").rename(nested / f"zzz{suffix}")
    splits = load("imagefolder", tmp_path, in_memory=in_memory)
    assert list(splits) == ["train", "val", "test"]
    for split, store in splits.items():
        assert isinstance(store, FileStore if in_memory is False else MemoryStore)
        images, labels = everything(store)
        reference = torchvision_datasets.ImageFolder(tmp_path / split)
        expected = torchvision_pairs(reference)
        assert torch.equal(images, expected[0])
        assert torch.equal(labels, expected[1])
        assert store.classes == reference.classes
        assert store.shape == (3, 32, 32)


def test_imagefolder_labels_of_a_split_with_some_classes_are_those_of_train(tmp_path):
    write_imagefolder(tmp_path)
    for path in (tmp_path / "test" / "class1").iterdir():
        path.unlink()
    (tmp_path / "test" / "class1").rmdir()
    test = load("imagefolder", tmp_path)["test"]
    assert test.labels.tolist() == [0] * 8 + [2] * 8
    assert test.classes == ["class0", "class1", "class2"]


def test_imagefolder_layouts_without_train(tmp_path):
    write_imagefolder(tmp_path / "labelled", ("",))
    write_imagefolder(tmp_path / "flat", ("",), classes=1)
    labelled = load("imagefolder", tmp_path / "labelled")
    assert list(labelled) == ["train"]
    assert labelled["train"].labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    flat = load("imagefolder", tmp_path / "flat" / "class0")
    assert list(flat) == ["train"]
    assert flat["train"].labels.tolist() == [-1] * 8
    assert flat["train"].classes is None


def test_imagefolder_ignores_hidden_and_other_files(tmp_path):
    write_imagefolder(tmp_path, ("train",))
    (tmp_path / "train" / "class0" / "._000.png").write_bytes(b"resource fork")
    (tmp_path / "train" / "class0" / ".thumbnails").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "train" / "class0" / ".thumbnails" / "000.png")
    (tmp_path / "train" / "class0" / "notes.txt").write_text("notes")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "readme.md").write_text("notes")
    assert load("imagefolder", tmp_path)["train"].labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_imagefolder_mixed_sizes(tmp_path):
    write_imagefolder(tmp_path, ("train",), mixed=True)
    store = load("imagefolder", tmp_path)["train"]
    assert isinstance(store, FileStore)
    assert store.shape is None
    assert [tuple(image.shape) for image in store.read([0, 9]).images] == [(3, 32, 32), (3, 33, 34)]
    with pytest.raises(UserError, match=r"not all of one size: set data.in_memory: false"):
        load("imagefolder", tmp_path, in_memory=True)


def test_a_lone_other_size_is_found(tmp_path):
    """Beyond the few files that are tried first."""
    write_imagefolder(tmp_path, ("train",), classes=2, per_class=30, size=(8, 8))
    Image.new("RGB", (9, 8)).save(tmp_path / "train" / "class0" / "002.png")
    for in_memory in ("auto", False):
        assert load("imagefolder", tmp_path, in_memory=in_memory)["train"].shape is None


def test_sizes_are_known_before_workers_start(tmp_path):
    write_imagefolder(tmp_path, ("train",))
    store = load("imagefolder", tmp_path, in_memory=False)["train"]
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert store.shape == (3, 32, 32)
    assert store.subset(torch.arange(3)).shape == (3, 32, 32)


def test_imagefolder_above_the_limit_stays_on_disk(tmp_path, monkeypatch):
    write_imagefolder(tmp_path, ("train",))
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 24 * 3 * 32 * 32 - 1)
    assert isinstance(load("imagefolder", tmp_path)["train"], FileStore)
    assert isinstance(load("imagefolder", tmp_path, in_memory=True)["train"], MemoryStore)
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 24 * 3 * 32 * 32)
    assert isinstance(load("imagefolder", tmp_path)["train"], MemoryStore)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no root", r"nowhere is no folder: check data.root"),
        ("nothing", r"there are no images \(.jpg.*\) in .*empty: check data.root"),
        ("other files", r"1 other files, such as a.txt, are ignored: check data.root"),
        ("empty class", r"the class folder .*train/empty has no images \(0 other"),
        ("empty test class", r"the class folder .*test/class1 has no images"),
        ("extra class", r"test/other is a class that .*train lacks"),
        ("no train", r"train is missing beside val/"),
        ("both", r"holds images \(stray.png, ...\) and class folders \(class0, ...\)"),
        ("flat train", r"test/class0 is a class that .*train lacks"),
    ],
)
def test_damaged_imagefolder(tmp_path, damage, message):
    root = tmp_path / "root"
    write_imagefolder(root, ("train", "test"), per_class=2)
    picture = Image.new("RGB", (4, 4))
    if damage == "no root":
        root = tmp_path / "nowhere"
    elif damage in ("nothing", "other files"):
        root = tmp_path / "empty"
        root.mkdir()
        if damage == "other files":
            (root / "a.txt").write_text("")
    elif damage == "empty class":
        (root / "train" / "empty").mkdir()
    elif damage == "empty test class":
        for path in (root / "test" / "class1").iterdir():
            path.unlink()
    elif damage == "extra class":
        (root / "test" / "other").mkdir()
        picture.save(root / "test" / "other" / "a.png")
    elif damage == "no train":
        (root / "train").rename(root / "val")
    elif damage == "both":
        picture.save(root / "train" / "stray.png")
    else:
        (root / "train").rename(tmp_path / "elsewhere")
        (root / "train").mkdir()
        picture.save(root / "train" / "a.png")
    with pytest.raises(UserError, match=message):
        load("imagefolder", root)


@pytest.mark.parametrize("in_memory", ["auto", False])
def test_bad_images(tmp_path, in_memory):
    write_imagefolder(tmp_path, ("train",), classes=2, per_class=20)
    bad = tmp_path / "train" / "class0" / "003.png"
    bad.write_bytes(bad.read_bytes()[:-60])
    with pytest.raises(BadImage, match=r"class0/003.png cannot be decoded .*data.on_bad_image: skip"):
        everything(load("imagefolder", tmp_path, in_memory=in_memory)["train"])
    with pytest.warns(UserWarning, match=r"Skipped: .*class0/003.png cannot"):
        batch, store = fetched_all(load("imagefolder", tmp_path, in_memory=in_memory, on_bad_image="skip")["train"])
    assert store.skipped == 1
    assert batch.index.tolist() == [i for i in range(40) if i != 3]
    assert batch.labels.tolist() == [0] * 19 + [1] * 20
    assert len(batch.images) == 39


@pytest.mark.parametrize("in_memory", ["auto", False])
def test_channels(tmp_path, in_memory):
    write_imagefolder(tmp_path / "grey", ("train",), channels=1)
    write_imagefolder(tmp_path / "colour", ("train",), channels=3)
    grey = everything(load("imagefolder", tmp_path / "grey", channels=1, in_memory=in_memory)["train"])[0]
    assert grey.shape == (24, 1, 32, 32)
    repeated = everything(load("imagefolder", tmp_path / "grey", in_memory=in_memory)["train"])[0]
    assert torch.equal(repeated, grey.expand(-1, 3, -1, -1))
    weighed = everything(load("imagefolder", tmp_path / "colour", channels=1, in_memory=in_memory)["train"])[0]
    colour = everything(load("imagefolder", tmp_path / "colour", in_memory=in_memory)["train"])[0].double()
    luma = 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2]
    assert (weighed[:, 0].double() - luma).abs().max() <= 1
    assert load("digits", channels=3)["train"].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar-10"}, r"did you mean 'cifar10'\?"),
        ({"name": "Digits"}, r"did you mean 'digits'\?"),
        ({"name": "qqqq"}, r"unknown name 'qqqq'\. Known: digits"),
        ({"name": "cifar10"}, r"cifar10 needs data.root"),
        ({"name": "digits", "channels": 2}, r"data.channels must be 1, 3 or null, got 2"),
        ({"name": "digits", "in_memory": "yes"}, r"data.in_memory must be .* got 'yes'"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        load(**arguments)


MODULE = """
class Plain:
    def __len__(self):
        return 3

    def __getitem__(self, item):
        return None

class Sized(Plain):
    def __init__(self, size, *rest, scale=1):
        pass

from torch.utils.data import Dataset

class Inherits(Sized, Dataset):
    pass

class NoItems:
    def __len__(self):
        return 3

def function():
    pass
"""


@pytest.fixture
def user_modules(tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text(MODULE)
    (tmp_path / "users_lack.py").write_text("import users_nowhere\n")
    (tmp_path / "users_error.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("users_module", "users_lack", "users_error"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("users_modul.Plain", r"there is no module 'users_modul': check the name, .* folder you start from"),
        ("users_module.inner.Plain", r"there is no module 'users_module\.inner'"),
        ("users_module.Plan", r"users_module has no 'Plan'; its classes are Plain, Sized, Inherits, NoItems"),
        ("users_lack.Plain", r"importing users_lack fails: it needs 'users_nowhere', which is not installed"),
        ("users_error.Plain", r"importing users_error fails: ZeroDivisionError: division by zero"),
        ("users_module.NoItems", r"users_module\.NoItems is no class with __len__ and __getitem__"),
        ("users_module.function", r"users_module\.function is no class with __len__ and __getitem__"),
        ("users_module.Sized", r"needs arguments \(size\): .*--data.dataset.init_args.size \.\.\., once it inherits"),
        ("users_module.Inherits", r"needs arguments \(size\): .*--data.dataset.init_args.size \.\.\.$"),
    ],
)
def test_class_path_that_is_no_data_set_says_why(user_modules, path, message):
    assert is_class_path(path)
    with pytest.raises(UserError, match=message):
        from_class_path(path)


def test_class_path_of_any_class_with_length_and_items(user_modules):
    assert len(from_class_path("users_module.Plain")) == 3


@pytest.mark.parametrize("name", ["cifar10", "cifar-10.v2", "./data", "a..b", ".a", "a.b ", "a.b\n", "a·b.c", "1.5"])
def test_other_names_are_no_class_paths(name):
    assert not is_class_path(name)


@pytest.mark.slow
@pytest.mark.skipif("SSLINFO_CIFAR10" not in os.environ, reason="SSLINFO_CIFAR10 names no CIFAR-10 image folder")
def test_cifar10_as_image_folder():
    splits = load("imagefolder", Path(os.environ["SSLINFO_CIFAR10"]))
    for split, count in (("train", 5000), ("test", 1000)):
        assert isinstance(splits[split], MemoryStore)
        assert torch.bincount(splits[split].labels).tolist() == [count] * 10
    # The published channel means; 0.002 is half of one of the 256 levels, more than JPEG moves a mean of 51 million.
    means = everything(splits["train"])[0].transpose(0, 1).flatten(1).double().mean(1) / 255
    assert (means - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.002
