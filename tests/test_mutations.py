"""Mutated configurations and command lines: a few of those that tests/benchmarks/run_mutations.py makes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import run_mutations

SCRIPT = Path(run_mutations.__file__)


def test_the_same_seed_makes_the_same_cases() -> None:
    some = run_mutations.cases(300, seed=3)
    assert some == run_mutations.cases(300, seed=3)
    assert some != run_mutations.cases(300, seed=4)
    kinds = Counter(case.kind for case in some)
    assert set(run_mutations.STRUCTURED) | {"key twice", "broken YAML", "alias bomb", "sweep", "predict"} <= set(kinds)


@pytest.mark.parametrize(
    ("nonsense", "code", "text", "fault"),
    [
        (True, 2, "sslinfo: batch_size=-3 must be at least 1", ""),
        (False, 0, "`Trainer.fit` stopped", ""),
        (True, 0, "`Trainer.fit` stopped", "silent"),
        (False, None, "", "hangs"),
        (False, 0, "WEIGHTS ARE NOT FINITE", "trains on NaN"),
        (True, 2, "Traceback (most recent call last)\nsslinfo: batch_size=-3 must be", "traceback"),
        (True, 2, "sslinfo: data.views: expected <class 'str'>", "unreadable"),
        (True, 2, "sslinfo: " + "x " * 1000, "unreadable"),
        (True, 2, "nothing is said", "unreadable"),
        (True, 1, "sslinfo: unexpected: KeyError", "exit code 1"),
    ],
)
def test_how_a_case_is_judged(nonsense: bool, code: int | None, text: str, fault: str) -> None:
    case = run_mutations.Case("kind", ["fit"], nonsense=nonsense)
    assert run_mutations._fault(case, code, text) == fault


@pytest.mark.slow
def test_each_trains_or_ends_with_a_message(in_tmp: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--count", "40", "--seed", "7", "--limit", "240"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout
    assert "untouched" in done.stdout
