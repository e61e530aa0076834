"""Entropy of both layers while a network trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor

from sslinfo.data import TwoViewDataModule
from sslinfo.evaluation.calibration import averaging_batch_norm
from sslinfo.experiments.training import build, digits, pretrain
from sslinfo.objectives import JointEmbedding, PairDist


@torch.no_grad()
def calibrate(model: JointEmbedding, data: TwoViewDataModule) -> None:
    """Make a network's batch-norm statistics those of its weights now: averages over one epoch's training views.

    Those of an untrained network are placeholders, and in the first epochs the running averages lag behind the weights
    (by up to 2 nats of pairwise entropy on the digits). Training itself does not use them.

    Args:
        model: left in the mode that it was in.
        data: set up.
    """
    with averaging_batch_norm(model):
        for raw in data.train_dataloader():
            model.embed(data.to_batch(raw)["views"])


class ViewFeatures(NamedTuple):
    """What a network makes of the views of N images, a tensor for each view, and the images' labels (N,)."""

    representation: list[Tensor]
    embedding: list[Tensor]
    label: Tensor


@torch.no_grad()
def view_features(model: JointEmbedding, data: TwoViewDataModule) -> ViewFeatures:
    """Representations and embeddings of the views of all validation images, in evaluation mode.

    The views are the same each time, so that two calls differ by the network alone.

    Args:
        model: left in the mode that it was in.
        data: set up.

    >>> data = digits()
    >>> data.setup("fit")
    >>> features = view_features(build("VICReg"), data)
    >>> [tuple(h.shape) for h in features.representation], [tuple(z.shape) for z in features.embedding]
    ([(449, 128), (449, 128)], [(449, 64), (449, 64)])
    """
    was_training = model.training
    model.eval()
    representations, labels = [], []
    for raw in data.val_dataloader():
        batch = data.to_batch(raw)
        representations.append([model(view)[batch["keep"]] for view in batch["views"]])
        labels.append(batch["label"][batch["keep"]])
    whole = [torch.cat(parts) for parts in zip(*representations, strict=True)]
    embeddings = [model.projector(h) for h in whole]
    model.train(was_training)
    return ViewFeatures(whole, embeddings, torch.cat(labels))


class _Snapshots(L.Callback):
    def __init__(self, data: TwoViewDataModule, every: int) -> None:
        self.data, self.every = data, every
        self.taken: dict[int, ViewFeatures] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0:
            assert isinstance(pl_module, JointEmbedding)
            calibrate(pl_module, self.data)
            self.taken[epoch] = view_features(pl_module, self.data)


def snapshots(method: str, seed: int = 0, epochs: int = 20, every: int = 2) -> dict[int, ViewFeatures]:
    """Features of the digits' validation views before training (epoch 0) and after every so many epochs, calibrated.

    Args:
        method: one of ``METHODS``.
        seed: of the weights, the order of the images and their views.
        epochs: of the training.
        every: epochs between two snapshots.

    >>> list(snapshots("SimCLR", epochs=2, every=1))
    [0, 1, 2]
    """
    L.seed_everything(seed, verbose=False)  # before set-up, where the data takes its seed
    data, model = digits(), build(method, seed)
    data.setup("fit")
    calibrate(model, data)
    keep = _Snapshots(data, every)
    keep.taken[0] = view_features(model, data)
    pretrain(model, data, epochs, [keep], seed, limit_val_batches=0)
    return keep.taken


@torch.no_grad()
def pairwise_terms(
    views: Sequence[Tensor],
    variance: float = 0.1,
    bound: Literal["lower", "upper"] = "upper",
    normalize: bool = True,
) -> tuple[float, float]:
    """Pairwise entropy of views (N, d), mean over them, and how far below its cap it is, both in nats.

    It is what the ``PairDist`` half maximises, in float64.

    Args:
        views: one tensor or more.
        variance: of a component, per dimension.
        bound: of the mixture's entropy.
        normalize: rows on the sphere of radius sqrt(d), or as they are.

    >>> identical = torch.ones(10, 4)  # one Gaussian: log 10 below what ten apart have
    >>> round(pairwise_terms([identical])[1], 4)
    2.3026
    """
    half = PairDist(variance=variance, bound=bound, normalize=normalize)
    terms = half(*[half.prepare(view.double()) for view in views])
    return terms["entropy"].item(), terms["below_cap"].item()
