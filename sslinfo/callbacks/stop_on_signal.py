"""StopOnSignal: a training that is asked to stop finishes its step, saves, says how to go on, and ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sslinfo.distributed import world_size
from sslinfo.lightning_compat import is_dry_run, requeues_on, stop_here
from sslinfo.reporting.publishing import run_folder

# What a shell, a scheduler or a closed terminal sends; Windows has some of them alone.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


class Stopped(SystemExit):
    """A training has ended at a signal; all ranks end with it."""


class StopOnSignal(Callback):
    """Ends a training at SIGTERM, SIGINT (Ctrl-C), SIGHUP, SIGUSR1 or the signal by which SLURM requeues, on all ranks.

    The step in work is finished, ``stopped.ckpt`` is saved beside the other checkpoints, a line says where, and the
    process ends with the code that a shell gives for the signal: 128 + its number (143 for SIGTERM, 130 for Ctrl-C). A
    training that is resumed from that file is the training that was never stopped. A validation that was broken off, or
    had not begun, is the resumed training's. A second Ctrl-C ends at once, without saving.

    The command line has it in every training. Signals that a process was started to ignore (``nohup``) stay ignored.
    Inside a SLURM job with automatic requeueing, the requeue signal saves ``requeued_JOB.ckpt`` and requeues: ``sslinfo
    fit`` of the same job goes on from there by itself.

    Raises:
        Stopped: (a SystemExit) in the training, when a signal came.

    >>> StopOnSignal().received
    0
    """

    def __init__(self) -> None:
        self.received = 0

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.on_validation_start(trainer, pl_module)  # the whole validation is then the resumed training's

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_asked(trainer)  # one that came in the last validation
        if trainer.is_global_zero and (file := requeued_file(trainer.default_root_dir)):
            file.unlink(missing_ok=True)  # this job's training is over

    def _listen(self, trainer: Trainer) -> None:
        """Lightning has its own handlers by now; it puts back what was there before them when the training is over."""
        stop_here(trainer)
        if threading.current_thread() is not threading.main_thread():
            return  # Python hears signals in the main thread alone
        for number in {*SIGNALS, *requeues_on(trainer)}:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            os.write(2, b"\nsslinfo: ended at once, nothing more is saved\n")
            os._exit(128 + number)
        if number == signal.SIGINT:
            os.write(2, b"\nsslinfo: ends after this step and saves; Ctrl-C again ends at once\n")
        self.received = self.received or number

    def _stop_if_asked(self, trainer: Trainer) -> None:
        number = self.received
        if world_size() > 1:  # any rank may have heard it, and all have to stop at one step
            heard = torch.tensor(number, device=trainer.strategy.root_device)
            dist.all_reduce(heard, dist.ReduceOp.MAX)
            number = int(heard)
        if number:
            self._stop(trainer, signal.Signals(number))

    def _stop(self, trainer: Trainer, number: signal.Signals) -> None:
        requeue = number in requeues_on(trainer)
        path = self._path(trainer, requeue)
        if path is not None:
            trainer.save_checkpoint(path, weights_only=False)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.save_on_exception = False  # it is saved
        if trainer.is_global_zero:
            what = f"stopped by {number.name} after step {trainer.global_step}"
            saved = f"saved {path}" if path is not None else "nothing is saved, since there is no ModelCheckpoint"
            go_on = f"\nto go on: the same command with --ckpt_path {path}" if path is not None and not requeue else ""
            print(f"sslinfo: {what}; {saved}{go_on}", file=sys.stderr, flush=True)
            if requeue:
                _requeue()
        raise Stopped(128 + number)

    def _path(self, trainer: Trainer, requeue: bool) -> Path | None:
        files = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        if is_dry_run(trainer) or not files:
            return None
        if requeue:
            return requeued_file(trainer.default_root_dir)
        return Path(files[0].dirpath or run_folder(trainer) / "checkpoints", "stopped.ckpt")


def requeued_file(folder: str | Path) -> Path | None:
    """Where a SLURM job saves when it is requeued; None outside of one.

    Not where Lightning would: a file of its own for each job, so that none goes on with another's training.
    """
    job = _job()
    return Path(folder, f"requeued_{job}.ckpt") if re.fullmatch(r"\w+", job) else None


def _job() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def _requeue() -> None:
    job = _job()
    try:
        code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    except OSError as error:
        code = error.errno or 1
    print(
        f"sslinfo: {'requeued' if code == 0 else f'could not requeue (code {code})'} SLURM job {job}", file=sys.stderr
    )
