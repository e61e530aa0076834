"""What ``--sweep KEY=V1,V2`` says, where an option stands in a configuration, and how its values are named."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from sslinfo.cli.checkpoints import flat
from sslinfo.errors import UserError
from sslinfo.optim import OptimizerConfig

HALF = "model.entropy"
OPTIONS = ("beta", "variance", "weight")
# Columns of the tables that are no option.
_COLUMNS = ("run", "runs", "seed", "seconds", "error")
_LONGEST = 80  # characters of a value in a file name


@dataclass
class Axis:
    """An option and its values.

    Attributes:
        key: the option of ``sslinfo fit``, without dashes and ``init_args``.
        values: its values, as they would be written on the command line.
        given: how the user asked for it, for messages.
    """

    key: str
    values: list[str]
    given: str

    def words(self) -> list[str]:
        """A command-line argument for each value."""
        return [f"--{self.key}={value}" for value in self.values]


def read_axis(text: str) -> Axis:
    """What ``--sweep`` was given.

    Raises:
        UserError: the text is not KEY=V1,V2,...

    >>> read_axis("model.optimizer.init_args.lr=.001,.003")
    Axis(key='model.optimizer.lr', values=['.001', '.003'], given='--sweep model.optimizer.lr')
    """
    written, equals, values = text.partition("=")
    key = ".".join(part for part in written.strip().split(".") if part not in ("init_args", "class_path"))
    if not (key and equals):
        raise UserError(
            f"--sweep {text}: write the option and its values as KEY=V1,V2, such as model.optimizer.lr=.1,.3"
        )
    return Axis(key, list(dict.fromkeys(split_values(f"--sweep {text}", values))), f"--sweep {key}")


def split_values(given: str, text: str) -> list[str]:
    """The values between commas that stand outside of brackets, braces and quotes; quotes around a value are taken off.

    Args:
        given: how the user asked for it, for messages.
        text: the values.

    Raises:
        UserError: a value is empty, or a bracket, brace or quote is open.

    >>> split_values("", "[64, 32],[128],null")
    ['[64, 32]', '[128]', 'null']
    >>> split_values("", '"a,b",{x: [1, 2], y: 3}')
    ['a,b', '{x: [1, 2], y: 3}']
    """
    values, depth = [""], 0
    for token in re.findall(r'"(?:\\.|[^"\\])*"|\'(?:\'\'|[^\'])*\'|.', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
        if token in ("'", '"') or depth < 0:
            raise UserError(f'{given}: {token} has no counterpart: quote a value that has it, such as "it\'s"')
        if token == "," and not depth:
            values.append("")
        else:
            values[-1] += token
    if depth:
        raise UserError(f"{given}: a bracket is not closed")
    values = [value.strip() for value in values]
    if "" in values:
        raise UserError(f"{given}: a value is missing beside a comma or =; an empty string is ''")
    return [_unquoted(given, value) for value in values]


def _unquoted(given: str, value: str) -> str:
    if value[0] not in "'\"":
        return value
    try:
        return str(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise UserError(f"{given}: {value} is not a quoted string") from error


def find(config: Any, key: str) -> tuple[dict[str, Any], str] | None:
    """The dictionary that holds an option and the option's name there; of a list of classes the last one counts.

    >>> config = {"model": {"class_path": "VICReg", "init_args": {"entropy": {"init_args": {"beta": 10.0}}}}}
    >>> find(config, "model.entropy.beta")
    ({'beta': 10.0}, 'beta')
    """
    holder, value, part = {}, config, ""
    for part in key.rstrip("+").split("."):
        if isinstance(value, list) and value:
            value = value[-1]
        if isinstance(value, dict) and part not in value:
            value = value.get("init_args")
        if not isinstance(value, dict) or part not in value:
            return None
        holder, value = value, value[part]
    return holder, part


def lookup(config: Any, key: str) -> Any:
    """Value of an option; None also where there is no such option."""
    found = find(config, key)
    return found[0][found[1]] if found else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def cell(value: Any, written: str) -> float | str:
    """A value as the tables hold it: a number as it is, anything else as a text that can stand in a file's name.

    Args:
        value: the option's value in the configuration.
        written: the same as the user wrote it: a class is named by what was written, not by its defaults.

    >>> cell(10.0, "1e1"), cell([64, 32], "[64,32]"), cell(True, "yes"), cell("a/b c", "a/b c")
    (10.0, '64-32', 'true', 'a-b-c')
    >>> cell({"class_path": "sslinfo.objectives.LogDet", "init_args": {"beta": 10.0}}, "LogDet")
    'LogDet'
    """
    if is_number(value):
        return value
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(entry, dict) for entry in value)):
        own = value[-1] if isinstance(value, list) else value
        value = yaml.safe_load(written)
        if isinstance(value, str) and str(own.get("class_path")).split(".")[-1] == value.split(".")[-1]:
            value = value.split(".")[-1]
    text = _text(value)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return read_cell(text or "empty")


def read_cell(text: str) -> float | str:
    """What ``cell`` gave, from a table.

    >>> read_cell("256"), read_cell("0.1"), read_cell("LogDet"), read_cell("nan")
    (256, 0.1, 'LogDet', 'nan')
    """
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) else text


def shown(value: float | str) -> str:
    """A cell for the eye and for file names.

    >>> shown(10.0), shown(1000000), shown(1e-5), shown(1 / 3), shown("LogDet")
    ('10', '1000000', '1e-05', '0.3333333333333333', 'LogDet')
    """
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        name = [_text(str(value["class_path"]).split(".")[-1])] if "class_path" in value else []
        options = value.get("init_args", {}) if name else value
        return "-".join([*name, *(f"{option}-{_text(entry)}" for option, entry in options.items())])
    if isinstance(value, list):
        return "-".join(map(_text, value))
    return re.sub(r"[^\w.+-]+", "-", shown(value))


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each key, and as many parts before it as tell it from the others and from other columns.

    >>> short_names(["model.entropy.beta", "model.optimizer.lr", "trainer.callbacks.lr", "data.seed"])
    ['beta', 'optimizer.lr', 'callbacks.lr', 'data.seed']
    """
    names = []
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        shared = {ending for ending in endings for other in keys if other != key and f".{other}".endswith(f".{ending}")}
        names.append(next((name for name in endings if name not in shared and name not in _COLUMNS), key))
    return names


