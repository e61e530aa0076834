"""Short messages with a suggestion in place of the parser's long ones."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn

from sslinfo.data import TwoViewDataModule, View
from sslinfo.objectives import EntropyHalf, JointEmbedding
from sslinfo.optim import OptimizerConfig

_BASES = (JointEmbedding, EntropyHalf, TwoViewDataModule, View, Callback, Logger)
# What was expected, and the value where the line names it.
_WRONG = re.compile(r"Expected an? (<class '[\w.]+'>|typing\.\w+\[[^]]*\])(?:\. Got value: (.*))?")


def explain(message: str) -> str:
    """The parser's message in short, with the class or option that was probably meant.

    >>> print(explain('Parser key "model": Expected a dot import path string: VICRegg'))
    model: there is no class VICRegg: did you mean VICReg?
    >>> print(explain("unrecognized arguments: --model.optimzer.lr=3"))
    there is no option --model.optimzer.lr: did you mean optimizer?
    >>> print(explain('Parser key "model.lr": Expected a typing.Literal[1, 2]. Got value: fast'))
    model.lr: expected 1 or 2, got 'fast'
    """
    classes = _classes(message)
    message = _innermost(message)
    key = next(iter(re.findall(r'[Pp]arser key "([^"]+)"', message)), None)
    where = f"{key}: " if key else ""
    if match := re.search(r"No module named '([^']+)'", message):
        return f"{where}there is no module {match[1]}: is {match[1].split('.')[0]}.py in the working folder?"
    if match := re.search(r"(?:Expected a dot import path string: |given class_path ')([\w.]+)", message):
        return f"{where}there is no class {match[1]}: {_suggest(match[1].split('.')[-1], classes, 'class')}"
    if match := re.search(r"module '[\w.]+' has no attribute '(\w+)'", message):
        return f"{where}there is no class {match[1]}: {_suggest(match[1], classes, 'class')}"
    if match := re.search(r"[Uu]nrecognized arguments: (.+)", message):
        name = match[1].split()[0].split("=")[0]
        return f"there is no option {name}: {_suggest_part(name)}"
    if match := re.search(
        r"(?:Option|[Kk]ey) '([^']+)' is not (?:accepted|expected)|does not accept option '([^']+)'", message
    ):
        return f"there is no option {match[1] or match[2]}: {_suggest_part(match[1] or match[2])}"
    if match := re.search(r"arguments are required: (?:\w+\.)?model", message):
        return "no model is given: --model VICReg, a recipe with -c FILE, or --ckpt_path of a trained one"
    if match := re.search(r"'([^']+)': choose one of (.+)", message):
        close = difflib.get_close_matches(match[1], match[2].split(", "), n=1)
        return f"{message}: did you mean {close[0]}?" if close and "did you mean" not in message else message
    return message


def _innermost(message: str) -> str:
    """The part of a message about nested options that says what is wrong with the one that was given."""
    outer = next(iter(re.findall(r'^Parser key "([^"]+)"', message)), None)
    before, _, errors = message.partition("Errors:")
    if not errors:
        wrong = _WRONG.findall(before)
        return _wrong_value(outer, wrong, wrong[0][1]) if outer and wrong and wrong[0][1] else message
    lines = [line.strip().removeprefix("- ") for line in errors.splitlines()]
    framing = (
        *("Expected a <class 'NoneType'>", "Expected a path but", "Parser key", "Problem with given"),
        *("Does not validate", "Subtypes:", "Errors:", "Given value"),
    )
    said = [line for line in lines if line and not line.startswith(framing)]
    if outer and said and ": expected " in said[0]:  # what this function has made of the message about a part
        return f"{outer}.{said[0]}"
    if outer and said and _WRONG.match(said[0]):
        given = errors.rpartition("Given value:")[2].strip()
        return _wrong_value(outer, [wrong[0] for line in said if (wrong := _WRONG.findall(line))], given)
    key = next(iter(re.findall(r"NestedArg\(key='([^']+)'", message)), None)
    where = f'Parser key "{key}": ' if key and said and "there is no" not in said[0] else ""
    return where + said[0] if said else message


def _wrong_value(key: str, wrong: list[tuple[str, str]], given: str) -> str:
    expected = " or ".join(dict.fromkeys(kind for kind, _ in wrong))
    expected = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected)
    expected = re.sub(r"typing\.Literal\[([^]]*)\]", lambda match: match[1].replace(", ", " or "), expected)
    return f"{key}: expected {expected}, got {given!r}"


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


def _classes(message: str) -> set[str]:
    """Names of the classes that could stand where the message is about: those of the types that it names, or all."""
    types = re.findall(r"^\s*Subtypes: (.*)", message, re.MULTILINE)
    bases = [base for base in _BASES if any(re.search(rf"\b{base.__name__}\b", line) for line in types[:1])]
    return {c.__name__ for base in bases or _BASES for c in _subclasses(base) if not c.__name__.startswith("_")}


def _options() -> set[str]:
    names = {"ckpt_path", "config", "seed_everything", "print_config", "output", "model", "data", "trainer"}
    for owner in [Trainer, OptimizerConfig, *(c for base in _BASES for c in _subclasses(base))]:
        if owner is not nn.Module:
            names |= set(inspect.signature(owner.__init__).parameters) - {"self", "args", "kwargs"}  # type: ignore[misc]
    return names
