"""PredictionWriter: representations of every split in one file."""

from __future__ import annotations

import os
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
        path: file to write, by exactly this name; an existing one is replaced when the new one is whole.

    Raises:
        UserError: the path is a folder's; in ``predict``, without a data module that names its ``predict_splits``, or
            where the file cannot be written.

    >>> PredictionWriter("representations.npz").path.suffix
    '.npz'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir() or str(path).endswith(os.sep):
            inside = self.path / "representations.npz"
            raise UserError(f"output={str(path)!r} is a folder: give a file, such as {inside}")
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"output={str(path)!r} is no ordinary file: give another name")
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
        self._write(arrays)
        shapes = ", ".join(
            f"{split} {arrays[f'{split}_representation'].shape}"
            for split in self.splits
            if f"{split}_representation" in arrays
        )
        print(f"wrote {self.path}: {shapes}")

    def _write(self, arrays: dict[str, np.ndarray]) -> None:
        """Write the file beside its place and move it there, so that a full disk leaves the old one or none."""
        whole = self.path.resolve()  # where a link points to
        unfinished = whole.with_name(f".{whole.name}.{os.getpid()}.tmp")
        try:
            whole.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:  # numpy would add .npz to a name
                np.savez(file, **arrays)  # type: ignore[arg-type]
            unfinished.replace(whole)
        except OSError as error:
            raise UserError(
                f"output={str(self.path)!r} cannot be written ({error.strerror or error}), and is as it was: free the "
                "disk or give another --output"
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)
