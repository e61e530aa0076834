"""Checkpoints on disk: a file is there whole or not at all, and is read as data."""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer

from sslinfo.errors import UserError
from sslinfo.torch_files import UnreadableError, read_torch_file

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and moves it into place, so that no kill and no full disk leaves half a checkpoint.

    A file is written under a name of its own (``.last.ckpt.HOST.PID.writing``), reaches the disk, and takes the name of
    the checkpoint in one step: until then the one before stays. What killed processes of this machine left is removed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.ckpt")
    >>> AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)
    >>> AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["w"]
    tensor([1., 1.])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the file cannot be written; one that was there stays.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        writing = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.writing")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_ones(path.parent)
            with open(writing, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(writing, path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # torch wraps what the system says of a file into RuntimeErrors
            cause = _system_error(error)
            writing.unlink(missing_ok=True)
            if cause is None:
                raise
            what = "the disk is full" if cause.errno in FULL else cause.strerror or str(cause)
            stays = f"{path} of before stays as it was" if path.exists() else "checkpoints of before stay as they were"
            raise UserError(f"{path} could not be written ({what}): {stays}; make room, or set dirpath") from error
        except BaseException:
            writing.unlink(missing_ok=True)
            raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint as data, on the CPU; as Lightning does where ``weights_only`` is False, or at an address.

        Raises:
            UserError: it is missing, damaged, or would run code.
        """
        if weights_only is False or "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only is not False)
        try:
            content: dict[str, Any] = read_torch_file(path, mapped=False)
        except UnreadableError as error:
            raise UserError(f"{path} cannot be read as a checkpoint: {error}") from error
        _remove_left_ones(Path(path).parent)  # the training that goes on from here writes elsewhere
        return content


def write_atomically(trainer: Trainer) -> None:
    """Let a Trainer write its checkpoints so, where it has Lightning's own way."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def _system_error(error: BaseException) -> OSError | None:
    """What the system said, through the exceptions that others have made of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _remove_left_ones(folder: Path) -> None:
    for file in folder.glob(".*.writing"):
        owner = re.fullmatch(rf"\..*\.{re.escape(socket.gethostname())}\.(\d+)\.writing", file.name)
        if owner and not _alive(int(owner[1])):
            file.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """The new name reaches the disk too, where the system can say so of folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
