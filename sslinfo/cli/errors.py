"""Short messages with a suggestion in place of the parser's long ones."""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn

from sslinfo.data import TwoViewDataModule, View
from sslinfo.objectives import EntropyHalf, JointEmbedding
from sslinfo.optim import OptimizerConfig

_BASES = (JointEmbedding, EntropyHalf, TwoViewDataModule, View, Callback, Logger)
_LONGEST = 80  # characters of a value in a message


def explain(message: str) -> str:
    """The parser's message in short: the option, what is wrong with its value, and what was probably meant.

    >>> print(explain('Parser key "model": Expected a dot import path string: VICRegg'))
    model: there is no class VICRegg: did you mean VICReg?
    >>> print(explain("unrecognized arguments: --model.optimzer.lr=3"))
    there is no option --model.optimzer.lr: did you mean optimizer?
    >>> print(explain('Parser key "model.lr": Expected a typing.Literal[1, 2]. Got value: fast'))
    model.lr: expected 1 or 2, got 'fast'
    """
    return _reason(message, "", "", "").text


@dataclass(frozen=True)
class _Reason:
    """Why a value does not fit one of the types that an option may have; the deepest such reason counts.

    Attributes:
        text: the reason in words.
        weight: how much it says. 0 of nothing at all, 1 that the value has another form, 2 that a class is not known, 3
            what is wrong with a value of the right form.
        expected: the form that was expected, where it is not the value's.
        key: the option that it is about.
    """

    text: str
    weight: int = 3
    expected: str = ""
    key: str = ""


def _reason(message: str, key: str, types: str, given: str) -> _Reason:
    """What the parser's nested message says at its innermost.

    Args:
        message: a message of the parser's, of which lines that are indented explain the line before them.
        key: the option that it is about.
        types: the types that the option may have.
        given: the value.
    """
    message = textwrap.dedent(message).strip()
    if match := re.match(r'[Pp]arser key "([^"]+)":[ \n]', message):
        inside = not key or match[1] == key or match[1].startswith(f"{key}.")
        return _reason(message[match.end() :], match[1] if inside else f"{key}.{match[1]}", types, given)
    if match := re.match(r"- Expected a path but .*? either not accessible or invalid\n- ", message, re.DOTALL):
        return _reason(message[match.end() :], key, types, given)
    if match := re.match(r"Unable to load config .*?\n *- ", message, re.DOTALL):
        return _reason(message[match.end() :], key, types, given)
    if match := re.match(r"Problem with given class_path '[^']*':\n", message):
        return _reason(message[match.end() :], key, types, given)
    if message.startswith("Does not validate against any of the Union subtypes"):
        return _of_union(message, key, given)
    return _plainly(message, key, types, given)


def _of_union(message: str, key: str, given: str) -> _Reason:
    lines = message.splitlines()
    start = next((place for place, line in enumerate(lines) if line == "Errors:"), len(lines))
    end = next((place for place, line in enumerate(lines) if line.startswith("Given value type:")), len(lines))
    types = next((line for line in lines[:start] if line.startswith("Subtypes:")), "")
    _, said, value = message.rpartition("\nGiven value:")
    value = value.removeprefix(" ") if said else given
    parts: list[list[str]] = []
    for line in lines[start + 1 : end]:
        if bullet := re.match(" {1,2}- ", line):  # one space where the value is empty
            parts.append([])
            indent = bullet.end()
        if parts:
            parts[-1].append(line[indent:])
    reasons = [_reason("\n".join(part), key, types, value) for part in parts]
    if not reasons:
        return _Reason(f"{key}: {lines[0]}")
    best = max(reasons, key=lambda reason: (reason.weight > 0 and len(reason.key) > len(key), reason.weight))
    nested = re.match(r"NestedArg\(key='([^']+)'", value)
    if nested and best.weight <= 2 and best.key == key:  # it is about the option that holds this one
        option = f"{key}.{nested[1]}"
        return _Reason(f"there is no option {option}: the value of {key} has none, since it is not a class")
    expected = list(dict.fromkeys(reason.expected for reason in reasons if reason.expected))
    if best.weight == 1 and best.key == key:
        return _mismatch(key, " or ".join(expected), value)
    return best


