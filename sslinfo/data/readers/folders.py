"""Data sets of image files: Tiny-ImageNet, and any folder of images."""

import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from sslinfo.data.readers.base import MissingData, ReadOptions, Splits, file_store, locate
from sslinfo.data.readers.scan import KINDS, LeftOut, Walk, holds_images, is_folder, is_image, some
from sslinfo.data.stores.base import shown
from sslinfo.errors import UserError

_SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}


class _Scan(NamedTuple):
    paths: list[str]
    labels: Tensor
    classes: list[str] | None
    where: str


def tinyimagenet(root: Path, options: ReadOptions) -> Splits:
    """Tiny-ImageNet as it is unpacked: class folders in ``train/``, and a list of the classes of ``val/``."""
    folder = locate(root, "tiny-imagenet-200")
    if not (folder / "train").is_dir():
        raise MissingData(
            f"{folder / 'train'} is missing: check data.root; tinyimagenet has to be downloaded and unpacked by hand"
        )
    train, left_out = _scanned(folder / "train")
    if train.classes is None:
        raise UserError(f"{folder / 'train'} has no class folders: check data.root")
    label_of = {wnid: label for label, wnid in enumerate(train.classes)}
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise MissingData(
            f"{annotations} is missing: unpack the original layout, or use imagefolder where val/ has class folders"
        )
    wnid_of = dict(line.split("\t")[:2] for line in annotations.read_text().splitlines() if "\t" in line)
    images = folder / "val" / "images"
    paths, labels = (Walk(str(images)).direct if images.is_dir() else []), []
    if not paths:
        raise UserError(f"there are no images in {images}: unpack the data set again")
    for path in paths:
        wnid = wnid_of.get(os.path.basename(path))
        if wnid not in label_of:
            raise UserError(
                f"{path} is of class {wnid}, which train/ lacks" if wnid else f"{path} is not listed in {annotations}"
            )
        labels.append(label_of[wnid])
    words = folder / "words.txt"
    lines = words.read_text().splitlines() if words.is_file() else []
    name_of = dict(line.split("\t", 1) for line in lines if "\t" in line)
    classes = [name_of.get(wnid, wnid) for wnid in train.classes]
    val = _Scan(paths, torch.tensor(labels), classes, str(folder / "val"))
    _say(folder, {"train": train, "val": val}, {"train": "train", "val": "val"}, left_out.words())
    scans = {"train": train._replace(classes=classes), "val": val}
    return {split: file_store(*scan, options=options) for split, scan in scans.items()}


def imagefolder(root: Path, options: ReadOptions) -> Splits:
    """Folders ``train/``, ``val/`` and ``test/`` of class folders, or one of class folders or of images alone.

    Splits may be spelt otherwise (``Train/``, ``valid/``, ``validation/``). What was found is printed.

    Raises:
        UserError: there is nothing to read, a split has classes that ``train/`` lacks, or two splits share a folder.
    """
    if not root.is_dir():
        raise MissingData(f"{root} is no folder: check data.root")
    folder_of, besides = _split_folders(root)
    if not folder_of:
        scan, left_out = _scanned(root)
        _say(root, {"train": scan}, {}, left_out.words())
        return {"train": file_store(*scan, options=options)}
    found = {
        split: _scanned(root / name, [str(root / other) for other in folder_of.values() if other != name])
        for split, name in folder_of.items()
    }
    scans = {split: scan for split, (scan, _) in found.items()}
    _refuse_shared(scans)
    known = scans["train"].classes or []
    for split, scan in scans.items():
        if scan.classes is None:
            continue
        extra = sorted(set(scan.classes) - set(known))
        if extra:
            raise UserError(
                f"{root / folder_of[split] / extra[0]} is a class that {root / folder_of['train']} lacks: "
                "add or remove it"
            )
        # The labels of a split that has some of the classes only are those of train/.
        position = torch.tensor([known.index(c) for c in scan.classes])
        scans[split] = scan._replace(labels=position[scan.labels], classes=known)
    left_out = LeftOut()
    for _, part in found.values():
        left_out.kinds += part.kinds
        left_out.links += part.links
    _say(root, scans, folder_of, [*left_out.words(), *besides])
    return {split: file_store(*scan, options=options) for split, scan in scans.items()}


