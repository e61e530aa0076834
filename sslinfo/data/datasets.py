"""Data sets by name: `load` finds the files of each in their usual layout and returns a store for every split."""

import difflib
import importlib
import inspect
import os
import pickle
import re
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, STL10
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.utils import download_and_extract_archive

from sslinfo.data.stores import ImageStore, MemoryStore, OnBadImage
from sslinfo.data.stores.files import FileStore
from sslinfo.data.stores.pixels import match_channels
from sslinfo.errors import UserError

NAMES = ("digits", "cifar10", "cifar100", "stl10", "tinyimagenet", "imagefolder")
MEMORY_LIMIT = 2 * 2**30

_ORIGINALS: dict[str, Any] = {"cifar10": CIFAR10, "cifar100": CIFAR100, "stl10": STL10}
_REPLACE = "remove it and set data.download: true, or put a whole copy in its place"

InMemory = bool | Literal["auto"]
Splits = dict[str, ImageStore]


class MissingData(FileNotFoundError, UserError):
    """A file or folder of a data set is not where it should be."""


def load(
    name: str,
    root: str | Path | None = None,
    *,
    download: bool = False,
    on_bad_image: OnBadImage = "error",
    in_memory: InMemory = "auto",
    channels: int | None = None,
) -> Splits:
    """The splits of a data set, each an `ImageStore`.

    | name | what `root` is, or contains | splits |
    |---|---|---|
    | digits | nothing: 1797 grey 8 x 8 images come with scikit-learn | train |
    | cifar10, cifar100 | `cifar-10-batches-py`, `cifar-100-python`, the original pickles | train, test |
    | stl10 | `stl10_binary`, the original binary files | train, test, unlabelled |
    | tinyimagenet | `tiny-imagenet-200`, the original layout | train, val |
    | imagefolder | `train/` and perhaps `val/`, `test/`; or class folders; or images without labels | those; train |

    Args:
        name: one of the names above.
        root: the folder.
        download: let torchvision fetch what is missing (cifar10, cifar100, stl10).
        on_bad_image: "error", or "skip" for image files that cannot be decoded.
        in_memory: hold a split as one uint8 tensor: "auto" where all images have one size and take 2 GiB or less
            (binary files of more than that are mapped into memory, image files are decoded when asked for); True
            whatever it takes; False never for files.
        channels: 1 or 3 converts; None takes 3 for image files, and what there is for the others.

    Raises:
        UserError: (a ValueError) an unknown name, an empty class, an undecodable file, classes that the training split
            lacks, images of mixed sizes with `in_memory=True`.
        MissingData: (a FileNotFoundError and a UserError) a missing file or folder.

    Example:
        >>> digits = load("digits")["train"]
        >>> len(digits), digits.shape, digits.labels[:5].tolist(), digits.read([0]).images[0, 0, 1].tolist()
        (1797, (1, 8, 8), [0, 1, 2, 3, 4], [0, 0, 207, 239, 159, 239, 80, 0])
    """
    check_name(name)
    if channels not in (None, 1, 3):
        raise UserError(f"data.channels must be 1, 3 or null, got {channels}")
    if in_memory not in ("auto", True, False):
        raise UserError(f'data.in_memory must be "auto", true or false, got {in_memory!r}')
    if name == "digits":
        splits: Splits = {"train": _digits()}
    else:
        if root is None:
            raise UserError(f"{name} needs data.root, the folder that holds it")
        folder = Path(root).expanduser()
        if download:
            fetch(name, folder)
        if name in ("cifar10", "cifar100"):
            splits = _cifar(name, folder)
        elif name == "stl10":
            splits = _stl10(folder, in_memory)
        else:
            read = _tinyimagenet if name == "tinyimagenet" else _imagefolder
            splits = {
                split: _perhaps_in_memory(
                    FileStore(paths, labels, classes, channels=channels or 3, on_bad_image=on_bad_image, where=where),
                    in_memory,
                )
                for split, (paths, labels, classes, where) in read(folder).items()
            }
    if channels is not None:
        splits = {split: _with_channels(store, channels) for split, store in splits.items()}
    return splits


