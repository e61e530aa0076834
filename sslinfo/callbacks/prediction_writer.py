"""PredictionWriter: representations of every split in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from sslinfo.errors import UserError
from sslinfo.lightning_compat import datamodule_of
from sslinfo.outputs import StepOutputs


class PredictionWriter(Callback):
    """Writes what ``predict`` computes to an .npz file.

    For each split (train, val, and test where the data set has test images): ``<split>_representation`` (N, d),
    ``<split>_label`` (N,) with -1 where there is none, and ``<split>_index`` (N,), the image's place in its data set.
    Rank 0 writes the rows of all ranks, in the order of index.

    Args:
        path: file to write; an existing one is replaced.

    Raises:
        UserError: in ``predict``, without a data module that names its ``predict_splits``.

    >>> PredictionWriter("representations.npz").path.suffix
    '.npz'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.splits: tuple[str, ...] = ()
        self.rows: dict[str, list[np.ndarray]] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        splits = getattr(datamodule_of(trainer), "predict_splits", None)
        if splits is None:
            raise UserError("PredictionWriter takes the splits from a TwoViewDataModule: pass predict(datamodule=...)")
        self.splits, self.rows = tuple(splits), {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        step = StepOutputs.of(outputs)
        if step is None:
            raise UserError(f"PredictionWriter needs a JointEmbedding, got {type(pl_module).__name__}")
        rows = step.whole("clean_representations", "labels", "indices")
        assert rows.clean_representations is not None
        arrays = {
            "representation": rows.clean_representations.float(),
            "label": rows.labels,
            "index": rows.indices,
        }
        for name, tensor in arrays.items():
            self.rows.setdefault(f"{self.splits[dataloader_idx]}_{name}", []).append(tensor.cpu().numpy())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        arrays = {name: np.concatenate(parts) for name, parts in self.rows.items()}
        self.rows = {}
        for split in self.splits:
            if f"{split}_index" in arrays:
                order = arrays[f"{split}_index"].argsort(kind="stable")
                arrays.update({n: a[order] for n, a in arrays.items() if n.startswith(f"{split}_")})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(self.path, **arrays)  # type: ignore[arg-type]
        shapes = ", ".join(
            f"{split} {arrays[f'{split}_representation'].shape}"
            for split in self.splits
            if f"{split}_representation" in arrays
        )
        print(f"wrote {self.path}: {shapes}")
