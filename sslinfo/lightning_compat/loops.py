"""Where a training stands, and loops that go on exactly there: any number of stops and resumes is the same training.

Lightning's own counters are ambiguous: a file from an epoch's last batch, from its validation and from its end differ
by what the loops add to them later, and after a resume some of that is left out. Here a checkpoint says where the
training stands (:class:`Place`). A resume sets all counters from that alone, and does first what was still to be done
for the last batch: its validation, and the end of its epoch.

What a module logs in its own ``on_train_batch_end``, which Lightning calls after a file of that step is saved, is the
one row that a resume from such a file does not write again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.progress import _Progress
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection

from sslinfo.errors import UserError

Done = Literal["trained", "validated", "closed"]

PRIVATE: tuple[tuple[type, str], ...] = (
    (_FitLoop, "on_advance_start"),
    (_FitLoop, "on_save_checkpoint"),
    (_FitLoop, "on_load_checkpoint"),
    (_FitLoop, "load_state_dict"),
    (_FitLoop, "done"),
    (_FitLoop, "restarted_mid_epoch"),
    (_TrainingEpochLoop, "reset"),
    (_TrainingEpochLoop, "advance"),
    (_TrainingEpochLoop, "on_advance_end"),
    (_TrainingEpochLoop, "done"),
    (_TrainingEpochLoop, "_broadcast_sigterm_tensor"),
    (_EvaluationLoop, "_on_evaluation_end"),
    (_LoggerConnector, "update_train_step_metrics"),
    (_LoggerConnector, "update_train_epoch_metrics"),
    (_ResultCollection, "log"),
)


@dataclass(frozen=True)
class Place:
    """How far a training is.

    Attributes:
        epoch: epochs that are over.
        batch: batches of the next one that were trained on.
        done: what was done for the last of them: the step alone, its validation too, or all that belongs to it. What is
            left of an epoch after its last batch is its end.
        last: whether that was the epoch's last batch.
    """

    epoch: int
    batch: int
    done: Done = "closed"
    last: bool = False

    @classmethod
    def of(cls, trainer: Trainer) -> Place:
        """Where a training stands that has exact loops.

        Raises:
            UserError: between an optimizer step and the end of its batch: no state there is the training's.
        """
        fit: Any = trainer.fit_loop
        steps: Any = fit.epoch_loop
        batches = steps.batch_progress
        stepped = steps.automatic_optimization.optim_progress.optimizer_steps
        if batches.total.ready > batches.total.processed and stepped > steps.steps_before:
            raise UserError("the training stopped inside an optimizer step: nothing is saved of it")
        epoch = fit.epoch_progress.current.started - 1
        trained = batches.current.processed if steps.epoch == epoch else 0
        last = batches.is_last_batch and batches.total.ready == batches.total.processed  # else of the batch in work
        last = last or trained >= trainer.num_training_batches
        if fit.epoch_progress.current.processed > epoch:  # its end began
            # Where max_steps ended the training before the epoch was over, a longer training goes on inside it.
            return cls(epoch + 1, 0) if last or not trained else cls(epoch, trained)
        if not trained:
            return cls(max(epoch, 0), 0)
        if steps.closed_at == batches.total.processed:
            return cls(epoch, trained, last=last)
        validated = steps.val_loop.logged_at == batches.total.processed
        return cls(epoch, trained, "validated" if validated else "trained", last)

    @classmethod
    def of_counters(cls, trainer: Trainer) -> Place:
        """The same from Lightning's counters alone, as a checkpoint without a place has them."""
        fit: Any = trainer.fit_loop
        steps: Any = fit.epoch_loop
        epochs, batches = fit.epoch_progress.current, steps.batch_progress
        if epochs.processed >= epochs.started:
            return cls(epochs.processed, 0)
        if batches.current.completed < batches.current.processed:
            done: Done = "trained"
        else:
            stepped = steps.automatic_optimization.optim_progress.optimizer_steps
            done = "closed" if steps._batches_that_stepped >= stepped else "validated"
        last = batches.is_last_batch and batches.total.ready == batches.total.processed
        return cls(epochs.processed, batches.current.processed, done, last)


