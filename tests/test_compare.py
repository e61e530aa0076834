"""The comparison of the paper's methods, on a few generated images and steps."""

from __future__ import annotations

import sys
from pathlib import Path

import fake
import pytest
import torch

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import run_compare

METHODS = ["untrained", "byol_logdet", "swav"]


def test_table_figure_and_what_is_not_repeated(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.write_imagefolder(in_tmp / "images", splits=("train", "test"), classes=10, per_class=30, size=(32, 32))
    threads = torch.get_num_threads()

    def compare(*options: str) -> str:
        command = ["run_compare.py", "--root", "images", "--out", "out", "--threads", "1", "--methods", *METHODS]
        monkeypatch.setattr(sys, "argv", [*command, *options])
        try:
            run_compare.main()
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    first = compare("--seeds", "0", "--steps", "2")
    assert all(f"seed 0  {method}" in first for method in METHODS)
    assert {file.name.split("-")[0] for file in Path("out").glob("*.json")} == set(METHODS)
    second = compare("--seeds", "0", "1", "--steps", "2")
    assert "seed 0  " not in second
    assert "seed 1  swav" in second
    rows = (Path("out") / "comparison.md").read_text().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["untrained", "BYOL + LogDet", "SwAV"]
    assert all(row.count("±") == len(run_compare.COLUMNS) for row in rows)
    assert (Path("out") / "comparison.png").stat().st_size > 10_000
    another = compare("--seeds", "0", "--steps", "1", "--methods", "swav")
    assert "seed 0  swav" in another, "another number of steps is another run"
