"""Files are read back as the arrays that were written into them."""

import contextlib
import os
import warnings

import numpy as np
import pytest
import torch
from fake import pixels
from PIL import EpsImagePlugin, Image
from store_images import IMAGES, broken, files

from sslinfo.data.readers.scan import KINDS
from sslinfo.data.stores import BadImage, MemoryStore
from sslinfo.data.stores.decoding import _FORMATS
from sslinfo.data.stores.files import FileStore
from sslinfo.data.stores.overlap import images_in_both
from sslinfo.errors import UserError


def test_mixed_sizes_come_as_a_list(tmp_path):
    paths = files(tmp_path)
    Image.new("RGB", (7, 6), (1, 2, 3)).save(paths[4])
    store = FileStore(paths)
    assert store.shape is None
    batch = store.read([3, 4])
    assert isinstance(batch.images, list)
    assert torch.equal(batch.images[0], IMAGES[3])
    assert batch.images[1].shape == (3, 6, 7)
    assert batch.images[1][:, 0, 0].tolist() == [1, 2, 3]
    assert isinstance(store.read([0, 1]).images, list)
    assert store.to_memory() is store


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "header"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_bad_files(tmp_path, kind, suffix):
    paths = [tmp_path / f"{i:02d}{suffix}" for i in range(40)]
    for path in paths:
        Image.fromarray(pixels(np.array([1]), (24, 24))[0].transpose(1, 2, 0)).save(path)
    for i in (7, 20):
        broken(kind, paths[i])
    with pytest.raises(BadImage, match=rf"07{suffix} cannot be decoded .* set data.on_bad_image: skip"):
        FileStore(paths[6:9]).read([0, 1])
    with pytest.raises(BadImage, match=r"cannot be decoded"):
        FileStore(paths).to_memory()

    store = FileStore(paths, torch.arange(40), on_bad_image="skip")
    with pytest.warns(UserWarning, match=rf"Skipped: .*20{suffix} cannot be decoded"):
        batch = store.read([20, 8, 6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.read([7, 20]).images.shape == (0, 3, 24, 24)
        assert store.read([7, 20]).labels.shape == (0,)
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
    assert memory.subset(torch.tensor([7])).read([0]).index.tolist() == [8]


def test_no_image_file_starts_a_program(tmp_path, monkeypatch):
    """PIL hands PostScript to Ghostscript, whatever the file is called."""
    program, ran = tmp_path / "bin" / "gs", tmp_path / "ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{ran}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path, format="EPS")
    with Image.open(path) as image, contextlib.suppress(OSError):
        image.load()
    assert ran.exists()  # by PIL alone
    ran.unlink()
    with pytest.raises(BadImage, match=r"x.png cannot be decoded \(it is no image of a known kind: PNG, "):
        FileStore([path]).read([0])
    assert not ran.exists()


def test_the_endings_that_are_read_are_kinds_that_are_opened():
    Image.init()
    assert {Image.registered_extensions()[ending] for ending in KINDS} == set(_FORMATS)


def test_who_skips_is_not_told_to_skip(tmp_path):
    paths = files(tmp_path)
    broken("text", paths[1])
    (tmp_path / "folder.png").mkdir()
    for bad in (paths[1], tmp_path / "folder.png"):
        with pytest.raises(BadImage, match=r": repair or remove it, or set data.on_bad_image: skip$"):
            FileStore([paths[0], bad]).read([1])
        with pytest.warns(UserWarning, match=rf"^Skipped: {bad} [^:]*") as warned:
            FileStore([paths[0], bad], on_bad_image="skip").read([1])
        assert "on_bad_image" not in str(warned[0].message)


def test_a_bad_file_is_tried_once(tmp_path):
    paths = files(tmp_path)
    whole = paths[5].read_bytes()
    broken("truncated", paths[5])
    store = FileStore(paths, on_bad_image="skip")
    with pytest.warns(UserWarning, match=r"05.png cannot be decoded"):
        assert store.read([5]).index.tolist() == []
    paths[5].write_bytes(whole)
    assert store.read([4, 5]).index.tolist() == [4]
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
        store.read([3])
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


def test_looking_for_common_images_waits_for_no_pipe(tmp_path):
    paths = files(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    store = FileStore([*paths, tmp_path / "pipe.png"], on_bad_image="skip")
    assert images_in_both(store.subset(torch.tensor([1, 12])), store.subset(torch.tensor([0, 1, 12]))) == 1
