"""Data sets that torchvision knows by an archive and the files in it: finding these, and downloading what is missing.

torchvision's classes say what the files are called. They do not read them: they refuse every file but the original ones
by checksum, also small generated ones of the same layout, and unpickle whatever a file asks for.
"""

from pathlib import Path
from typing import Any

from torchvision.datasets import STL10
from torchvision.datasets.utils import download_and_extract_archive

from sslinfo.data.readers.base import MissingData, locate
from sslinfo.errors import UserError

REPLACE = "remove it and set data.download: true, or put a whole copy in its place"


def present(kind: Any, root: Path) -> Path:
    """The folder of a data set that torchvision's class `kind` names the files of.

    Raises:
        MissingData: where one of the files is missing.
    """
    folder = locate(root, kind.base_folder)
    for name in _files_of(kind):
        if not (folder / name).is_file():
            raise MissingData(f"{folder / name} is missing: check data.root, or set data.download: true")
    return folder


def download(kind: Any, root: Path) -> None:
    """Fetch and unpack the archive of torchvision's class `kind` into `root`, unless all its files are there.

    Raises:
        UserError: where that fails.
    """
    folder = locate(root, kind.base_folder)
    if all((folder / file).is_file() for file in _files_of(kind)):
        return
    try:
        download_and_extract_archive(kind.url, str(folder.parent), filename=kind.filename, md5=kind.tgz_md5)
    except (OSError, RuntimeError) as error:
        by_hand = f"check the connection, or put {kind.filename} into {folder.parent} by hand"
        raise UserError(f"{kind.__name__} cannot be downloaded from {kind.url} ({error}): {by_hand}") from error


def _files_of(kind: Any) -> list[str]:
    names = [file for file, _ in kind.train_list + kind.test_list]
    return [*names, kind.class_names_file if kind is STL10 else kind.meta["filename"]]
