"""Every shell and Python block of the README is run, in its order, in one folder, on small generated data.

A line that starts with ``sslinfo`` goes through the command line's own ``main`` with a few options added that make it
short; other shell lines run in bash, where ``srun`` runs its arguments and ``make`` only says what it would do.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fake import write_cifar, write_imagefolder

from sslinfo.cli import main
from sslinfo.cli.sweep import sweep

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(bash|python|yaml)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
SHORT = shlex.split(
    "--trainer.accelerator cpu --trainer.devices 1 --trainer.num_nodes 1 --trainer.max_epochs 1 --trainer.max_steps 2 "
    "--trainer.limit_val_batches 1 --trainer.enable_progress_bar false --data.batch_size 8 --data.num_workers 0 "
    "--model.projector [16,8] --model.optimizer.warmup_steps 1"
)
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme")
    for name in ("configs", "Makefile", "pyproject.toml"):
        (path / name).symlink_to(ROOT / name)
    write_cifar(path / "data", classes=10)
    write_imagefolder(path / "my_images", splits=("train", "val"), classes=3, per_class=8, size=(24, 24))
    shims = path / "shims"
    shims.mkdir()
    short = " ".join(shlex.quote(option) for option in SHORT)
    (shims / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    (shims / "make").write_text(f'#!/bin/bash\nexec {shlex.quote(_which("make"))} -n "$@"\n')
    (shims / "sslinfo").write_text(f'#!/bin/bash\nexec {sys.executable} -m sslinfo "$@" {short}\n')
    for shim in shims.iterdir():
        shim.chmod(0o755)
    return path


def _which(name: str) -> str:
    import shutil

    found = shutil.which(name)
    assert found, f"the README's commands need {name}"
    return found


def test_the_readme_has_blocks_of_each_kind() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python", "yaml"}
    assert sum("sslinfo fit" in text for kind, text in BLOCKS if kind == "bash") >= 5


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=lambda n: f"{n}-{BLOCKS[n][0]}")
def test_block_runs(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, text = BLOCKS[number]
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    if kind == "python":
        exec(compile(text, f"README block {number}", "exec"), {"__name__": "readme"})
        if "class Decorrelate" in text:
            assert len(text.strip().splitlines()) <= 30, "the README promises 30 lines"
            (folder / "my_objective.py").write_text(text)
    elif kind == "yaml":
        (folder / "overlay.yaml").write_text(text)
        files = ["-c", "quickstart", "-c", "overlay.yaml"]
        assert any(type(c).__name__ == "LearningRateMonitor" for c in main(["fit", *files, *SHORT]).trainer.callbacks)
    else:
        run_shell(text, folder)


def run_shell(text: str, folder: Path) -> None:
    rest = []
    for line in text.splitlines():
        if line.startswith("sslinfo "):
            words = shlex.split(line, comments=True)[1:]
            trains = words[0] in ("fit", "sweep")
            added = [*SHORT, "--data.download", "false"] if trains else ["--trainer.accelerator", "cpu"]
            (sweep if words[0] == "sweep" else main)([*words, *added])
        else:
            # two ranks of one CPU each stand for the GPUs
            rest.append(line.replace("torchrun", f"{sys.executable} -m torch.distributed.run"))
    script = "\n".join(rest)
    if "torch.distributed.run" in script:
        options = [*SHORT, "--trainer.devices", "2"]
        script = script.rstrip() + " " + " ".join(shlex.quote(option) for option in options)
    if script.strip():
        environment = {**os.environ, "PATH": f"{folder / 'shims'}:{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        script = script.replace("--data.root data", "--data.root data --data.download false")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
