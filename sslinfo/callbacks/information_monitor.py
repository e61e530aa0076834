"""InformationMonitor: entropies, information, spectra and geometry of the representation while it trains."""

from __future__ import annotations

import difflib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from sslinfo.distributed import gather, gather_uneven
from sslinfo.errors import UserError
from sslinfo.evaluation.taps import Tap
from sslinfo.evaluation.whole_set import Views, WholeSet, not_finite
from sslinfo.information import Moments
from sslinfo.information.measure import DEFAULT_SCALES, Report, Scales, measure
from sslinfo.information.spectrum import covariance_eigenvalues
from sslinfo.outputs import StepOutputs
from sslinfo.ranges import check_range
from sslinfo.reporting.history import History
from sslinfo.reporting.publishing import Picture, Publication, log_numbers, note_once, publish, render, step_of

MOST_SPECTRA = 30  # of a layer: older ones are thinned, so that nothing grows with the training's length
REPRESENTATION, EMBEDDING = "representation", "embedding"  # the layers of every objective


class InformationMonitor(Callback):
    """Logs what ``sslinfo.information`` says of the representation and of the embedding, equal on any number of ranks.

    In training it measures every so many optimizer steps, from what the step computed anyway, and logs
    ``train_info/<layer>/<quantity>``. In validation it measures the whole set, and logs ``info/<layer>/<quantity>``.

    Quantities of second moments need more samples than one batch may have. In training they take the batches of the
    last steps together: as many as give four samples for each feature of the layer, and at most ``window``. All other
    quantities take one batch in training, and in validation ``samples`` images, chosen by their index.

    ``information.txt`` in the run's folder, and TensorBoard's text, say what a number was computed with, what its
    ceiling is, and why another number is absent. ``information_<layer>.png`` and TensorBoard's images show the spectra
    over training, the covariance of the features, and their standard deviations.

    Args:
        every_n_steps: optimizer steps between two measurements in training, in [0, 1e9]; 0 measures in validation only.
        window: training batches, at most, whose samples are taken together, in [1, 1e6]. Where gradients are
            accumulated, each part counts as a batch.
        samples: validation images for quantities of pairs of samples, in [2, 1e9].
        beta: of the log-det entropy, for features as they are and for features of mean variance 1, in [1e-9, 1e9].
        variance: s2 / d of the pairwise entropy, in [1e-9, 1e9], s2 the variance of a component, rows on the sphere of
            radius sqrt(d), as ``PairDist`` has it.
        temperature: of InfoNCE's cosine critic, in [1e-4, 1e4].
        modules: names of further layers to watch, ``backbone.layers.6`` or ``projector.1`` for instance; activations of
            more than two dimensions are averaged over all but samples and channels.

    >>> InformationMonitor(every_n_steps=50).every_n_steps
    50
    """

    def __init__(
        self,
        every_n_steps: int = 250,
        window: int = 8,
        samples: int = 1024,
        beta: float = DEFAULT_SCALES.beta,
        variance: float = DEFAULT_SCALES.variance,
        temperature: float = DEFAULT_SCALES.temperature,
        modules: Sequence[str] = (),
    ) -> None:
        check_range("every_n_steps", every_n_steps, "[0, 1e9]", whole=True)
        check_range("window", window, "[1, 1e6]", whole=True)
        check_range("samples", samples, "[2, 1e9]", whole=True)
        check_range("beta", beta, "[1e-9, 1e9]")
        check_range("variance", variance, "[1e-9, 1e9]")
        check_range("temperature", temperature, "[1e-4, 1e4]")
        self.every_n_steps, self.window, self.samples = every_n_steps, window, samples
        self.scales = Scales(beta, variance, temperature)
        self.taps = {name: Tap() for name in modules}
        self.reports: dict[str, Report] = {}  # the newest, by logged prefix
        self._steps: dict[str, int] = {}
        self.spectra: dict[str, History[tuple[int, Tensor]]] = {}
        self._recent: deque[dict[str, Views]] = deque(maxlen=window)
        self._measured = 0
        self._watching = False
        self._whole: dict[str, WholeSet] = {}
        self._absent: set[str] = set()  # prefixes of which it was said that there is nothing to measure

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # another training than the last one, unless a checkpoint's state comes next
            self.reports, self._steps, self.spectra, self._measured = {}, {}, {}, 0
            self._recent.clear()
            self._absent.clear()
        known = [name for name, _ in pl_module.named_modules() if name]
        for name, tap in self.taps.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:10]
                raise UserError(
                    f"modules={name!r} is not a module of {type(pl_module).__name__}: {', '.join(close)}, ..."
                )
            tap.attach(pl_module.get_submodule(name))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for tap in self.taps.values():
            tap.detach()

    # In training

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Whether the optimizer step that this batch is part of is among the last before a measurement.
        self._watching = self.every_n_steps > 0 and -(trainer.global_step + 1) % self.every_n_steps < self.window
        for tap in self.taps.values():
            tap.outputs = [] if self._watching else None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        given = StepOutputs.of(outputs)
        if not self._watching or given is None:
            return
        step = trainer.global_step
        layers = _layers(given.whole("representations", "embeddings"), pl_module)
        self._recent.append({**layers, **self._tapped(batch["views"])})
        if step % self.every_n_steps or step == self._measured:
            return
        self._measured = step
        for layer in self._recent[-1]:
            report = self._of_steps([views[layer] for views in self._recent])
            self._log(trainer, pl_module, f"train_info/{layer}", report)
        self._recent.clear()

    def _of_steps(self, steps: Sequence[Views]) -> Report:
        last = steps[-1]
        absent = not_finite([rows for views in steps for rows in views])
        if absent is not None:
            return absent
        few, d = last[0].shape
        views = len(last)
        wanted = min(len(steps), math.ceil(4 * d / max(few, 1)))
        # A window that is too short for the quantities that want one costs a covariance of the whole width for nothing.
        if wanted * few <= min(views, 2) * d:
            return measure(last, None, self.scales)
        taken = zip(*(step[:2] for step in steps[-wanted:]), strict=True)
        chosen = [
            torch.cat([part.to(last[0].device) for part in rows]) for rows in taken
        ]  # a checkpoint's are on the CPU
        return measure(last, Moments.of(*chosen), self.scales, wanted)

    def _tapped(self, views: Sequence[Tensor], keep: Tensor | None = None) -> dict[str, Views]:
        """The named modules' activations of the whole batch, by name and view."""
        layers = {}
        for name, tap in self.taps.items():
            own = {str(number): rows for number, rows in enumerate(tap.take(len(views), len(views[0])))}
            whole = gather(own) if keep is None else gather_uneven({view: rows[keep] for view, rows in own.items()})
            if whole:
                layers[name] = tuple(whole.values())
        return layers

    # In validation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._whole = {}

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        for tap in self.taps.values():
            tap.outputs = None if trainer.sanity_checking else []

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        given = StepOutputs.of(outputs)
        if trainer.sanity_checking or given is None:
            return
        rows = given.whole("representations", "embeddings", "indices")
        tapped = self._tapped(batch["views"], batch["keep"])
        for layer, views in {**_layers(rows, pl_module), **tapped}.items():
            self._whole.setdefault(layer, WholeSet(self.samples)).add(views, rows.indices)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self._whole:
            return
        for layer, whole in self._whole.items():
            self._log(trainer, pl_module, f"info/{layer}", whole.measure(self.scales))
        self._keep_spectra(step_of(trainer))
        folder = publish(trainer, lambda: self._publication(step_of(trainer)))
        if folder is not None and trainer.state.fn == "validate":
            absent = dict.fromkeys(name for found in self.reports.values() for name in found.reasons)
            why = f", and why {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} absent" if absent else ""
            print(f"how to read each number{why}: {folder / 'information.txt'}, figures beside it")
        self._whole = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without a validation the text is of the training alone."""
        if self.reports and not self.spectra:
            publish(trainer, lambda: self._publication(step_of(trainer)))

    def _keep_spectra(self, step: int) -> None:
        for layer, whole in self._whole.items():
            if moments := whole.first():
                kept = self.spectra.setdefault(layer, History(MOST_SPECTRA))
                kept.add((step, covariance_eigenvalues(moments).float().cpu()))

    def _log(self, trainer: Trainer, pl_module: LightningModule, prefix: str, report: Report) -> None:
        self.reports[prefix] = report
        if "all" in report.reasons and prefix not in self._absent:
            self._absent.add(prefix)
            where = f"{prefix} at step {step_of(trainer)}"
            note_once(pl_module, f"InformationMonitor measures nothing of {where}: {report.reasons['all']}")
        self._steps[prefix] = step_of(trainer)
        numbers = {f"{prefix}/{name}": quantity.value for name, quantity in report.items()}
        log_numbers(pl_module, numbers, logger=False if trainer.training else None)
        if trainer.training:  # in training Lightning would pass over the steps between its log_every_n_steps
            for logger in trainer.loggers:
                logger.log_metrics(numbers, trainer.global_step - 1)  # counted from 0, as all that Lightning logs
                logger.save()

    # What a person reads

    def _publication(self, step: int) -> Publication:
        from sslinfo.reporting.information_figure import draw, panels

        blocks = [f"{prefix}, step {self._steps[prefix]}\n{report}" for prefix, report in self.reports.items()]
        made = Publication("information", tag="info/settings", text=f"step {step}\n\n" + "\n\n".join(blocks) + "\n")
        files: dict[str, Picture] = {}
        shown: dict[str, Picture] = {}
        histograms: dict[str, Tensor] = {}
        for layer, whole in self._whole.items():
            if moments := whole.first():
                picture = render(draw(layer, self.spectra[layer], moments))
                files[f"information_{layer}"] = picture
                shown |= {f"info/{layer}/{name}": part for name, part in panels(picture).items()}
                deviations = moments.covariance().diagonal().clamp_min(0).sqrt().cpu()
                # TensorBoard shows nothing of a name that data of two kinds share, a picture and a histogram.
                histograms[f"info/{layer}/deviations_histogram"] = deviations
        return replace(made, files=files, panels=shown, histograms=histograms)

    def state_dict(self) -> dict[str, Any]:
        return {
            "spectra": {layer: kept.state_dict() for layer, kept in self.spectra.items()},
            "measured": self._measured,
            # The window of the next measurement, where it has begun.
            "recent": [
                {layer: [rows.cpu() for rows in views] for layer, views in step.items()} for step in self._recent
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for layer, kept in state_dict["spectra"].items():
            self.spectra[layer] = History(MOST_SPECTRA)
            self.spectra[layer].load_state_dict(kept, tuple)
        self._measured = state_dict["measured"]
        for step in state_dict.get("recent", []):  # files of version 0.1.0 lack it
            self._recent.append({layer: tuple(views) for layer, views in step.items()})


def _layers(rows: StepOutputs, module: LightningModule) -> dict[str, Views]:
    """Views (N, d) of each layer; an embedding that is the representation itself is no layer of its own."""
    h, z = rows.representations, rows.projections
    if h and len(h) == len(z) and all(torch.equal(a, b) for a, b in zip(h, z, strict=True)):
        note_once(
            module, "without a projector the embedding is the representation: it is reported once, under that name"
        )
        z = ()
    return {layer: views for layer, views in ((REPRESENTATION, h), (EMBEDDING, z)) if views}
