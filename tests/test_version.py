"""The version is one: what the package says, what the command line prints, and the newest heading of the changelog."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

import sslinfo
from sslinfo.__main__ import console

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def test_metadata_command_line_and_changelog_agree(capsys: pytest.CaptureFixture[str]) -> None:
    newest = re.search(r"^## (\S+)", CHANGELOG.read_text(), re.MULTILINE)
    assert newest is not None
    with pytest.raises(SystemExit) as stopped:
        console(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"sslinfo {newest[1]}\n"
    assert version("sslinfo") == newest[1]
    assert sslinfo.__version__ == newest[1]
