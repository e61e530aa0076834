"""What a name stands for, what ``extends`` and overlays make of files, and how the recipes travel and are listed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sslinfo.errors import UserError
from sslinfo.recipes import FOLDER, Recipe, merge, names, print_recipes, to_text

ROOT = Path(__file__).parents[1]


def write(**files: str) -> None:
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)


def settings(given: str) -> dict[str, Any]:
    return Recipe.read(given).settings


# Names


def test_a_file_of_the_user_s_comes_before_a_recipe_of_its_name(in_tmp: Path) -> None:
    assert settings("byol")["model"]["class_path"] == "BYOL"
    write(byol="trainer: {max_epochs: 3}")
    Path("data").mkdir()
    write(**{"data/cifar10": "data: {init_args: {dataset: mine}}"})
    assert settings("byol") == settings("byol.yaml") == {"trainer": {"max_epochs": 3}}
    assert settings("data/cifar10") == {"data": {"init_args": {"dataset": "mine"}}}
    # A recipe of the package's is made of the package's files, whatever the working folder holds.
    assert settings("byol_logdet")["model"]["class_path"] == "BYOL"
    assert settings("byol_logdet")["data"]["init_args"]["dataset"] == "cifar10"


def test_a_folder_is_not_a_recipe(in_tmp: Path) -> None:
    Path("byol").mkdir()
    assert settings("byol")["model"]["class_path"] == "BYOL"


def test_name_and_folder_of_what_was_read(in_tmp: Path) -> None:
    Path("mine").mkdir()
    write(**{"mine/my_recipe": "{}"})
    assert Recipe.read("mine/my_recipe") == Recipe("my_recipe", {}, Path("mine"))
    assert Recipe.read("data/cifar100").name == "cifar100"
    assert Recipe.read("trainer: {max_epochs: 3}") == Recipe(None, {"trainer": {"max_epochs": 3}}, Path())


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("quickstrat", "did you mean quickstart?"),
        ("configs/cifar10/byol.yaml", "did you mean byol"),
        ("cifar-100", "did you mean data/cifar100"),
        ("vit.yaml", "did you mean backbone/vit?"),
        ("zzz", "`sslinfo recipes` lists"),
        ("x" * 5000, "no recipe of this name"),
    ],
)
def test_what_is_neither_gets_near_names(in_tmp: Path, given: str, near: str) -> None:
    with pytest.raises(UserError, match="there is no file") as error:
        Recipe.read(given)
    assert near in str(error.value)


# Nine levels of nine aliases each stand for 2 x 9^9 values, and a mapping that holds itself for no number of them.
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:\n  max_epochs: [3", r"b\.yaml is no YAML: line \d"),
        ("- 3", r"b\.yaml has no settings"),
        ("trainer:\n  max_steps: 3\n  max_steps: 4", r"b\.yaml is no YAML: line 3: max_steps stands there twice"),
        (BOMB, r"b\.yaml is no YAML: line 1: its aliases stand for more than 10000 values"),
        ("a: &a\n  b: *a", r"its aliases stand for more than 10000 values, or for themselves"),
        ("a: " + "[" * 20000, r"b\.yaml is no YAML: it is nested too deeply"),
        ("trainer: {[1]: 2}", r"line 1: a name is expected before the colon, not a list or a mapping"),
        ("trainer: {1: 2}", r"b\.yaml: trainer: 1 stands where the name of an option is expected"),
        ("model: {class_path: [VICReg]}", r"b\.yaml: model: class_path is the name of a class, such as VICReg, got \["),
        ("model: {class_path: VICReg, init_args: 3}", r"model: init_args holds options by name, .* got 3"),
        ("model: {init_args: null}", r"b\.yaml: model: init_args holds options by name, .* got null"),
        ("trainer: {callbacks+: null}", r"b\.yaml: trainer\.callbacks\+: null adds nothing"),
        ("model: {class_path: VICReg, lr: 3}", r"b\.yaml: model: lr stands beside class_path: options of the class"),
    ],
)
def test_a_file_that_cannot_be_read(in_tmp: Path, text: str, message: str) -> None:
    write(b=text, a="extends: b")
    with pytest.raises(UserError, match=message):
        Recipe.read("a")


# What a file extends


def test_settings_that_are_no_yaml() -> None:
    with pytest.raises(UserError, match="-c is no YAML: line 1: expected"):
        Recipe.read("model: [3")


def test_aliases_that_stand_for_little_are_read() -> None:
    shared = "a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: *a"
    assert Recipe.read(shared).settings == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 1}}


def test_parents_lie_below_the_file_and_a_later_one_over_an_earlier_one(in_tmp: Path) -> None:
    write(
        a="extends: [b, c]\nx: {three: a}",
        b="x: {one: b, two: b, three: b}",
        c="extends: d\nx: {two: c, three: c}",
        d="x: {two: d}\ny: d",
    )
    assert settings("a") == {"x": {"one": "b", "two": "c", "three": "a"}, "y": "d"}


def test_a_file_extends_what_stands_beside_it_else_a_recipe(in_tmp: Path) -> None:
    Path("mine").mkdir()
    write(**{"mine/a": "extends: [simclr, b]", "mine/b": "seed_everything: 3", "b": "seed_everything: 4"})
    assert settings("mine/a")["seed_everything"] == 3
    assert settings("mine/a")["model"]["class_path"] == "SimCLR"
    # A file may have the name of the recipe that it changes.
    write(simclr="extends: simclr\nmodel: {init_args: {temperature: 0.5}}")
    assert settings("simclr")["model"]["init_args"]["temperature"] == 0.5
    assert settings("simclr")["model"]["init_args"]["projector"] == [2048, 256]
    assert settings("extends: simclr\nseed_everything: 5")["model"]["init_args"]["temperature"] == 0.5


def test_circles_and_unknown_names(in_tmp: Path) -> None:
    write(a="extends: b", b="extends: [c]", c="extends: ./a.yaml", d="extends: simclrr", e="extends: e")
    with pytest.raises(UserError, match=r"c\.yaml extends itself: a -> b -> c -> a"):
        Recipe.read("a")
    with pytest.raises(UserError, match=r"d\.yaml: there is no file or recipe 'simclrr' to extend: did you mean simcl"):
        Recipe.read("d")
    with pytest.raises(UserError, match=r"e\.yaml: there is no file or recipe 'e' to extend"):
        Recipe.read("e")


def test_two_parents_may_extend_the_same_file(in_tmp: Path) -> None:
    write(a="extends: [b, c]", b="extends: d", c="extends: d", d="x: 1")
    assert settings("a") == {"x": 1}


# Merging

LOGDET = {"class_path": "LogDet", "init_args": {"beta": 9, "weight": 2}}
PAIRDIST = {"class_path": "PairDist", "init_args": {"variance": 1}}


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        (LOGDET, {"init_args": {"beta": 1}}, {"class_path": "LogDet", "init_args": {"beta": 1, "weight": 2}}),
        (LOGDET, {**LOGDET, "init_args": {"beta": 1}}, {"class_path": "LogDet", "init_args": {"beta": 1, "weight": 2}}),
        (LOGDET, {"class_path": "PairDist"}, {"class_path": "PairDist"}),
        (LOGDET, PAIRDIST, PAIRDIST),
        # What shared settings say of a class that is named only above them.
        ({"init_args": {"lr": 1}}, {"class_path": "VICReg"}, {"init_args": {"lr": 1}, "class_path": "VICReg"}),
        ({"c": [1]}, {"c+": [2]}, {"c": [1, 2]}),
        ({"c": [1]}, {"c+": {"class_path": "A"}}, {"c": [1, {"class_path": "A"}]}),
        ({"c": None}, {"c+": [2]}, {"c": [2]}),
        ({"c+": [1]}, {"c+": [2]}, {"c+": [1, 2]}),
        ({}, {"c+": [2]}, {"c+": [2]}),
        ({"c+": [1]}, {"c": [2]}, {"c": [2]}),
    ],
)  # fmt: skip
def test_merging(below: dict[str, Any], above: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merge(below, above) == expected


def test_merging_changes_neither() -> None:
    below, above = {"a": {"b": [1]}, "c": [1]}, {"a": {"d": 2}, "c+": [2]}
    merge(below, above)
    assert (below, above) == ({"a": {"b": [1]}, "c": [1]}, {"a": {"d": 2}, "c+": [2]})


def test_numbers_and_strings_stay_what_they_are(in_tmp: Path) -> None:
    write(a='lr: 1e-4\nbig: 2.5E3\nname: "1e-4"\nday: "2024-01-01"\nwhole: 3\nnothing: null\ntag: vit.mae')
    read = settings("a")
    expected = {"lr": 1e-4, "big": 2500.0, "name": "1e-4", "day": "2024-01-01", "whole": 3, "nothing": None}
    assert read == {**expected, "tag": "vit.mae"}
    assert settings(to_text(read)) == read


# The package's recipes


def test_they_travel_with_the_package() -> None:
    assert (ROOT / "sslinfo" / "configs").is_symlink()
    assert os.readlink(ROOT / "sslinfo" / "configs") == os.path.join("..", "configs")
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["sslinfo"]
    packaged = {file for pattern in patterns for file in (ROOT / "sslinfo").glob(pattern)}
    assert {FOLDER / f"{name}.yaml" for name in names()} <= packaged
    assert len(names()) == len(list((ROOT / "configs").rglob("*.yaml")))


def test_a_class_is_the_same_by_its_name_and_by_its_path() -> None:
    below = {"class_path": "LogDet", "init_args": {"weight": 7.0, "beta": 3.0}}
    above = {"class_path": "sslinfo.objectives.LogDet", "init_args": {"beta": 1.0}}
    assert merge(below, above)["init_args"] == {"weight": 7.0, "beta": 1.0}


def test_list_of_all_but_the_shared_ones(capsys: pytest.CaptureFixture[str]) -> None:
    print_recipes([])
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert {name for name in names() if not name.startswith("shared/")} <= set(listed)
    assert not any(name.startswith("shared/") for name in listed)
    assert listed["simclr"] == "SimCLR (arXiv:2002.05709) with solo-learn's settings (arXiv:2108.01775)"
    assert lines.index("recipes") < lines.index("overlays: data sets") < lines.index("overlays: trainers")
    assert max(map(len, lines)) <= 120


def test_the_list_imports_neither_torch_nor_lightning() -> None:
    code = "import sys; from sslinfo.__main__ import console; console(['recipes']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "jsonargparse"} & set(done.stdout.splitlines()[-1].split())


def test_help_and_mistakes_of_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        print_recipes(["--help"])
    assert stopped.value.code == 0
    with pytest.raises(UserError, match="takes no arguments, got vicreg"):
        print_recipes(["vicreg"])
    assert "extends: vicreg" in capsys.readouterr().out


def test_a_recipe_reads_as_yaml_of_its_own() -> None:
    for name in names():
        composed = Recipe.read(str(FOLDER / f"{name}.yaml")).settings
        assert yaml.safe_load(to_text(composed)) == composed
        assert "extends" not in composed
