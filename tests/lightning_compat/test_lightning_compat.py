"""What is used of Lightning beyond its public interface is in one file, and is there in the installed release."""

from __future__ import annotations

import re
from pathlib import Path

import lightning
import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rank_trainer import QUIET
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sslinfo import lightning_compat
from sslinfo.data import TwoViewDataModule
from sslinfo.lightning_compat import (
    PRIVATE,
    batch_in_work,
    datamodule_of,
    has_trainer,
    is_dry_run,
    keep_logs,
    no_batch_yet,
    replace_hyperparameters,
)
from sslinfo.objectives import VICReg

PACKAGE = Path(lightning_compat.__file__).parents[1]


@pytest.mark.parametrize(("owner", "name"), PRIVATE, ids=[f"{owner.__name__}.{name}" for owner, name in PRIVATE])
def test_the_installed_release_has_it(owner: type, name: str) -> None:
    assert hasattr(owner, name), f"lightning {lightning.__version__} has no {owner.__name__}.{name} any more"


def test_no_other_file_uses_it() -> None:
    names = [name for _, name in PRIVATE if name.startswith("_")] + [
        "_hparams_initial",
        "_hparams",
        "_trainer",
        "batch_progress",
        "setup_data",
    ]
    pattern = re.compile(rf"\.({'|'.join(names)})\b|def ({'|'.join(names)})\b")
    for file in PACKAGE.rglob("*.py"):
        if file.parent != PACKAGE / "lightning_compat":
            assert not pattern.search(file.read_text()), file


class Steps(LightningModule):
    pass


def test_hyperparameters_are_replaced_in_checkpoints_and_logs() -> None:
    module = Steps()
    module.save_hyperparameters({"a": object(), "b": 1})
    replace_hyperparameters(module, {"b": 2})
    assert dict(module.hparams) == dict(module.hparams_initial) == {"b": 2}


def test_state_of_a_training() -> None:
    model = VICReg(backbone="conv4", in_channels=1, projector=[8])
    data = TwoViewDataModule("digits", batch_size=256)
    trainer = Trainer(**QUIET, max_steps=2, limit_val_batches=0)
    assert (has_trainer(model), datamodule_of(trainer), is_dry_run(trainer)) == (False, None, False)
    assert no_batch_yet(trainer)
    seen = []
    model.on_train_batch_start = lambda *args: seen.append(batch_in_work(trainer))  # type: ignore[method-assign]
    model.on_train_batch_end = lambda *args: seen.append(batch_in_work(trainer))  # type: ignore[method-assign]
    trainer.fit(model, datamodule=data)
    assert (has_trainer(model), datamodule_of(trainer), no_batch_yet(trainer)) == (True, data, False)
    assert seen == [True, False] * 2
    assert is_dry_run(Trainer(**QUIET, fast_dev_run=True))


def test_logs_of_a_folder_that_is_written_again(tmp_path: Path) -> None:
    """Of one that was killed after step 5, and goes on from step 3."""

    def loggers() -> tuple[CSVLogger, TensorBoardLogger]:
        return CSVLogger(tmp_path, "csv", version="v"), TensorBoardLogger(tmp_path, "tb", version="v")

    def write(steps: range, resumed_from: int | None = None) -> None:
        trainer = Trainer(**{**QUIET, "logger": list(loggers())})
        if resumed_from is not None:
            keep_logs(trainer, resumed_from)
        for step in steps:
            for logger in trainer.loggers:
                logger.log_metrics({"loss": 10.0 * step + (resumed_from or 0)}, step)
        for logger in trainer.loggers:
            logger.finalize("success")

    write(range(5))
    write(range(3, 7), resumed_from=3)
    assert [path.name for path in sorted((tmp_path / "csv" / "v").glob("*.csv"))] == [
        "metrics.csv",
        "metrics_before_0.csv",
    ]
    events = EventAccumulator(str(tmp_path / "tb" / "v"))
    events.Reload()
    expected = [(0, 0.0), (1, 10.0), (2, 20.0), (3, 33.0), (4, 43.0), (5, 53.0), (6, 63.0)]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == expected
