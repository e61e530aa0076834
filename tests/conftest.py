"""One pool of gloo processes for every multi-process test, and quiet, reproducible single-process tests."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

LONGEST = ("test_notebooks.py", "test_docs.py", "test_training.py", "test_resume.py", "test_resume_chains.py")
LARGEST_WORLD = 3
START_SECONDS = 400  # a cold import of torch and Lightning on two busy cores
PRELOADED = ["lightning", "sslinfo.callbacks", "sslinfo.objectives"]  # what tasks import, before any clock runs
TASK_SECONDS = 240
RENDEZVOUS_SECONDS = 90
GOOD, BAD, NO_GROUP = "good", "bad", "no group"


def _serve(rank: int, port: int, connection: Connection) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=START_SECONDS))
    connection.send("ready")
    while True:
        task = connection.recv()
        if task is None:
            return
        function, world_size, number, args = task
        try:
            torch.distributed.init_process_group(
                "gloo",
                store=torch.distributed.PrefixStore(f"call {number}", store),
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=RENDEZVOUS_SECONDS),
            )
        except Exception:
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

    The processes start at the first call and live as long as the pool; each call has a process group of its own. A
    rank whose handshake failed counts its process groups differently from then on and would never meet the others
    again: after a failed handshake, and after an answer that did not come, all processes are new.
    """

    def __init__(self) -> None:
        # One process imports what the ranks need and forks them: it has computed nothing, so no thread is lost.
        self.context = mp.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.workers: list[tuple[Any, Connection]] = []
        self.calls = 0
        self.hopeless: str | None = None

    def start(self) -> None:
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank in range(LARGEST_WORLD):
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=_serve, args=(rank, self.store.port, theirs), daemon=True)
            process.start()
            self.workers.append((process, ours))
        for rank in range(LARGEST_WORLD):
            assert self._answer(rank, START_SECONDS) == "ready"

    def __call__(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        assert world_size <= LARGEST_WORLD
        if self.hopeless:
            raise AssertionError(f"no process group could be made in an earlier test: {self.hopeless}")
        # A handshake may fail on a starved machine: that is tried again, what a test does never is.
        for _ in range(3):
            if not self.workers:
                self.start()
            self.calls += 1
            for _, connection in self.workers[:world_size]:
                connection.send((function, world_size, self.calls, args))
            answers = [self._answer(rank, TASK_SECONDS) for rank in range(world_size)]
            if not any(status == NO_GROUP for status, _ in answers):
                break
            self.close()
        else:
            self.hopeless = "\n".join(answer for status, answer in answers if status == NO_GROUP)
        failures = [answer for status, answer in answers if status != GOOD]
        if failures:
            raise AssertionError("\n".join(failures))
        return [answer for _, answer in answers]

    def _answer(self, rank: int, seconds: int) -> Any:
        connection = self.workers[rank][1]
        if not connection.poll(seconds):
            self.close()
            raise TimeoutError(f"rank {rank} gave no answer in {seconds} s")
        return connection.recv()

    def close(self) -> None:
        for process, _ in self.workers:
            process.kill()
            process.join()
        self.workers = []


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    # Lightning writes its seed into the environment: a fixture of the next module would take it over.
    torch.manual_seed(0)
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _quantities_of_the_package() -> Iterator[None]:
    """A quantity that a test or a block of the documentation adds is gone after it."""
    from sslinfo.information.quantities import QUANTITIES

    before = list(QUANTITIES)
    yield
    QUANTITIES[:] = before


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A test whose working folder is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # small tensors: more threads wait for one another
    os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # First what takes minutes: of two workers, one would go on with it while the other has nothing left.
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    # What is imported stays: the collector, which every round of objects calls, need not go through it each time.
    gc.collect()
    gc.freeze()
