"""What `predict` writes, from one process and from several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits
from torch import nn

from sslinfo.callbacks import PredictionWriter
from sslinfo.data import TwoViewDataModule
from sslinfo.objectives import VICReg


class Pool(LightningEnvironment):
    """The processes that the test pool has started."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.set_global_rank(rank)
        self._rank, self._size = rank, world_size

    creates_processes_externally = True

    def local_rank(self) -> int:
        return self._rank

    def global_rank(self) -> int:
        return self._rank

    def world_size(self) -> int:
        return self._size


class Pixels(nn.Module):
    """A network that one can compute by hand."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.training_only = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.training_only(self.scale * images.flatten(1))


def predict(path: str, place: tuple[int, int] | None = None) -> None:
    torch.set_num_threads(1)
    model = VICReg(backbone=Pixels(), in_channels=1, projector=[8])
    data = TwoViewDataModule("digits", batch_size=100, mean=[0.0], std=[1.0], val_fraction=0.2)
    options: dict[str, Any] = {"devices": 1}
    if place is not None:
        strategy = DDPStrategy(cluster_environment=Pool(*place), process_group_backend="gloo")
        options = {"devices": place[1], "strategy": strategy}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[PredictionWriter(path)], **quiet, **options)
    trainer.predict(model, data, return_predictions=False)


def _predict_on_rank(rank: int, world_size: int, path: str) -> None:
    predict(path, (rank, world_size))


def check(path: Path) -> None:
    found = np.load(path)
    digits = load_digits()
    parts = []
    for split in ("train", "val", "test"):
        index = found[f"{split}_index"]
        parts.append(index)
        assert np.all(np.diff(index) > 0)
        assert np.array_equal(found[f"{split}_label"], digits.target[index])
        expected = 2 * np.round(digits.images[index] * 255 / 16) / 255
        np.testing.assert_allclose(found[f"{split}_representation"], expected.reshape(-1, 64), atol=1e-6)
    assert np.array_equal(np.sort(np.concatenate(parts[:2])), np.arange(1797))
    assert np.array_equal(parts[1], parts[2])  # no test images: the validation ones


def test_rows_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "features.npz"
    predict(str(path))
    check(path)
    assert f"wrote {path}: train (1438, 64), val (359, 64), test (359, 64)" in capsys.readouterr().out


# 1438 and 359 images are no multiple of 2 x 100 or 3 x 100: the last batches are filled up with repeats.
@pytest.mark.parametrize("world_size", [2, 3])
def test_rows_of_several_processes(tmp_path: Path, ranks: Any, world_size: int) -> None:
    ranks(world_size, _predict_on_rank, str(tmp_path / "features.npz"))
    check(tmp_path / "features.npz")


def test_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    path.write_bytes(b"old")
    predict(str(path))
    check(path)
