"""CollapseAlarm names trainings that are made to collapse, and stays silent over those that are not.

tests/objectives/test_training.py has it watch every objective's 200 steps; tests/benchmarks/run_alarm.py watches 500.
"""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_trainer import rank_trainer
from torch import Tensor

from sslinfo.callbacks import CollapseAlarm
from sslinfo.callbacks.collapse_alarm import Evidence, tight_clusters
from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.objectives import JointEmbedding, SwAV, VarianceCovariance, VICReg, by_view
from sslinfo.optim import OptimizerConfig
from sslinfo.outputs import StepOutputs


class Invariance(JointEmbedding):
    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss": (z1 - z2).square().mean()}


def without_covariance(**options: Any) -> JointEmbedding:
    return VICReg(VarianceCovariance(covariance=0.0), **options)


COLLAPSES: dict[str, Any] = {
    "complete": Invariance,
    "dimensional": without_covariance,
    "cluster": partial(SwAV, prototypes=2, freeze_prototypes_epochs=0),
}


def trained(build: Any, steps: int, alarm: CollapseAlarm, folder: Path) -> Any:
    torch.manual_seed(0)
    model = build(
        backbone="conv4",
        backbone_options={"width": 8},
        in_channels=1,
        projector=[64, 32],
        optimizer=OptimizerConfig("adamw", lr=5e-3, warmup_steps=5),
    )
    trainer = rank_trainer(0, 1, max_steps=steps, limit_val_batches=0, callbacks=[alarm], default_root_dir=folder)
    trainer.fit(model, TwoViewDataModule("digits", batch_size=128, val_fraction=0.25))
    return trainer


@pytest.mark.parametrize("kind", COLLAPSES)
def test_a_run_that_is_made_to_collapse_is_named_within_100_steps(kind: Any, tmp_path: Path) -> None:
    alarm = CollapseAlarm()
    with pytest.warns(UserWarning, match=f"{kind} collapse of the embedding at step (50|75|100): .*What usually helps"):
        trained(COLLAPSES[kind], 100, alarm, tmp_path)
    assert list(alarm.alarms) == [kind]
    assert (tmp_path / "alarm.txt").read_text() == alarm.alarms[kind] + "\n"


def test_stop_ends_the_training_and_says_so(tmp_path: Path) -> None:
    alarm = CollapseAlarm(every_n_steps=20, action="stop")
    with pytest.warns(UserWarning, match="complete collapse.*The training stops here"):
        trainer = trained(Invariance, 200, alarm, tmp_path)
    assert 40 <= trainer.global_step < 200
    assert f"at step {trainer.global_step}:" in alarm.alarms["complete"]


# Evidence of samples whose collapse is known


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(signal: Tensor, noise: float, seed: int = 1) -> tuple[Tensor, Tensor]:
    return signal + noise * normal(*signal.shape, seed=seed), signal + noise * normal(*signal.shape, seed=seed + 1)


HEALTHY = pair(normal(256, 32), 0.5)


def name(views: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor] = HEALTHY, **known: float) -> str | None:
    first = Evidence.of(*start)
    found = Evidence.of(*views).kind(first, first, **known)
    return found and found[0]


def test_evidence_of_independent_noise_is_what_was_put_in() -> None:
    z1, z2 = pair(normal(200_000, 8), 0.5)
    found = Evidence.of(z1[:2000], z2[:2000])
    assert found.std == pytest.approx(math.sqrt(1.25), rel=0.02)  # 16,000 values: a standard error of 0.6%
    assert found.noise == pytest.approx(0.25 / 1.25, rel=0.05)
    assert found.spread > 0.99  # |mean unit row|^2 is 1/2000 on average
    assert found.rank == pytest.approx(8, rel=0.02)
    assert found.clusters is None
    assert Evidence.of(z1[:100]).noise is None


def test_healthy_samples_raise_nothing() -> None:
    assert name(HEALTHY) is None
    # Lengths that shrink while the views find each other: a loss of cosines under weight decay.
    assert name(pair(0.05 * normal(256, 32), 0.005)) is None
    # A cone in which directions still differ.
    assert name(pair(normal(256, 32) + 5, 0.5)) is None
    # Few dimensions from the beginning are no collapse.
    assert name(pair(normal(256, 1) @ normal(1, 4, seed=9), 0.1)) is None


