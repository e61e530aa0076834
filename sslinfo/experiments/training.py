"""Small trainings: the paper's methods on one network, on images that need no download."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.objectives import BYOL, JointEmbedding, LogDet, SimCLR, SwAV, VICReg
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


def validation_images(data: TwoViewDataModule, count: int) -> Tensor:
    """The first ``count`` validation images without augmentation, (count, C, H, W), normalised as networks see them.

    >>> validation_images(digits(), 3).shape
    torch.Size([3, 1, 8, 8])
    """
    data.setup("validate")
    batches = [data.to_batch(raw) for raw in data.clean_dataloader("val")]
    return torch.cat([batch["clean"][batch["keep"]] for batch in batches])[:count]


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