def check_name(name: str) -> None:
    """Raise UserError, with the nearest name, unless this is one that `load` knows.

    Example:
        >>> check_name("cifar-10")
        Traceback (most recent call last):
        sslinfo.errors.UserError: data.dataset: unknown name 'cifar-10', did you mean 'cifar10'?
        Known: digits, cifar10, cifar100, stl10, tinyimagenet, imagefolder, or any map-style dataset class
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise UserError(
            f"data.dataset: unknown name {name!r}{hint} Known: {', '.join(NAMES)}, or any map-style dataset class"
        )


def is_class_path(name: str) -> bool:
    """Whether a data set's name is a dotted path to a class, `module.Class`.

    Example:
        >>> is_class_path("my_module.MyDataset"), is_class_path("cifar-10.1"), is_class_path("cifar10")
        (True, False, False)
    """
    # No wider than what a checkpoint is kept from naming (see sslinfo.cli.checkpoints).
    return re.fullmatch(r"\w+(\.\w+)+", name) is not None and all(part.isidentifier() for part in name.split("."))


def from_class_path(path: str) -> Any:
    """A data set of the class at `module.Class`, made without arguments; any class with a length and items will do.

    Raises:
        UserError: there is no such module or class, the module's import fails, the class is no map-style data set, or
            it needs arguments.

    Example:
        >>> from_class_path("sslinfo.data.View")
        Traceback (most recent call last):
        sslinfo.errors.UserError: data.dataset=sslinfo.data.View is no class with __len__ and __getitem__
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # A module of the user's can raise anything.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"data.dataset={path}: there is no module {missing!r}: check the name, and that it is installed or a "
                f"file of the folder you start from ({os.getcwd()})"
            ) from error
        # Not Python's own words for a missing module: the command line takes those for a module that the user named.
        reason = f"it needs {missing!r}, which is not installed" if missing else f"{type(error).__name__}: {error}"
        raise UserError(f"data.dataset={path}: importing {module_name} fails: {reason}") from error
    kind = getattr(module, name, None)
    if kind is None:
        own = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        has = f"its classes are {', '.join(own)}" if own else "it has no classes of its own"
        raise UserError(f"data.dataset={path}: the module {module_name} has no {name!r}; {has}")
    if not isinstance(kind, type) or not hasattr(kind, "__len__") or not hasattr(kind, "__getitem__"):
        raise UserError(f"data.dataset={path} is no class with __len__ and __getitem__")
    required = _required_arguments(kind)
    if required:
        base = "" if issubclass(kind, Dataset) else ", once it inherits torch.utils.data.Dataset"
        raise UserError(
            f"data.dataset={path} needs arguments ({', '.join(required)}): give them defaults, or say "
            f"--data.dataset {path} {' '.join(f'--data.dataset.init_args.{n} ...' for n in required)}{base}"
        )
    return kind()


def _required_arguments(kind: type) -> list[str]:
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:
        return []  # a class written in C
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def fetch(name: str, root: str | Path) -> None:
    """Download what is missing of a data set into `root`, where torchvision knows how; else do nothing.

    Raises:
        UserError: where the download fails.
    """
    if name not in _ORIGINALS:
        return
    kind = _ORIGINALS[name]
    folder = _locate(Path(root).expanduser(), kind.base_folder)
    if all((folder / file).is_file() for file in _files_of(kind)):
        return
    try:
        download_and_extract_archive(kind.url, str(folder.parent), filename=kind.filename, md5=kind.tgz_md5)
    except (OSError, RuntimeError) as error:
        by_hand = f"check the connection, or put {kind.filename} into {folder.parent} by hand"
        raise UserError(f"{name} cannot be downloaded from {kind.url} ({error}): {by_hand}") from error


def _digits() -> ImageStore:
    digits = load_digits()
    pixels = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    return MemoryStore(pixels[:, None], labels, [str(digit) for digit in range(10)], "digits")


def _cifar(name: str, root: Path) -> Splits:
    # Read here and not by torchvision's classes: those refuse every file but the original ones by checksum, also small
    # generated ones of the same layout, and unpickle whatever a file asks for.
    kind = _ORIGINALS[name]
    folder = _present(root, kind)
    meta = folder / kind.meta["filename"]
    classes = [str(c) for c in _entry(_unpickled(meta), kind.meta["key"], meta)]
    splits: Splits = {}
    for split, files in (("train", kind.train_list), ("test", kind.test_list)):
        images, labels = [], []
        for path in (folder / file for file, _ in files):
            content = _unpickled(path)
            data = _entry(content, "data", path)
            targets = np.asarray(_entry(content, "fine_labels" if name == "cifar100" else "labels", path))
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(targets), 3072):
                raise UserError(f"{path} does not hold uint8 rows of 3072 pixels, one for each label: {_REPLACE}")
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
            raise UserError(f"{path} cannot be unpickled ({error}): {_REPLACE}") from error


