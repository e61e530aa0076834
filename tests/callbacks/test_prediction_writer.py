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
from torch.utils.data import DataLoader, Dataset

from sslinfo.callbacks import PredictionWriter
from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
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


QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def predict(path: str, place: tuple[int, int] | None = None) -> None:
    run(path, TwoViewDataModule("digits", batch_size=100, mean=[0.0], std=[1.0], val_fraction=0.2), place)


def run(path: str, data: TwoViewDataModule, place: tuple[int, int] | None = None) -> None:
    torch.set_num_threads(1)
    model = VICReg(backbone=Pixels(), in_channels=1, projector=[8])
    options: dict[str, Any] = {"devices": 1}
    if place is not None:
        strategy = DDPStrategy(cluster_environment=Pool(*place), process_group_backend="gloo")
        options = {"devices": place[1], "strategy": strategy}
    trainer = Trainer(accelerator="cpu", callbacks=[PredictionWriter(path)], **QUIET, **options)
    trainer.predict(model, data, return_predictions=False)


def _predict_on_rank(rank: int, world_size: int, path: str) -> None:
    predict(path, (rank, world_size))


def check(path: Path) -> None:
    found = np.load(path)
    digits = load_digits()
    parts = []
    # The digits have no test images.
    assert sorted(found) == [f"{s}_{n}" for s in ("train", "val") for n in ("index", "label", "representation")]
    for split in ("train", "val"):
        index = found[f"{split}_index"]
        parts.append(index)
        assert np.all(np.diff(index) > 0)
        assert np.array_equal(found[f"{split}_label"], digits.target[index])
        expected = 2 * np.round(digits.images[index] * 255 / 16) / 255
        np.testing.assert_allclose(found[f"{split}_representation"], expected.reshape(-1, 64), atol=1e-6)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1797))


def test_rows_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "features.npz"
    predict(str(path))
    check(path)
    printed = capsys.readouterr().out
    assert f"wrote {path}: train (1438, 64), val (359, 64)\n" in printed
    assert printed.count("note: the data set has no test images: the test split is left out") == 1


class Constant(Dataset):
    """Images of one value, which is their label too."""

    def __init__(self, values: range) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 8, 8), self.values[item], dtype=torch.uint8), self.values[item]


def test_test_images_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = TwoViewDataModule(
        Constant(range(20)), batch_size=8, test_dataset=Constant(range(5, 18)), mean=[0.0], std=[1.0]
    )
    run(str(tmp_path / "features.npz"), data)
    found = np.load(tmp_path / "features.npz")
    assert len(found) == 9
    assert np.array_equal(found["test_index"], np.arange(13))
    assert np.array_equal(found["test_label"], np.arange(5, 18))
    expected = np.repeat(2 * np.arange(5, 18)[:, None] / 255, 64, axis=1)
    np.testing.assert_allclose(found["test_representation"], expected, atol=1e-6)
    assert "no test images" not in capsys.readouterr().out


def test_splits_come_from_the_data_module(tmp_path: Path) -> None:
    model = VICReg(backbone=Pixels(), in_channels=1, projector=[8])
    trainer = Trainer(accelerator="cpu", callbacks=[PredictionWriter(tmp_path / "features.npz")], **QUIET)
    with pytest.raises(UserError, match=r"pass predict\(datamodule=\.\.\.\)"):
        trainer.predict(model, DataLoader(Constant(range(4))))


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


def writer(path: str) -> PredictionWriter:
    """One whose rows are gathered."""
    callback = PredictionWriter(path)
    callback.splits = ("train",)
    callback.rows = {
        "train_representation": [np.eye(2)],
        "train_label": [np.array([1, 0])],
        "train_index": [np.array([1, 0])],
    }
    return callback


class OneProcess:
    is_global_zero = True


def test_the_file_has_exactly_the_name_that_is_said(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("link.npz").symlink_to("where.npz")
    for path in ("features", "a.b/features.dat", "link.npz"):
        writer(path).on_predict_end(OneProcess(), None)  # type: ignore[arg-type]
        assert capsys.readouterr().out == f"wrote {path}: train (2, 2)\n"
        with np.load(path) as found:
            assert found["train_index"].tolist() == [0, 1]
    assert Path("link.npz").is_symlink()
    assert {str(file) for file in Path().rglob("*") if file.is_file()} == {
        *("features", "a.b/features.dat", "link.npz", "where.npz")
    }


def test_a_folder_and_a_device_are_refused_before_anything_is_computed(in_tmp: Path) -> None:
    Path("out").mkdir()
    for path in ("out", "out/", "new/"):
        with pytest.raises(UserError, match=r"is a folder: give a file, such as (out|new)/representations\.npz"):
            PredictionWriter(path)
    with pytest.raises(UserError, match="is no ordinary file"):
        PredictionWriter("/dev/full")


def test_a_full_disk_leaves_what_was_there(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(file: Any, **arrays: Any) -> None:
        file.write(b"the beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fill)
    Path("old.npz").write_text("old")
    for path in ("old.npz", "new.npz"):
        with pytest.raises(UserError, match=rf"output='{path}' cannot be written \(No space left on device\)"):
            writer(path).on_predict_end(OneProcess(), None)  # type: ignore[arg-type]
    assert [file.name for file in Path().iterdir()] == ["old.npz"]
    assert Path("old.npz").read_text() == "old"
