"""Kill a training at random moments, resume it with ``--ckpt_path last``, and compare with the one that never stopped.

    python tests/benchmarks/run_kills.py --kills 100 --signal KILL --minutes 20

Each training is the command line's own, in a process that is forked after the imports, so that a start costs no
seconds. A kill comes at a random moment of the training's life: in its set-up, in a step, while a checkpoint is
written (each second step saves two), in a validation. When a training has reached its end, its weights are compared bit
for bit, and what its runs have logged: each step in each run once, all of it equal to the uninterrupted run's, none
missing (where two runs hold a step, the later one's counts).

With TERM the training has to end with code 143 and to have logged no step in two runs.
"""

from __future__ import annotations

import argparse
import csv
import glob
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from sslinfo.__main__ import console

RECIPE = """
seed_everything: 0
model:
  class_path: BYOL
  init_args:
    backbone: conv4
    backbone_options: {width: 2}
    in_channels: 1
    projector: [16, 8]
    predictor: [8]
    optimizer: {name: adamw, lr: 0.002, warmup_epochs: 1}
data: {class_path: TwoViewDataModule, init_args: {dataset: digits, views: digits, batch_size: 256}}
trainer:
  max_epochs: 12
  accelerator: cpu
  devices: 1
  log_every_n_steps: 1
  check_val_every_n_epoch: 2
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    - class_path: CSVLogger
      init_args: {save_dir: runs, name: csv}
    - class_path: TensorBoardLogger
      init_args: {save_dir: runs, name: tensorboard, default_hp_metric: false}
  callbacks:
    - class_path: LinearProbe
    - class_path: KNNProbe
      init_args: {bank_size: 100}
    - class_path: InformationMonitor
      init_args: {every_n_steps: 10, samples: 64}
    - class_path: ModelCheckpoint
      init_args: {every_n_train_steps: 2, save_top_k: -1, save_last: true}
"""
LAST_STEP = 12 * 6
Rows = dict[tuple[int, str], float]


def train(resume: bool, log: str) -> int:
    """Start the command line in a process of its own; its number."""
    child = os.fork()
    if child:
        return child
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        console(["fit", "-c", "recipe.yaml", *(["--ckpt_path", "last"] if resume else [])])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def versions(name: str) -> list[Path]:
    """The runs' folders of a logger, the oldest first."""
    found = Path("runs", name).glob("version_*")
    return sorted(found, key=lambda folder: int(folder.name.rpartition("_")[2]))


def rows_of_csv(folder: Path) -> tuple[Rows, int]:
    """What a run has logged, and how often it has logged a name of a step again."""
    rows: Rows = {}
    twice = 0
    for file in glob.glob(f"{folder}/metrics.csv"):
        with open(file) as lines:
            for row in csv.DictReader(lines):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        twice += (int(row["step"]), name) in rows
                        rows[int(row["step"]), name] = float(value)
    return rows, twice


def rows_of_tensorboard(folder: Path) -> tuple[Rows, int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows: Rows = {}
    twice = 0
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            if name != "epoch":
                twice += (event.step, name) in rows
                rows[event.step, name] = event.value
    return rows, twice


READERS = {"csv": rows_of_csv, "tensorboard": rows_of_tensorboard}


def weights() -> list[torch.Tensor]:
    newest = max(glob.glob("runs/**/last*.ckpt", recursive=True), key=os.path.getmtime)
    checkpoint = torch.load(newest, weights_only=True)
    assert checkpoint["global_step"] == LAST_STEP, f"{newest}: {checkpoint['global_step']}"
    states = checkpoint["optimizer_states"][0]["state"].values()
    return [*checkpoint["state_dict"].values(), *(value for state in states for value in state.values())]


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ends_within(child: int, seconds: float) -> float | None:
    """How long a training took that ended by itself so soon; its exit code waits to be asked for."""
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return passed
        time.sleep(0.005)
    return None


def check(expected: dict[str, Rows], final: list[torch.Tensor], apart: bool) -> list[str]:
    """What is wrong with a training that has reached its end."""
    wrong = []
    now = weights()
    unequal = sum(not torch.equal(a, b) for a, b in zip(now, final, strict=True))
    if unequal:
        wrong.append(f"{unequal} of {len(final)} tensors differ")
    for name, read in READERS.items():
        together: Rows = {}
        for folder in versions(name):
            rows, twice = read(folder)
            if twice:
                wrong.append(f"{twice} numbers stand twice in {folder}")
            if apart and (both := together.keys() & rows.keys()):
                wrong.append(f"{len(both)} numbers of {folder} stand in a run before it, such as {min(both)}")
            together |= rows
        lost, more = expected[name].keys() - together.keys(), together.keys() - expected[name].keys()
        other = [key for key in expected[name].keys() & together.keys() if expected[name][key] != together[key]]
        for what, keys in (("lost", lost), ("too many", more), ("different", other)):
            if keys:
                wrong.append(f"{name}: {len(keys)} numbers are {what}, such as {min(keys)}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop counting after so long")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    number = getattr(signal, f"SIG{args.signal}")
    draw, home = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="kills_"))

    os.chdir(home)
    Path("recipe.yaml").write_text(RECIPE)
    begun = time.monotonic()
    assert end_of(train(False, "log.txt")) == 0, Path("log.txt").read_text()[-2000:]
    seconds = time.monotonic() - begun
    expected = {name: read(versions(name)[0])[0] for name, read in READERS.items()}
    final = weights()
    sizes = ", ".join(f"{len(rows)} numbers in {name}" for name, rows in expected.items())
    print(f"uninterrupted: {seconds:.1f} s, {LAST_STEP} steps, {sizes}", flush=True)

    kills = finished = passed_over = before_training = 0
    wrong: list[str] = []
    started = time.monotonic()
    while kills < args.kills and time.monotonic() - started < 60 * args.minutes:
        shutil.rmtree("runs", ignore_errors=True)
        chain = 0
        while True:
            resume = bool(glob.glob("runs/**/*.ckpt", recursive=True))
            child = train(resume, "log.txt")
            # The first kills of a chain come early, so that it is killed often before it ends.
            took = ends_within(child, draw.uniform(0.2, seconds * (1.0 if chain > 8 else 0.7)))
            if took is None:
                os.kill(child, number)
            elif not resume:
                seconds = took  # the machine may be faster or slower than it was
            code = end_of(child)
            said = Path("log.txt").read_text()
            passed_over += said.count("passed over")
            if code == 0:
                break
            kills, chain = kills + 1, chain + 1
            if code == -signal.SIGTERM:
                before_training += 1
            elif code not in (-signal.SIGKILL, 128 + signal.SIGTERM):
                wrong.append(f"chain {finished}: code {code}: {said[-300:]}")
                break
            if chain > 30:  # nobody kills it now
                code = end_of(train(bool(glob.glob("runs/**/*.ckpt", recursive=True)), "log.txt"))
                break
        finished += 1
        faults = check(expected, final, apart=args.signal == "TERM") if code == 0 else []
        wrong += [f"chain {finished}: {fault}" for fault in faults]
        print(f"chain {finished}: {chain} kills, {'as uninterrupted' if not faults else '; '.join(faults)}", flush=True)
    left = len(list(home.rglob("*.writing")))
    early = f" ({before_training} before the training)" if args.signal == "TERM" else ""
    print(
        f"{kills} kills by SIG{args.signal}{early}, {finished} trainings to their end, {passed_over} half-written "
        f"files passed over, {left} temporary files left in the last, {len(wrong)} faults"
    )
    shutil.rmtree(home)
    sys.exit(bool(wrong) or kills < args.kills)


if __name__ == "__main__":
    main()
