"""The list of make's targets, messages of a set-up that fails, and what `make test-lowest` installs and runs."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PYPROJECT)["project"]
REQUIREMENTS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]


def make(*args: str) -> subprocess.CompletedProcess[str]:
    # Free of a `make test` that runs these tests.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *args], cwd=ROOT, env=environment, text=True, capture_output=True)


def program(path: Path, shell: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{shell}\n")
    path.chmod(0o755)


def test_without_a_target_it_lists_them() -> None:
    lines = make().stdout.splitlines()
    described = {line.split()[1] for line in lines if len(line.split()) > 2}
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert described == set(phony[1].split()) - {"compare-root"}
    assert len(lines) == len(described)


def test_an_old_python_is_named(tmp_path: Path) -> None:
    # Fails, as any Python before 3.11 does, when it is asked whether it is new enough, and says which it is.
    program(tmp_path / "old", 'test "$1" = --version && echo Python 3.9.2')
    for python, said in ((tmp_path / "old", "says: Python 3.9.2"), (tmp_path / "none", "none: ")):
        made = make("run", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
        assert made.returncode != 0
        assert "sslinfo needs Python 3.11 or newer" in made.stderr
        assert said in made.stderr
        assert "make run PYTHON=" in made.stderr
        assert not (tmp_path / "venv").exists()


def test_a_failed_installation_says_the_way_out(tmp_path: Path) -> None:
    program(tmp_path / "bin/python", "echo ERROR: No matching distribution found >&2; exit 1")
    made = make("run", f"VENV={tmp_path}")
    assert made.returncode != 0
    (said,) = made.stdout.splitlines()
    assert "Installing torch" in said
    error = made.stderr.splitlines()
    assert error[0] == "ERROR: No matching distribution found"
    assert "its reason stands above" in error[1]
    assert any("PIP_INDEX_URL" in line and line.endswith("make run again.") for line in error)
    assert not (tmp_path / ".installed").exists()


def test_an_installed_environment_is_used_without_a_word(tmp_path: Path) -> None:
    for name in ("python", "sslinfo"):
        program(tmp_path / "bin" / name, "exit 0")
    first = make("run", f"VENV={tmp_path}").stdout.splitlines()
    assert "Installing torch" in first[0]
    assert [line.split()[:2] for line in first[1:]] == [[f"{tmp_path}/bin/sslinfo", "fit"]]
    again = make("run", f"VENV={tmp_path}")
    assert (again.stdout.splitlines(), again.stderr) == (first[1:], "")


def test_every_requirement_has_its_bound_and_the_reason_on_its_line() -> None:
    for requirement in REQUIREMENTS:
        assert re.search(rf'^    "{re.escape(requirement)}",  # .+$', PYPROJECT, re.MULTILINE), requirement


def lowest(tmp_path: Path) -> list[str]:
    """The commands of `make test-lowest` where nothing is installed."""
    return make("-n", "test-lowest", f"LOWEST={tmp_path / 'none'}").stdout.splitlines()


def test_the_constraints_are_the_lower_bounds(tmp_path: Path) -> None:
    (command,) = [line for line in lowest(tmp_path) if line.startswith("sed")]
    found = subprocess.run(
        ["sh", "-c", command.partition(" > ")[0]], cwd=ROOT, text=True, capture_output=True, check=True
    )
    bounds = [requirement.split(">=") for requirement in REQUIREMENTS]
    assert found.stdout.splitlines() == [f"{name.split('[')[0]}=={bound.split(',')[0]}" for name, bound in bounds]
    assert "torch==2.11" in found.stdout.splitlines()


def test_the_smoke_set_exists(tmp_path: Path) -> None:
    """A test that was moved is noticed here, not first in three minutes of `make test-lowest`."""
    (command,) = [line for line in lowest(tmp_path) if "/bin/pytest" in line]
    names = [word for word in command.split()[1:] if not word.startswith("-")]
    assert len(names) >= 10
    for name in names:
        file, _, test = name.partition("::")
        assert (ROOT / file).exists(), name
        assert not test or f"def {test}(" in (ROOT / file).read_text()