def nearest(key: str, known: Collection[str]) -> str | None:
    """The option that was probably meant: one beside it, one of the same name elsewhere, or one spelt like it.

    >>> nearest("model.optimizer.lrr", ["model.optimizer.lr", "model.projector"])
    'model.optimizer.lr'
    >>> nearest("lr", ["model.optimizer.lr", "model.projector"])
    'model.optimizer.lr'
    """
    parent, _, name = key.rpartition(".")
    beside = {entry.rpartition(".")[2]: entry for entry in known if entry.rpartition(".")[0] == parent}
    same = {entry: entry for entry in known if entry.rpartition(".")[2] == name}
    others = {entry: entry for entry in known if entry not in beside.values()}
    for wanted, among, cutoff in ((name, beside, 0.6), (key, same, 0.0), (key, others, 0.6)):
        if close := difflib.get_close_matches(wanted, sorted(among), n=1, cutoff=cutoff):
            return among[close[0]]
    return None


def explained(axis: Axis, word: str, before: Sequence[str], config: dict[str, Any], reason: str) -> str:
    """Why an option or its value is refused.

    Args:
        axis: the option.
        word: the argument that was refused.
        before: arguments of the sweep that stand before it.
        config: the configuration with those.
        reason: what the parser says.
    """
    parent, _, name = axis.key.rpartition(".")
    short = axis.given == f"--{name}"
    owner = lookup(config, parent)
    if short and not isinstance(owner, dict):
        return (
            f"{config['model']['class_path'].split('.')[-1]} names no entropy half whose {name} could be swept: "
            "name one before the other options of the model, --model.entropy LogDet (or PairDist, ...)"
        )
    unnamed = find(config, parent) is not None and owner is None and "named first" in reason
    if reason.startswith("there is no option") and not unnamed:
        close = None if short else nearest(axis.key, _known(config))
        if parent == HALF and isinstance(owner, dict) and not (close or "").startswith(f"{HALF}."):
            arguments = owner.get("init_args", {})
            has = [option for option, value in arguments.items() if option in OPTIONS or isinstance(value, float)]
            kind = owner["class_path"].split(".")[-1]
            return f"{axis.given}: {kind} has no {name}; what it has is {' and '.join(has) or 'no number'}"
        return f"there is no option {axis.key}: did you mean {close}?" if close else reason
    # What an option is depends on the class that the sweep gives it.
    classes = [other.removeprefix("--") for other in before if word.startswith(f"{other.partition('=')[0]}.")]
    given = " with ".join([word.removeprefix("--"), *classes])
    return f"--sweep {given}: {reason.removeprefix(f'{axis.key}: ')}"


def _known(config: dict[str, Any]) -> set[str]:
    """The options of a configuration."""
    known = {f"model.optimizer.{entry.name}" for entry in fields(OptimizerConfig)}
    for key in flat(config):
        parts = key.removesuffix(".class_path").split(".")
        known |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return known
