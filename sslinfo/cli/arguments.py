"""What is read of the command line before its parser reads it all, and how the parser reads recipes."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from sslinfo.callbacks.stop_on_signal import requeued_file
from sslinfo.cli.checkpoints import StoredConfig, check_usable, find_checkpoint
from sslinfo.cli.words import say
from sslinfo.errors import UserError
from sslinfo.ranges import check_range
from sslinfo.recipes import Recipe, check_form, read_yaml, to_text

SUBCOMMANDS = ("fit", "validate", "test", "predict")
RUNS = "runs"
CONFIG = ("-c", "--config")
_NULL = ("null", "Null", "NULL", "~")  # of YAML


class ActionRecipe(ActionConfigFile):
    """``-c``: a recipe by its name or file, whose ``extends`` is resolved before the parser sees it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        recipe = Recipe.read(values)
        data = recipe.settings.get("data")
        options = data.get("init_args") if isinstance(data, dict) else None
        if isinstance(options, dict) and "views" in options:
            options["views"] = _whole_views(options["views"])
        with contextlib.chdir(recipe.folder):
            self.apply_config(parser, cfg, self.dest, to_text(recipe.settings))


def values_of(args: Sequence[str], *flags: str) -> list[str]:
    """What an option is given on a command line, in order.

    >>> values_of(["fit", "-c", "byol", "--data.root", "data", "--config=more.yaml"], "-c", "--config")
    ['byol', 'more.yaml']
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # A value that is missing is for the whole parser to say.
    parser.add_argument(*flags, action="append", nargs="?", dest="values")
    found = parser.parse_known_args(list(args))[0].values
    return [value for value in found or [] if value is not None]


def checked(args: Sequence[str]) -> list[str]:
    """The arguments, of which what stands in brackets is YAML of the form that files have too.

    Raises:
        UserError: it is not; the message names the option.

    >>> checked(["fit", "--model.entropy", "{class_path: LogDet, beta: 3}"])
    Traceback (most recent call last):
    sslinfo.errors.UserError: model.entropy: beta stands beside class_path: options of the class stand in init_args
    """
    out, name = [], ""
    for word in args:
        name, equals, value = word.partition("=") if word.startswith("-") else (name, "", word)
        option = name.lstrip("-").removesuffix("+")
        holder, _, last = option.rpartition(".")
        if word.startswith("-") and not equals:
            pass  # its value is the next word
        elif value.strip() in _NULL and (name.endswith("+") or last == "init_args"):
            check_form({f"{last}+" if name.endswith("+") else last: None}, holder)
        elif last == "class_path":
            check_form({last: read_yaml(value, option)}, holder)
        elif name not in CONFIG and (value.lstrip()[:1] in ("{", "[") or "\n" in value):
            written = read_yaml(value, option)
            check_form(written, option)
            if option == "data.views" and written != _whole_views(written):
                text = json.dumps(_whole_views(written))
                word = f"{name}={text}" if equals else text
        out.append(word)
    return out


def _whole_views(views: Any) -> Any:
    """Views of which {} is one with every default, also where the word of a preset stood before."""
    plain = {"class_path": "sslinfo.data.View"}
    return [plain if view == {} else view for view in views] if isinstance(views, list) else views


def recipe_name(args: Sequence[str]) -> str | None:
    """Name of the first recipe; None where there is none."""
    given = values_of(args, *CONFIG)
    return Recipe.read(given[0]).name if given else None


def with_checkpoint(args: Sequence[str]) -> tuple[list[str], StoredConfig | None]:
    """The arguments with ``last`` and ``best`` resolved and the checkpoint's configuration before all others.

    Raises:
        UserError: there is no such checkpoint, it cannot be read, or it asks for what the user has not named.
    """
    args = checked(args)
    _check_seeds(args)
    if args[:1] not in [[name] for name in SUBCOMMANDS]:
        return args, None
    root, resumes = [RUNS, *values_of(args, "--trainer.default_root_dir")][-1], args[0] == "fit"
    given = values_of(args, "--ckpt_path")
    requeued = requeued_file(root)
    if resumes and not given and requeued is not None and requeued.is_file():
        say(f"note: this SLURM job was requeued: it goes on from {requeued}")
        given = [str(requeued)]
    if not given:
        return args, None
    named = _named(args)
    path, content = find_checkpoint(given[-1], root, resumes)
    resolved = [*args, "--ckpt_path", path]  # the last one counts
    if content is None:
        return resolved, None
    check_usable(content, path, resumes)
    says_model = values_of(args, *CONFIG) or any(word.startswith("--model") for word in args)
    if not says_model and "_class_path" not in content.get("hyper_parameters", {}):
        raise UserError(f"ckpt_path={path!r} does not say which model it is of: give that, -c RECIPE or --model CLASS")
    stored = StoredConfig.of(content, path, named, folders_of_files(args))
    for name in stored.left_out:
        if not values_of(args, *CONFIG) and not values_of(args, f"--{name}"):
            raise UserError(
                f"{name} of this run was an object given from Python, which a checkpoint cannot hold: say --{name}, or "
                "go on from Python, with Trainer.validate(model, datamodule, ckpt_path=...)"
            )
    config = stored.config
    if args[0] == "fit":
        # A recipe says itself how long and how its training runs; without one the checkpoint does.
        trainer = {} if values_of(args, *CONFIG) else stored.training.get("trainer", {})
        config = {**stored.training, **config, "trainer": {**trainer, **config["trainer"]}}
    return [args[0], "--config", to_text(config), *resolved[1:]], stored


def _check_seeds(args: Sequence[str]) -> None:
    """See that a seed is one that random generators take; what is no whole number is for the parser to say."""
    seeds = [Recipe.read(recipe).settings.get("seed_everything") for recipe in values_of(args, *CONFIG)]
    words = values_of(args, "--seed_everything")
    for seed in [*seeds, *(int(word) for word in words if re.fullmatch("[-+]?[0-9]{1,4000}", word))]:
        if isinstance(seed, int) and not isinstance(seed, bool):
            check_range("seed_everything", seed, f"[0, {2**32 - 1}]", whole=True)


def _named(args: Sequence[str]) -> set[str]:
    """Every class that the user names, on the command line or in a recipe given there."""
    names = {word.split("=", 1)[-1] for word in args}
    return names.union(*(_strings(Recipe.read(recipe).settings) for recipe in values_of(args, *CONFIG)))


def folders_of_files(args: Sequence[str]) -> set[Path]:
    """Folders of the configurations that a recipe or the command line names in place of an option's value."""
    recipes = [Recipe.read(recipe) for recipe in values_of(args, *CONFIG)]
    words = [(Path(), {word.split("=", 1)[-1] for word in args if word not in values_of(args, *CONFIG)})]
    return {
        folder
        for folder, names in [*words, *((recipe.folder, _strings(recipe.settings)) for recipe in recipes)]
        if any(name.endswith((".yaml", ".yml", ".json")) and (folder / name).is_file() for name in names)
    }


def _strings(value: Any) -> set[str]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return {value} if isinstance(value, str) else set().union(*map(_strings, parts))
