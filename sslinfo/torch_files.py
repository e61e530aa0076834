"""Files of torch.save, read as data: whole, checked, and unable to run code."""

from __future__ import annotations

import os
import pickle
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import torch

from sslinfo.errors import UserError

_ZIP = b"PK\x03\x04"
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch's magic number, of releases before 1.6
_TRUSTED = (
    "sslinfo reads numbers and text alone. If you trust the file, write its weights anew with the program that made "
    "it, torch.save(model.state_dict(), 'weights.pt'), and give that file to --model.weights"
)


class UnreadableError(UserError):
    """Says in a few words why a file cannot be read, without its name."""


def read_torch_file(path: str | Path, mapped: bool = True) -> Any:
    """What a file holds: tensors on the CPU, numbers, text, lists and dicts.

    Of a file in torch's present form every byte is checked against its sum, which takes about 0.3 s for a gigabyte.

    Args:
        path: the file.
        mapped: tensors are read from the disk when somebody looks at them, as long as the file is there.

    Raises:
        UnreadableError: it is missing, broken off, damaged, no file of torch, or holds more than data.

    >>> read_torch_file("no_such.ckpt")
    Traceback (most recent call last):
    sslinfo.torch_files.UnreadableError: there is no such file
    """
    try:
        beginning = _beginning(Path(path))
        if beginning.startswith(_ZIP):
            _check_zip(path)
        elif not beginning.startswith(_BEFORE_ZIP):
            raise UnreadableError(_foreign(beginning))
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and beginning.startswith(_ZIP))
    except UnreadableError:
        raise
    except pickle.UnpicklingError as error:
        raise UnreadableError(_refused(str(error))) from error
    except OSError as error:
        raise UnreadableError(error.strerror or type(error).__name__) from error
    except Exception as error:
        said = str(error).partition("\n")[0]
        if "TorchScript" in said:
            said = f"it is a program of TorchScript. {_TRUSTED}"
        elif not isinstance(error, RuntimeError):  # of bytes that are no pickle: a KeyError of an opcode, ...
            said = f"it is damaged, or ends early ({type(error).__name__})"
        raise UnreadableError(said) from error


def _beginning(path: Path) -> bytes:
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError as error:
        said = (
            f"it is a link to {os.readlink(path)}, which is not there" if path.is_symlink() else "there is no such file"
        )
        raise UnreadableError(said) from error
    if stat.S_ISDIR(kind):
        raise UnreadableError("it is a folder")
    if not stat.S_ISREG(kind):
        raise UnreadableError("it is no ordinary file")  # to open a pipe would wait for its writer
    with path.open("rb") as file:
        return file.read(len(_BEFORE_ZIP))


def _check_zip(path: str | Path) -> None:
    if not zipfile.is_zipfile(path):
        raise UnreadableError("it ends early, as a file does whose writing was broken off")
    try:
        with zipfile.ZipFile(path) as file:
            # torch.load would look at no sum
            damaged = file.testzip()
            known = any(name.endswith("data.pkl") for name in file.namelist())
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise UnreadableError(f"it is damaged: {error}") from error
    if damaged is not None:
        raise UnreadableError(f"it is damaged: {damaged} in it does not have the sum that was written with it")
    if not known:
        raise UnreadableError("it is a zip file of something else")


def _foreign(beginning: bytes) -> str:
    if not beginning:
        return "it is empty"
    if _ZIP.startswith(beginning) or _BEFORE_ZIP.startswith(beginning):
        return "it ends early, as a file does whose writing was broken off"
    if beginning.startswith(b"\x80"):
        return f"it is a bare pickle, which could run code. {_TRUSTED}"
    return "it was not written by torch.save"


def _refused(message: str) -> str:
    """Torch's message without its advice to run what the file says."""
    if found := re.search(r"(?:GLOBAL|global|function|class) ([\w.]+\.\w+)", message):
        return f"it would use {found[1]} while it is read, which could run code. {_TRUSTED}"
    if "EOF" in message or "truncated" in message:
        return "it ends early"
    return f"it holds what is no data, which could run code, or it is damaged. {_TRUSTED}"
