"""The table and the figure at the end of a training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from sslinfo.callbacks import RunSummary
from sslinfo.callbacks.run_summary import MOST_POINTS
from sslinfo.data import TwoViewDataModule
from sslinfo.objectives import VICReg
from sslinfo.reporting.summary_figure import draw


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(folder: Path, summary: RunSummary, epochs: int = 2, resume: Path | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = VICReg(backbone="conv4", backbone_options={"width": 2}, in_channels=1, projector=[16, 8])
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[summary, ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        **options,
    )
    trainer.fit(model, TwoViewDataModule("digits", batch_size=64, seed=0), ckpt_path=resume)
    return trainer


def small() -> RunSummary:
    return RunSummary(labels_per_class=(1,), draws=2, limit=60)


def features(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three overlapping classes in five dimensions, with scales and a centre of their own."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 5))
    out = []
    for count in (90, 60):
        labels = np.arange(count) % 3
        x = 4 + (centres[labels] + random.normal(size=(count, 5))) * np.array([1, 2, 1, 0.5, 3])
        out += [torch.from_numpy(x).float(), torch.from_numpy(labels)]
    return tuple(out)  # type: ignore[return-value]


def number(text: str) -> float:
    found = re.match(r"[-\d.]+", text)
    assert found
    return float(found[0])


def test_figures_of_the_table() -> None:
    x, y, tx, ty = features()
    column = RunSummary(labels_per_class=(3,), draws=6).measure(x, y, tx, ty, 3)
    a, b = (part.double().numpy() for part in (x, tx))
    y, ty = y.numpy(), ty.numpy()

    def standardised(fit: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (other - fit.mean(0)) / np.sqrt(((fit - fit.mean(0)) ** 2).mean())

    reference = LogisticRegression(max_iter=5000).fit(standardised(a, a), y)
    expected = 100 * reference.score(standardised(a, b), ty)
    assert number(column["linear probe, all labels"]) == pytest.approx(expected, abs=0.051)

    def unit(z: np.ndarray) -> np.ndarray:
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    # exp(cosine / .07), from the distance of unit vectors; a common factor does not matter.
    neighbours = KNeighborsClassifier(20, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07))
    expected = 100 * neighbours.fit(unit(a), y).score(unit(b), ty)
    assert number(column["k-NN (k = 20)"]) == pytest.approx(expected, abs=0.051)

    eigenvalues = PCA().fit(b).explained_variance_
    expected = 0.5 * np.log1p(eigenvalues).sum()
    assert number(column["log-det entropy (nats, beta = 1)"]) == pytest.approx(expected, abs=0.051)
    scaled = eigenvalues / (((b - b.mean(0)) ** 2).mean())
    expected = 0.5 * np.log1p(scaled).sum()
    assert number(column["  at unit mean variance"]) == pytest.approx(expected, abs=0.051)
    shares = eigenvalues / eigenvalues.sum()
    assert number(column["effective rank"]) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=0.051)
    assert column["effective rank"].endswith(" of 5")


def test_few_labels_are_worth_less_than_all_and_have_an_error() -> None:
    column = RunSummary(labels_per_class=(1,), draws=20).measure(*features(), 3)
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d %", column["linear probe, 1 labels a class"])
    assert number(column["linear probe, 1 labels a class"]) < number(column["linear probe, all labels"])


def test_without_labels_only_what_needs_none() -> None:
    x, y, tx, ty = features()
    column = RunSummary().measure(x, y * 0 - 1, tx, ty * 0 - 1, None)
    assert set(column) == {"log-det entropy (nats, beta = 1)", "  at unit mean variance", "effective rank"}


def test_table_figure_and_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = small()
    train(tmp_path, summary)
    printed = capsys.readouterr().out
    for text in ("What was learned", "raw pixels", "representation", "k-NN", "effective rank", "1 labels a class"):
        assert text in printed
    path = tmp_path / "summary.png"
    assert str(path) in printed.replace("\n", "")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(image.convert("L").getcolors(256) or []) > 10
    assert sorted(summary.curves) == ["train/covariance", "train/invariance", "train/loss", "train/variance"]
    assert [step for step, _ in summary.curves["train/loss"]] == [2, 4]
    assert summary.first_spectrum is not None
    assert len(summary.first_spectrum) == 16


@pytest.mark.parametrize(("losses", "probes"), [(1, 0), (2, 2), (4, 1)])
def test_panels_of_the_figure(losses: int, probes: int) -> None:
    names = [f"train/term{i}" for i in range(losses)] + ["probe/linear_top1", "probe/knn_top1"][:probes]
    curves = {name: [(1, 0.5), (2, 0.75)] for name in names}
    figure = draw(curves, {"start": torch.tensor([2.0, 1.0, 0.0]), "end": torch.ones(3)})
    titles = [axis.get_title() for axis in figure.axes if axis.axison]
    assert len(titles) == losses + (probes > 0) + 1
    lines = {axis.get_title(): axis.get_lines() for axis in figure.axes}
    assert lines["train/term0"][0].get_xydata().tolist() == [[1, 0.5], [2, 0.75]]
    assert len(lines["covariance spectrum of the representation"]) == 2
    if probes:
        assert len(lines["probes on validation images"]) == probes


def test_curves_do_not_grow_with_the_training() -> None:
    class Step:
        def __init__(self, epoch: int) -> None:
            self.current_epoch = self.global_step = epoch
            self.callback_metrics = {"train/loss": torch.tensor(float(epoch)), "train/lr": torch.tensor(1.0)}

    summary = RunSummary()
    last = 10 * MOST_POINTS - 1
    for epoch in range(last + 1):
        summary.on_train_epoch_end(Step(epoch), None)  # type: ignore[arg-type]
        assert sum(map(len, summary.curves.values())) <= MOST_POINTS + 1
    assert set(summary.curves) == {"train/loss"}
    steps = np.array([step for step, _ in summary.curves["train/loss"]])
    assert len(steps) > MOST_POINTS / 4
    assert len(set(np.diff(steps[:-1]))) == 1  # evenly spread over the whole training, and the newest
    assert steps[0] == 0
    assert steps[-1] == last
    assert all(step == value for step, value in summary.curves["train/loss"])


def test_survives_a_resume(tmp_path: Path) -> None:
    whole = small()
    train(tmp_path / "whole", whole, epochs=3)
    train(tmp_path, small(), epochs=2)
    resumed = small()
    resumed_trainer = train(tmp_path, resumed, epochs=3, resume=tmp_path / "epoch=0.ckpt")
    assert resumed_trainer.global_step == 6
    assert [step for step, _ in resumed.curves["train/loss"]] == [2, 4, 6]
    assert whole.first_spectrum is not None
    assert resumed.first_spectrum is not None
    # The spectrum at the start is that of the first start.
    assert torch.equal(whole.first_spectrum, resumed.first_spectrum)
    state = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["callbacks"]["RunSummary"]
    assert state["curves"]["train/loss"]["stride"] == 1


def test_a_state_of_version_0_1_0_is_taken() -> None:
    summary = RunSummary()
    old = {"curves": {"train/loss": [(2, 1.5), (4, 1.25)]}, "stride": 1, "first_spectrum": None}
    summary.load_state_dict(old)
    assert list(summary.curves["train/loss"]) == [(2, 1.5), (4, 1.25)]


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, small(), fast_dev_run=True)
    assert not (tmp_path / "summary.png").exists()
    assert "What was learned" not in capsys.readouterr().out


def test_error_of_a_mean_is_the_standard_error() -> None:
    from sslinfo.evaluation.probes import Mean

    values = [0.5, 0.7, 0.9, 0.6]
    assert Mean.of(values).error == pytest.approx(np.std(values, ddof=1) / math.sqrt(4))