def _split_folders(root: Path) -> tuple[dict[str, str], list[str]]:
    """The folder of each split, and what lies beside them; no folders where those of the root are classes."""
    names = sorted(e.name for e in os.scandir(root) if not e.name.startswith(".") and is_folder(e))
    split_of = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}
    folder_of: dict[str, str] = {}
    others = []
    for name in names:
        split = split_of.get(name.casefold())
        if split is None:
            others.append(name)
        elif split in folder_of:
            raise UserError(f"{root} has {folder_of[split]}/ and {name}/, which are both {split} images: keep one")
        else:
            folder_of[split] = name
    folder_of = {split: folder_of[split] for split in _SPELLINGS if split in folder_of}
    if not folder_of:
        return {}, []
    others = [name for name in others if holds_images(str(root / name))]
    # Beside folders of images, `train` without class folders is a class like them: bus, car, train.
    if others and ("train" not in folder_of or not _has_class_folders(root / folder_of["train"])):
        return {}, []
    if "train" not in folder_of:
        beside = ", ".join(f"{name}/" for name in folder_of.values())
        raise MissingData(f"{root / 'train'} is missing beside {beside}, and the classes are taken from it")
    besides = [f"the folder{'s' if len(others) > 1 else ''} {some(others)}"] if others else []
    direct = sum(is_image(entry.name) for entry in os.scandir(root) if not is_folder(entry))
    if direct:
        besides.append(f"{direct} images beside {folder_of['train']}/")
    return folder_of, besides


def _has_class_folders(folder: Path) -> bool:
    return any(is_folder(e) and not e.name.startswith(".") and holds_images(e.path) for e in os.scandir(folder))


def _refuse_shared(scans: Mapping[str, _Scan]) -> None:
    """Refuse a folder of images that links put into two splits: what is trained on would be validated on."""
    seen: dict[str, tuple[str, str]] = {}
    for split, scan in scans.items():
        for folder in dict.fromkeys(map(os.path.dirname, scan.paths)):
            first, path = seen.setdefault(os.path.realpath(folder), (split, folder))
            if first != split:
                raise UserError(
                    f"{shown(path)} and {shown(folder)} are one folder, so that {first} and {split} would have the "
                    "same images: remove one of the links, and give each split images of its own"
                )


def _say(root: Path, scans: Mapping[str, _Scan], folder_of: Mapping[str, str], left_out: Sequence[str]) -> None:
    """Print in one line how a folder was read."""
    parts = []
    for split, scan in scans.items():
        where = "" if folder_of.get(split, split) == split else f" (in {shown(folder_of[split])}/)"
        whole = "" if scan.classes is not None else " without labels"
        parts.append(f"{split} {len(scan.paths)} images{whole}{where}")
    classes = scans["train"].classes
    if classes is not None:
        parts.append(f"{len(classes)} {'class' if len(classes) == 1 else 'classes'} ({some(classes)})")
    line = f"note: {shown(str(root))}: {', '.join(parts)}"
    rank_zero_only(print)(f"{line}; left out: {'; '.join(left_out)}" if left_out else line, flush=True)


def _scanned(folder: Path, elsewhere: Sequence[str] = ()) -> tuple[_Scan, LeftOut]:
    """The images of a folder of class folders, or of a flat folder (label -1), in sorted order."""
    walk = Walk(str(folder), elsewhere)
    filled = [name for name, paths in walk.by_class.items() if paths]
    if walk.direct and filled:
        raise UserError(
            f"{folder} holds images ({os.path.basename(walk.direct[0])}, ...) and class folders ({filled[0]}, ...): "
            "move the images into class folders, or the folders away"
        )
    if walk.direct:
        labels = torch.full((len(walk.direct),), -1)
        return _Scan(sorted(walk.direct), labels, None, str(folder)), walk.left_out
    if not walk.by_class:
        others = f", only {'; '.join(walk.left_out.words())}" if walk.left_out.words() else ""
        raise UserError(f"there are no images ({', '.join(KINDS)}) in {folder}{others}: check data.root")
    for name, paths in walk.by_class.items():
        if not paths:
            ignored = sum(len(files) for _, _, files in os.walk(folder / name))
            raise UserError(
                f"the class folder {folder / name} has no images ({ignored} other files): fill or remove it"
            )
    classes = sorted(walk.by_class)
    labels = torch.repeat_interleave(torch.tensor([len(walk.by_class[name]) for name in classes]))
    paths = list(chain.from_iterable(walk.by_class[name] for name in classes))
    return _Scan(paths, labels, classes, str(folder)), walk.left_out
