"""Of two ranks one is killed, stopped or fails: the other says which and why, and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sslinfo.callbacks.rank_watch import _of_another_rank

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def answers() -> dict[str, Answer]:
    program = Path(__file__).with_name("rank_scenarios.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=400, env=environment, check=True
    )
    found: dict[str, Answer] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_killed_rank(answers: dict[str, Answer]) -> None:
    answer = answers["rank 1 is killed"]
    assert answer["codes"] == [1, -signal.SIGKILL]
    assert "sslinfo: rank 1 is gone: no sign of life for" in answer["said"][0]
    assert "--ckpt_path last" in answer["said"][0]
    assert torch.load(answer["last"], weights_only=True)["global_step"] == 4


def test_a_rank_that_stands_still(answers: dict[str, Answer]) -> None:
    answer = answers["rank 1 is stopped"]
    assert answer["codes"] == [1, -signal.SIGKILL]  # the program kills what stands still, when the other has ended
    assert "sslinfo: rank 1 is gone: no sign of life for" in answer["said"][0]


def test_a_killed_rank_that_keeps_the_store(answers: dict[str, Answer]) -> None:
    answer = answers["rank 0 is killed"]
    assert answer["codes"] == [-signal.SIGKILL, 1]
    assert "sslinfo: rank 0 is gone" in answer["said"][1]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_end_with_the_message_of_the_rank_that_failed(answers: dict[str, Answer], rank: int) -> None:
    answer = answers[f"rank {rank} fails"]
    assert answer["codes"] == [2, 2]
    assert "raised: image 17 is broken" in answer["said"][rank]
    # The other one says it too where it is rank 0, or where rank 0 is the one that failed.
    assert f"sslinfo: rank {rank} ended the run: image 17 is broken" in answer["said"][1 - rank]
    # Nobody waits for the others in saving what the exception left.
    assert torch.load(answer["last"], weights_only=True)["global_step"] == 4


def test_a_signal_to_one_rank_stops_all_at_one_step(answers: dict[str, Answer]) -> None:
    answer = answers["rank 1 is terminated"]
    assert answer["codes"] == [143, 143]
    assert "sslinfo: stopped by SIGTERM after step 5; saved" in answer["said"][0]  # that of the batch in which it came
    assert "stopped.ckpt" in answer["files"]


def test_whose_exception_it_is() -> None:
    def raised(line: str) -> BaseException:
        try:
            exec(line, {"torch": torch})
        except BaseException as error:
            return error
        raise AssertionError(line)

    # The words of a lost connection in a file of one's own are one's own; torch says them from inside itself.
    assert not _of_another_rank(raised('raise RuntimeError("read timed out: the server does not answer")'))
    assert not _of_another_rank(raised('torch.zeros(2) @ torch.zeros(3)  # "size mismatch"'))
    assert _of_another_rank(torch.distributed.DistNetworkError("Connection reset by peer"))
