"""Which images make which batch, on one rank and on several."""

from __future__ import annotations

import errno
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fake import write_imagefolder

from sslinfo.data import TwoViewDataModule
from sslinfo.data.loading import BatchSampler, Progress, Request, ResumableLoader
from sslinfo.errors import UserError


def epoch_of(
    size: int, batch_size: int, shuffle: bool, epoch: int = 0, seed: int = 0
) -> list[tuple[list[int], list[bool]]]:
    sampler = BatchSampler(size, batch_size, shuffle=shuffle, seed=seed)
    sampler.set_epoch(epoch)
    requests = list(sampler)
    assert len(requests) == len(sampler)
    assert [request.batch for request in requests] == list(range(len(requests)))
    assert {request.epoch for request in requests} <= {epoch}
    return [(request.positions.tolist(), request.keep.tolist()) for request in requests]


def _epoch_on_rank(rank: int, world_size: int, *args: Any) -> list[tuple[list[int], list[bool]]]:
    return epoch_of(*args)


def flat(batches: list[tuple[list[int], list[bool]]]) -> list[int]:
    return [position for positions, _ in batches for position in positions]


def test_training_order_is_a_permutation_less_the_last_part_batch() -> None:
    batches = epoch_of(103, 10, True)
    order = flat(batches)
    assert len(order) == len(set(order)) == 100
    assert set(order) <= set(range(103))
    assert all(all(keep) for _, keep in batches)


def test_orders_differ_between_epochs_and_seeds_and_repeat() -> None:
    orders = [flat(epoch_of(100, 10, True, epoch, seed)) for epoch in range(4) for seed in range(4)]
    assert len({tuple(order) for order in orders}) == 16
    assert flat(epoch_of(100, 10, True, 2, 3)) == flat(epoch_of(100, 10, True, 2, 3))


def test_every_image_comes_first_equally_often() -> None:
    # 2000 epochs of 10 images: each is first 200 times, standard deviation 13.4; 5 of them: false alarm below 1e-5.
    first = torch.tensor([flat(epoch_of(10, 5, True, epoch))[0] for epoch in range(2000)]).bincount(minlength=10)
    assert (first - 200).abs().max() < 5 * math.sqrt(2000 * 0.1 * 0.9)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_order_of_one_process(ranks: Any, world_size: int) -> None:
    together = epoch_of(101, 4 * world_size, True, 3, 7)
    answers = ranks(world_size, _epoch_on_rank, 101, 4, True, 3, 7)
    assert all(len(answer) == len(together) for answer in answers)
    for number, (positions, _) in enumerate(together):
        assert [position for answer in answers for position in answer[number][0]] == positions
        assert all(len(answer[number][0]) == 4 and all(answer[number][1]) for answer in answers)


# Uneven last batches, fewer images than ranks in the last batch, fewer images than ranks at all, and one image.
@pytest.mark.parametrize("size", [25, 24, 13, 2, 1])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_each_image_once(ranks: Any, size: int, world_size: int) -> None:
    answers = [epoch_of(size, 4, False)] if world_size == 1 else ranks(world_size, _epoch_on_rank, size, 4, False)
    # Collectives need the same number of batches and rows on all ranks.
    assert len({len(answer) for answer in answers}) == 1
    seen = []
    for batch in zip(*answers, strict=True):
        assert len({len(positions) for positions, _ in batch}) == 1
        # Gathered in the order of ranks, they are in the order of the data set.
        seen += [p for positions, keep in batch for p, kept in zip(positions, keep, strict=True) if kept]
    assert seen == list(range(size))


def test_batch_that_is_larger_than_the_data(ranks: Any) -> None:
    with pytest.raises(UserError, match=r"batch_size=8 on 1 rank\(s\) is more than the 7 training images: lower"):
        len(BatchSampler(7, 8, shuffle=True))
    assert len(BatchSampler(7, 8, shuffle=False)) == 1
    with pytest.raises(AssertionError, match=r"batch_size=4 on 2 rank\(s\) is more than the 7 training images"):
        ranks(2, _epoch_on_rank, 7, 4, True)


def test_progress_is_read_off_the_batches() -> None:
    progress = Progress()
    sampler = BatchSampler(12, 3, shuffle=True, progress=progress)

    def starts() -> tuple[int, int]:
        request = next(iter(sampler))
        return request.epoch, request.batch

    assert starts() == starts() == (0, 0)  # an iterator alone moves nothing
    sampler.set_epoch(5)
    assert starts() == (0, 0)
    progress.trained_on(0, 0)
    assert starts() == (1, 0)
    progress.resume(2, 3)
    assert starts() == starts() == (2, 3)
    progress.resume(2, 4)  # all four batches are done
    assert starts() == (3, 0)


def test_rest_of_a_resumed_epoch_is_the_rest_of_the_whole_one() -> None:
    whole = list(BatchSampler(50, 4, shuffle=True, seed=1))
    progress = Progress(0, 7)
    rest = list(BatchSampler(50, 4, shuffle=True, seed=1, progress=progress))
    assert [request.batch for request in rest] == list(range(7, 12))
    for one, other in zip(whole[7:], rest, strict=True):
        assert torch.equal(one.positions, other.positions)


class Positions(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, request: Request) -> list[int]:
        return request.positions.tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(num_workers: int) -> None:
    sampler = BatchSampler(40, 6, shuffle=True)
    loader = ResumableLoader(Positions(), batch_size=None, sampler=sampler, num_workers=num_workers)
    assert len(loader) == 6
    assert [position for batch in loader for position in batch] == flat(epoch_of(40, 6, True))


# What goes wrong in a worker process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_imagefolder(tmp_path, splits=("train",), per_class=8, size=(8, 8))
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("damage", ["gone", "bad"])
def test_errors_name_the_file_and_hold_no_traceback(folder: Path, damage: str, num_workers: int) -> None:
    data = TwoViewDataModule(
        "imagefolder", str(folder), 4, image_size=8, in_memory=False, num_workers=num_workers, seed=0
    )
    data.setup("fit")
    for path in (folder / "train" / "class1").iterdir():
        path.unlink() if damage == "gone" else path.write_bytes(b"no image")
    kind = FileNotFoundError if damage == "gone" else UserError
    with pytest.raises(kind) as caught:
        list(data.train_dataloader())
    assert "Traceback" not in str(caught.value)
    assert re.search(r"train/class1/00\d\.png", str(caught.value))
    if damage == "gone":
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.ENOENT
        assert Path(caught.value.filename).parent == folder / "train" / "class1"