class ExactLoggerConnector(_LoggerConnector):
    """Writes what a step has logged before a checkpoint of it is saved: the file and the log then say the same."""

    written: tuple[int, frozenset[str]] = (-1, frozenset())

    def update_train_step_metrics(self) -> None:
        batch: int = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if self.written[0] != batch:
            super().update_train_step_metrics()
            self.written = batch, frozenset(self.metrics["log"])
        elif self.should_update_logs:
            self.log_metrics(
                {name: value for name, value in self.metrics["log"].items() if name not in self.written[1]}
            )

    def state_dict(self) -> dict[str, Any]:
        """What was logged so far: the newest of each name, and the sums of the epoch in work."""
        self.callback_metrics  # noqa: B018  brings the newest up to date
        known = {name: torch.as_tensor(value).detach().cpu() for name, value in self._callback_metrics.items()}
        results: Any = self.trainer.fit_loop.epoch_loop._results
        sums = [_sum(metric) for metric in results.values() if metric.is_tensor and _counts(metric)]
        return {"newest": known, "epoch": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was logged before a checkpoint."""
        device = self.trainer.strategy.root_device
        self._callback_metrics.update({name: value.to(device) for name, value in state["newest"].items()})
        results: Any = self.trainer.fit_loop.epoch_loop._results
        for entry in state["epoch"]:
            fx, name, value = entry["fx"], entry["name"], entry["value"].to(device)
            results.log(fx, name, value, sync_dist_fn=self.trainer.strategy.reduce, batch_size=1, **entry["how"])
            results[f"{fx}.{name}"].value = value
            if entry["count"] is not None:
                results[f"{fx}.{name}"].cumulated_batch_size = entry["count"].to(device)

    def write_rows(self) -> None:
        """What is logged and not written yet, where a checkpoint is about to be saved."""
        fit: Any = self.trainer.fit_loop
        steps = fit.epoch_loop
        if not self.trainer.training:
            pass  # a validation's rows are written before anyone saves
        elif steps.batch_progress.current.processed > steps.batch_progress.current.completed:
            self.update_train_step_metrics()
        elif fit.epoch_progress.current.processed > fit.epoch_progress.current.completed:
            self.on_epoch_end()
            steps._batches_that_stepped -= 1  # as the loop does: an epoch's row has the number of its last step
            self.update_train_epoch_metrics()
            steps._batches_that_stepped += 1
        for logger in self.trainer.loggers:
            logger.save()
            flush = getattr(getattr(logger, "experiment", None), "flush", None)
            if callable(flush):
                flush()


def _counts(metric: Any) -> bool:
    return bool(metric.meta.on_epoch and not metric.has_reset and metric.meta.dataloader_idx is None)


def _sum(metric: Any) -> dict[str, Any]:
    """What the epoch has of a name so far, and how it is logged."""
    meta = metric.meta
    how = {name: getattr(meta, name) for name in ("prog_bar", "logger", "on_step", "on_epoch", "add_dataloader_idx")}
    how |= {"reduce_fx": meta.reduce_fx.__name__, "metric_attribute": meta.metric_attribute}
    how |= {"sync_dist": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
    count = metric.cumulated_batch_size.cpu() if meta.is_mean_reduction else None
    return {"fx": meta.fx, "name": meta.name, "how": how, "value": metric.value.detach().cpu(), "count": count}


class ExactEvaluationLoop(_EvaluationLoop):
    """Notes after which batch of the training a validation's rows were written."""

    logged_at = -1

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        self.logged_at = batches.processed
        super()._on_evaluation_end(*args, **kwargs)


class ExactEpochLoop(_TrainingEpochLoop):
    """The batches of an epoch; after a resume first what was left to do for the last batch."""

    epoch = -1  # the epoch that the batch counters are of
    closed_at = -1  # the last batch for which all was done, counted over the training
    steps_before = 0  # optimizer steps before the batch in work
    left: Done | None = None  # after a resume: what is done for the last batch, where something is left
    inside = False  # after a resume: the counters stand inside an epoch
    stops_itself = False  # somebody watches for signals, on all ranks

    @property
    def done(self) -> bool:
        return self.left is None and super().done

    def reset(self) -> None:
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        self.epoch = epochs.started - 1
        if self.inside:
            self.inside = False
            self.trainer._logger_connector._first_loop_iter = True  # the epoch's sums go on: its first batch is behind
        else:
            super().reset()

    def advance(self, data_fetcher: Any) -> None:
        if self.left is None:
            self.steps_before = self.global_step
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        self._skip_next_val = self._skip_next_val or self.left == "validated"
        self.left = None
        super().on_advance_end(data_fetcher)
        batches: Any = self.batch_progress.total
        self.closed_at = batches.processed

    def _broadcast_sigterm_tensor(self) -> None:
        if not self.stops_itself:
            super()._broadcast_sigterm_tensor()


class ExactFitLoop(_FitLoop):
    """The epochs; after a resume all counters are those of a training that never stopped."""

    place: Place | None = None

    def on_save_checkpoint(self) -> dict[str, Any]:
        connector: Any = self.trainer._logger_connector
        place = Place.of(self.trainer)
        connector.write_rows()
        return {**super().on_save_checkpoint(), "place": asdict(place), "logged": connector.state_dict()}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.place = Place(**state_dict["place"]) if "place" in state_dict else None
        if "logged" in state_dict:
            connector: Any = self.trainer._logger_connector
            connector.load_state_dict(state_dict["logged"])

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        super().load_state_dict(state_dict, prefix)
        self._go_to(self.place or Place.of_counters(self.trainer))

    def _go_to(self, place: Place) -> None:
        steps: Any = self.epoch_loop
        epochs: Any = self.epoch_progress
        for counter in (epochs.total, epochs.current):
            _set(counter, place.epoch)
            counter.ready = counter.started = place.epoch + (place.batch > 0)
        batches = steps.batch_progress
        _set(batches.total, batches.total.processed)
        _set(batches.current, place.batch)
        batches.is_last_batch = place.last
        optimization = steps.automatic_optimization.optim_progress.optimizer
        for progress in (optimization.step, optimization.zero_grad, steps.scheduler_progress):
            _settle(progress)
        steps.inside = place.batch > 0
        steps.left = place.done if place.done != "closed" else None
        steps.closed_at = batches.total.processed if place.done == "closed" else -1
        steps.val_loop.logged_at = batches.total.processed if place.done == "validated" else -1
        self.place = place

    def reset(self) -> None:
        for loop in (self, self.epoch_loop, self.epoch_loop.val_loop):
            loop._restarting = False  # what a restart means to Lightning is done already
        super().reset()

    @property
    def restarted_mid_epoch(self) -> bool:
        """The epoch has begun: its start is not announced again."""
        return bool(self.epoch_loop.inside)  # type: ignore[attr-defined]

    @property
    def done(self) -> bool:
        return not self._owes() and super().done

    def _owes(self) -> bool:
        """Whether a resumed training stands after an epoch's last batch, or before what belongs to any last batch."""
        steps: Any = self.epoch_loop
        if not steps.inside or self.max_batches == 0:
            return False
        return steps.left is not None or steps.batch_progress.current.processed >= self.max_batches


def _set(counter: Any, value: int) -> None:
    for name in vars(counter):
        setattr(counter, name, value)


def _settle(progress: _Progress) -> None:
    """Nothing is in work."""
    for counter in (progress.total, progress.current):
        _set(counter, counter.completed)


def make_exact(trainer: Trainer) -> None:
    """Give a Trainer's training loops of this module, where it has Lightning's own."""
    fit: Any = trainer.fit_loop
    if type(fit) is not _FitLoop:
        return
    fit.__class__ = ExactFitLoop
    fit.epoch_loop.__class__ = ExactEpochLoop
    fit.epoch_loop.val_loop.__class__ = ExactEvaluationLoop
    connector: Any = trainer._logger_connector
    connector.__class__ = ExactLoggerConnector
