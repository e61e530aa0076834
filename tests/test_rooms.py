"""The rooms of the package: no arrow runs from a lower one to a higher one, and what is light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sslinfo"
# From the ground up. A file at the root of the package is a room of its own.
FLOORS = (
    "errors",
    "torch_files",
    "ranges",
    "precision",
    "distributed",
    "recipes",
    "information",
    "lightning_compat",
    "outputs",
    "hyperparameters",
    "stored",
    "optim",
    "models",
    "data",
    "objectives",
    "evaluation",
    "reporting",
    "callbacks",
    "experiments",
    "cli",
    "__main__",
)


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in PACKAGE.rglob("*.py")}


def imports(module: str) -> set[str]:
    """Modules of the package that one of them imports, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            base = node.module or ""
            # `from package import module` and `from module import name` look alike.
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names}
    return {name for name in found if name.split(".")[0] == "sslinfo"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "sslinfo"


GRAPH = {module: imports(module) for module in FILES}


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in FILES} - {"sslinfo"} == set(FLOORS)
    assert {name for targets in GRAPH.values() for name in targets} <= set(FILES)


def test_no_arrow_runs_upwards() -> None:
    floor = {name: number for number, name in enumerate(FLOORS)}
    up = [
        f"{module} -> {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if room(module) != "sslinfo" != room(target) and floor[room(target)] > floor[room(module)]
    ]
    assert up == []


def test_no_circle_between_files() -> None:
    """A package's own __init__, which imports what it exports, is no part of a circle: nobody below asks it back."""
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, f"circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module in state:
            return
        state[module] = 1
        for target in GRAPH[module]:
            visit(target, (*path, module))
        state[module] = 2

    for module in GRAPH:
        visit(module, ())


def test_information_imports_torch_alone() -> None:
    allowed = {"torch", "sslinfo", *sys.stdlib_module_names}
    for module, file in FILES.items():
        if room(module) != "information":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, module
            ours = {room(name) for name in names if name.startswith("sslinfo.")}
            assert ours <= {"information", "precision", "errors"}, module


HEAVY = ("lightning", "matplotlib", "sklearn", "timm", "torchvision", "torchmetrics", "tensorboard")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import sslinfo", (*HEAVY, "torch")),
        ("import sslinfo.information", HEAVY),
        ("import sslinfo; sslinfo.report", HEAVY),
        ("from sslinfo.__main__ import console; console(['--help'])", (*HEAVY, "torch")),
        ("from sslinfo.__main__ import console; console([])", (*HEAVY, "torch")),
        ("from sslinfo.__main__ import console; console(['--version'])", (*HEAVY, "torch")),
        ("from sslinfo.__main__ import console; console(['recipes'])", (*HEAVY, "torch")),
        ("from sslinfo.__main__ import console; console(['fti'])", (*HEAVY, "torch")),
    ],
)
def test_what_is_not_imported(code: str, absent: tuple[str, ...]) -> None:
    script = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\n"
        f"print('found', [name for name in {absent!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.splitlines()[-1:] == ["found []"], done.stdout + done.stderr