def test_all_on_a_point_is_complete_at_any_scale() -> None:
    point = normal(1, 32, seed=5)
    assert name(pair(1e6 * point.expand(256, 32), 1.0)) == "complete"
    assert name((point.expand(256, 32), point.expand(256, 32))) == "complete"
    zero = torch.zeros(256, 32)
    assert name((zero, zero)) is not None


def test_shrinking_without_learning_is_complete() -> None:
    assert name(pair(0.1 * normal(256, 32), 0.05)) == "complete"
    assert name(pair(0.5 * normal(256, 32), 0.25)) is None  # half of the start
    first = Evidence.of(*HEALTHY)
    small = Evidence.of(*pair(0.1 * normal(256, 32), 0.05))
    assert small.kind(first, small) is None  # it came to rest there


def test_a_line_is_dimensional_and_points_are_clusters() -> None:
    line = normal(256, 1) @ normal(1, 32, seed=9)
    assert name(pair(line, 0.1)) == "dimensional"
    # Two groups on a line whose images are told apart within their group.
    halves = line.sign() * normal(1, 32, seed=9).abs() + 0.3 * line
    assert name(pair(halves, 0.05)) == "dimensional"
    for count in (2, 3, 5, 8):
        corners = 3 * normal(count, 32, seed=3)[torch.arange(256) % count]
        views = pair(corners, 0.2)
        assert tight_clusters(*views) == count
        assert name(views) == "cluster"


def test_clusters_whose_images_are_told_apart_are_no_collapse() -> None:
    corners = 3 * normal(5, 32, seed=3)[torch.arange(256) % 5]
    assert tight_clusters(*pair(corners + 0.2 * normal(256, 32), 0.02)) is None


def test_a_line_cut_into_pieces_is_no_cluster() -> None:
    line = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None] * normal(1, 32, seed=9)
    assert tight_clusters(line, line) is None
    assert tight_clusters(line) is None


@pytest.mark.parametrize(("used", "expected"), [(1.0, "cluster"), (3.9, "cluster"), (4.1, None), (30.0, None)])
def test_clusters_in_use(used: float, expected: str | None) -> None:
    assert name(HEALTHY, used=used) == expected


# The callback


class Alone:
    """A trainer of several ranks whose log_dir would wait for the others."""

    def __init__(self, folder: Path) -> None:
        self.global_step, self.should_stop, self.loggers = 0, False, []
        self.is_global_zero, self.fast_dev_run, self.lightning_module = True, False, None
        self.default_root_dir, self.asked = str(folder), 0

    @property
    def log_dir(self) -> str:
        self.asked += 1
        return self.default_root_dir


def test_an_alarm_asks_nothing_of_other_ranks(tmp_path: Path) -> None:
    alarm, trainer = CollapseAlarm(every_n_steps=1), Alone(tmp_path)
    alarm.on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert trainer.asked == 1

    def step(views: tuple[Tensor, ...]) -> None:
        trainer.global_step += 1
        rows = torch.arange(len(views[0]))
        outputs = StepOutputs(rows, rows, embeddings=by_view("z", views), projected=("z1", "z2"))
        alarm.on_train_batch_end(trainer, None, outputs, None, 0)  # type: ignore[arg-type]

    step(HEALTHY)
    step(LINE)
    with pytest.warns(UserWarning, match="dimensional collapse"):
        step(LINE)
    assert (tmp_path / "alarm.txt").exists()
    assert trainer.asked == 1


def feed(alarm: CollapseAlarm, batches: list[tuple[int, tuple[Tensor, ...]]], folder: Path | None = None) -> Any:
    """Files are written where there is a folder."""
    from types import SimpleNamespace

    trainer = SimpleNamespace(
        global_step=0, loggers=[], should_stop=False, is_global_zero=True, log_dir=folder, fast_dev_run=folder is None
    )
    trainer.default_root_dir = "."
    for step, views in batches:
        trainer.global_step = step
        rows = torch.arange(len(views[0]) if views else 0)
        outputs = StepOutputs(rows, rows, embeddings=by_view("z", views))
        outputs.projected = tuple(outputs.embeddings)
        alarm.on_train_batch_end(trainer, None, outputs, None, 0)  # type: ignore[arg-type]
    return trainer


LINE = pair(normal(256, 1) @ normal(1, 32, seed=9), 0.1)


