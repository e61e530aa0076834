"""Recipes by name: a file of the user's or one of the package's, with what it extends below it."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sslinfo.errors import UserError

FOLDER = Path(__file__).with_name("configs")
_MOST_NODES = 10_000  # values that an alias may stand for
OVERLAYS = {  # by folder
    "": "overlays",
    "data": "overlays: data sets",
    "backbone": "overlays: backbones",
    "trainer": "overlays: trainers",
}
DESCRIPTION = """\
Recipes for -c. Where no overlay says otherwise they train a ResNet-18 on CIFAR-10.

  sslinfo fit -c vicreg_logdet                       a recipe
  sslinfo fit -c vicreg_logdet -c data/cifar100      what a later file says counts
  sslinfo fit -c my_recipe                           my_recipe.yaml in the working folder comes before a recipe of its
                                                     name; in it, `extends: vicreg` leaves only the differences to say
"""


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as the command line's parser does; a name stands once in a mapping."""

    def compose_document(self) -> yaml.Node | None:
        node = super().compose_document()
        assert node is not None
        known: dict[int, float] = {}
        if _nodes(node, known) > max(_MOST_NODES, 2 * len(known)):
            raise _wrong(node, f"its aliases stand for more than {_MOST_NODES} values, or for themselves")
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        names = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise _wrong(name, "a name is expected before the colon, not a list or a mapping")
            if name.value in names and name.value != "<<":
                raise _wrong(name, f"{name.value} stands there twice: leave one of them out")
            names.add(name.value)
        return node


def _nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node holds, those of each alias among them; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in parts for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_nodes(part, known) for part in parts)
    return known[id(node)]


