"""Small runs behind the notebooks: the paper's methods on one network, on images that need no download."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as L
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.information import benjamini_hochberg, local_affine, noise_normality
from sslinfo.objectives import BYOL, JointEmbedding, LogDet, PairDist, SimCLR, SwAV, VICReg
from sslinfo.optim import OptimizerConfig

METHODS: dict[str, Callable[..., JointEmbedding]] = {
    "VICReg": VICReg,
    "VICReg + LogDet": lambda **options: VICReg(entropy=LogDet(weight=25.0, beta=10.0), **options),
    "SimCLR": SimCLR,
    "BYOL": lambda **options: BYOL(predictor=[64], momentum=0.9, **options),
    "SwAV": lambda **options: SwAV(prototypes=30, freeze_prototypes_epochs=1, **options),
}


def digits(batch_size: int = 256) -> TwoViewDataModule:
    """scikit-learn's digits, a quarter of them for validation, as in the quickstart."""
    return TwoViewDataModule("digits", views="digits", batch_size=batch_size, val_fraction=0.25)


def build(method: str, seed: int = 0, width: int = 16) -> JointEmbedding:
    """An untrained network of one of ``METHODS``: ``conv4`` for grey images and a projector to 64 dimensions.

    >>> build("SimCLR").num_features
    128
    """
    if method not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    torch.manual_seed(seed)
    return METHODS[method](
        backbone="conv4",
        backbone_options={"width": width},
        in_channels=1,
        projector=[128, 64],
        optimizer=OptimizerConfig("adamw", lr=2e-3, weight_decay=1e-4, warmup_epochs=2),
    )


def pretrain(
    model: JointEmbedding,
    data: TwoViewDataModule,
    epochs: int = 40,
    callbacks: Sequence[L.Callback] = (),
    seed: int = 0,
    **trainer_options: Any,
) -> L.Trainer:
    """Train on one CPU process in silence; returns the trainer, whose ``callback_metrics`` hold what was logged last.

    Args:
        model: trained in place.
        data: its views and batches depend on ``seed`` alone, unless it was set up before and has one already.
        epochs: passes over the training images.
        callbacks: diagnostics, of which those of validation run as ``trainer_options`` say.
        seed: of the order of images and of their views.
        trainer_options: of Lightning's Trainer, over those chosen here.
    """
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "check_val_every_n_epoch": epochs,
        "num_sanity_val_steps": 0,
    }
    loud = logging.getLogger("lightning.pytorch")
    level = loud.level
    loud.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
            L.seed_everything(seed, verbose=False)
            model.train()
            trainer = L.Trainer(max_epochs=epochs, callbacks=list(callbacks), **{**quiet, **trainer_options})
            trainer.fit(model, data)
    finally:
        loud.setLevel(level)
    model.eval()
    return trainer


