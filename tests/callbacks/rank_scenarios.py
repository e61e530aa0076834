"""Trainings on two ranks that lose one: run as a program, with one import for all; prints what happened as JSON."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sslinfo.__main__ import console
from sslinfo.callbacks import RankWatch, StopOnSignal, rank_watch
from sslinfo.data import TwoViewDataModule
from sslinfo.objectives import LogDet, VICReg

SILENCE = 6.0  # instead of 40 s, so that the test is short


class At(Callback):
    """Does something on one rank at a step."""

    def __init__(self, rank: int, step: int, act: Callable[[], None]) -> None:
        self.rank, self.step, self.act = rank, step, act

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            self.act()


def fails() -> None:
    raise ValueError("image 17 is broken")


def signals(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


SCENARIOS: dict[str, Callback] = {
    "rank 1 is killed": At(1, 4, signals(signal.SIGKILL)),
    "rank 1 is stopped": At(1, 4, signals(signal.SIGSTOP)),
    "rank 0 is killed": At(0, 4, signals(signal.SIGKILL)),
    "rank 1 fails": At(1, 4, fails),
    "rank 0 fails": At(0, 4, fails),
    "rank 1 is terminated": At(1, 4, signals(signal.SIGTERM)),
}


def train(rank: int, port: int, act: Callback, folder: Path) -> None:
    os.environ.update(
        {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        MASTER_PORT=str(port),
    )
    torch.manual_seed(0)
    model = VICReg(LogDet(), backbone="conv4", backbone_options={"width": 2}, in_channels=1, projector=[8])
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=8,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=folder,
        callbacks=[
            StopOnSignal(),
            act,
            ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, save_on_exception=True),
            RankWatch(),
        ],
    )
    trainer.fit(model, TwoViewDataModule("digits", batch_size=64, seed=0))


def start(rank: int, port: int, act: Callback, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    out = os.open(folder / f"said{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 3
    try:
        train(rank, port, act, folder)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except ValueError as error:
        print(f"raised: {error}", flush=True)
        code = 2
    finally:
        os._exit(code)


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def main() -> None:
    torch.set_num_threads(1)
    rank_watch.SILENCE = SILENCE
    rank_watch.AFTER_A_FAILURE = 3.0
    console  # noqa: B018  imported before the forks
    home = Path(tempfile.mkdtemp(prefix="ranks_"))
    running: dict[str, tuple[list[int], Path, float]] = {}
    for name in sys.argv[1:] or SCENARIOS:
        folder = home / name.replace(" ", "_")
        folder.mkdir()
        port = free_port()
        running[name] = [start(rank, port, SCENARIOS[name], folder) for rank in (0, 1)], folder, time.monotonic()
    answers: dict[str, Any] = {}
    for name, (children, folder, begun) in running.items():
        codes: list[int | None] = [None, None]
        while None in codes and time.monotonic() - begun < 150:
            for rank, child in enumerate(children):
                if codes[rank] is None and (done := os.waitpid(child, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(done[1])
            if name == "rank 1 is stopped" and codes[0] is not None and codes[1] is None:
                os.kill(children[1], signal.SIGKILL)
            time.sleep(0.05)
        for rank, child in enumerate(children):
            if codes[rank] is None:
                os.kill(child, signal.SIGKILL)
        files = sorted(path.name for path in folder.glob("*.ckpt"))
        said = [(folder / f"said{rank}.txt").read_text() for rank in (0, 1)]
        answers[name] = {"codes": codes, "said": said, "files": files, "last": str(folder / "last.ckpt")}
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
