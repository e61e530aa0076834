"""JointEmbedding: what every objective shares, so that a new one is its mathematics and nothing else."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor, nn

from sslinfo.distributed import gather, gather_uneven, rank, take_buffers_of_rank_0, world_size
from sslinfo.errors import UserError
from sslinfo.hyperparameters import HYPERPARAMETERS, LEFT_OUT_KEY, plain_hyperparameters
from sslinfo.information import UndefinedEstimate
from sslinfo.lightning_compat import (
    batch_in_work,
    datamodule_of,
    has_trainer,
    is_dry_run,
    make_exact,
    prepare_train_data,
    write_atomically,
)
from sslinfo.models import build_backbone, check_image_size, projection_head
from sslinfo.objectives.entropy import EntropyHalf
from sslinfo.objectives.finite import (
    NonFinite,
    SkippedStep,
    StepGuard,
    check_embeddings,
    check_representations,
    check_weights,
    of_bad_embeddings,
)
from sslinfo.objectives.resumed import TRAINING_KEY, Resumed, size_of
from sslinfo.objectives.supported import check_resumed, check_trainer, unlogged_monitors
from sslinfo.optim import OptimizerConfig, build_optimizer, build_scheduler
from sslinfo.outputs import OUTPUTS, StepOutputs
from sslinfo.precision import full_precision
from sslinfo.stored import load_parts


def view_names(role: str, views: int) -> list[str]:
    """Names of the arguments of ``loss`` that hold one tensor for each view.

    >>> view_names("z", 3)
    ['z1', 'z2', 'z3']
    """
    return [f"{role}{number}" for number in range(1, views + 1)]


def by_view(role: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors of the views under the names by which ``loss`` takes them."""
    return dict(zip(view_names(role, len(tensors)), tensors, strict=True))


