"""NoiseNormality: whether a deterministic network's output is Gaussian under input noise, watched while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sslinfo.distributed import gather_uneven, rank, world_size
from sslinfo.errors import UserError
from sslinfo.evaluation.choice import Chosen, first
from sslinfo.evaluation.noise_tests import NoiseTests
from sslinfo.information import noise_normality
from sslinfo.precision import full_precision
from sslinfo.ranges import check_range
from sslinfo.reporting.history import History
from sslinfo.reporting.publishing import Publication, log_numbers, note_once, publish, render, step_of

REPRESENTATION = "info/representation"
MOST_CURVES = 30  # older ones are thinned
PURPOSE = "noise normality"  # of the choice of images


class NoiseNormality(Callback):
    """The paper's Gaussianity experiment in every validation of a training, and in ``sslinfo validate``.

    Of a few clean validation images, chosen by their index, many draws x + sigma e go through the network in
    evaluation mode, in full precision whatever the Trainer's; each dimension of the representation is then tested for
    normality, image by image (D'Agostino-Pearson). Logged for each sigma as
    ``info/representation/normality_<quantity>_sigma<sigma>``, equal on any number of ranks:

    - ``pvalue`` and ``kurtosis``: mean p-value and mean absolute excess kurtosis, over images and the dimensions that
      vary under the noise. p says how surely a difference from a Gaussian shows in so many draws, the kurtosis how
      large it is.
    - ``rejected``: share of those dimensions rejected at false-discovery rate 5% (Benjamini-Hochberg).
    - ``constant``: share of the dimensions that do not vary, and are in none of the above.

    While the noise stays in one affine piece of the network p is uniform, 0.5 on average. The curves over training are
    in ``normality.png`` in the run's folder and in TensorBoard's images.

    It adds images x sigmas x draws forward passes to each validation, shared by the ranks: 16,384 as it stands, a
    twentieth of an epoch of CIFAR-10 (measured with ``conv4``: 3.1 s on one CPU thread, the epoch's passes 63 s). The
    noise of an image is the same in each validation and for each sigma, so curves differ by the network alone.

    Args:
        images: validation images, in [1, 1e6], chosen by a hash of their index.
        sigmas: standard deviations of the noise, in [1e-9, 1e6], in units of the normalised pixels that the network
            sees: 0.1 is a tenth of the standard deviation of the training images' pixels. Times the data's ``std`` it
            is in pixel values between 0 and 1.
        draws: of the noise for each image, in [8, 1e9]; 512 is the paper's.

    Source: arXiv:2303.00633, experiment on Gaussianity of deterministic networks.

    >>> NoiseNormality(images=4).sigmas
    (0.01, 0.1, 0.4, 0.8)
    """

    def __init__(self, images: int = 8, sigmas: Sequence[float] = (0.01, 0.1, 0.4, 0.8), draws: int = 512) -> None:
        check_range("images", images, "[1, 1e6]", whole=True)
        check_range("draws", draws, "[8, 1e9]", whole=True)
        if not sigmas:
            raise UserError("sigmas=[] must hold one or more noise levels")
        for sigma in sigmas:
            check_range("a sigma of sigmas", sigma, "[1e-9, 1e6]")
        self.images, self.sigmas, self.draws = images, tuple(sorted(float(sigma) for sigma in sigmas)), draws
        self.history: History[tuple[int, NoiseTests]] = History(MOST_CURVES)  # by optimizer step
        self._chosen = Chosen(self.images, PURPOSE)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # another training than the last one, unless a checkpoint's state comes next
            self.history = History(MOST_CURVES)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._chosen = Chosen(self.images, PURPOSE)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(batch, dict) or batch.get("clean") is None:
            return
        keep = batch["keep"]
        self._chosen.add({name: batch[name][keep] for name in ("clean", "index")})

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        rows = self._chosen.take()
        self._chosen = Chosen(self.images, PURPOSE)
        if not rows or not hasattr(pl_module, "num_features"):
            note_once(pl_module, "NoiseNormality is off: it needs a JointEmbedding and batches with clean images")
            return
        chosen = first(gather_uneven(rows), self.images, PURPOSE)
        measured = self._measure(pl_module, chosen)
        if measured is None:
            return
        found = {
            f"{REPRESENTATION}/normality_{name}_sigma{sigma:g}": value
            for name in ("pvalue", "kurtosis", "rejected", "constant")
            for sigma, value in zip(self.sigmas, getattr(measured, name).tolist(), strict=True)
        }
        # NaN where no dimension varies: `constant` says so.
        log_numbers(pl_module, {name: value for name, value in found.items() if value == value})
        self.history.add((step_of(trainer), measured))
        publish(trainer, lambda: self._publication(len(chosen["index"])))

    def _measure(self, module: LightningModule, chosen: dict[str, Tensor]) -> NoiseTests | None:
        """Tests of the chosen images, each on one rank; None, with a note, where the network fails on one of them."""
        own = slice(rank(), None, world_size())
        index = chosen["index"][own]
        width = int(module.num_features)  # type: ignore[arg-type]
        tests = torch.full((len(index), 2, len(self.sigmas), width), torch.nan, dtype=torch.float64).to(index.device)
        error = ""
        with _evaluating(module), full_precision(module.device):
            for row, (image, number) in enumerate(zip(chosen["clean"][own], index.tolist(), strict=True)):
                try:
                    found = noise_normality(module, image[None], self.sigmas, self.draws, seed=number)
                except ValueError as raised:
                    error = str(raised)
                    break
                tests[row] = torch.stack([found.pvalue, found.excess_kurtosis])[:, :, 0]
        failed = torch.full_like(index, bool(error))
        whole = gather_uneven({"index": index, "failed": failed, "tests": tests})
        if bool(whole["failed"].any()):
            note_once(module, f"NoiseNormality is left out: {error or 'the network fails on an image of another rank'}")
            return None
        pvalue, kurtosis = whole["tests"][whole["index"].argsort()].movedim(0, 2).cpu()
        return NoiseTests.of(self.sigmas, pvalue, kurtosis)

    def _publication(self, images: int) -> Publication:
        from sslinfo.reporting.normality_figure import draw

        about = f"{images} validation images, {self.draws} draws, noise in units of normalised pixels"
        picture = render(draw(self.history, about))
        step, found = self.history[-1]
        return Publication(
            "normality",
            tag="info/normality/settings",
            text=f"step {step}\n\n{about}\n\n{found}",
            files={"normality": picture},
            panels={"info/normality/representation": picture},
        )

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history.state_dict(lambda entry: (entry[0], entry[1]._asdict()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.load_state_dict(state_dict["history"], lambda entry: (entry[0], NoiseTests(**entry[1])))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, each part's own mode restored afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