def _wrong(place: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes a string that this loader would take for a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def names() -> list[str]:
    """Names of the package's files: recipes, overlays and what they share."""
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.yaml"))


@dataclass
class Recipe:
    """What ``-c`` names.

    Attributes:
        name: the file's name without its ending; None for settings that are given as they are.
        settings: its settings over those that it extends.
        folder: what relative paths in them start from.
    """

    name: str | None
    settings: dict[str, Any]
    folder: Path

    @classmethod
    def read(cls, given: str) -> Recipe:
        """Read a file of the user's, with or without its ending; else one of ``names()``; else settings as YAML.

        Raises:
            UserError: there is no such recipe, it is no YAML, or what it extends is missing or extends it in turn.

        >>> Recipe.read("vicreg_logdet").settings["model"]["init_args"]["entropy"]["class_path"]
        'LogDet'
        """
        file = None if "\n" in given else _find(given, Path(), None)
        if file is not None:
            return cls(file.stem, _of_file(file), file.parent)
        written = read_yaml(given, "-c") if re.search(r"^\s*[\[{]|\n|: ", given) else None
        if not isinstance(written, dict):
            raise UserError(f"there is no file {given!r} and no recipe of this name: {_near(given)}")
        check_form(written)
        return cls(None, _extended(written, Path(), ()), Path())


def read_yaml(text: str, origin: str) -> Any:
    """What a text of YAML says.

    Args:
        text: the text.
        origin: the file or option that it comes from, for messages.

    Raises:
        UserError: it is no YAML, a name stands twice in a mapping, or its aliases stand for too much.

    >>> read_yaml("{lr: 1e-3}", "model.optimizer")
    {'lr': 0.001}
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{origin} is no YAML: line {line}: {error.problem or error.context}") from error
    except RecursionError as error:
        raise UserError(f"{origin} is no YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{origin} is no YAML: {error}") from error


def check_form(value: Any, key: str = "") -> None:
    """See that names are words, and that what names a class has the form {class_path: NAME, init_args: {...}}.

    Raises:
        UserError: it has another form; the message names the option, ``key`` or one in it.

    >>> check_form({"entropy": {"class_path": "LogDet", "beta": 3}}, "model")
    Traceback (most recent call last):
    sslinfo.errors.UserError: model.entropy: beta stands beside class_path: options of the class stand in init_args
    """
    if isinstance(value, list):
        for entry in value:
            check_form(entry, key)
    if not isinstance(value, dict):
        return
    for name, entry in value.items():
        if not isinstance(name, str):
            where = f"{key}: " if key else ""
            raise UserError(f"{where}{name!r} stands where the name of an option is expected: write it in quotes")
        if name.endswith("+") and entry is None:
            option = f"{key}.{name}".removeprefix(".")
            raise UserError(f"{option}: null adds nothing: leave it out, or give {option[:-1]} for a list in its place")
        if name == "init_args" and not isinstance(entry, dict):
            got = "null" if entry is None else repr(entry)
            raise UserError(f"{key}: init_args holds options by name, such as {{weight: 1.0}}, got {got}")
        check_form(entry, key if name == "init_args" else f"{key}.{name}".removeprefix("."))
    if not key and not isinstance(value.get("trainer", {}), dict):
        raise UserError(f"trainer: expected options by name, such as {{max_epochs: 3}}, got {value['trainer']!r}")
    if "class_path" in value:
        path = value["class_path"]
        others = [name for name in value if name not in ("class_path", "init_args", "dict_kwargs")]
        if not isinstance(path, str):
            raise UserError(f"{key}: class_path is the name of a class, such as VICReg, got {path!r}")
        if others:
            raise UserError(
                f"{key}: {', '.join(others)} stands beside class_path: options of the class stand in init_args"
            )


def to_text(settings: dict[str, Any]) -> str:
    """Settings as YAML that ``-c`` takes."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them.

    Dicts are merged, everything else is replaced. A ``class_path`` that changes leaves nothing of the other class's
    ``init_args``. A list under ``name+`` is appended to the list ``name``.

    >>> merge({"a": {"b": 1, "c": [2]}}, {"a": {"b": 3, "c+": [4]}})
    {'a': {'b': 3, 'c': [2, 4]}}
    >>> merge({"class_path": "LogDet", "init_args": {"beta": 9}}, {"class_path": "PairDist"})
    {'class_path': 'PairDist'}
    """
    merged = dict(below)
    if "class_path" in above and _class_name(below.get("class_path", above["class_path"])) != _class_name(
        above["class_path"]
    ):
        for name in ("init_args", "dict_kwargs"):
            merged.pop(name, None)
    for name, value in above.items():
        if name.endswith("+"):
            name = name[:-1] if name[:-1] in merged else name
            merged[name] = [*_as_list(merged.get(name)), *_as_list(value)]
        else:
            merged.pop(f"{name}+", None)
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = merge(merged[name], value) if both else value
    return merged


def _class_name(path: Any) -> str:
    """LogDet of LogDet and of sslinfo.objectives.LogDet."""
    return str(path).rpartition(".")[2]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _find(name: str, folder: Path, but: Path | None) -> Path | None:
    """A file of the folder other than ``but``, else one of the package's, else None."""
    for ending in ("", ".yaml"):
        file = folder / f"{name}{ending}"
        if os.path.isfile(file) and (but is None or not file.samefile(but)):
            return file
    return FOLDER / f"{name}.yaml" if name in names() else None


def _of_file(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Settings of a file, which the files ``above`` extend, the last of them at first hand."""
    try:
        text = file.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no YAML: {error}") from error
    written = read_yaml(text, str(file))
    if not isinstance(written, dict | None):
        raise UserError(f"{file} has no settings: it should hold names with values, such as trainer: {{max_epochs: 3}}")
    try:
        check_form(written)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    ours = FOLDER.resolve() in file.resolve().parents
    return _extended(written or {}, FOLDER if ours else file.parent, (*above, file))


def _extended(written: dict[str, Any], folder: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """What is written, over what it extends; ``chain`` ends with the file where it stands."""
    file = chain[-1] if chain else None
    settings: dict[str, Any] = {}
    for name in _as_list(written.get("extends")):
        parent = _find(str(name), folder, file)
        if parent is None:
            raise UserError(f"{file or 'extends'}: there is no file or recipe {name!r} to extend: {_near(str(name))}")
        if any(parent.samefile(other) for other in chain):
            raise UserError(f"{file} extends itself: {' -> '.join(other.stem for other in (*chain, parent))}")
        settings = merge(settings, _of_file(parent, chain))
    return merge(settings, {name: value for name, value in written.items() if name != "extends"})


def _near(name: str) -> str:
    by_last_part = {known.rpartition("/")[2]: known for known in names() if not known.startswith("shared/")}
    asked = name.removesuffix(".yaml").rpartition("/")[2]
    close = [by_last_part[part] for part in difflib.get_close_matches(asked, by_last_part, n=2)]
    return f"did you mean {' or '.join(close)}?" if close else "`sslinfo recipes` lists what there is"


def describe(name: str) -> str:
    """The first line of a file of the package's, which says what it is for."""
    return (FOLDER / f"{name}.yaml").read_text().partition("\n")[0].removeprefix("# ")


def print_recipes(args: Sequence[str]) -> None:
    """``sslinfo recipes``: a line for each recipe and overlay."""
    parser = argparse.ArgumentParser(
        prog="sslinfo recipes",
        usage="sslinfo recipes",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _, others = parser.parse_known_args(list(args))
    if others:
        raise UserError(f"`sslinfo recipes` takes no arguments, got {others[0]}: leave it out")
    groups: dict[str, list[str]] = {title: [] for title in ("recipes", *OVERLAYS.values())}
    for name in names():
        folder = name.rpartition("/")[0]
        if not folder and "class_path" in _of_file(FOLDER / f"{name}.yaml").get("model", {}):
            groups["recipes"].append(name)
        elif folder in OVERLAYS:
            groups[OVERLAYS[folder]].append(name)
    width = max(len(name) for members in groups.values() for name in members)
    print(DESCRIPTION)
    for title, members in groups.items():
        print("\n".join([title, *(f"  {name:{width}}  {describe(name)}" for name in members)]), end="\n\n")
