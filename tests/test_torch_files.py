"""What is said of files that are no whole file of torch.save, and that none of them runs code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sslinfo.torch_files import UnreadableError, read_torch_file


class Runs:
    """An object whose unpickling makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def said(path: str | Path) -> str:
    with pytest.raises(UnreadableError) as error:
        read_torch_file(path)
    text = str(error.value)
    # Torch's own advice is to run what the file says.
    assert text.strip()
    assert "weights_only" not in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("in_zip", [True, False])
def test_tensors_and_numbers_are_read(in_tmp: Path, in_zip: bool) -> None:
    content = {"w": torch.arange(5.0), "n": [1, "a", None]}
    torch.save(content, "a.pt", _use_new_zipfile_serialization=in_zip)
    found = read_torch_file("a.pt")
    assert found["w"].tolist() == [0, 1, 2, 3, 4]
    assert found["n"] == [1, "a", None]


@pytest.mark.parametrize("in_zip", [True, False])
def test_what_would_run_is_refused_with_a_way_out(in_tmp: Path, in_zip: bool) -> None:
    torch.save({"state_dict": {}, "more": Runs()}, "a.pt", _use_new_zipfile_serialization=in_zip)
    text = said("a.pt")
    assert f"it would use {os.mkdir.__module__}.mkdir while it is read" in text
    assert "torch.save(model.state_dict(), 'weights.pt')" in text
    assert "--model.weights" in text
    assert not Path("ran").exists()


def test_a_bare_pickle_and_a_program_are_refused_with_the_same_way_out(in_tmp: Path) -> None:
    Path("bare.pt").write_bytes(pickle.dumps(Runs()))
    torch.jit.script(torch.nn.Linear(2, 2)).save("program.pt")  # type: ignore[no-untyped-call]
    for name in ("bare.pt", "program.pt"):
        assert "torch.save(model.state_dict(), 'weights.pt')" in said(name)
    assert not Path("ran").exists()


@pytest.mark.parametrize("in_zip", [True, False])
def test_a_file_that_ends_early_is_found_at_every_length(in_tmp: Path, in_zip: bool) -> None:
    torch.save({"w": torch.randn(1000), "step": 3}, "whole.pt", _use_new_zipfile_serialization=in_zip)
    whole = Path("whole.pt").read_bytes()
    for length in {1, 3, 4, 14, 30, 100, 1000, len(whole) // 2, len(whole) - 200, len(whole) - 22, len(whole) - 1}:
        Path("part.pt").write_bytes(whole[:length])
        assert "early" in said("part.pt") or "EOF" in said("part.pt")
    Path("part.pt").write_bytes(b"")
    assert said("part.pt") == "it is empty"


def test_a_byte_that_changed_is_found(in_tmp: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, "whole.pt")
    damaged = bytearray(Path("whole.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    Path("damaged.pt").write_bytes(damaged)
    # torch.load takes it: the tensor is another one.
    assert torch.load("damaged.pt", weights_only=True)["w"].abs().sum() > 0
    assert "it is damaged: whole/data/0" in said("damaged.pt")


def test_what_is_no_file_of_torch(in_tmp: Path) -> None:
    Path("text.pt").write_text("state_dict: 3\n" * 100)
    Path("folder.pt").mkdir()
    Path("link.pt").symlink_to("gone.pt")
    os.mkfifo("pipe.pt")
    with zipfile.ZipFile("other.pt", "w") as file:
        file.writestr("a.txt", "hello")
    expected = {
        "text.pt": "it was not written by torch.save",
        "folder.pt": "it is a folder",
        "link.pt": "it is a link to gone.pt, which is not there",
        "pipe.pt": "it is no ordinary file",
        "other.pt": "it is a zip file of something else",
        "none.pt": "there is no such file",
    }
    assert {name: said(name) for name in expected} == expected


def test_the_system_s_reason_is_given(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, "a.pt")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert said("a.pt") == "Permission denied"