class JointEmbedding(LightningModule):
    """A backbone and a projector trained on several views of each image.

    A subclass writes ``loss`` for whole-batch embeddings as if there were one device. The base class makes the
    embeddings, gathers them over ranks with gradient, calls ``loss`` in float32 with autocast off, logs every term as
    ``train/<term>`` and ``val/<term>``, and hands callbacks a :class:`~sslinfo.outputs.StepOutputs` of each step.

    An entropy half given as ``entropy`` is added to the loss, whatever the objective: it acts on the projections z1,
    z2, ... of the whole batch, and its terms are logged with the others. (VICReg's takes the place of its own.)

    Args:
        backbone: ``conv4``, any timm name, or a module with ``num_features`` that maps images to (N, num_features).
        in_channels: channels of the images, in [1, 65536], for a backbone given by its name.
        stem: ``cifar`` for a ResNet on images of about 32 pixels (3x3 stem of stride 1, no max-pool).
        stem_padding: padding of the CIFAR stem's convolution, in [0, 64].
        weights: a local file with weights of the backbone.
        backbone_options: further arguments of the backbone ({width: 32} of conv4, {img_size: 32} of a timm ViT).
        projector: widths of the projection head's layers, in [1, 1e5], the last being the embedding's.
        projector_norm: norm between the head's layers: batch, layer or none.
        projector_last_norm: that norm, without affine, after the head's last layer too.
        entropy: an entropy half, added to the loss with a weight of its own.
        optimizer: optimizer, learning rate and schedule.
        non_finite: what is done where the loss or its gradient holds NaN or infinity, before the optimizer takes it.
            ``stop`` ends the training with a message; ``skip`` leaves the step out (weights, optimizer, batch-norm
            statistics, targets and queues are as before it) and counts it as ``train/skipped_steps``. Either way terms,
            step and images are in ``non_finite.txt`` in the run's folder. An overflow of fp16's loss scale is none, and
            weights that are not finite always end the training.

    Raises:
        UserError: an argument that does not fit; the message names it and the way out.

    >>> class Invariance(JointEmbedding):
    ...     def loss(self, z1, z2):
    ...         return {"loss": (z1 - z2).square().mean()}
    >>> model = Invariance(backbone="conv4", projector=[32, 16])
    >>> embeddings = model.embed([torch.zeros(4, 3, 32, 32), torch.zeros(4, 3, 32, 32)])
    >>> embeddings["z1"].shape, model.loss(**embeddings)["loss"].item()
    (torch.Size([4, 16]), 0.0)
    """

    adds_entropy = True  # False in an objective whose own loss holds the entropy half
    counts_clusters: str | None = None  # the term that says how many clusters an objective assigns the images to

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        in_channels: int = 3,
        stem: Literal["default", "cifar"] = "default",
        stem_padding: int = 1,
        weights: str | None = None,
        backbone_options: dict[str, Any] | None = None,
        projector: Sequence[int] = (2048, 2048, 2048),
        projector_norm: Literal["batch", "layer", "none"] = "batch",
        projector_last_norm: bool = False,
        entropy: EntropyHalf | None = None,
        optimizer: OptimizerConfig | None = None,
        non_finite: NonFinite = "stop",
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # Lightning warns of networks among the hyper-parameters: they are plain values after the next line.
            warnings.filterwarnings("ignore", message="Attribute '.*' is an instance of `nn.Module`")
            self.save_hyperparameters()
        self.left_out = plain_hyperparameters(self)
        if isinstance(backbone, str):
            self.backbone: nn.Module = build_backbone(
                backbone,
                in_channels=in_channels,
                stem=stem,
                stem_padding=stem_padding,
                weights=weights,
                options=backbone_options,
            )
        else:
            self.backbone = backbone
        if not isinstance(getattr(self.backbone, "num_features", None), int):
            raise UserError(f"backbone={type(self.backbone).__name__} has no integer num_features: set that attribute")
        self.in_channels = in_channels if isinstance(backbone, str) else None  # other networks take what they take
        self.num_features = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.projector = projection_head(self.num_features, projector, projector_norm, projector_last_norm)
        self.embedding_dim = projector[-1] if projector else self.num_features
        self.entropy = entropy
        self.optimizer_config = optimizer or OptimizerConfig()
        self.seed: int | None = None
        self.loaded_step = 0  # optimizer steps behind the weights of the checkpoint that was loaded
        self._accumulated = 0  # batches since the last optimizer step
        self._begun = -1  # the last batch that a training step was begun for, counted over the training
        self._loaded_gradients: dict[str, Tensor] = {}  # what a checkpoint had accumulated
        self._resumed: Resumed | None = None  # of the training that this one goes on with
        self._size: dict[str, Any] | None = None  # of a step, an epoch and the whole training, for its checkpoints
        self._has_begun = False
        self._said_not_finite = False  # of a validation
        self._guard = StepGuard(non_finite)

    # What a subclass may change

    def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """Embeddings of the views: ``{"z1": (N, d), "z2": (N, d), ...}``, the projector of the backbone of each.

        A subclass may return more, each a tensor of N rows; every entry becomes an argument of ``loss``. What callbacks
        and an added entropy half know as the projections are z1, z2, ..., one for each view.
        """
        return by_view("z", [self.projector(self.backbone(view)) for view in views])

    # Named 0-d terms, "loss" among them, of the whole batch's embeddings, which are its arguments by name.
    loss: Callable[..., dict[str, Tensor]]

    def after_loss(self, embeddings: Mapping[str, Tensor]) -> None:
        """Called in training when the loss is known, with the whole batch's embeddings, detached: queues."""

    def after_optimizer_step(self, step: int, total: float) -> None:
        """Called when optimizer step ``step`` (from 0) of ``total`` is done, before anything is saved: EMA targets."""

    def constant_rate_modules(self) -> Iterable[nn.Module]:
        """Modules whose learning rate follows no schedule."""
        return ()

    # What the base class does with it

    def forward(self, images: Tensor) -> Tensor:
        """Representations (N, num_features) of images (N, C, H, W)."""
        return self.backbone(images)

    def objective(self, views: Sequence[Tensor], keep: Tensor | None = None) -> tuple[dict[str, Tensor], StepOutputs]:
        """Terms of the loss of the whole batch, and what it was computed from.

        Args:
            views: this rank's views, each (n, C, H, W).
            keep: (n,) which rows count; the ranks may then keep different numbers of rows, and no gradient flows.

        Returns:
            The named terms; and this rank's representations and embeddings, without labels and indices.
        """
        whole, outputs = self._embedded(views, keep)
        terms = self._terms(whole, len(views))
        outputs.clusters = self._clusters(terms)
        return terms, outputs

    def _embedded(self, views: Sequence[Tensor], keep: Tensor | None = None) -> tuple[dict[str, Tensor], StepOutputs]:
        """Embeddings of all ranks in float32 or wider, and this rank's outputs."""
        seen: list[Tensor] = []
        hook = self.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        try:
            embeddings = self.embed(views)
        finally:
            hook.remove()
        if len(seen) == 1 and len(views) > 1 and len(seen[0]) == len(views) * len(views[0]):
            seen = list(seen[0].chunk(len(views)))
        with full_precision(self.device):
            own = {
                name: z.float() if z.dtype in (torch.bfloat16, torch.float16) else z for name, z in embeddings.items()
            }
            if keep is None:
                whole = gather(own)
            else:
                seen = [h[keep] for h in seen]
                own = {name: z.detach()[keep] for name, z in own.items()}
                whole = gather_uneven(own)
        rows = next(iter(own.values()))
        none = torch.full((len(rows),), -1, device=rows.device)
        outputs = StepOutputs(
            labels=none,
            indices=none,
            representations=tuple(seen),
            embeddings={name: z.detach() for name, z in own.items()},
            projected=tuple(name for name in view_names("z", len(views)) if name in own),
            uneven=keep is not None,
            gathered={"embeddings": {name: z.detach() for name, z in whole.items()}},
        )
        return whole, outputs

    def _terms(self, whole: Mapping[str, Tensor], views: int) -> dict[str, Tensor]:
        """The loss and its terms, with autocast off."""
        self._check_arguments(whole)
        with full_precision(self.device):
            try:
                terms = _checked_terms(self.loss(**whole), type(self).__name__)
                if self.entropy is not None and self.adds_entropy:
                    terms = self._add_entropy(terms, whole, views)
            except (ValueError, torch.linalg.LinAlgError) as error:  # estimators and decompositions refuse NaN
                if not has_trainer(self):
                    raise
                terms = of_bad_embeddings(self, whole, error)
        return dict(terms)

    def _clusters(self, terms: Mapping[str, Tensor]) -> Tensor | None:
        clusters = terms.get(self.counts_clusters or "")
        return None if clusters is None else clusters.detach()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        self._check_batch(batch, "views", "label", "index")
        self._accumulated += 1
        self._begun = self.trainer.fit_loop.total_batch_idx
        terms, outputs = self.objective(batch["views"])
        if torch.is_grad_enabled() and not terms["loss"].requires_grad:
            raise UserError(
                f"{type(self).__name__}.loss gives a 'loss' without a gradient: compute it from the embeddings without "
                "detach(), item(), numpy() or torch.no_grad(), and leave some weights trainable"
            )
        self._guard.note_terms(terms)
        outputs.labels, outputs.indices = batch["label"], batch["index"]
        count = len(outputs.indices)
        for name, term in terms.items():
            self.log(f"train/{name}", term.detach(), prog_bar=name == "loss", batch_size=count)
        self.log("train/lr", self.optimizers().param_groups[0]["lr"], batch_size=1)  # type: ignore[union-attr]
        if batch.get("skipped"):
            skipped = float(batch["skipped"])
            self.log("data/skipped", skipped, on_step=False, on_epoch=True, reduce_fx="sum", batch_size=1)
        self.after_loss(outputs.gathered["embeddings"])
        return {"loss": terms["loss"], OUTPUTS: outputs}

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        self._check_batch(batch, "views", "clean", "label", "index", "keep")
        clean = self._of_clean_images(batch, "val")
        whole, outputs = self._embedded(batch["views"], batch["keep"])
        check_embeddings(self, whole)
        outputs.labels, outputs.indices = clean.labels, clean.indices
        outputs.clean_representations = clean.clean_representations
        count = len(next(iter(whole.values())))
        if count > 1:
            try:
                terms = self._terms(whole, len(batch["views"]))
            except UndefinedEstimate as error:
                # The last batch of a set may be too small for a statistic; the others are not lost for that.
                rank_zero_warn(f"a validation batch of {count} images is left out of val/loss: {error}")
                return {OUTPUTS: outputs}
            self.log_dict({f"val/{name}": term for name, term in terms.items()}, batch_size=count)
            outputs.clusters = self._clusters(terms)
        return {OUTPUTS: outputs}

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return {OUTPUTS: self._of_clean_images(batch, "test")}

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> StepOutputs:
        splits = getattr(datamodule_of(self.trainer), "predict_splits", ()) if has_trainer(self) else ()
        return self._of_clean_images(batch, splits[dataloader_idx] if splits else None)

    def _of_clean_images(self, batch: Mapping[str, Any], split: str | None) -> StepOutputs:
        """Representations, labels and indices of the images without augmentation that count."""
        self._check_batch(batch, "clean", "label", "index", "keep")
        keep = batch["keep"]
        outputs = StepOutputs(
            labels=batch["label"][keep],
            indices=batch["index"][keep],
            clean_representations=self.backbone(batch["clean"]).detach()[keep],
            uneven=True,
        )
        if has_trainer(self) and self.trainer.state.fn != "fit":
            assert outputs.clean_representations is not None
            check_representations(self, outputs.clean_representations, outputs.indices, split)
        return outputs

    def configure_optimizers(self) -> Any:
        prepare_train_data(self.trainer)
        steps = self.trainer.estimated_stepping_batches
        accumulate = self.trainer.accumulate_grad_batches
        config = self.optimizer_config
        if is_dry_run(self.trainer):
            config = replace(config, warmup_steps=0)  # a dry run is shorter than any warm-up
        optimizer = build_optimizer(self, config, self.effective_batch, self.constant_rate_modules())
        epoch = self.trainer.num_training_batches / accumulate
        scheduler = build_scheduler(optimizer, config, steps, epoch)
        if self.trainer.global_step:  # a second fit of one Trainer goes on where the first one ended
            scheduler.go_to(self.trainer.global_step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        step, guard = self.trainer.global_step, self._guard
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, guard.watching(self, optimizer, optimizer_closure))
            self.after_optimizer_step(step, self.trainer.estimated_stepping_batches)
        except SkippedStep:
            guard.end_step(skipped=True)
        else:
            guard.end_step()
        self._accumulated = 0
        if guard.action == "skip":
            self.log("train/skipped_steps", float(guard.skipped), batch_size=1)

    @property
    def effective_batch(self) -> int:
        """Samples behind one optimizer step: per-device batch x devices x nodes x accumulated batches."""
        per_device = self._batch_size
        if per_device is None:
            raise UserError("the batch size is unknown: pass a TwoViewDataModule or a DataLoader with batch_size")
        return per_device * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @property
    def _batch_size(self) -> int | None:
        return getattr(datamodule_of(self.trainer) or self.trainer.train_dataloader, "batch_size", None)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._resumed, self._has_begun = None, False
        self._said_not_finite = False
        # What is logged is of the whole batch or set and the same on all ranks: there is nothing to reduce.
        warnings.filterwarnings("ignore", message="It is recommended to use `self.log")
        data = datamodule_of(self.trainer)
        channels = getattr(data, "channels", self.in_channels)
        if self.in_channels is not None and channels != self.in_channels:
            raise UserError(
                f"in_channels={self.in_channels}, but the images have {channels}: set --model.in_channels {channels}"
            )
        if (pipeline := getattr(data, "pipeline", None)) is not None:
            check_image_size(self.backbone, pipeline.size)
        check_trainer(self.trainer, stage)
        write_atomically(self.trainer)
        if stage == "fit":
            make_exact(self.trainer)

    def on_fit_start(self) -> None:
        check_weights(self)
        self._guard.end_step()  # another training may have ended in the middle of one
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        if world_size() > 1 and any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
            for module in self.modules()
        ):
            rank_zero_warn(
                f"batch norm keeps statistics of its own on each of the {world_size()} ranks, so training differs from "
                "one process on the whole batch: set --trainer.sync_batchnorm true (GPUs only)"
            )
        # With an optimizer of its own an objective may not have asked for the data yet: they are not set up for this.
        is_known = not is_dry_run(self.trainer) and self.trainer.train_dataloader is not None
        self._size = size_of(self.trainer, self._batch_size) if is_known else None
        if self._resumed is not None and not is_dry_run(self.trainer):
            self._resumed.check(self._size, self)

    def on_fit_end(self) -> None:
        if self._resumed is not None and not self._has_begun:
            self._resumed.say_nothing_left(self._size, is_dry_run(self.trainer))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._has_begun = True
        # Random numbers drawn inside the network are a function of the step, so that a resumed run draws the same.
        mixed = hash((self.seed, self.current_epoch, batch_idx, rank()))
        torch.manual_seed(mixed % 2**63)
        self._guard.begin_batch(self, batch.get("index") if isinstance(batch, Mapping) else None)

    def on_train_end(self) -> None:
        take_buffers_of_rank_0(self)
        check_weights(self)
        if self._guard.skipped:
            rank_zero_only(print)(f"note: steps skipped as not finite: {self._guard.skipped}", flush=True)
        if self._has_begun:
            for line in unlogged_monitors(self.trainer):
                rank_zero_only(print)(f"note: {line}", flush=True)

    def on_validation_epoch_end(self) -> None:
        """Say once of a training or evaluation that a term of a validation is not finite."""
        if self._said_not_finite or self.trainer.sanity_checking:
            return
        terms = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name[:4] == "val/"}
        bad = [f"{name}={value}" for name, value in terms.items() if not math.isfinite(value)]
        if bad:
            self._said_not_finite = True
            when = f" at step {self.trainer.global_step}" if self.trainer.state.fn == "fit" else ""
            rank_zero_only(print)(
                f"note: the validation{when} is not finite: {', '.join(bad)}. The weights are finite: look at "
                f"{type(self).__name__}.loss of the validation images. This is said once",
                flush=True,
            )

    # Lightning's first hooks of an evaluation, before those of callbacks: no probe looks at such weights.

    def on_validation_model_eval(self) -> None:
        take_buffers_of_rank_0(self)  # all ranks measure one network, the checkpoint's
        check_weights(self)
        super().on_validation_model_eval()

    def on_test_model_eval(self) -> None:
        check_weights(self)
        super().on_test_model_eval()

    def on_predict_model_eval(self) -> None:
        check_weights(self)
        super().on_predict_model_eval()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The objective of a checkpoint, also of an earlier version.

        The file is read as data, whatever ``weights_only`` says: a class that it names is made only if it is sslinfo's
        or an entropy half or objective that the program has imported. ``kwargs`` take the place of stored arguments.

        Raises:
            UserError: the file cannot be read, or names another class.
        """
        kind, arguments, bare = load_parts(checkpoint_path, HYPERPARAMETERS[0], cls, kwargs, hparams_file)
        load = super(JointEmbedding, kind).load_from_checkpoint
        return load(bare, map_location, None, strict, True, **arguments)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(self)  # such weights are written over no good ones
        checkpoint["sslinfo_skipped_steps"] = self._guard.skipped
        checkpoint["sslinfo_seed"] = self.seed
        # Of a batch that an exception has ended a part may have been added: what was accumulated before it is lost.
        broken_off = batch_in_work(self.trainer) and self._begun == self.trainer.fit_loop.total_batch_idx
        checkpoint["sslinfo_accumulated"] = self._accumulated - broken_off
        checkpoint["sslinfo_gradients"] = {} if broken_off else self._accumulated_gradients()
        if self._size is not None:
            checkpoint[TRAINING_KEY] = self._size
        left_out = getattr(datamodule_of(self.trainer), "left_out", None)
        missing = ["data.dataset"] if left_out is None else [f"data.{name}" for name in left_out]
        checkpoint[LEFT_OUT_KEY] = [f"model.{name}" for name in self.left_out] + missing

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if has_trainer(self) and self.trainer.state.fn == "fit":
            self._resumed = Resumed.of(checkpoint, self)
        self.seed = checkpoint.get("sslinfo_seed", self.seed)
        self.loaded_step = int(checkpoint.get("global_step", 0))
        self._guard.skipped = int(checkpoint.get("sslinfo_skipped_steps", 0))
        self._loaded_gradients = checkpoint.get("sslinfo_gradients", {})
        self._accumulated = checkpoint.get("sslinfo_accumulated", 0)
        if self._accumulated and not self._loaded_gradients:
            rank_zero_warn(
                "this checkpoint was saved at a failure between accumulated batches: the gradient of "
                f"{self._accumulated} of them is lost, and a resumed training differs from an uninterrupted one by that"
            )

    def on_train_start(self) -> None:
        check_resumed(self.trainer)
        for name, parameter in self.named_parameters():
            if name in self._loaded_gradients:
                parameter.grad = self._loaded_gradients[name].to(parameter)
        self._loaded_gradients = {}

    def _accumulated_gradients(self) -> dict[str, Tensor]:
        """Between two optimizer steps what was accumulated; of several ranks the mean, which is what the step takes."""
        if not self._accumulated:
            return {}
        named = ((name, parameter.grad) for name, parameter in self.named_parameters())
        gradients = {name: gradient.detach().clone() for name, gradient in named if gradient is not None}
        if world_size() > 1:
            for gradient in gradients.values():
                dist.all_reduce(gradient)
                gradient /= world_size()
        return gradients

    def _check_arguments(self, embeddings: Mapping[str, Tensor]) -> None:
        if not hasattr(self, "loss"):
            raise NotImplementedError(f"{type(self).__name__} must define loss(self, z1, z2)")
        try:
            inspect.signature(self.loss).bind(**embeddings)
        except TypeError as error:
            raise UserError(
                f"{type(self).__name__}.loss and embed do not fit: embed gives {', '.join(embeddings)}, and {error}; "
                "set data.views to as many views as the loss takes, or change embed"
            ) from error

    def _add_entropy(
        self, terms: Mapping[str, Tensor], embeddings: Mapping[str, Tensor], views: int
    ) -> dict[str, Tensor]:
        assert self.entropy is not None
        missing = [name for name in view_names("z", views) if name not in embeddings]
        if missing:
            raise UserError(
                f"entropy={type(self.entropy).__name__} acts on the projections {', '.join(view_names('z', views))}, "
                f"and {type(self).__name__}.embed gives {', '.join(embeddings)}: name them so"
            )
        half = self.entropy(*[self.entropy.prepare(embeddings[name]) for name in view_names("z", views)])
        half = _checked_terms(half, type(self.entropy).__name__)
        return {**half, **terms, "loss": terms["loss"] + half["loss"]}

    def _check_batch(self, batch: Any, *names: str) -> None:
        """Refuse a batch of an ordinary loader, such as images with labels."""
        missing = [name for name in names if not isinstance(batch, Mapping) or name not in batch]
        if missing:
            got = f"a {type(batch).__name__}"
            if isinstance(batch, Mapping):
                got = f"a dict of {', '.join(map(str, batch))}"
            raise UserError(
                f"{type(self).__name__} takes batches that are dicts with {', '.join(names)} (views: a list of tensors "
                f"(N, C, S, S), one for each view), got {got}: pass datamodule=TwoViewDataModule(my_dataset), which "
                "makes them of any map-style data set, or a loader that gives these"
            )


def _checked_terms(terms: Any, owner: str) -> Mapping[str, Tensor]:
    """The terms that a class's loss has returned, if they are what they have to be."""
    if not isinstance(terms, Mapping) or "loss" not in terms:
        raise UserError(f"{owner}.loss must return a dict of 0-d tensors with 'loss', got {terms!r}")
    for name, term in terms.items():
        if not isinstance(term, Tensor):
            what = f"the {type(term).__name__} {term!r}: compute it from the embeddings, or write torch.tensor(...)"
        elif term.dim() != 0:
            what = f"a tensor of shape {tuple(term.shape)}: take its mean or sum"
        elif not term.is_floating_point():
            way = "abs() or real" if term.is_complex() else "float()"
            what = f"a tensor of {term.dtype}: take its {way}"
        else:
            continue
        raise UserError(f"{owner}.loss must return a dict of 0-d tensors with 'loss', got for {name!r} {what}")
    return terms
