"""A checkpoint is there whole or as it was before, whatever ends its writing."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslinfo.errors import UserError
from sslinfo.lightning_compat.storage import AtomicCheckpointIO

BEFORE, AFTER = ({"state_dict": {"w": torch.full((50_000,), value)}} for value in (1.0, 2.0))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(BEFORE, path)
    return path


def holds(path: Path) -> float:
    return float(AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["w"][-1])


def in_a_child(work: Callable[[], None]) -> int:
    """Exit code of a process that does this; negative where a signal ended it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except UserError as error:
            os.write(2, str(error).encode())
            code = 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_kill_in_the_middle_of_the_writing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(checkpoint: Any, to: Any) -> None:
        to.write(b"PK half of a file")
        to.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torch, "save", half)
    assert in_a_child(lambda: AtomicCheckpointIO().save_checkpoint(AFTER, file)) == -signal.SIGKILL
    monkeypatch.undo()
    left = [path.name for path in file.parent.iterdir() if path != file]
    assert len(left) == 1
    assert not left[0].endswith(".ckpt")
    assert holds(file) == 1.0  # reading removes what the killed process left
    assert list(file.parent.iterdir()) == [file]


def test_the_file_of_a_process_that_still_writes_stays(file: Path) -> None:
    others = file.with_name(f".last.ckpt.{socket.gethostname()}.{os.getppid()}.writing")
    elsewhere = file.with_name(".last.ckpt.another-machine.1.writing")
    for path in (others, elsewhere):
        path.write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(AFTER, file)
    assert holds(file) == 2.0
    assert {path.name for path in file.parent.iterdir()} == {file.name, others.name, elsewhere.name}


def test_a_full_disk(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def save_on_a_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # of the 200 kB that it takes
        AtomicCheckpointIO().save_checkpoint(AFTER, file)

    assert in_a_child(save_on_a_full_disk) == 2
    said = capfd.readouterr().err
    assert f"{file} could not be written (the disk is full): {file} of before stays as it was" in said
    assert list(file.parent.iterdir()) == [file]
    assert holds(file) == 1.0


def test_a_link_that_leads_nowhere_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "last.ckpt"
    link.symlink_to("gone.ckpt")
    AtomicCheckpointIO().save_checkpoint(AFTER, link)
    assert holds(link) == 2.0
    assert not (tmp_path / "gone.ckpt").exists()


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(UserError, match=r"last\.ckpt could not be written \(Is a directory"):
        AtomicCheckpointIO().save_checkpoint(AFTER, tmp_path / "last.ckpt")


class Harmful:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("harm",))


def test_a_file_that_would_run_code_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "harm": Harmful()}, "bad.ckpt")
    with pytest.raises(
        UserError, match=r"bad\.ckpt cannot be read as a checkpoint: it would use .*mkdir.*--model\.weights"
    ):
        AtomicCheckpointIO().load_checkpoint("bad.ckpt")
    assert not Path("harm").exists()
