"""Whether loss, gradient and weights are finite, looked at before each optimizer step, and what is done where not.

The gradient is looked at after all ranks have averaged it, and the weights are the same on all ranks, so every rank
decides alike without a word to the others. A loss that is not finite on one rank alone makes the gradient of all NaN.
Ranks speak to each other only once they have found something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from sslinfo.data import TwoViewDataModule
from sslinfo.distributed import gather, gather_uneven, world_size
from sslinfo.errors import UserError
from sslinfo.lightning_compat import datamodule_of, is_dry_run

NonFinite = Literal["stop", "skip"]
FILE = "non_finite.txt"  # in the run's folder
MOST_IN_A_ROW = 100  # steps left out one after the other before the training ends
NAMED = 5  # terms, parameters and images that a message names; the file names all images


class SkippedStep(Exception):
    """Leaves the optimizer's step before it has changed anything."""


class NotFinite(UserError):
    """A loss, gradient, weight or representation that holds NaN or infinity."""


@dataclass
class Part:
    """One of the batches behind an optimizer step."""

    index: Tensor | None = None  # (n,) this rank's images
    terms: dict[str, Tensor] = field(default_factory=dict)


class StepGuard:
    """Looks at every optimizer step of a module, and stops the training or leaves a step out.

    Args:
        action: ``stop`` or ``skip``.
    """

    def __init__(self, action: NonFinite) -> None:
        if action not in ("stop", "skip"):
            raise UserError(f"non_finite={action!r} is not known: choose stop or skip")
        self.action = action
        self.skipped = 0  # steps left out
        self._in_a_row = 0
        self.parts: list[Part] = []  # since the last optimizer step
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._copies: list[Tensor] = []

    def begin_batch(self, module: nn.Module, index: Tensor | None) -> None:
        """Before a batch: note its images, and before a step's first one the buffers (statistics, queues)."""
        if not self.parts:
            self._keep_buffers(module)
        self.parts.append(Part(index))

    def note_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Note the terms of the batch's loss, which is given a gradient of NaN where it is not finite."""
        if not self.parts:
            self.parts.append(Part())
        self.parts[-1].terms = {name: term.detach() for name, term in terms.items()}
        loss = terms["loss"]
        if loss.requires_grad:
            finite = loss.detach().isfinite()
            loss.register_hook(lambda gradient: torch.where(finite, gradient, torch.nan))

    def watching(self, module: LightningModule, optimizer: Any, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure of an optimizer step, which looks at what it computed before the optimizer takes it."""

        def watched() -> Any:
            loss = closure()
            if isinstance(loss, Tensor) and (not self.parts or not self.parts[-1].terms):  # a training step of its own
                self.note_terms({"loss": loss.detach()})
            self._check(module, optimizer)
            return loss

        return watched

    def end_step(self, skipped: bool = False) -> None:
        """After an optimizer step that was taken, or left out."""
        self.parts = []
        self._in_a_row = self._in_a_row + 1 if skipped else 0

    def _check(self, module: LightningModule, optimizer: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        losses = [part.terms["loss"] for part in self.parts if part.terms]
        if _surely_finite([*gradients, *weights], losses):
            return
        # From here on all ranks are here.
        step = module.trainer.global_step
        bad_weights = _not_finite(module.named_parameters())
        if bad_weights:
            self._restore_buffers()
            raise NotFinite(_weights_message(bad_weights, step))
        terms = self._terms(module.device)
        bad_gradients = _not_finite((name, p.grad) for name, p in module.named_parameters() if p.grad is not None)
        if not terms and (not bad_gradients or _scaler_overflow(module)):
            return
        self._restore_buffers()
        if terms:
            bad = [f"{name}={value}" for name, value in terms.items()]
            self._leave_out(module, f"the loss is not finite at step {step}", bad)
        self._leave_out(module, f"the loss is finite and its gradient is not at step {step}", bad_gradients)

    def _terms(self, device: torch.device) -> dict[str, float]:
        """Terms that are not finite, if a loss is not, in any part on any rank."""
        names = list(dict.fromkeys(name for part in self.parts for name in part.terms))
        if not names:
            return {}
        zero = torch.zeros((), device=device)
        rows = [torch.stack([part.terms.get(name, zero).float() for name in names]) for part in self.parts]
        values = gather({"terms": torch.stack(rows)})["terms"]
        if bool(values[:, names.index("loss")].isfinite().all()):
            return {}
        columns = {name: column[~column.isfinite()] for name, column in zip(names, values.T, strict=True)}
        return {name: float(column[0]) for name, column in columns.items() if len(column)}

    def _leave_out(self, module: LightningModule, what: str, bad: Sequence[str]) -> NoReturn:
        """End the training or the step, once it is written down which images were in the batch."""
        indices = [gather_uneven({"index": p.index})["index"].tolist() for p in self.parts if p.index is not None]
        images = _named(module, [index for part in indices for index in part])
        folder = Path(module.trainer.log_dir or module.trainer.default_root_dir)  # asks all ranks
        found = f"{what}: {_list(bad)}; the batch held the images {_list(images) or '(unknown)'}"
        if not is_dry_run(module.trainer):
            found += f", all of them in {folder / FILE}"
            if module.trainer.is_global_zero:
                lines = [f"{what}: {', '.join(bad)} (steps count from 0, as in the log)"]
                lines += [f"the {len(images)} images behind it, by index:", *images]
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / FILE).open("a") as file:
                    file.write("\n".join(lines) + "\n\n")
        if self.action == "stop":
            raise NotFinite(
                f"{found}. The weights are those before this step. Look at these images, lower optimizer.lr, or set "
                "--model.non_finite skip to leave such steps out"
            )
        if self._in_a_row >= MOST_IN_A_ROW:
            raise NotFinite(f"{MOST_IN_A_ROW} steps in a row were skipped, and the training has diverged: {found}")
        self.skipped += 1
        if self.skipped == 1:
            rank_zero_only(print)(
                f"note: {found}. This step is skipped; further ones are counted as train/skipped_steps", flush=True
            )
        raise SkippedStep

    def _keep_buffers(self, module: nn.Module) -> None:
        buffers = [
            (part, name, buffer)
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        tensors = [buffer for _, _, buffer in buffers]
        known = [buffer for _, _, buffer in self._buffers]
        with torch.no_grad():
            if len(tensors) == len(known) and all(a is b for a, b in zip(tensors, known, strict=True)):
                if tensors:
                    torch._foreach_copy_(self._copies, tensors)
            else:
                self._copies = [buffer.clone() for buffer in tensors]
        self._buffers = buffers

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        """Batch-norm statistics, queues and other buffers as they were before the step's first batch."""
        for (part, name, buffer), copy in zip(self._buffers, self._copies, strict=True):
            if part._buffers.get(name) is buffer:
                buffer.copy_(copy)
            else:  # the module has put another tensor in its place
                part._buffers[name] = copy.clone()


def check_weights(module: LightningModule) -> None:
    """Raise NotFinite where weights or batch-norm statistics of a module hold NaN or infinity.

    Raises:
        NotFinite: (a UserError) naming them, and the step in a training.
    """
    trainer = module.trainer
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    for place, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            tensors |= {f"{place}.{name}": buffer for name, buffer in part.named_buffers()}
    if _surely_finite(list(tensors.values()), []):
        return
    bad = _not_finite(tensors.items())
    if bad and trainer.state.fn == "fit" and trainer.global_step > 0:
        raise NotFinite(_weights_message(bad, trainer.global_step))
    if bad:
        raise NotFinite(
            f"the weights of this network are not finite ({_list(bad)}): it comes from a training that diverged, or "
            "from a damaged file; take an earlier checkpoint"
        )


def of_bad_embeddings(module: LightningModule, embeddings: Mapping[str, Tensor], error: Exception) -> dict[str, Tensor]:
    """Terms of NaN in place of those of a loss that refuses embeddings (N, d) which are not finite.

    The embeddings are those of all ranks, so that every rank does the same.

    Raises:
        Exception: the loss's own, where the embeddings are finite.
    """
    bad = _not_finite(embeddings.items())
    if not bad:
        raise error
    total = torch.stack([z.sum() for z in embeddings.values() if z.is_floating_point()]).sum()
    return {"loss": total * torch.nan, **{name: total.detach() * torch.nan for name in bad}}


def check_embeddings(module: LightningModule, embeddings: Mapping[str, Tensor]) -> None:
    """Raise NotFinite where embeddings (N, d) of all ranks hold NaN or infinity, outside a training."""
    if module.trainer.state.fn != "fit" and (bad := _not_finite(embeddings.items())):
        raise NotFinite(
            f"the embeddings {_list(bad)} of this network hold NaN or infinity: the activations of its projector "
            "overflow, and there is nothing to evaluate"
        )


def check_representations(module: LightningModule, rows: Tensor, index: Tensor, split: str | None) -> None:
    """Raise NotFinite, on every rank, where representations (n, d) are not finite, for an evaluation.

    Every rank has to ask, for any number of rows.

    Args:
        module: what made them.
        rows: of this rank's images.
        index: (n,), which images these are.
        split: of the data that they are from, where it is known.
    """
    bad = ~rows.isfinite().all(1)
    count = bad.sum()
    if world_size() > 1:
        torch.distributed.all_reduce(count)
    if not bool(count):
        return
    images = gather_uneven({"index": index[bad]})["index"].tolist()
    of_split = f" of the {split} split" if split else ""
    raise NotFinite(
        f"the representations of {len(images)} images{of_split} hold NaN or infinity, so nothing can be evaluated: "
        f"{_list(_named(module, images, split))}. The network's activations overflow, or its input is not finite"
    )


def _surely_finite(tensors: Sequence[Tensor], scalars: Sequence[Tensor]) -> bool:
    """Whether norms and scalars are all finite, with one read of the device; norms may overflow by themselves."""
    with torch.no_grad():
        norms = torch._foreach_norm([tensor for tensor in tensors if tensor.is_floating_point()]) if tensors else []
        found = [*norms, *scalars]
        return not found or bool(torch.stack([number.detach().float() for number in found]).isfinite().all())


def _not_finite(tensors: Any) -> list[str]:
    return [name for name, tensor in tensors if not bool(tensor.detach().isfinite().all())]


def _scaler_overflow(module: LightningModule) -> bool:
    """Whether it is the loss scale of fp16 that makes gradients overflow: the scaler then skips the step by itself.

    At a scale of 1 or less it is the gradient.
    """
    scaler = getattr(module.trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1


def _weights_message(names: Sequence[str], steps: int) -> str:
    after = f"after step {steps - 1} (counted from 0)" if steps else "before the first step"
    return (
        f"weights are not finite {after}: {_list(names)}. The training diverged: lower optimizer.lr (or "
        "optimizer.weight_decay), warm up for longer, or set trainer.gradient_clip_val; the last good checkpoint is as "
        "it was"
    )


def _named(module: LightningModule, images: Sequence[int], split: str | None = "pretrain") -> list[str]:
    """Images of a split by their index, and by their file where there are files."""
    data = datamodule_of(module.trainer)
    store = data.stores.get(split or "") if isinstance(data, TwoViewDataModule) else None
    files = [None if store is None else store.file_of(image) for image in images]
    return [f"{image} {file}" if file else str(image) for image, file in zip(images, files, strict=True)]


def _list(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
