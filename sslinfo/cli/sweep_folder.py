"""What the folder of a sweep holds: the settings that its runs share, and a table of the runs."""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from sslinfo.cli.checkpoints import flat
from sslinfo.cli.sweep_options import HALF, find, read_cell
from sslinfo.errors import UserError

Row = dict[str, Any]
_SETTINGS = "sweep.yaml"


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a training: a configuration without its seed and what says where and how it is logged."""
    parts = {part: copy.deepcopy(config[part]) for part in ("model", "data", "trainer")}
    for name in ("logger", "default_root_dir", "enable_progress_bar"):
        parts["trainer"].pop(name, None)
    return parts


def new_folder(out: Path, base: dict[str, Any], keys: Iterable[str]) -> None:
    """Write down what all runs of the folder share.

    Args:
        out: the folder.
        base: the configuration that the runs start from.
        keys: the options that name a run.
    """
    out.mkdir(parents=True, exist_ok=True)
    new = (out / _SETTINGS).with_suffix(".new")
    new.write_text(yaml.safe_dump({**_shared(base, keys), "sweep": list(keys)}))
    new.replace(out / _SETTINGS)


def check_folder(out: Path, base: dict[str, Any], keys: Iterable[str], row: Row) -> None:
    """See that the runs of the folder are of this sweep.

    Args:
        out: the folder.
        base: the configuration that the runs start from.
        keys: the options that name a run.
        row: one of the folder's runs.

    Raises:
        UserError: they are of other options, or of other settings.
    """
    file = out / _SETTINGS
    if not file.is_file():
        return
    try:
        before = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        before = None
    if not isinstance(before, dict):
        raise UserError(
            f"{str(file)!r} does not hold the settings of a sweep: choose another --out, or remove the folder"
        )
    # A file that does not say what was swept is of an entropy half's options, which name the columns.
    swept = before.pop("sweep", [f"{HALF}.{name}" for name in list(row)[1 : list(row).index("seed")]])
    if swept != list(keys):
        raise UserError(
            f"out={str(out)!r} holds a sweep of {' and '.join(swept)}, and this one is of {' and '.join(keys)}: choose "
            "another --out"
        )
    was, now = flat(before), flat(_shared(base, keys))
    changed = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if changed:
        lines = "\n".join(f"{name} was {was.get(name)}, is {now.get(name)}" for name in changed[:5])
        raise UserError(f"out={str(out)!r} holds a sweep with other settings: choose another --out\n{lines}")


def _shared(base: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Settings less the values that name the runs."""
    shared = settings(base)
    for key in keys:
        place = find(shared, key)
        # A class and its options stay: a run with another class may take some of them over.
        if place and not key.endswith("+") and not isinstance(place[0][place[1]], dict):
            place[0].pop(place[1])
    return shared


def write(file: Path, rows: Sequence[Row], first: Sequence[str], last: Sequence[str]) -> None:
    between = sorted({name for row in rows for name in row} - {*first, *last})
    new = file.with_suffix(".new")
    with new.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, [*first, *between, *last])
        writer.writeheader()
        writer.writerows(rows)
    new.replace(file)  # an interruption leaves the old file or the new one


def read(file: Path) -> dict[str, Row]:
    """Rows by the name of the run; without the file there are none.

    Raises:
        UserError: it is no table of runs.
    """
    if not file.is_file():
        return {}
    try:
        with file.open(newline="") as lines:
            rows = [
                {name: _typed(name, text) for name, text in row.items() if text or name == "error"}
                for row in csv.DictReader(lines, strict=True)
            ]
        return {row["run"]: {**row, "error": row["error"] or ""} for row in rows}
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{str(file)!r} is no table of a sweep ({reason}): choose another --out, or remove it"
        ) from error


def _typed(name: str, text: str) -> Any:
    if name in ("run", "error"):
        return text
    if name == "seed":
        return int(text)
    # What was measured has a slash in its name and may be nan; an option has none.
    return float(text) if "/" in name or name == "seconds" else read_cell(text)
