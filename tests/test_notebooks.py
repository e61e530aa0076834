"""Every notebook runs from any folder without network or files, and its stored prose says what its cells printed."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 300  # of one cell: all of a notebook takes 45 on one quiet thread
MOST_BYTES = 150_000  # of one figure
# Homes, temporary folders and installed packages; a path of the notebook's own would be relative.
PATHS = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp|private|var|opt|usr|mnt|work|workspace)/|site-packages|[A-Z]:\\")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_of(path: Path) -> Iterator[str]:
    return (cell.source for cell in read(path).cells if cell.cell_type == "code")


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def figures(notebook: Any) -> list[bytes]:
    stored = [output.get("data", {}).get("image/png") for output in outputs(notebook)]
    return [base64.b64decode(picture) for picture in stored if picture]


def printed(notebook: Any) -> str:
    """All text that the cells put out."""
    texts = [output.text if output.output_type == "stream" else "" for output in outputs(notebook)]
    return "\n".join([*texts, *(output.get("data", {}).get("text/plain", "") for output in outputs(notebook))])


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One kernel for all notebooks, since all import the same for longer than some of them compute."""
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment["OMP_NUM_THREADS"] = "1"
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=environment)
    yield manager
    manager.shutdown_kernel(now=True)


def as_a_new_kernel(folder: Path) -> Any:
    """A cell that takes away what an earlier notebook left: names, figures, settings, filters of warnings."""
    return nbformat.v4.new_code_cell(
        f"""
%reset -f
import os, warnings
import matplotlib, matplotlib.pyplot

os.chdir({str(folder)!r})
matplotlib.pyplot.close("all")
matplotlib.rcdefaults()
_shell = get_ipython()
_shell.filters_of_the_start = getattr(_shell, "filters_of_the_start", warnings.filters[:])
warnings.resetwarnings()
warnings.filters[:] = _shell.filters_of_the_start
del os, warnings, matplotlib, _shell
"""
    )


@pytest.mark.slow
@each
def test_it_runs(path: Path, tmp_path: Path, kernel: KernelManager) -> None:
    notebook = read(path)
    before = len(figures(notebook))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    notebook.cells.insert(0, as_a_new_kernel(tmp_path))
    client = NotebookClient(notebook, timeout=SECONDS, km=kernel)
    try:
        client.execute()
    except CellExecutionError as error:
        pytest.fail(f"{path.name}: {error}", pytrace=False)  # the cell and its traceback
    finally:
        client.kc.stop_channels()
    assert len(figures(notebook)) == before
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]


@each
def test_stored_outputs(path: Path) -> None:
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] in (list(range(1, len(code) + 1)), [None] * len(code))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    pictures = figures(notebook)
    assert pictures
    for picture in pictures:
        assert picture.startswith(b"\x89PNG")
        assert len(picture) <= MOST_BYTES
    sources = "\n".join(cell.source for cell in notebook.cells)
    found = PATHS.findall(printed(notebook) + str(dict(notebook.metadata)) + sources)
    assert not found
    assert notebook.metadata.kernelspec.name == "python3"


@each
def test_first_and_last_cell(path: Path) -> None:
    first, *_, last = read(path).cells
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "arXiv:2303.00633" in first.source
    # Lightning's import warns of what a notebook's progress bar lacks: in the first notebook of a kernel alone.
    assert 'warnings.filterwarnings("ignore", message="IProgress")' in next(code_of(path)).splitlines()
    assert last.source.startswith("## What was found\n")


@each
def test_numbers_of_the_last_cell_are_printed_ones(path: Path) -> None:
    """Each decimal number of "What was found" is printed by a cell, or stands in the text above it as given."""
    *before, last = read(path).cells
    given = "\n".join(cell.source for cell in before) + printed(read(path))
    known = set(re.findall(r"\d+\.\d+", given))
    claimed = re.findall(r"\d+\.\d+", re.sub(r"arXiv:\S+", "", last.source))
    assert [number for number in claimed if number not in known] == []
