"""The table of data sets, and what holds for all of them."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from fake import write_imagefolder
from lightning.pytorch import Trainer
from stored import everything

from sslinfo.callbacks import KNNProbe
from sslinfo.data import TwoViewDataModule, datasets, views_preset
from sslinfo.data.datasets import load
from sslinfo.data.readers import MissingData
from sslinfo.data.views import Preset
from sslinfo.errors import UserError
from sslinfo.objectives import VICReg

ROWS = datasets.TABLE  # before any page's block adds one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar-10"}, r"did you mean 'cifar10'\?"),
        ({"name": "Digits"}, r"did you mean 'digits'\?"),
        ({"name": "qqqq"}, r"unknown name 'qqqq'\. Known: digits"),
        ({"name": "cifar10"}, r"cifar10 needs data.root"),
        ({"name": "digits", "channels": 2}, r"data.channels must be 1, 3 or null, got 2"),
        ({"name": "digits", "in_memory": "yes"}, r"data.in_memory must be .* got 'yes'"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        load(**arguments)


@pytest.mark.parametrize("in_memory", ["auto", False])
def test_channels(tmp_path, in_memory):
    write_imagefolder(tmp_path / "grey", ("train",), channels=1)
    write_imagefolder(tmp_path / "colour", ("train",), channels=3)
    grey = everything(load("imagefolder", tmp_path / "grey", channels=1, in_memory=in_memory)["train"])[0]
    assert grey.shape == (24, 1, 32, 32)
    repeated = everything(load("imagefolder", tmp_path / "grey", in_memory=in_memory)["train"])[0]
    assert torch.equal(repeated, grey.expand(-1, 3, -1, -1))
    weighed = everything(load("imagefolder", tmp_path / "colour", channels=1, in_memory=in_memory)["train"])[0]
    colour = everything(load("imagefolder", tmp_path / "colour", in_memory=in_memory)["train"])[0].double()
    luma = 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2]
    assert (weighed[:, 0].double() - luma).abs().max() <= 1
    assert load("digits", channels=3)["train"].shape == (3, 8, 8)


def test_names_are_the_rows():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    published = ", ".join(row.name for row in ROWS if row.normalization)
    downloads = ", ".join(row.name for row in ROWS if row.download)
    text = " ".join(TwoViewDataModule.__doc__.split())
    for part in (
        f"dataset: {', '.join(names)}, or a map-style",
        f"published constants ({published})",
        f"fetch what is missing ({downloads})",
        f"augmentations ({', '.join(get_args(Preset))}), or a list of View. None: digits for digits, else vicreg.",
    ):
        assert part in text
    assert not re.search(r"[{}]", text)


def test_digits_take_their_own_views_and_others_vicregs():
    assert repr(TwoViewDataModule("digits").views) == repr(views_preset("digits"))
    assert repr(TwoViewDataModule("stl10").views) == repr(views_preset("vicreg"))
    assert repr(TwoViewDataModule("my_module.MyDataset").views) == repr(views_preset("vicreg"))


# A new data set


def write_spectrograms(root):
    for seed, (split, count) in enumerate([("train", 60), ("test", 20)]):
        images = np.random.default_rng(seed).integers(0, 256, (count, 1, 12, 12), dtype=np.uint8)
        np.savez(root / f"{split}.npz", images=images, labels=np.arange(count) % 4)


@pytest.fixture
def spectrograms(monkeypatch):
    """The row that the page on extending adds, by the page's own block."""
    monkeypatch.setattr(datasets, "TABLE", ROWS)
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    section = page[page.index("## A new data set") :]
    scope = {"__name__": "users_data"}
    exec(re.search(r"```python\n(.*?)```", section, re.S).group(1), scope)
    return scope["ROW"]


def test_a_new_data_set_is_one_row(spectrograms, tmp_path):
    write_spectrograms(tmp_path)
    data = TwoViewDataModule("spectrograms", root=str(tmp_path), batch_size=16, seed=0)
    model = VICReg(backbone="conv4", backbone_options={"width": 2}, in_channels=1, projector=[16, 8])
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(
        **settings, max_epochs=1, enable_progress_bar=False, enable_model_summary=False, callbacks=[KNNProbe(k=1)]
    )
    trainer.fit(model, data)
    assert trainer.global_step == 54 // 16
    assert "probe/knn_top1" in trainer.callback_metrics
    assert {split: len(store) for split, store in data.stores.items()} == {
        "pretrain": 54,
        "train": 54,
        "val": 6,
        "test": 20,
    }
    clean = torch.cat([data.to_batch(raw)["clean"] for raw in data.test_dataloader()])
    pixels = np.load(tmp_path / "test.npz")["images"] / 255
    np.testing.assert_allclose(clean.numpy(), (pixels - 0.31) / 0.22, atol=1e-5)


def test_a_new_data_set_is_in_the_messages(spectrograms, tmp_path):
    with pytest.raises(
        UserError, match=r"did you mean 'spectrograms'\? Known: digits, .*, imagefolder, spectrograms, or"
    ):
        TwoViewDataModule("spectrogram")
    with pytest.raises(MissingData, match=r"train\.npz is missing: check data\.root"):
        load("spectrograms", tmp_path)


def test_a_new_data_set_is_downloaded_by_its_row(spectrograms, tmp_path, monkeypatch):
    row = dataclasses.replace(spectrograms, download=write_spectrograms)
    monkeypatch.setattr(datasets, "TABLE", (*datasets.TABLE[:-1], row))
    TwoViewDataModule("spectrograms", root=str(tmp_path)).prepare_data()
    assert not list(tmp_path.iterdir())
    TwoViewDataModule("spectrograms", root=str(tmp_path), download=True).prepare_data()
    assert len(load("spectrograms", tmp_path)["test"]) == 20


def test_published_constants_are_for_the_channels_that_they_have(spectrograms, tmp_path):
    """One constant cannot normalise three channels: they are measured, and grey repeated has one mean."""
    write_spectrograms(tmp_path)
    data = TwoViewDataModule("spectrograms", root=str(tmp_path), batch_size=16, channels=3)
    data.setup("fit")
    pixels = np.load(tmp_path / "train.npz")["images"][data.stores["train"].index] / 255
    assert data.pipeline.mean == pytest.approx([pixels.mean()] * 3, rel=1e-6)
    assert data.pipeline.std == pytest.approx([pixels.std(ddof=1)] * 3, rel=1e-6)
