"""What a step gives: this rank's rows, and those of all ranks for whoever asks; and the bytes that this costs."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule
from rank_trainer import SmallNet, rank_trainer

from sslinfo.callbacks import CollapseAlarm, InformationMonitor, KNNProbe, LinearProbe
from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.objectives import SwAV, VICReg
from sslinfo.outputs import StepOutputs

BATCH, WIDTH, DIM, RANKS = 32, 12, 10, 2  # images of a rank, representation, embedding


def test_steps_of_others_give_nothing() -> None:
    given = StepOutputs(torch.zeros(2), torch.zeros(2))
    assert StepOutputs.of({"loss": torch.zeros(()), "outputs": given}) is given
    assert StepOutputs.of(given) is given
    for other in (None, torch.zeros(()), {"loss": torch.zeros(())}, {"outputs": 3}):
        assert StepOutputs.of(other) is None


def test_projections_are_the_declared_embeddings() -> None:
    z, p = torch.zeros(2, 3), torch.ones(2, 3)
    given = StepOutputs(torch.zeros(2), torch.zeros(2), embeddings={"p1": p, "z1": z}, projected=("z1",))
    assert [rows is z for rows in given.projections] == [True]
    assert StepOutputs(torch.zeros(2), torch.zeros(2), embeddings={"z1": z}).projections == ()


def rows_of_rank(rank: int, world_size: int, uneven: bool) -> dict[str, Any]:
    n = 2 + rank * uneven
    own = torch.arange(n) + 10 * rank
    given = StepOutputs(
        labels=own,
        indices=own + 100,
        representations=(own[:, None].float(), -own[:, None].float()),
        embeddings={"z1": own[:, None].double().repeat(1, 2)},
        projected=("z1",),
        uneven=uneven,
    )
    first = given.whole("labels", "representations")
    with mock.patch.object(dist, "all_gather_into_tensor", side_effect=AssertionError("gathered twice")):
        again = given.whole("representations", "labels")
    rest = given.whole("indices", "embeddings", "clean_representations")
    return {
        "labels": first.labels.tolist(),
        "again": again.labels.tolist(),
        "views": [h[:, 0].tolist() for h in first.representations],
        "unasked": (first.embeddings, len(first.indices), len(rest.labels)),
        "indices": rest.indices.tolist(),
        "projections": [z.tolist() for z in rest.projections],
        "clean": rest.clean_representations,
    }


@pytest.mark.parametrize("uneven", [False, True])
def test_whole_is_the_rows_of_all_ranks_in_order(ranks: Any, uneven: bool) -> None:
    expected = [0, 1, 10, 11, 12] if uneven else [0, 1, 10, 11]
    for found in ranks(2, rows_of_rank, uneven):
        assert found["labels"] == found["again"] == expected
        assert found["views"] == [expected, [-value for value in expected]]
        assert found["unasked"] == ({}, 0, 0)
        assert found["indices"] == [value + 100 for value in expected]
        assert found["projections"] == [[[value, value] for value in expected]]
        assert found["clean"] is None


def test_the_whole_of_a_whole_is_refused_and_projections_can_be_asked_for() -> None:
    given = StepOutputs(torch.zeros(2), torch.zeros(2), embeddings={"z1": torch.ones(2, 3)}, projected=("z1",))
    whole = given.whole("projections")
    assert [z.tolist() for z in whole.projections] == [[[1.0] * 3] * 2]
    assert given.whole("labels").projections == ()
    with pytest.raises(UserError, match=r"whole\(labels\) of what is the rows of all ranks already"):
        whole.whole("labels")


class Bytes(Callback):
    """Bytes that cross ranks in each training step, of tensors that are gathered or summed by us."""

    def __init__(self) -> None:
        self.now = 0
        self.steps: list[int] = []

    def __enter__(self) -> Bytes:
        gather, reduce = dist.all_gather_into_tensor, dist.all_reduce

        def counted_gather(out: torch.Tensor, own: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.now += out.numel() * out.element_size()
            return gather(out, own, *args, **kwargs)

        def counted_reduce(own: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.now += own.numel() * own.element_size()
            return reduce(own, *args, **kwargs)

        self.patches = [
            mock.patch.object(dist, "all_gather_into_tensor", counted_gather),
            mock.patch.object(dist, "all_reduce", counted_reduce),
        ]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *args: Any) -> None:
        for patch in self.patches:
            patch.stop()

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.now = 0

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self.steps.append(self.now)


def bytes_of(rank: int, world_size: int, watchers: list[Callback], swav: bool = False) -> list[int]:
    options: dict[str, Any] = {
        "backbone": SmallNet(1),
        "in_channels": 1,
        "projector": [DIM],
        "projector_norm": "none",
    }
    model = SwAV(prototypes=8, queue=64, **options) if swav else VICReg(**options)
    written = [mock.patch(f"sslinfo.callbacks.{name}.publish") for name in ("information_monitor", "collapse_alarm")]
    with Bytes() as counted, written[0], written[1]:  # nothing is, of an alarm neither, which an unlucky start raises
        trainer = rank_trainer(
            rank, world_size, max_steps=4, limit_val_batches=0, callbacks=[*watchers, counted], max_epochs=1
        )
        trainer.fit(model, datamodule=TwoViewDataModule("digits", batch_size=BATCH))
    return counted.steps


# The loss gathers both views' embeddings in float32, and its backward sums a gradient of the same size.
LOSS = 2 * RANKS * BATCH * 2 * DIM * 4
REPRESENTATIONS = RANKS * BATCH * 2 * WIDTH * 4
LABELS = RANKS * BATCH * 8
WATCHERS: dict[str, tuple[list[Callback], list[int]]] = {
    "nobody": ([], [LOSS] * 4),
    "a probe that validates only": ([KNNProbe()], [LOSS] * 4),
    "a monitor in the steps that it watches": (
        [InformationMonitor(every_n_steps=4, window=2)],
        [LOSS, LOSS, LOSS + REPRESENTATIONS, LOSS + REPRESENTATIONS],
    ),
    "an alarm takes what the loss gathered": ([CollapseAlarm(every_n_steps=2)], [LOSS] * 4),
    "a probe that learns in every step": ([LinearProbe()], [LOSS + REPRESENTATIONS + LABELS] * 4),
    "what two watch is gathered once": (
        [LinearProbe(), InformationMonitor(every_n_steps=2, window=1), CollapseAlarm(every_n_steps=1)],
        [LOSS + REPRESENTATIONS + LABELS] * 4,
    ),
}


@pytest.mark.parametrize("name", WATCHERS)
def test_bytes_of_a_step(ranks: Any, name: str) -> None:
    watchers, expected = WATCHERS[name]
    assert ranks(RANKS, bytes_of, watchers) == [expected] * RANKS


def test_bytes_of_an_objective_with_a_queue(ranks: Any) -> None:
    """The queue takes the embeddings that the loss has gathered."""
    assert ranks(RANKS, bytes_of, [], True) == [[LOSS] * 4] * RANKS


def test_one_process_sends_nothing() -> None:
    assert bytes_of(0, 1, [LinearProbe(), InformationMonitor(every_n_steps=1)]) == [0] * 4
