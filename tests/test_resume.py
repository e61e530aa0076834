"""A training that stops anywhere and is resumed goes on bit for bit as if it had not stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rank_trainer import Backbone, rank_trainer

from sslinfo.callbacks import KNNProbe, LinearProbe
from sslinfo.cli import main
from sslinfo.data import TwoViewDataModule
from sslinfo.objectives import (
    BYOL,
    WMSE,
    JointEmbedding,
    LogDet,
    MoCo,
    PairDist,
    SIGReg,
    SimSiam,
    SwAV,
    VICReg,
)
from sslinfo.optim import OptimizerConfig

# 1617 training digits in batches of 128: 12 steps an epoch.
STEPS_PER_EPOCH = 12
LAST_STEP = 40
RECIPE = """
seed_everything: 3
model:
  class_path: VICReg
  init_args:
    backbone: conv4
    backbone_options: {width: 2}
    in_channels: 1
    projector: [16, 8]
    optimizer: {name: sgd, lr: 0.05, warmup_steps: 4, options: {momentum: 0.9}}
data: {init_args: {dataset: digits, batch_size: 128}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 40
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: LinearProbe
    - class_path: ModelCheckpoint
      init_args: {every_n_train_steps: 9, save_top_k: -1}
"""


VICREG = partial(VICReg, LogDet())


class Losses(Callback):
    """Every number of a step, exactly: each term, the probe's loss, the rates, and a digest of the model's state."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: dict[int, tuple[str, ...]] = {}  # by the number of the batch since the start
        self.stop_after = stop_after

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = trainer.callback_metrics
        # The target's momentum is logged at optimizer steps alone; what it did to the target is in the digest.
        names = [name for name in sorted(metrics) if name.startswith("train/") and name != "train/ema_momentum"]
        names.append("probe/linear_loss")
        digest = hashlib.sha256()
        for name, tensor in pl_module.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self.rows[batches] = (*(float(metrics[name]).hex() for name in names), digest.hexdigest())
        if trainer.global_step == self.stop_after:
            raise Interrupted


class Interrupted(Exception):
    pass


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # The order of sums depends on the number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fit(
    folder: Path,
    resume: Path | None = None,
    stop_after: int | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    accumulate: int = 1,
    init_seed: int = 0,
    every: dict[str, Any] | None = None,
    ranks: tuple[int, int] = (0, 1),
    objective: Callable[..., JointEmbedding] = VICREG,
    **trainer_options: Any,
) -> dict[int, tuple[str, ...]]:
    """Train to LAST_STEP, or until `stop_after`; returns the numbers of each step."""
    torch.manual_seed(init_seed)
    optimizer = OptimizerConfig("sgd", lr=0.05, warmup_steps=6, options={"momentum": 0.9})
    model = objective(backbone=Backbone(), in_channels=1, projector=[16, 8], optimizer=optimizer)
    data = TwoViewDataModule("digits", batch_size=batch_size, num_workers=num_workers, seed=5)
    losses = Losses(stop_after)
    trainer = rank_trainer(
        *ranks,
        accumulate_grad_batches=accumulate,
        default_root_dir=folder,
        enable_checkpointing=True,
        callbacks=[
            LinearProbe(),
            KNNProbe(k=3, bank_size=50),
            losses,
            ModelCheckpoint(folder, save_top_k=-1, filename="{step}", **(every or {"every_n_train_steps": 9})),
        ],
        **({"max_steps": LAST_STEP // accumulate} | trainer_options),
    )
    try:
        trainer.fit(model, data, ckpt_path=resume)
    except Interrupted:
        assert stop_after is not None
    return losses.rows


def after(rows: dict[int, tuple[str, ...]], step: int) -> dict[int, tuple[str, ...]]:
    return {number: row for number, row in rows.items() if number > step}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[str, ...]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return fit(tmp_path_factory.mktemp("whole"))
    finally:
        torch.set_num_threads(threads)


def test_each_step_differs_so_that_equality_says_something(uninterrupted: dict[int, tuple[str, ...]]) -> None:
    assert sorted(uninterrupted) == list(range(1, LAST_STEP + 1))
    for column in range(len(uninterrupted[1])):
        # The warm-up starts at 0 and its rates differ, as do those of the cosine.
        assert len({row[column] for row in uninterrupted.values()}) >= LAST_STEP - 2


def test_two_runs_of_one_seed_are_equal_and_of_another_are_not(
    tmp_path: Path, uninterrupted: dict[int, tuple[str, ...]]
) -> None:
    assert fit(tmp_path, stop_after=3) == {step: uninterrupted[step] for step in (1, 2, 3)}
    assert fit(tmp_path, stop_after=1, init_seed=1)[1] != uninterrupted[1]


# 18 is in the middle of the second epoch, 9 of the first, 36 = 3 * 12 is the last step of an epoch, before its end.
@pytest.mark.parametrize(("stop_after", "step"), [(21, 18), (14, 9), (37, 36)])
def test_stopped_in_the_middle_of_an_epoch(
    tmp_path: Path, uninterrupted: dict[int, tuple[str, ...]], stop_after: int, step: int
) -> None:
    first = fit(tmp_path, stop_after=stop_after)
    assert first == {number: uninterrupted[number] for number in range(1, stop_after + 1)}
    # Another initialisation and random state: nothing but the checkpoint may matter.
    second = fit(tmp_path, resume=tmp_path / f"step={step}.ckpt", init_seed=99)
    assert second == after(uninterrupted, step)


def test_stopped_twice(tmp_path: Path, uninterrupted: dict[int, tuple[str, ...]]) -> None:
    fit(tmp_path, stop_after=10)
    fit(tmp_path, resume=tmp_path / "step=9.ckpt", stop_after=20, init_seed=1)
    assert fit(tmp_path, resume=tmp_path / "step=18.ckpt", init_seed=2) == after(uninterrupted, 18)


def test_from_the_end_of_an_epoch(tmp_path: Path, uninterrupted: dict[int, tuple[str, ...]]) -> None:
    for number, every in enumerate(({"every_n_epochs": 1}, {"every_n_epochs": 1, "save_on_train_epoch_end": True})):
        folder = tmp_path / str(number)
        fit(folder, stop_after=15, every=every)
        resumed = fit(folder, resume=folder / f"step={STEPS_PER_EPOCH}.ckpt", init_seed=1)
        assert resumed == after(uninterrupted, STEPS_PER_EPOCH)


# Three epochs of 12 steps, four of 5: Lightning restarts these in other ways than a training of so many steps.
@pytest.mark.parametrize("end", [{"max_epochs": 3}, {"max_epochs": 4, "limit_train_batches": 5}])
def test_of_a_training_of_so_many_epochs(tmp_path: Path, end: dict[str, int]) -> None:
    whole = fit(tmp_path / "whole", max_steps=-1, **end)
    steps = end.get("limit_train_batches", STEPS_PER_EPOCH)
    for number, every in enumerate(({"every_n_epochs": 1}, {"every_n_train_steps": steps}, {"every_n_train_steps": 4})):
        folder = tmp_path / str(number)
        fit(folder, stop_after=2 * steps + 1, every=every, max_steps=-1, **end)
        step = 4 * (2 * steps // 4) if number == 2 else 2 * steps
        resumed = fit(folder, resume=folder / f"step={step}.ckpt", init_seed=1, every=every, max_steps=-1, **end)
        assert resumed == after(whole, step)


def test_in_the_middle_then_at_the_end_of_an_epoch(tmp_path: Path, uninterrupted: dict[int, tuple[str, ...]]) -> None:
    fit(tmp_path, stop_after=10)
    for save_on_train_epoch_end in (False, True):
        every = {"every_n_epochs": 1, "save_on_train_epoch_end": save_on_train_epoch_end}
        folder = tmp_path / str(save_on_train_epoch_end)
        fit(folder, resume=tmp_path / "step=9.ckpt", stop_after=27, every=every, init_seed=1)
        assert fit(folder, resume=folder / "step=24.ckpt", every=every) == after(uninterrupted, 24)


def test_with_workers_that_fetch_ahead(tmp_path: Path, uninterrupted: dict[int, tuple[str, ...]]) -> None:
    # At step 18 the workers have been asked for batches further on, which were not trained on.
    fit(tmp_path, stop_after=20, num_workers=2)
    assert fit(tmp_path, resume=tmp_path / "step=18.ckpt", num_workers=2, init_seed=1) == after(uninterrupted, 18)


def test_with_accumulated_batches(tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> dict[int, tuple[str, ...]]:
        return fit(folder, accumulate=2, batch_size=64, every={"every_n_train_steps": 8}, **options)

    whole = run(tmp_path / "whole")
    run(tmp_path, stop_after=10)
    assert run(tmp_path, resume=tmp_path / "step=8.ckpt", init_seed=1) == after(whole, 2 * 8)


# Each with a state of its own: EMA targets and their momentum, queues that no batch divides, prototypes that are frozen
# in the first epoch, a learning rate that stays, slices that change.
STATEFUL: dict[str, Callable[..., JointEmbedding]] = {
    "byol": partial(BYOL, predictor=[16], momentum=0.9),
    "byol and pairdist": partial(BYOL, predictor=[16], momentum=0.9, entropy=PairDist()),
    "moco v2+": partial(MoCo, queue=300, predictor=None, momentum=0.9, final_momentum=0.99),
    "moco v3": partial(MoCo, predictor=[16], momentum=0.9),
    "simsiam": partial(SimSiam, predictor=[4]),
    "swav": partial(SwAV, prototypes=12, queue=300, queue_start_epoch=1, freeze_prototypes_epochs=1),
    "w-mse": WMSE,
}


def sigreg(**options: Any) -> JointEmbedding:
    return VICReg(SIGReg(slices=16), **options)  # a half of its own each time: it counts its slices


@pytest.mark.parametrize("name", [*STATEFUL, "sigreg"])
def test_every_objective_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    objective = STATEFUL.get(name, sigreg)
    whole = fit(tmp_path / "whole", objective=objective)
    fit(tmp_path, stop_after=20, objective=objective)
    resumed = fit(tmp_path, resume=tmp_path / "step=18.ckpt", init_seed=3, objective=objective)
    assert len(resumed) == LAST_STEP - 18 >= 20
    assert resumed == after(whole, 18)


def test_an_ema_target_follows_optimizer_steps_not_batches(tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> dict[int, tuple[str, ...]]:
        every = {"every_n_train_steps": 8}
        return fit(folder, accumulate=2, batch_size=64, every=every, objective=STATEFUL["byol"], **options)

    whole = run(tmp_path / "whole")
    run(tmp_path, stop_after=10)
    assert run(tmp_path, resume=tmp_path / "step=8.ckpt", init_seed=1) == after(whole, 2 * 8)


def test_a_stop_between_accumulated_batches(tmp_path: Path) -> None:
    class SavesBetween(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 4:  # two optimizer steps and a batch
                trainer.save_checkpoint(tmp_path / "between.ckpt")

    def trained(**options: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = STATEFUL["byol"](backbone=Backbone(), in_channels=1, projector=[16, 8])
        trainer = rank_trainer(0, 1, accumulate_grad_batches=2, max_steps=4, callbacks=[SavesBetween()])
        trainer.fit(model, TwoViewDataModule("digits", batch_size=64), **options)
        return model.state_dict()

    whole = trained()
    file = tmp_path / "between.ckpt"
    resumed = trained(ckpt_path=file)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # One that an exception has broken off has lost the gradient, and says so.
    torch.save({**torch.load(file, weights_only=True), "sslinfo_gradients": {}}, file)
    with pytest.warns(UserWarning, match="between accumulated batches: the gradient of 1 of them is lost"):
        without = trained(ckpt_path=file)
    assert not all(torch.equal(whole[name], without[name]) for name in whole)


class Gradients(Callback):
    """Squared norms of the gradient that each optimizer step takes; saves after a batch that no step has followed."""

    def __init__(self, path: Path) -> None:
        self.path, self.norms = path, {}  # type: ignore[var-annotated]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        self.norms[trainer.global_step] = float(sum(gradient.double().square().sum() for gradient in gradients))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4 and not self.path.exists():
            trainer.save_checkpoint(self.path)


def _between_on_ranks(rank: int, world_size: int, folder: str) -> list[dict[int, float]]:
    found = []
    for resume in (None, Path(folder) / "between.ckpt"):
        torch.manual_seed(0)
        optimizer = OptimizerConfig("sgd", lr=0.05)
        model = VICREG(backbone=Backbone(), in_channels=1, projector=[16, 8], optimizer=optimizer)
        gradients = Gradients(Path(folder) / "between.ckpt")
        trainer = rank_trainer(rank, world_size, accumulate_grad_batches=2, max_steps=5, callbacks=[gradients])
        trainer.fit(model, TwoViewDataModule("digits", batch_size=64, seed=5), ckpt_path=resume)
        found.append(gradients.norms)
    return found


def test_between_accumulated_batches_on_two_ranks(tmp_path: Path, ranks: Any) -> None:
    for whole, resumed in ranks(2, _between_on_ranks, str(tmp_path)):
        assert sorted(resumed) == [2, 3, 4]  # the batch of the file is the first half of step 2
        # The mean over ranks is taken before the second half is added: equal but for rounding.
        assert all(abs(resumed[step] / whole[step] - 1) < 1e-4 for step in resumed)


def test_another_global_batch_in_the_middle_of_an_epoch_is_an_error(tmp_path: Path) -> None:
    fit(tmp_path, stop_after=10)
    with pytest.raises(ValueError, match=r"9 batches of 128 images.*now a batch over all devices has 64"):
        fit(tmp_path, resume=tmp_path / "step=9.ckpt", batch_size=64)


def _on_ranks(rank: int, world_size: int, folder: str, name: str) -> tuple[Any, ...]:
    place, file = (rank, world_size), Path(folder) / "step=18.ckpt"
    objective = STATEFUL.get(name, VICREG)
    whole = fit(Path(folder) / "whole", batch_size=64, ranks=place, objective=objective)
    fit(Path(folder), batch_size=64, ranks=place, stop_after=20, objective=objective)
    resumed = fit(Path(folder), batch_size=64, ranks=place, resume=file, init_seed=7 + rank, objective=objective)
    return whole, resumed


@pytest.mark.parametrize("name", ["vicreg", "byol", "moco v2+", "swav"])
def test_on_two_ranks(tmp_path: Path, ranks: Any, name: str) -> None:
    results = ranks(2, _on_ranks, str(tmp_path), name)
    for whole, resumed in results:
        assert sorted(whole) == list(range(1, LAST_STEP + 1))
        assert resumed == after(whole, 18)
    # All but the digest: batch norm has statistics of its own on each rank.
    first, second = ({step: row[:-1] for step, row in whole.items()} for whole, _ in results)
    assert first == second


def test_killed_process_of_the_command_line(in_tmp: Path) -> None:
    """`python -m sslinfo fit` gets SIGKILL at step 21; `fit --ckpt_path last` goes on from step 18."""
    Path("recipe.yaml").write_text(RECIPE)
    Path("watch.py").write_text(
        textwrap.dedent("""
        import os, signal
        import torch
        from lightning.pytorch import Callback
        torch.set_num_threads(1)

        class Watch(Callback):
            def __init__(self, file: str, kill_after: int = 0):
                self.file, self.kill_after = file, kill_after

            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                values = [float(trainer.callback_metrics[n]).hex() for n in ("train/loss", "probe/linear_loss")]
                with open(self.file, "a") as file:
                    print(trainer.global_step, *values, file=file)
                if trainer.global_step == self.kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    watch = ["--trainer.callbacks+=watch.Watch", "--trainer.callbacks.file"]
    killed = subprocess.run(
        [
            sys.executable,
            "-m",
            "sslinfo",
            "fit",
            "-c",
            "recipe.yaml",
            *watch,
            "1.txt",
            "--trainer.callbacks.kill_after=21",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    sys.modules.pop("watch", None)
    sys.path.insert(0, "")
    try:
        resumed = main(["fit", "-c", "recipe.yaml", *watch, "2.txt", "--ckpt_path", "last"])
        whole = main(["fit", "-c", "recipe.yaml", *watch, "3.txt", "--trainer.default_root_dir", "elsewhere"])
    finally:
        sys.path.remove("")
        sys.modules.pop("watch", None)
    assert resumed.trainer.global_step == whole.trainer.global_step == LAST_STEP
    rows = Path("3.txt").read_text().splitlines()
    assert len(rows) == LAST_STEP
    assert Path("1.txt").read_text().splitlines() == rows[:21]
    assert Path("2.txt").read_text().splitlines() == rows[18:]
