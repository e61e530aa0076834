"""One pool of gloo processes for every multi-process test, and quiet, reproducible single-process tests."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

LARGEST_WORLD = 3
TASK_SECONDS = 150
RENDEZVOUS_SECONDS = 60
GOOD, BAD, NO_GROUP = "good", "bad", "no group"


def _serve(rank: int, connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        task = connection.recv()
        if task is None:
            return
        function, world_size, rendezvous, args = task
        try:
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"file://{rendezvous}",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=RENDEZVOUS_SECONDS),
            )
        except RuntimeError:
            connection.send((NO_GROUP, traceback.format_exc()))
            continue
        try:
            answer = (GOOD, function(rank, world_size, *args))
        except BaseException:
            answer = (BAD, traceback.format_exc())
        finally:
            torch.distributed.destroy_process_group()
        connection.send(answer)


class RankPool:
    """Calls ``function(rank, world_size, *args)`` in that many gloo processes and returns the results by rank.

    The processes start at the first call and live as long as the pool; each call has a process group of its own.
    """

    def __init__(self) -> None:
        self.context = mp.get_context("spawn")
        self.workers: list[tuple[Any, Connection]] = []

    def __call__(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        assert world_size <= LARGEST_WORLD
        while len(self.workers) < world_size:
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=_serve, args=(len(self.workers), theirs), daemon=True)
            process.start()
            self.workers.append((process, ours))
        # On a busy machine gloo's first handshake fails now and then: that is tried again, what a test does never is.
        for _ in range(3):
            answers = self._ask(world_size, function, args)
            if not any(status == NO_GROUP for status, _ in answers):
                break
        failures = [answer for status, answer in answers if status != GOOD]
        if failures:
            raise AssertionError("\n".join(failures))
        return [answer for _, answer in answers]

    def _ask(self, world_size: int, function: Callable[..., Any], args: tuple[Any, ...]) -> list[tuple[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            for _, connection in self.workers[:world_size]:
                connection.send((function, world_size, Path(folder) / "rendezvous", args))
            answers = []
            for number, (_, connection) in enumerate(self.workers[:world_size]):
                if not connection.poll(TASK_SECONDS):
                    self.close()
                    raise TimeoutError(f"rank {number} of {world_size} gave no answer in {TASK_SECONDS} s")
                answers.append(connection.recv())
        return answers

    def close(self) -> None:
        for process, _ in self.workers:
            process.kill()
        self.workers = []


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(0)


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A test whose working folder is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # small tensors: more threads wait for one another
    os.environ.setdefault("MPLBACKEND", "Agg")
