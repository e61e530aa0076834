"""Which image files lie below a folder: every folder and every file is read once, whatever links lead to it."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torchvision.datasets.folder import IMG_EXTENSIONS

from sslinfo.data.stores.base import shown

KINDS = (*IMG_EXTENSIONS, ".gif")
_SHOWN = 5  # kinds or names that a line holds


def is_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return name.lower().endswith(KINDS)


def same_name(name: str) -> str:
    """One form of a name that can be written with composed letters and with combining ones.

    >>> same_name("e\u0301") == "\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


@dataclass
class LeftOut:
    """What was passed over in a folder."""

    kinds: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """In words, a phrase each.

        >>> LeftOut(Counter({".txt": 2, "": 1}), ["a/up"]).words()
        ['2 .txt, 1 without ending', '1 link to what is read already, or to nothing (a/up)']
        """
        said = []
        if self.kinds:
            most = self.kinds.most_common(_SHOWN)
            rest = sum(self.kinds.values()) - sum(count for _, count in most)
            counts = [f"{count} {shown(kind) or 'without ending'}" for kind, count in most]
            said.append(", ".join([*counts, f"{rest} of other kinds"] if rest else counts))
        if self.links:
            many = "s" if len(self.links) > 1 else ""
            said.append(f"{len(self.links)} link{many} to what is read already, or to nothing ({some(self.links)})")
        return said


def some(names: Iterable[str]) -> str:
    """The first names of a list, as they can be printed."""
    names = [shown(name) for name in names]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


class Walk:
    """Walks through the class folders of one folder, links after all that is really there.

    What is named like an image and is none (a pipe, a broken link, a folder without images) is among the files: whoever
    reads it finds a bad image there.

    Args:
        root: the folder.
        elsewhere: folders of other splits, into which no link is followed.

    Attributes:
        direct: image files that lie in the folder itself.
        by_class: the image files below each class folder, in the order in which torchvision's ImageFolder has them.
        left_out: what was passed over.
    """

    def __init__(self, root: str, elsewhere: Iterable[str] = ()) -> None:
        self.left_out = LeftOut()
        self._elsewhere = [os.path.realpath(folder) for folder in elsewhere]
        self._real: dict[str, str] = {}  # folders that were read, each with its path free of links
        self._file_links: list[tuple[list[str], str]] = []
        self._folder_links: list[tuple[list[str], str]] = []
        self.direct: list[str] = []
        self.by_class: dict[str, list[str]] = {}
        self._read(root)
        for files in self.by_class.values():
            files.sort(key=os.path.split)

    def _read(self, root: str) -> None:
        real = os.path.realpath(root)
        self._real[real] = root
        for entry in _entries(root):
            if is_folder(entry):
                files = self.by_class.setdefault(same_name(entry.name), [])
                if entry.is_symlink():
                    self._folder_links.append((files, entry.path))
                else:
                    self._folder(entry.path, os.path.join(real, entry.name), files)
            else:
                self._file(entry, self.direct)
        while self._folder_links:
            files, path = self._folder_links.pop(0)
            self._follow(path, files, root)
        self._take_links()
        if self.direct:
            empty = [name for name, files in self.by_class.items() if not files and is_image(name)]
            self.direct += [os.path.join(root, name) for name in empty]
        linked = {same_name(os.path.basename(path)) for path in self.left_out.links}
        self.by_class = {name: files for name, files in self.by_class.items() if files or name not in linked}

    def _folder(self, path: str, real: str, files: list[str]) -> None:
        if real in self._real:
            self.left_out.links.append(path)
            return
        self._real[real] = path
        for entry in _entries(path):
            if not is_folder(entry):
                self._file(entry, files)
            elif entry.is_symlink():
                self._folder_links.append((files, entry.path))
            else:
                before = self._count(files)
                self._folder(entry.path, os.path.join(real, entry.name), files)
                if is_image(entry.name) and self._count(files) == before:
                    files.append(entry.path)

    def _count(self, files: list[str]) -> int:
        return len(files) + len(self._folder_links) + len(self._file_links)

    def _file(self, entry: os.DirEntry[str], files: list[str]) -> None:
        if is_image(entry.name):
            if entry.is_symlink():
                self._file_links.append((files, entry.path))
            else:
                files.append(entry.path)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            self.left_out.links.append(entry.path)
        else:
            self.left_out.kinds[os.path.splitext(entry.name)[1].lower()] += 1

    def _follow(self, path: str, files: list[str], root: str) -> None:
        """Read the folder that a link leads to, unless it is read already, holds the link, or is another split's."""
        target, place = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
        in_class = os.path.dirname(path) != root
        if _within(place, target) or (in_class and any(_within(target, other) for other in self._elsewhere)):
            self.left_out.links.append(path)
        else:
            self._folder(path, target, files)

    def _take_links(self) -> None:
        """Take the links to files, but for those to a file that is there already."""
        if not self._file_links:
            return
        real_of = {path: real for real, path in self._real.items()}
        taken = set()
        for files in (self.direct, *self.by_class.values()):
            taken |= {os.path.join(real_of[os.path.dirname(f)], os.path.basename(f)) for f in files}
        for files, path in self._file_links:
            target = os.path.realpath(path)
            if target in taken:
                self.left_out.links.append(path)
            else:
                taken.add(target)
                files.append(path)


def holds_images(folder: str) -> bool:
    """Whether there is an image file below a folder; links below it are not followed."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(is_image(name) and not name.startswith(".") for name in files):
            return True
    return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads nowhere or to itself is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself
            return False
        raise


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))
