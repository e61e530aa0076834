"""RankWatch: when one of several processes dies, stops or fails, the others say which and why, and end."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sslinfo.callbacks.stop_on_signal import Stopped
from sslinfo.distributed import rank, shared_store, world_size
from sslinfo.lightning_compat import leave_children_alone

PERIOD = 1.0  # seconds between two signs of life
SILENCE = 40.0  # seconds without one after which a rank counts as gone
AFTER_A_FAILURE = 6.0  # the same, once a collective has failed
GRACE = 8.0  # seconds that a rank has to end by itself before it is ended
GONE, FAILED = 1, 2  # exit codes
_OF_OTHERS = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|timeout|peer|gloo|nccl|socket|recv|process group", re.I
)


class RankWatch(Callback):
    """Watches a training on several processes, from a thread of each; nothing happens on one.

    Each rank gives a sign of life every second, and watches the next rank's. A rank without one for 40 seconds (killed,
    stopped, a machine that is gone) is named and all others end, with exit code 1. A rank that raises hands its message
    to the others, which end with it instead of with their collective's complaint about a lost connection.

    A program that holds Python's interpreter lock for 40 seconds without a break looks like a stopped one.

    The command line has it in every run.

    Args:
        describe: what is said of an exception of one rank.

    >>> RankWatch()._silence, PERIOD
    (40.0, 1.0)
    """

    def __init__(self, describe: Callable[[BaseException], str] = str) -> None:
        self._describe = describe
        self._silence = SILENCE
        self._thread: threading.Thread | None = None
        self._store: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if world_size() == 1 or self._thread is not None:
            return
        leave_children_alone()
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.save_on_exception = False  # a rank that fails alone would wait for the others in saving
        self._over = threading.Event()
        self._rank, self._ranks = rank(), world_size()
        self._store = shared_store("rank watch")
        self._thread = threading.Thread(target=self._watch, daemon=True, name="rank-watch")
        self._thread.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._thread is None:
            return
        if isinstance(exception, Stopped | KeyboardInterrupt):
            self._end()  # all ranks stop, and have said why
        elif _of_another_rank(exception):
            self._silence = AFTER_A_FAILURE
            self._thread.join(AFTER_A_FAILURE + GRACE + 3 * PERIOD)  # it ends the process when it knows why
        else:
            told = self._describe(exception).strip() or type(exception).__name__
            if isinstance(exception, SystemExit):
                told = f"it left with exit code {exception.code}"
            self._tell(FAILED, f"rank {self._rank} ended the run: {told}")
            if self._rank == 0:
                self._wait_until_heard()
            self._end()

    def _end(self) -> None:
        if self._thread is not None and not self._over.is_set():
            self._over.set()
            with contextlib.suppress(dist.DistError):  # rank 0 and its store may have ended before
                self._store.set(f"over {self._rank}", "1")

    def _tell(self, code: int, reason: str) -> None:
        with contextlib.suppress(dist.DistError):
            self._store.compare_set("reason", "", f"{code} {self._rank} {reason}")  # the first one counts

    def _wait_until_heard(self) -> None:
        """The store ends with this process: the others have to have read it."""
        end = time.monotonic() + GRACE
        while self._store.add("heard", 0) < self._ranks - 1 and time.monotonic() < end:
            time.sleep(0.1)

    # In the thread

    def _watch(self) -> None:
        next_rank = (self._rank + 1) % self._ranks
        heard, since = -1, time.monotonic()
        while not self._over.wait(PERIOD):
            try:
                self._store.add(f"beat {self._rank}", 1)
                beats = self._store.add(f"beat {next_rank}", 0)
                if beats != heard or self._store.check([f"over {next_rank}"]):
                    heard, since = beats, time.monotonic()
                elif time.monotonic() - since > self._silence:
                    self._tell(GONE, f"rank {next_rank} is gone: no sign of life for {time.monotonic() - since:.0f} s")
                if self._store.check(["reason"]):
                    code, teller, reason = self._store.get("reason").decode().split(" ", 2)
                    if int(teller) != self._rank or int(code) == GONE:
                        self._store.add("heard", 1)
                        self._leave(int(code), reason)
            except (dist.DistError, RuntimeError):
                self._leave(GONE, "rank 0 is gone: the store that it keeps cannot be reached")

    def _leave(self, code: int, reason: str) -> None:
        """End this process, unless it ends by itself: a collective that waits for a rank cannot be interrupted."""
        failed = self._silence == AFTER_A_FAILURE  # then the main thread waits for this one
        if self._over.wait(PERIOD if failed else GRACE):
            return
        if self._rank == 0 or reason.startswith("rank 0 "):
            print(f"sslinfo: {reason}\n(to go on from the newest checkpoint: --ckpt_path last)", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _of_another_rank(exception: BaseException) -> bool:
    """Whether this is a collective's complaint about a rank that does not answer."""
    if isinstance(exception, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    frames = traceback.extract_tb(exception.__traceback__)
    in_torch = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(torch.__file__).parent)
    return isinstance(exception, RuntimeError) and in_torch and bool(_OF_OTHERS.search(str(exception)))
