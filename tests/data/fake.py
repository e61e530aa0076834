"""Small generated data in each data set's own layout on disk, so that recipes run without downloads.

Every image is a colour that belongs to its class, plus noise: classes can be told apart. The writers of binary layouts
return what they wrote.
"""

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


class Written(NamedTuple):
    images: Pixels  # (N, C, H, W)
    labels: NDArray[np.int64]


def pixels(labels: NDArray[np.int64], size: tuple[int, int], channels: int = 3, seed: int = 0) -> Pixels:
    """(N, channels, height, width) for labels (N,)."""
    random = np.random.default_rng(seed)
    colours = np.random.default_rng(7).integers(48, 208, (int(labels.max(initial=0)) + 1, channels))
    noise = random.integers(-40, 41, (len(labels), channels, *size))
    return (colours[labels][:, :, None, None] + noise).astype(np.uint8)


def write_cifar(root: Path, classes: int = 10, per_batch: int = 20, seed: int = 0) -> dict[str, Written]:
    """CIFAR-10's five pickled batches and a test batch, or with `classes=100` CIFAR-100's two files."""
    if classes == 10:
        folder, key, meta_key, meta = root / "cifar-10-batches-py", "labels", "label_names", "batches.meta"
        files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    else:
        folder, key, meta_key, meta = root / "cifar-100-python", "fine_labels", "fine_label_names", "meta"
        files = {"train": ["train"], "test": ["test"]}
    folder.mkdir(parents=True)
    # Protocol 2 is the one of the original files.
    (folder / meta).write_bytes(pickle.dumps({meta_key: [f"class{i}" for i in range(classes)]}, protocol=2))
    written = {}
    for split, names in files.items():
        parts = []
        for name in names:
            seed += 1
            labels = np.random.default_rng(seed).permutation(np.arange(per_batch) % classes)
            images = pixels(labels, (32, 32), seed=seed)
            content = {"data": images.reshape(per_batch, -1), key: labels.tolist(), "batch_label": name}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
            parts.append((images, labels))
        written[split] = Written(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    return written


def write_stl10(root: Path, train: int = 20, test: int = 20, unlabelled: int = 20) -> dict[str, Written]:
    """STL-10's binary files, which keep columns before rows and labels from 1 to 10."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    (folder / "class_names.txt").write_text("".join(f"class{i}\n" for i in range(10)))
    written = {}
    for seed, (split, stem, count) in enumerate(
        [("train", "train", train), ("test", "test", test), ("unlabelled", "unlabeled", unlabelled)]
    ):
        labels = np.arange(count) % 10
        images = pixels(labels, (96, 96), seed=seed)
        (folder / f"{stem}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        if split == "unlabelled":
            labels = np.full(count, -1)
        else:
            (folder / f"{stem}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
        written[split] = Written(images, labels)
    return written


def write_tinyimagenet(root: Path, classes: int = 4, per_class: int = 10, val: int = 20) -> dict[str, list[int]]:
    """Tiny-ImageNet's original layout, some images in grey; returns the labels of each split in sorted file order.

    As in the original, the order of `wnids.txt` is not the sorted one, and `words.txt` knows more classes.
    """
    folder = root / "tiny-imagenet-200"
    wnids = [f"n{1000 + 7 * i:08d}" for i in range(classes)]
    for label, wnid in enumerate(wnids):
        names = [f"{wnid}_{i}.JPEG" for i in range(per_class)]
        images = pixels(np.full(per_class, label), (64, 64), seed=label)
        _save(folder / "train" / wnid / "images", names, images, grey_every=5)
        boxes = "".join(f"{name}\t0\t0\t63\t63\n" for name in names)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    labels = np.random.default_rng(3).permutation(np.arange(val) % classes)
    names = [f"val_{i}.JPEG" for i in range(val)]
    _save(folder / "val" / "images", names, pixels(labels, (64, 64), seed=99), grey_every=5)
    lines = [f"{name}\t{wnids[label]}\t0\t0\t63\t63\n" for name, label in zip(names, labels, strict=True)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "test" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(wnids)))
    words = [*((wnid, f"thing {wnid}, example") for wnid in wnids), ("n99999999", "nothing")]
    (folder / "words.txt").write_text("".join(f"{wnid}\t{word}\n" for wnid, word in words))
    by_name = dict(zip(names, labels.tolist(), strict=True))
    train = [label for label in range(classes) for _ in range(per_class)]
    return {"train": train, "val": [by_name[name] for name in sorted(names)]}


def write_imagefolder(
    root: Path,
    splits: tuple[str, ...] = ("train", "test"),
    classes: int = 3,
    per_class: int = 8,
    size: tuple[int, int] = (32, 32),
    mixed: bool = False,
    channels: int = 3,
    suffix: str = ".png",
) -> None:
    """Class folders `class0`, ... in each split (a split of "" is the root); `mixed` gives every image its own size."""
    for seed, split in enumerate(splits):
        for label in range(classes):
            for i in range(per_class):
                this_size = (size[0] + i, size[1] + 2 * label) if mixed else size
                image = pixels(np.array([label]), this_size, channels, seed=1000 * seed + 100 * label + i)
                _save(root / split / f"class{label}", [f"{i:03d}{suffix}"], image)


def _save(folder: Path, names: list[str], images: Pixels, grey_every: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, image) in enumerate(zip(names, images, strict=True)):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        if grey_every and i % grey_every == 0:
            picture = picture.convert("L")
        picture.save(folder / name, quality=95)