def _plainly(message: str, key: str, types: str, given: str) -> _Reason:
    """A message about one value, without others inside."""
    where = f"{key}: " if key else ""
    first = message.partition("\n")[0]
    if match := re.match(r"Expected an? (?!dot import path)(.+?)(?:\. Got value: (.*))?$", message, re.DOTALL):
        return _mismatch(key, _kind(match[1]), match[2] or given)
    if match := re.match(r"Not a valid subclass of (\w+)\. Got value: \{\}$", first):
        return _Reason(f"{where}{{}} names neither a class nor an option of it: write {{class_path: {match[1]}}}")
    if match := re.match(r"Not a valid subclass of (\w+)(?:\. Got value: (.*))?$", first):
        return _mismatch(key, match[1], match[2] or given)
    if match := re.match(r"Unable to load config [\"'](.*)[\"']$", first):
        return _mismatch(key, "options by name", match[1])
    if first == "Expected a dot import path string:":
        return _Reason(f"{where}expected the name of a class, got an empty word", 2, key=key)
    if match := re.search(r"No module named '([^']+)'", message):
        text = f"there is no module {match[1]}: is {match[1].split('.')[0]}.py in the working folder?"
        return _Reason(where + text)
    for pattern in (
        r"(?:Expected a dot import path string: |given class_path ')(.+?)(?:'|$)",
        r"module '[\w.]+' has no attribute '(\w+)'",
    ):
        if match := re.search(pattern, first):
            near = _suggest(match[1].split(".")[-1], _classes(types), "class")
            return _Reason(f"{where}there is no class {_shown(match[1])}: {near}", 2, key=key)
    if match := re.search(r"[Uu]nrecognized arguments: (.+)", message):
        name = match[1].split()[0].split("=")[0]
        return _Reason(f"there is no option {name}: {_suggest_part(name)}")
    if match := re.search(
        r"(?:Option|[Kk]ey) '([^']+)' is not (?:accepted|expected)|does not accept option '([^']+)'", message
    ):
        name = match[1] or match[2]
        return _Reason(f"there is no option {name}: {_suggest_part(name)}")
    if match := re.search(r"arguments are required: (.+)", message):
        name = match[1].rpartition(".")[2]
        if name == "model":
            return _Reason("no model is given: --model VICReg, a recipe with -c FILE, or --ckpt_path of a trained one")
        return _Reason(f"{where}{match[1]} is missing: it has no default")
    if match := re.search(r"'([^']+)': choose one of (.+)", message):
        close = difflib.get_close_matches(match[1], match[2].split(", "), n=1)
        message = f"{message}: did you mean {close[0]}?" if close and "did you mean" not in message else message
    return _Reason(where + message)


def _mismatch(key: str, expected: str, given: str) -> _Reason:
    where = f"{key}: " if key else ""
    if expected == "NoneType":
        return _Reason(f"{where}expected null, got {_shown(given)!r}", 0)
    got = "null" if given == "None" else repr(_shown(given))
    return _Reason(f"{where}expected {expected}, got {got}", 1, expected, key)


def _kind(expected: str) -> str:
    """A type in words: str of <class 'str'>, 1 or 2 of typing.Literal[1, 2]."""
    expected = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected)
    expected = re.sub(r"typing\.Literal\[([^]]*)\]", lambda match: match[1].replace(", ", " or "), expected)
    return expected.replace("typing.", "").replace("Iterable", "list")


def _shown(value: str) -> str:
    """A value as it can stand in a message: a class by its name, the beginning of what is long."""
    value = re.sub(r"^NestedArg\(key='[^']*', val=(.*)\)$", r"\1", value, flags=re.DOTALL)
    if match := re.match(r"\[?Namespace\(class_path='(?:\w+\.)*(\w+)'", value):
        return match[1]
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."


def _suggest_part(name: str) -> str:
    options = _options()
    parts = name.lstrip("-").split(".")
    for part in parts:
        if part not in options and part not in ("model", "data", "trainer", "init_args", "class_path"):
            return _suggest(part, options, "option")
    half = next((c.__name__ for c in _subclasses(EntropyHalf) if parts[-1] in inspect.signature(c).parameters), None)
    known = f"--model.entropy {half}" if half else "--model CLASS"
    return f"it belongs to a class that has to be named first: {known} (or -c FILE) before its options"


def _suggest(name: str, known: Iterable[str], kind: str) -> str:
    by_lower = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, entry, name.lower()).ratio() for entry in close]
    close = [entry for entry, ratio in zip(close, likeness, strict=True) if ratio > likeness[0] - 0.1]
    if close:
        return f"did you mean {' or '.join(by_lower[entry] for entry in close)}?"
    if kind == "class":
        return "give one of sslinfo's or the dotted path of your own, such as my_module.MyObjective"
    return "`sslinfo fit --help` and `sslinfo fit --model.help CLASS` list what there is"


def _subclasses(base: type) -> set[type]:
    children: list[type] = base.__subclasses__()
    return {base}.union(*(_subclasses(child) for child in children))


def _classes(types: str) -> set[str]:
    """Names of the classes that could stand where one of these types is expected, or of all."""
    bases = [base for base in _BASES if re.search(rf"\b{base.__name__}\b", types)]
    return {c.__name__ for base in bases or _BASES for c in _subclasses(base) if not c.__name__.startswith("_")}


def _options() -> set[str]:
    names = {"ckpt_path", "config", "seed_everything", "print_config", "output", "model", "data", "trainer"}
    for owner in [Trainer, OptimizerConfig, *(c for base in _BASES for c in _subclasses(base))]:
        if owner is not nn.Module:
            names |= set(inspect.signature(owner.__init__).parameters) - {"self", "args", "kwargs"}  # type: ignore[misc]
    return names
