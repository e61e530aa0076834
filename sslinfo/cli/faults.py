"""What is said of an exception that nobody wrote for the eyes of a user, and where its traceback is kept."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from sslinfo.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
_START = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s*File "(.+)", line (\d+)', re.MULTILINE)
_LIBRARIES = tuple(
    os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
# What Lightning raises itself for arguments that do not fit each other or the machine.
_OF_ARGUMENTS = (ValueError, TypeError, RuntimeError, ImportError)


@dataclass(frozen=True)
class Fault:
    """An exception as the command line tells it.

    Attributes:
        message: what is wrong, and where.
        of_user: whether the user can mend it: an argument, a file, a class of his own.
        understood: whether the message says all: a traceback would add nothing.
    """

    message: str
    of_user: bool
    understood: bool


def told(error: BaseException, of_user: bool = False) -> Fault:
    """An exception in words; what a worker process raised, with its own message and place.

    Args:
        error: the exception, as it was caught.
        of_user: whether it is known to come from what the user gave, as everything does while his classes are made.

    >>> told(UserError("batch_size=0 must be at least 1"))
    Fault(message='batch_size=0 must be at least 1', of_user=True, understood=True)
    >>> told(PermissionError(13, "Permission denied", "a.png")).message
    "Permission denied: 'a.png'"
    >>> told(KeyError("views")).message
    "unexpected: KeyError: 'views': a fault of sslinfo or of a library below it"
    """
    chain = _chain(error)
    for link in chain:
        name, said, _ = _read(link)
        if isinstance(link, UserError) or name in ("UserError", "MisconfigurationException"):
            return Fault(said, True, True)
    for link in reversed(chain):
        name, said, places = _read(link)
        if place := _of_user(places):
            return Fault(f"{place}: {name}: {said}", True, False)
    name, said, places = _read(error)
    if isinstance(error, OSError):
        return Fault(re.sub(r"^\[Errno -?\d+\] ", "", said) or name, True, True)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(r"can't allocate memory|bad_alloc", said):
        first = said.strip().partition("\n")[0]
        return Fault(
            f"there is not enough memory: lower data.batch_size or the sizes of the model ({first})", True, True
        )
    if places and _is_lightning(places[-1][0]) and isinstance(error, _OF_ARGUMENTS):
        return Fault(said, True, True)
    if of_user:
        ours = isinstance(error, ValueError) and isinstance(chain[-1], ValueError)
        return Fault(said if isinstance(error, ValueError) else f"{name}: {said}", True, ours)
    return Fault(f"unexpected: {name}: {said}: a fault of sslinfo or of a library below it", False, False)


def _is_lightning(file: str) -> bool:
    return f"{os.sep}lightning{os.sep}" in file


def _chain(error: BaseException) -> list[BaseException]:
    """An exception, what it was made of, and so on."""
    chain = [error]
    while (
        below := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__)
    ) is not None:
        if below in chain:
            break
        chain.append(below)
    return chain


def _read(error: BaseException) -> tuple[str, str, list[tuple[str, int]]]:
    """Name and message of an exception, and the files and lines that it passed through, the innermost last."""
    said, name = str(error), type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno or 0) for frame in frames]
    if isinstance(error, NotImplementedError) and not said and frames:
        said = f"{frames[-1].name} is for a class of your own to define"
    if isinstance(error, SyntaxError) and error.filename:
        return name, error.msg, [*places, (error.filename, error.lineno or 0)]
    if _START in said:  # torch writes the traceback of another process into the message
        text = said.rpartition(_START)[2]
        places += [(file, int(line)) for file, line in _FRAME.findall(text)]
        end = re.search(r"^\S.*", text.lstrip("\n"), re.MULTILINE | re.DOTALL)
        dotted, _, said = (end[0] if end else text).strip().partition(": ")
        name = dotted.rpartition(".")[2]
    return name, re.sub(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>", r"\1", said), places


def _of_user(places: list[tuple[str, int]]) -> str | None:
    """The innermost place in a file of the user's own."""
    for file, line in reversed(places):
        path = os.path.realpath(file)
        if os.path.isfile(path) and not path.startswith((*_LIBRARIES, str(PACKAGE))):
            return f"{os.path.relpath(path) if path.startswith(os.getcwd()) else path}, line {line}"
    return None


def keep_traceback(error: BaseException, folder: Path) -> Path | None:
    """Write an exception's traceback into a folder; None where that cannot be done."""
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    file = folder / ("traceback.txt" if rank == "0" else f"traceback_rank{rank}.txt")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return file
