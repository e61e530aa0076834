"""The digits, CIFAR and STL-10 are compared with torchvision's readers, or with what the generator wrote."""

import hashlib
import os
import pickle
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
from fake import write_cifar, write_stl10
from sklearn.datasets import load_digits
from stored import everything, torchvision_pairs
from torchvision import datasets as torchvision_datasets

from sslinfo.data import TwoViewDataModule
from sslinfo.data.datasets import fetch, load
from sslinfo.data.readers import MissingData, archives, base
from sslinfo.data.stores import MemoryStore
from sslinfo.errors import UserError


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
    monkeypatch.setattr(base, "MEMORY_LIMIT", 15 * 3 * 96 * 96)
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

    monkeypatch.setattr(archives, "download_and_extract_archive", refuse)
    fetch("cifar10", tmp_path / "root")
    with pytest.raises(UserError, match=rf"no route to host.*{kind.filename} into .*elsewhere by hand"):
        fetch("cifar10", tmp_path / "elsewhere")
