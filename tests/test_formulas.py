"""docs/formulas.md: every formula leads to the function that computes it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from sslinfo import information, objectives

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "formulas.md").read_text()
LINKS = sorted(set(re.findall(r"\[`(sslinfo\.[\w.]+)`\]\((.*?)\)", PAGE)))
ROWS = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line and "| formula |" not in line]


def resolve(path: str) -> Any:
    """What the name means to ``import``: an attribute of a package where there is one, else its submodule."""
    name, *parts = path.split(".")
    found: Any = importlib.import_module(name)
    for part in parts:
        name = f"{name}.{part}"
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(name)
    return found


@pytest.mark.parametrize(("path", "link"), LINKS, ids=[path for path, _ in LINKS])
def test_the_name_is_a_function_of_the_file_that_its_link_opens(path: str, link: str) -> None:
    found = inspect.unwrap(resolve(path))
    assert inspect.isfunction(found) or inspect.isclass(found)
    source = inspect.getsourcefile(found)
    assert source is not None
    opened = (ROOT / "docs" / link).resolve()
    assert opened == Path(source).resolve()
    assert re.search(rf"^ *(def|class) {path.split('.')[-1]}\b", opened.read_text(), re.M)
    assert found.__doc__


def test_every_row_has_a_formula_and_a_function() -> None:
    assert len(ROWS) >= 45
    for row in ROWS:
        cells = re.split(r"(?<!\\)\|", row)
        assert len(cells) == 5, row
        assert cells[1].strip(), row
        assert cells[2].strip(), row
        assert re.search(r"\[`sslinfo\.", cells[3]), row


def test_every_loss_and_every_estimator_of_the_paper_is_there() -> None:
    named = {inspect.unwrap(resolve(path)) for path, _ in LINKS}
    functions = [getattr(information, name) for name in information.__all__]
    of_paper = {f for f in functions if inspect.isfunction(f) and "arXiv:2303.00633" in (f.__doc__ or "")}
    losses = {getattr(objectives, name) for name in objectives.__all__ if name.endswith("_loss")}
    assert len(of_paper) >= 8
    assert len(losses) >= 9
    missing = {inspect.unwrap(f) for f in of_paper | losses} - named
    assert not missing


def test_every_paper_of_an_objective_is_there() -> None:
    papers = set()
    for name in objectives.__all__:
        module = inspect.getmodule(getattr(objectives, name))
        papers |= set(re.findall(r"arXiv:\d+\.\d+", inspect.getsource(module))) if module else set()
    assert len(papers) >= 12
    assert not papers - set(re.findall(r"arXiv:\d+\.\d+", PAGE))
