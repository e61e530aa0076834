"""Data sets whose images lie as arrays in a few files: the digits, CIFAR-10, CIFAR-100, STL-10."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR100, STL10

from sslinfo.data.readers.archives import REPLACE, present
from sslinfo.data.readers.base import ReadOptions, Splits
from sslinfo.data.stores import MemoryStore
from sslinfo.errors import UserError


def digits(root: Path, options: ReadOptions) -> Splits:
    """scikit-learn's digits; ``root`` is not read."""
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    return {"train": MemoryStore(pixels[:, None], labels, [str(digit) for digit in range(10)], "digits")}


def cifar(kind: Any, root: Path, options: ReadOptions) -> Splits:
    """CIFAR-10 or CIFAR-100, whichever torchvision's class ``kind`` is of."""
    folder = present(kind, root)
    name, key = kind.__name__.lower(), "fine_labels" if kind is CIFAR100 else "labels"
    meta = folder / kind.meta["filename"]
    classes = [str(c) for c in _entry(_unpickled(meta), kind.meta["key"], meta)]
    splits: Splits = {}
    for split, files in (("train", kind.train_list), ("test", kind.test_list)):
        images, labels = [], []
        for path in (folder / file for file, _ in files):
            content = _unpickled(path)
            data = _entry(content, "data", path)
            targets = np.asarray(_entry(content, key, path))
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(targets), 3072):
                raise UserError(f"{path} does not hold uint8 rows of 3072 pixels, one for each label: {REPLACE}")
            images.append(torch.from_numpy(data).view(-1, 3, 32, 32))
            labels.append(torch.from_numpy(targets.astype(np.int64)))
        splits[split] = MemoryStore(torch.cat(images), torch.cat(labels), classes, f"{name} {split}")
    return splits


class _ArraysOnly(pickle.Unpickler):
    """Plain values and numpy arrays; a file that names anything else to be called is refused."""

    allowed = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which no array needs")
        return super().find_class(module_name, global_name)


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _ArraysOnly(file, encoding="latin1").load()
        except Exception as error:
            # A broken pickle can raise anything.
            raise UserError(f"{path} cannot be unpickled ({error}): {REPLACE}") from error


def _entry(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{path} holds no {key!r}: {REPLACE}")
    return content[key]


def stl10(root: Path, options: ReadOptions) -> Splits:
    """STL-10, whose splits are mapped into memory where they are not held in it."""
    folder = present(STL10, root)
    classes = (folder / STL10.class_names_file).read_text().split()
    splits: Splits = {}
    for split, stem in (("train", "train"), ("test", "test"), ("unlabelled", "unlabeled")):
        path = folder / f"{stem}_X.bin"
        size = path.stat().st_size
        if size == 0 or size % (3 * 96 * 96):
            raise UserError(f"{path} has {size} bytes, which is no whole number of 3 x 96 x 96 images: {REPLACE}")
        # Mapped, not read; the files keep columns before rows.
        images = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(-1, 3, 96, 96).mT
        if options.holds(size):
            images = images.contiguous()
        labels = None
        if split != "unlabelled":
            labels = torch.from_numpy(np.fromfile(folder / f"{stem}_y.bin", dtype=np.uint8).astype(np.int64)) - 1
        splits[split] = MemoryStore(images, labels, classes, f"stl10 {split}")
    return splits
