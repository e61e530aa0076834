"""Data sets of image files: Tiny-ImageNet, and any folder of images."""

import os
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from sslinfo.data.readers.base import MissingData, ReadOptions, Splits, file_store, locate
from sslinfo.errors import UserError


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
    train = _scanned(folder / "train")
    if train.classes is None:
        raise UserError(f"{folder / 'train'} has no class folders: check data.root")
    label_of = {wnid: label for label, wnid in enumerate(train.classes)}
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise MissingData(
            f"{annotations} is missing: unpack the original layout, or use imagefolder where val/ has class folders"
        )
    wnid_of = dict(line.split("\t")[:2] for line in annotations.read_text().splitlines() if "\t" in line)
    paths, labels = _images_below(folder / "val" / "images"), []
    if not paths:
        raise UserError(f"there are no images in {folder / 'val' / 'images'}: unpack the data set again")
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
    scans = {"train": train._replace(classes=classes), "val": val}
    return {split: file_store(*scan, options=options) for split, scan in scans.items()}


def imagefolder(root: Path, options: ReadOptions) -> Splits:
    """Folders ``train/``, ``val/`` and ``test/`` of class folders, or one of class folders or of images alone."""
    if not root.is_dir():
        raise MissingData(f"{root} is no folder: check data.root")
    splits = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if not splits:
        return {"train": file_store(*_scanned(root), options=options)}
    if "train" not in splits:
        raise MissingData(f"{root / 'train'} is missing beside {splits[0]}/, and the classes are taken from it")
    scans = {split: _scanned(root / split) for split in splits}
    known = scans["train"].classes or []
    for split, scan in scans.items():
        if scan.classes is None:
            continue
        extra = sorted(set(scan.classes) - set(known))
        if extra:
            raise UserError(f"{root / split / extra[0]} is a class that {root / 'train'} lacks: add or remove it")
        # The labels of a split that has some of the classes only are those of train/.
        position = torch.tensor([known.index(c) for c in scan.classes])
        scans[split] = scan._replace(labels=position[scan.labels], classes=known)
    return {split: file_store(*scan, options=options) for split, scan in scans.items()}


def _scanned(folder: Path) -> _Scan:
    """The images of a folder of class folders, or of a flat folder (label -1), in sorted order."""
    entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name)
    direct = [entry.path for entry in entries if _is_image(entry.name) and entry.is_file()]
    by_class = {entry.name: _images_below(Path(entry.path)) for entry in entries if entry.is_dir()}
    filled = [name for name, paths in by_class.items() if paths]
    if direct and filled:
        raise UserError(
            f"{folder} holds images ({os.path.basename(direct[0])}, ...) and class folders ({filled[0]}, ...): "
            "move the images into class folders, or the folders away"
        )
    if direct:
        return _Scan(direct, torch.full((len(direct),), -1), None, str(folder))
    if not by_class:
        others = f"; {len(entries)} other files, such as {entries[0].name}, are ignored" if entries else ""
        raise UserError(f"there are no images ({', '.join(IMG_EXTENSIONS)}) in {folder}{others}: check data.root")
    for name, paths in by_class.items():
        if not paths:
            ignored = sum(len(files) for _, _, files in os.walk(folder / name))
            raise UserError(
                f"the class folder {folder / name} has no images ({ignored} other files): fill or remove it"
            )
    labels = torch.repeat_interleave(torch.tensor([len(paths) for paths in by_class.values()]))
    return _Scan(list(chain.from_iterable(by_class.values())), labels, list(by_class), str(folder))


def _images_below(folder: Path) -> list[str]:
    """Image files at any depth, hidden ones left out, in the order in which torchvision's ImageFolder has them."""
    paths: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths.extend(os.path.join(place, name) for name in files if _is_image(name) and not name.startswith("."))
    return sorted(paths, key=os.path.split)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)