def test_two_checks_in_a_row_must_agree_and_a_kind_is_said_once() -> None:
    alarm = CollapseAlarm(every_n_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(alarm, [(1, HEALTHY), (10, LINE), (20, HEALTHY), (30, LINE), (35, LINE), (39, LINE)])
    with pytest.warns(UserWarning, match="dimensional collapse of the embedding at step 40") as caught:
        feed(alarm, [(40, LINE), (50, LINE), (60, HEALTHY), (70, LINE), (80, LINE)])
    assert len(caught) == 1


def test_accumulated_batches_of_one_step_are_one_check() -> None:
    alarm = CollapseAlarm(every_n_steps=10)
    feed(alarm, [(1, HEALTHY), (10, LINE), (10, LINE), (10, LINE)])
    assert not alarm.alarms


def test_it_goes_on_after_a_resume() -> None:
    alarm, resumed = CollapseAlarm(every_n_steps=10), CollapseAlarm(every_n_steps=10)
    small = pair(0.1 * normal(256, 32), 0.05)
    smaller = pair(0.05 * normal(256, 32), 0.025)
    feed(alarm, [(1, HEALTHY), (10, small)])
    resumed.load_state_dict(alarm.state_dict())
    with pytest.warns(UserWarning, match="complete collapse"):
        feed(resumed, [(20, smaller)])
    again = CollapseAlarm(every_n_steps=10)
    again.load_state_dict(resumed.state_dict())
    assert again.alarms == resumed.alarms != {}
    fresh = CollapseAlarm()
    fresh.load_state_dict(CollapseAlarm().state_dict())
    assert fresh.alarms == {}


def test_batches_that_say_nothing_are_passed_over() -> None:
    alarm = CollapseAlarm(every_n_steps=1)
    feed(alarm, [(1, HEALTHY), (2, (HEALTHY[0][:1],) * 2), (3, ())])
    assert not alarm.alarms


def test_embeddings_that_are_not_finite_are_said_once_and_are_no_collapse(tmp_path: Path) -> None:
    alarm = CollapseAlarm(every_n_steps=1, action="stop")
    one, other = HEALTHY[0][:8].clone(), HEALTHY[1][:8].clone()
    one[2, 0], other[5, 1], other[2, 0] = torch.nan, torch.inf, torch.nan
    with pytest.warns(UserWarning, match="NaN or infinity") as caught:
        trainer = feed(alarm, [(1, HEALTHY), (2, (one, other)), (3, (one, other)), (4, HEALTHY)], folder=tmp_path)
    said = "the embeddings of 2 of 8 images at step 2 hold NaN or infinity"
    assert [str(warning.message).partition(":")[0] for warning in caught] == [said]
    assert (tmp_path / "alarm.txt").read_text().startswith(said)
    assert not alarm.alarms
    assert not trainer.should_stop


def test_one_view_is_enough() -> None:
    alarm = CollapseAlarm(every_n_steps=1)
    with pytest.warns(UserWarning, match="dimensional"):
        feed(alarm, [(1, HEALTHY[:1]), (2, LINE[:1]), (3, LINE[:1])])


@pytest.mark.parametrize("given", [{"every_n_steps": 0}, {"action": "shout"}])
def test_bad_options_are_named(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(given))):
        CollapseAlarm(**given)


def two_ranks(rank: int, world_size: int, folder: str) -> tuple[dict[Any, str], int]:
    """A collapse on ranks that hold different images; every rank stops at the same step."""
    torch.manual_seed(0)
    model = Invariance(
        backbone="conv4",
        backbone_options={"width": 4},
        in_channels=1,
        projector=[32, 16],
        optimizer=OptimizerConfig("adamw", lr=5e-3, warmup_steps=5),
    )
    alarm = CollapseAlarm(every_n_steps=10, action="stop")
    trainer = rank_trainer(
        rank, world_size, max_steps=120, limit_val_batches=0, callbacks=[alarm], default_root_dir=folder
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, TwoViewDataModule("digits", batch_size=128 // world_size, val_fraction=0.25, seed=0))
    return dict(alarm.alarms), trainer.global_step


def test_ranks_say_the_same_and_stop_together(ranks: Any, tmp_path: Path) -> None:
    (first, step), (second, other) = ranks(2, two_ranks, str(tmp_path))
    assert len((tmp_path / "alarm.txt").read_text().splitlines()) == 1  # rank 0 alone writes
    assert first == second
    assert step == other < 120
    assert list(first) == ["complete"]