def _entry(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{path} holds no {key!r}: {_REPLACE}")
    return content[key]


def _stl10(root: Path, in_memory: InMemory) -> Splits:
    folder = _present(root, STL10)
    classes = (folder / STL10.class_names_file).read_text().split()
    splits: Splits = {}
    for split, stem in (("train", "train"), ("test", "test"), ("unlabelled", "unlabeled")):
        path = folder / f"{stem}_X.bin"
        size = path.stat().st_size
        if size == 0 or size % (3 * 96 * 96):
            raise UserError(f"{path} has {size} bytes, which is no whole number of 3 x 96 x 96 images: {_REPLACE}")
        # Mapped, not read; the files keep columns before rows.
        images = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(-1, 3, 96, 96).mT
        if in_memory is True or (in_memory == "auto" and size <= MEMORY_LIMIT):
            images = images.contiguous()
        labels = None
        if split != "unlabelled":
            labels = torch.from_numpy(np.fromfile(folder / f"{stem}_y.bin", dtype=np.uint8).astype(np.int64)) - 1
        splits[split] = MemoryStore(images, labels, classes, f"stl10 {split}")
    return splits


class _Found(NamedTuple):
    paths: list[str]
    labels: Tensor
    classes: list[str] | None
    where: str


def _tinyimagenet(root: Path) -> dict[str, _Found]:
    folder = _locate(root, "tiny-imagenet-200")
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
    return {
        "train": train._replace(classes=classes),
        "val": _Found(paths, torch.tensor(labels), classes, str(folder / "val")),
    }


def _imagefolder(root: Path) -> dict[str, _Found]:
    if not root.is_dir():
        raise MissingData(f"{root} is no folder: check data.root")
    splits = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if not splits:
        return {"train": _scanned(root)}
    if "train" not in splits:
        raise MissingData(f"{root / 'train'} is missing beside {splits[0]}/, and the classes are taken from it")
    found = {split: _scanned(root / split) for split in splits}
    known = found["train"].classes or []
    for split, held_out in found.items():
        if held_out.classes is None:
            continue
        extra = sorted(set(held_out.classes) - set(known))
        if extra:
            raise UserError(f"{root / split / extra[0]} is a class that {root / 'train'} lacks: add or remove it")
        # The labels of a split that has some of the classes only are those of train/.
        position = torch.tensor([known.index(c) for c in held_out.classes])
        found[split] = held_out._replace(labels=position[held_out.labels], classes=known)
    return found


def _scanned(folder: Path) -> _Found:
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
        return _Found(direct, torch.full((len(direct),), -1), None, str(folder))
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
    return _Found(list(chain.from_iterable(by_class.values())), labels, list(by_class), str(folder))


def _images_below(folder: Path) -> list[str]:
    """Image files at any depth, hidden ones left out, in the order in which torchvision's ImageFolder has them."""
    paths: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths.extend(os.path.join(place, name) for name in files if _is_image(name) and not name.startswith("."))
    return sorted(paths, key=os.path.split)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def _locate(root: Path, base: str) -> Path:
    """The folder `base`, where root may be that folder or hold it."""
    return root if root.name == base and not (root / base).is_dir() else root / base


def _files_of(kind: Any) -> list[str]:
    names = [file for file, _ in kind.train_list + kind.test_list]
    return [*names, kind.class_names_file if kind is STL10 else kind.meta["filename"]]


def _present(root: Path, kind: Any) -> Path:
    folder = _locate(root, kind.base_folder)
    for name in _files_of(kind):
        if not (folder / name).is_file():
            raise MissingData(f"{folder / name} is missing: check data.root, or set data.download: true")
    return folder


def _perhaps_in_memory(store: FileStore, in_memory: InMemory) -> ImageStore:
    if in_memory is not False:
        decoded = store.to_memory(limit=None if in_memory is True else MEMORY_LIMIT)
        if isinstance(decoded, MemoryStore):
            return decoded
        if in_memory is True:
            raise UserError(f"the images of {store.where} are not all of one size: set data.in_memory: false")
    # Asked for here, so that the headers are read once and not by every worker process.
    _ = store.shape
    return store


def _with_channels(store: ImageStore, channels: int) -> ImageStore:
    if store.channels == channels or not isinstance(store, MemoryStore):
        return store
    images = torch.cat([match_channels(part, channels) for part in store.images.split(4096)])
    return MemoryStore(images, store.labels, store.classes, store.where)
