"""Random chains of stops and resumes against the training that never stopped: every row and weight, bit for bit."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from rank_trainer import Backbone, rank_trainer

from sslinfo.callbacks import CollapseAlarm, InformationMonitor, KNNProbe, LinearProbe, RunSummary
from sslinfo.data import TwoViewDataModule
from sslinfo.objectives import BYOL, JointEmbedding
from sslinfo.optim import OptimizerConfig

Row = tuple[int, str, str]  # step, name, value in hexadecimal
BATCH = 128  # 12 batches an epoch of the 1617 training digits, of which 5 are used


class Stopped(Exception):
    pass


class Rows(Logger):
    """Everything that is logged, in order."""

    name = version = "rows"  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows += [(step, name, float(value).hex()) for name, value in metrics.items()]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class Stops(Callback):
    """Raises at a hook after so many batches; notes in each checkpoint what had been logged when it was saved."""

    def __init__(self, hook: str, batches: int) -> None:
        self.hook, self.batches = hook, batches

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["rows"] = list(trainer.loggers[0].rows)  # type: ignore[attr-defined]

    def _perhaps(self, trainer: Trainer, hook: str) -> None:
        if hook == self.hook and trainer.fit_loop.total_batch_idx + 1 >= self.batches and not trainer.sanity_checking:
            raise Stopped

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._perhaps(trainer, "on_train_batch_start")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._perhaps(trainer, "on_train_batch_end")

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        self._perhaps(trainer, "on_validation_start")

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        self._perhaps(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        self._perhaps(trainer, "on_train_epoch_end")

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        self._perhaps(trainer, "on_train_epoch_start")


class Watched(BYOL):
    """An objective that logs a step's and an epoch's numbers."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        out = super().training_step(batch, batch_idx)
        self.log("own/mean", out["loss"].detach().double(), on_step=True, on_epoch=True, batch_size=7)
        self.log("own/most", batch["index"].double().max(), on_step=False, on_epoch=True, reduce_fx="max", batch_size=1)
        self.log("own/sum", batch["index"].double().sum(), on_step=False, on_epoch=True, reduce_fx="sum", batch_size=1)
        return out


def states(trainer: Trainer, model: JointEmbedding) -> list[torch.Tensor]:
    """Every tensor of the model and the optimizer, and the rates."""
    found = [tensor.clone() for tensor in model.state_dict().values()]
    for state in trainer.optimizers[0].state.values():
        found += [value.clone() for value in state.values() if isinstance(value, torch.Tensor)]
    found.append(torch.tensor([group["lr"] for group in trainer.optimizers[0].param_groups]))
    head = next(c for c in trainer.callbacks if isinstance(c, LinearProbe)).head  # type: ignore[attr-defined]
    return [*found, *(tensor.clone() for tensor in head.state_dict().values())]