@torch.no_grad()
def calibrate(model: JointEmbedding, data: TwoViewDataModule) -> None:
    """Make a network's batch-norm statistics those of its weights now: averages over one epoch's training views.

    Those of an untrained network are placeholders, and in the first epochs the running averages lag behind the weights
    (by up to 2 nats of pairwise entropy on the digits). Training itself does not use them.

    Args:
        model: left in the mode that it was in.
        data: set up.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for raw in data.train_dataloader():
        model.embed(data.to_batch(raw)["views"])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)


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


def validation_images(data: TwoViewDataModule, count: int) -> Tensor:
    """The first ``count`` validation images without augmentation, (count, C, H, W), normalised as networks see them.

    >>> validation_images(digits(), 3).shape
    torch.Size([3, 1, 8, 8])
    """
    data.setup("validate")
    batches = [data.to_batch(raw) for raw in data.clean_dataloader("val")]
    return torch.cat([batch["clean"][batch["keep"]] for batch in batches])[:count]


class Gaussianity(NamedTuple):
    """Normality of a representation under input noise, each (S,), one entry a sigma.

    ``pvalue``, ``rejected`` (share, at false-discovery rate 5%) and ``kurtosis`` (median of the absolute excess) are
    over images and the dimensions that vary under that noise, ``constant`` is the share of those that do not, and
    ``pvalue_same`` is over the dimensions that vary under the smallest noise, the same ones for each sigma.
    """

    pvalue: Tensor
    pvalue_same: Tensor
    rejected: Tensor
    kurtosis: Tensor
    constant: Tensor


def gaussianity(model: nn.Module, images: Tensor, sigmas: Sequence[float], draws: int = 512) -> Gaussianity:
    """``noise_normality`` of a network in evaluation mode at images (N, ...), summarised for each of the sigmas.

    >>> found = gaussianity(torch.nn.ReLU(), torch.full((1, 16), 5.0), sigmas=[0.1, 10.0])
    >>> [round(share, 1) for share in found.rejected.tolist()]
    [0.0, 1.0]
    """
    found = noise_normality(model, images, sigmas, draws)
    pvalue, kurtosis = found.pvalue.flatten(1), found.excess_kurtosis.flatten(1).abs()
    varying = ~pvalue.isnan()
    same = varying[int(found.sigmas.argmin())]
    rejected = torch.stack([benjamini_hochberg(tests) for tests in pvalue])
    return Gaussianity(
        pvalue.nanmean(1),
        pvalue[:, same].nanmean(1),
        rejected.sum(1) / varying.sum(1),
        kurtosis.nanmedian(1).values,
        found.constant_share,
    )


class PixelDistances(NamedTuple):
    """Distances between images as vectors: ``nearest`` (N,), and of all pairs ``counts`` (bins,) at ``edges``."""

    nearest: Tensor
    counts: Tensor
    edges: Tensor

    def separate(self, radius: float) -> float:
        """Share of the images whose ball of this radius meets the ball of no other image."""
        return float((self.nearest > 2 * radius).double().mean())


def pixel_distances(images: Tensor, bins: int = 100, block: int = 256) -> PixelDistances:
    """Euclidean distances between images (N, ...): of each to its nearest other, and a histogram of all pairs.

    Of pixels as vectors, in float64, ``block`` rows at a time: O(N x block) memory, whatever the number of pairs.

    >>> found = pixel_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    >>> [round(r, 2) for r in found.nearest.tolist()], int(found.counts.sum()), found.separate(radius=1.0)
    ([1.0, 4.24, 1.0], 3, 0.3333333333333333)
    """
    rows = images.flatten(1).double()
    if len(rows) < 2:
        raise UserError(f"images must be two or more, got {len(rows)}")
    farthest = 2 * torch.linalg.vector_norm(rows - rows.mean(0), dim=1).max().clamp_min(1e-300)
    edges = torch.linspace(0, float(farthest), bins + 1, dtype=torch.float64)
    counts, nearest = torch.zeros(bins, dtype=torch.float64), []
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        distance = torch.cdist(part, rows, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(part))
        # Each pair once: of later images alone.
        later = torch.arange(len(rows)) > (start + own)[:, None]
        counts += torch.histogram(distance[later], edges).hist
        distance[own, start + own] = torch.inf
        nearest.append(distance.min(1).values)
    return PixelDistances(torch.cat(nearest), counts, edges)


class AffineFit(NamedTuple):
    """How well the local affine map J predicts the output under noise, each (S, N): one entry a sigma and image.

    ``error`` is ||C - sigma^2 J J^T||_F / ||sigma^2 J J^T||_F, C the covariance of the draws; ``floor`` the root mean
    square of it that draws of a Gaussian of covariance J J^T would give; ``trace`` is tr C / (sigma^2 tr J J^T);
    ``same_piece`` the share of draws with every rectifier on the side that it has at the image.
    """

    error: Tensor
    floor: Tensor
    trace: Tensor
    same_piece: Tensor


@torch.no_grad()
def affine_fit(
    model: nn.Module, images: Tensor, sigmas: Sequence[float], draws: int = 4096, seed: int = 0
) -> AffineFit:
    """Monte Carlo of the output covariance against the local affine map, at each of images (N, ...) and each sigma.

    The floor is the Wishart distribution's: E ||C - S||_F^2 = (||S||_F^2 + (tr S)^2) / (draws - 1).
    Source: arXiv:2303.00633, theorem on the output density, covariance form derived.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU())
    >>> fit = affine_fit(net.double(), torch.ones(1, 4, dtype=torch.float64), sigmas=[1e-6])
    >>> fit.same_piece.item(), fit.error.item() < 3 * fit.floor.item()
    (1.0, True)
    """
    jacobian = local_affine(model, images).jacobian
    predicted = jacobian @ jacobian.mT
    length, trace = torch.linalg.matrix_norm(predicted), predicted.diagonal(dim1=1, dim2=2).sum(1)
    floor = ((1 + (trace / length) ** 2) / (draws - 1)).sqrt()
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(3, len(sigmas), len(images), dtype=torch.float64)
    with _Pieces(model) as pieces:
        for number, image in enumerate(images):
            noise = torch.randn(draws, *image.shape, generator=generator, dtype=images.dtype)
            model(image[None])
            here = pieces.take()
            for level, sigma in enumerate(sigmas):
                z = model(image + sigma * noise).double()
                covariance = z.T.cov().reshape(z.shape[1], -1) / sigma**2
                found[0, level, number] = torch.linalg.matrix_norm(covariance - predicted[number]) / length[number]
                found[1, level, number] = covariance.trace() / trace[number]
                found[2, level, number] = (pieces.take() == here).all(1).double().mean()
    error, ratio, same = found
    return AffineFit(error, floor.expand_as(error), ratio, same)


class _Pieces:
    """Which rectifiers of a network let their input through, for each sample of the last forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.rectifiers = [part for part in model.modules() if isinstance(part, nn.ReLU)]
        if not self.rectifiers:
            raise UserError(f"{type(model).__name__} has no nn.ReLU, which its affine pieces are counted by")
        self.seen: list[Tensor] = []

    def __enter__(self) -> _Pieces:
        self.hooks = [part.register_forward_hook(self._note) for part in self.rectifiers]
        return self

    def __exit__(self, *args: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, part: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen.append((output > 0).flatten(1))

    def take(self) -> Tensor:
        """(N, rectifiers) of the forward pass since the last call."""
        seen, self.seen = self.seen, []
        return torch.cat(seen, dim=1)


def digits_folder(root: str | Path, count: int = 1797) -> None:
    """scikit-learn's digits as grey PNG files ``<root>/<class>/<number>.png`` of sides from 12 to 28 pixels.

    Args:
        root: made where it is missing.
        count: of images, the first of the data set.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     digits_folder(folder, 30)
    ...     sorted(path.name for path in Path(folder, "7").iterdir())
    ['0007.png', '0017.png', '0027.png']
    """
    source = load_digits()
    for number, (pixels, label) in enumerate(zip(source.images[:count], source.target[:count], strict=True)):
        side = 12 + number * 7 % 17
        image = Image.fromarray((pixels * 255 / 16).round().astype("uint8"))
        place = Path(root, str(label))
        place.mkdir(parents=True, exist_ok=True)
        image.resize((side, side), Image.Resampling.BICUBIC).save(place / f"{number:04d}.png")
