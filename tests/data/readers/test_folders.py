"""Folders of images are compared with torchvision's reader, or with what the generator wrote."""

import os
from pathlib import Path

import pytest
import torch
from fake import write_imagefolder, write_tinyimagenet
from PIL import Image
from stored import everything, torchvision_pairs
from torchvision import datasets as torchvision_datasets

from sslinfo.data.datasets import load
from sslinfo.data.readers import base
from sslinfo.data.stores import BadImage, Fetched, ImageStore, MemoryStore
from sslinfo.data.stores.files import FileStore
from sslinfo.errors import UserError


def fetched_all(store: ImageStore) -> tuple[Fetched, ImageStore]:
    return store.read(range(len(store))), store


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
    monkeypatch.setattr(base, "MEMORY_LIMIT", 24 * 3 * 32 * 32 - 1)
    assert isinstance(load("imagefolder", tmp_path)["train"], FileStore)
    assert isinstance(load("imagefolder", tmp_path, in_memory=True)["train"], MemoryStore)
    monkeypatch.setattr(base, "MEMORY_LIMIT", 24 * 3 * 32 * 32)
    assert isinstance(load("imagefolder", tmp_path)["train"], MemoryStore)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no root", r"nowhere is no folder: check data.root"),
        ("nothing", r"there are no images \(.jpg.*\) in .*empty: check data.root"),
        ("other files", r"there are no images .* in .*empty, only 1 \.txt: check data.root"),
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