class Chain:
    """One setting of a training, and links of it."""

    def __init__(self, seed: int, folder: Path, ranks: tuple[int, int] = (0, 1)) -> None:
        self.draw, self.folder, self.ranks = random.Random(seed), folder, ranks
        choose = self.draw.choice
        self.options: dict[str, Any] = {
            # Of several ranks a file between accumulated batches holds the mean gradient: not the same to the last bit.
            "accumulate_grad_batches": choose([1, 1, 2, 3]) if ranks[1] == 1 else 1,
            "log_every_n_steps": choose([1, 1, 3]),
            **choose(
                [
                    {"check_val_every_n_epoch": 1},
                    {"check_val_every_n_epoch": 2},
                    {"val_check_interval": 0.4},
                    {"val_check_interval": 3, "check_val_every_n_epoch": None},
                    {"limit_val_batches": 0},
                ]
            ),
            **choose([{"max_epochs": 4}, {"max_epochs": 4}, {"max_epochs": -1, "max_steps": 7}]),
        }
        self.saves = [
            {"every_n_train_steps": choose([1, 2, 3]), "save_top_k": -1, "filename": "step-{step}"},
            *(
                [{"save_on_train_epoch_end": True, "save_top_k": -1, "filename": "end-{step}"}]
                if choose([0, 1])
                else []
            ),
            *(
                [{"save_on_train_epoch_end": False, "mode": "max", "save_top_k": -1, "filename": "val-{step}"}]
                if choose([0, 1])
                else []
            ),
        ]
        self.on_exception = self.draw.random() < 0.7 and ranks[1] == 1

    def link(self, name: str, resume: Path | None = None, stop: tuple[str, int] = ("", 0)) -> tuple[list[Row], Any]:
        """Rows that one process has written, and the state at its end (None where it was stopped)."""
        torch.manual_seed(0 if resume is None else self.draw.randint(1, 999))  # nothing but the checkpoint may matter
        optimizer = OptimizerConfig("adamw", lr=0.02, warmup_steps=2)
        model = Watched(backbone=Backbone(), in_channels=1, projector=[16, 8], predictor=[8], optimizer=optimizer)
        data = TwoViewDataModule("digits", batch_size=BATCH // self.ranks[1], seed=5)
        logger = Rows()
        files = [
            ModelCheckpoint(self.folder / name, save_on_exception=self.on_exception and not number, **save)
            for number, save in enumerate(self.saves)
        ]
        watchers: list[Callback] = [
            LinearProbe(),
            KNNProbe(k=3, bank_size=50, every_n_validations=2),
            InformationMonitor(every_n_steps=3, window=4, samples=64),
            CollapseAlarm(every_n_steps=2),
            RunSummary(labels_per_class=(1,), draws=2, limit=64),
        ]
        trainer = rank_trainer(
            *self.ranks,
            logger=logger,
            default_root_dir=self.folder / name,
            enable_checkpointing=True,
            limit_train_batches=5,
            callbacks=[*watchers, Stops(*stop), *files],
            **self.options,
        )
        try:
            trainer.fit(model, data, ckpt_path=resume)
        except Stopped:
            return logger.rows, None
        return logger.rows, states(trainer, model)


HOOKS = [
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_epoch_start",
]


def follow(chain: Chain, links: int) -> int:
    """Compare a chain with the training that never stopped; how many resumes there were."""
    whole, end = chain.link("whole")
    assert len({step for step, _, _ in whole}) >= 3
    logged: dict[Path | None, list[Row]] = {
        None: []
    }  # by the processes before a file, and by its own until it was saved
    resumed: list[Path | None] = [None]
    for number in range(links + 1):
        last = number == links
        stop = ("", 0) if last else (chain.draw.choice(HOOKS), chain.draw.randint(1, 18))
        before = logged[resumed[-1]]
        rows, state = chain.link(f"link{number}", resumed[-1], stop)
        # A link writes no row again, leaves none out, and each has the step and the value that it should have.
        where = f"link {number}, from {resumed[-1]}, to {stop}"
        # What another rank logs of its own images alone, and its batch statistics, are in no file.
        if chain.ranks[0] == 0:
            so_far, expected = Counter([*before, *rows]), Counter(whole[: len(before) + len(rows)])
            assert so_far == expected, f"{where}: {min(so_far - expected)} in place of {min(expected - so_far)}"
            if state is not None:
                assert len(before) + len(rows) == len(whole), where
                assert len(state) == len(end)
                assert all(map(torch.equal, state, end)), where
        for file in (chain.folder / f"link{number}").rglob("*.ckpt"):
            logged[file] = [*before, *torch.load(file, weights_only=True)["rows"]]
        files = sorted(file for file in logged if file is not None)
        resumed.append(chain.draw.choice(files) if files else None)
    return sum(file is not None for file in resumed[:-1])


# CHAINS=100 python -m pytest tests/test_resume_chains.py tries more.
CHAINS = int(os.environ.get("CHAINS", "3"))


@pytest.mark.parametrize("seed", range(CHAINS))
def test_any_chain_is_the_training_that_never_stopped(tmp_path: Path, seed: int) -> None:
    assert follow(Chain(seed, tmp_path), links=3) >= 1


def _on_ranks(rank: int, world_size: int, folder: str, seed: int) -> int:
    return follow(Chain(seed, Path(folder), (rank, world_size)), links=2)


@pytest.mark.parametrize("seed", range(100, 100 + max(1, CHAINS // 4)))
def test_a_chain_on_two_ranks(tmp_path: Path, ranks: Any, seed: int) -> None:
    first, second = ranks(2, _on_ranks, str(tmp_path), seed)
    assert first == second >= 1
