"""NoiseNormality: scipy's test of the network's own outputs, the same on any number of ranks, and nothing disturbed."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rank_trainer import QUIET, SmallNet, rank_trainer
from scipy.stats import false_discovery_control, kurtosis, normaltest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from sslinfo.callbacks import NoiseNormality
from sslinfo.callbacks.information_monitor import MOST_SPECTRA
from sslinfo.cli import main
from sslinfo.data import TwoViewDataModule, View
from sslinfo.errors import UserError
from sslinfo.evaluation.noise_tests import NoiseTests
from sslinfo.information import noise_normality
from sslinfo.models import conv4
from sslinfo.objectives import Frozen, JointEmbedding, VICReg
from sslinfo.optim import OptimizerConfig
from sslinfo.reporting.normality_figure import draw

VIEW = View(degrees=12.0)
IMAGES = 61  # validation images: a prime, which no number of ranks or batch divides
SIGMAS = (0.1, 0.8)
QUANTITIES = ("pvalue", "kurtosis", "rejected", "constant")


def module(backbone: nn.Module | None = None) -> JointEmbedding:
    torch.manual_seed(0)
    return VICReg(
        backbone=backbone or SmallNet(1),
        in_channels=1,
        projector=[16, 8],
        projector_norm="layer",
        optimizer=OptimizerConfig("sgd", lr=0.05, schedule="constant"),
    )


def digits(batch_size: int = 61) -> TwoViewDataModule:
    return TwoViewDataModule("digits", batch_size=batch_size, views=[VIEW, VIEW], val_fraction=IMAGES / 1797, seed=1)


def callback(**options: Any) -> NoiseNormality:
    return NoiseNormality(**{"images": 3, "sigmas": SIGMAS, "draws": 64, **options})


def logged(trainer: Trainer) -> dict[str, float]:
    prefix = "info/representation/normality_"
    return {
        name.removeprefix(prefix): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(prefix)
    }


def validate(
    model: LightningModule,
    watcher: NoiseNormality,
    folder: Path,
    data: Any = None,
    picture: bool = False,
    **options: Any,
) -> dict[str, float]:
    """What is logged of a validation; its picture is drawn where it is asked for."""
    trainer = Trainer(**{**QUIET, **options}, default_root_dir=folder, callbacks=[watcher])
    publishing = nullcontext() if picture else mock.patch("sslinfo.callbacks.noise_normality.publish")
    with publishing:
        trainer.validate(model, datamodule=data or digits(), verbose=False)
    return logged(trainer)


class Of(nn.Module):
    """A backbone made of one function of flattened images."""

    def __init__(self, function: Any, num_features: int) -> None:
        super().__init__()
        self.function, self.num_features = function, num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images.flatten(1))


# What is measured


def test_values_are_scipys_of_the_networks_outputs(tmp_path: Path) -> None:
    """All images, so that nothing is chosen; each image's noise is a stream of its own, seeded by its index."""
    model, data = module(conv4(width=2, in_channels=1)), digits()
    found = validate(model, callback(images=IMAGES, draws=128), tmp_path, data)
    (batch,) = (data.to_batch(raw) for raw in data.val_dataloader())
    model.eval()
    for sigma in SIGMAS:
        features = []
        for image, index in zip(batch["clean"], batch["index"].tolist(), strict=True):
            noise = torch.randn(128, *image.shape, generator=torch.Generator().manual_seed(index))
            with torch.no_grad():
                features.append(model(image + sigma * noise).double().numpy())
        columns = np.concatenate(features, axis=1)  # every dimension of every image
        varying = columns[:, np.ptp(columns, axis=0) > 0]
        pvalues = normaltest(varying).pvalue
        expected = {
            "pvalue": pvalues.mean(),
            "kurtosis": np.abs(kurtosis(varying)).mean(),
            "rejected": (false_discovery_control(pvalues) <= 0.05).mean(),
            "constant": 1 - varying.shape[1] / columns.shape[1],
        }
        assert {name: found[f"{name}_sigma{sigma:g}"] for name in QUANTITIES} == pytest.approx(expected, rel=1e-4)
    assert len(found) == len(QUANTITIES) * len(SIGMAS)
    assert 0 < found["rejected_sigma0.1"] < found["rejected_sigma0.8"] < 1
    assert 0 < found["constant_sigma0.1"] < 1


def test_an_affine_network_is_gaussian_at_every_sigma(tmp_path: Path) -> None:
    """p is uniform: of 12 x 40 tests in 40 independent images the mean lies within 5 standard errors of 0.5.

    Dimensions of one image are correlated at most fully, so the standard error is below 12^-1/2 / 40^1/2 = .046, and a
    false alarm has a probability below 1e-6.
    """
    torch.manual_seed(1)
    found = validate(module(Of(nn.Linear(64, 12), 12)), callback(images=40, draws=256), tmp_path)
    for sigma in SIGMAS:
        assert found[f"pvalue_sigma{sigma:g}"] == pytest.approx(0.5, abs=5 * 0.046)
        assert found[f"rejected_sigma{sigma:g}"] < 0.05
        assert found[f"constant_sigma{sigma:g}"] == 0


def test_a_rectifier_at_its_kink_has_the_kurtosis_of_a_rectified_gaussian(tmp_path: Path) -> None:
    """Moments of max(0, N(0, 1)) are E y^k = (2 pi)^-1/2, 1/2, 2 (2 pi)^-1/2, 3/2."""
    m1, m2, m3, m4 = 1 / math.sqrt(2 * math.pi), 0.5, 2 / math.sqrt(2 * math.pi), 1.5
    variance = m2 - m1**2
    expected = (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2 - 3
    # Each image lies on the kink of all 64 rectifiers, in the middle of the noise.
    still = Of(lambda x: (x - x.mean(0)).clamp_min(0), 64)
    found = validate(module(still), callback(draws=4000, sigmas=(1e-2,)), tmp_path)
    # A sample kurtosis of 4000 draws has a standard error of about .2; the mean over 3 x 64 of them of .015.
    assert found["kurtosis_sigma0.01"] == pytest.approx(expected, abs=0.08)
    assert found["rejected_sigma0.01"] == 1
    assert found["pvalue_sigma0.01"] < 1e-10


def test_dimensions_that_do_not_vary_are_counted_and_left_out(tmp_path: Path) -> None:
    half = Of(lambda x: torch.cat([x[:, :30], 0 * x[:, :10] + 2], dim=1), 40)
    found = validate(module(half), callback(), tmp_path)
    assert found["constant_sigma0.1"] == 0.25
    alone = validate(module(Of(lambda x: x[:, :30], 30)), callback(), tmp_path)
    for name in ("pvalue", "kurtosis", "rejected"):
        assert found[f"{name}_sigma0.1"] == pytest.approx(alone[f"{name}_sigma0.1"], rel=1e-6)
    collapsed = validate(module(Of(lambda x: 0 * x + 1, 64)), callback(), tmp_path, picture=True)
    assert collapsed == {f"constant_sigma{sigma:g}": 1.0 for sigma in SIGMAS}
    assert (tmp_path / "normality.png").exists()


# Which images


@pytest.mark.parametrize("batch_size", [7, 60])
def test_images_do_not_depend_on_the_batches(batch_size: int, tmp_path: Path) -> None:
    whole = validate(module(), callback(), tmp_path)
    assert validate(module(), callback(), tmp_path, digits(batch_size)) == pytest.approx(whole, rel=1e-5)


# Any number of ranks


def on_ranks(rank: int, world_size: int, folder: str) -> tuple[dict[str, float], int, dict[str, float], list[Any]]:
    """Of a validation: what is logged of all images, how many this rank tested. Of a training: logs and history."""
    tested = []

    def counted(f: Any, x: Tensor, *args: Any, **options: Any) -> Any:
        tested.append(len(x))
        return noise_normality(f, x, *args, **options)

    watcher = callback(images=IMAGES, draws=16)
    trainer = rank_trainer(rank, world_size, default_root_dir=folder, callbacks=[watcher])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslinfo.callbacks.noise_normality.noise_normality", counted)
        trainer.validate(module(), datamodule=digits(60 // world_size), verbose=False)
    validated = logged(trainer)
    watcher = callback(images=5)
    trainer = rank_trainer(
        rank, world_size, max_steps=2, limit_train_batches=1, default_root_dir=folder, callbacks=[watcher]
    )
    trainer.fit(module(), datamodule=digits(60 // world_size))
    history = [(step, *map(Tensor.tolist, measured)) for step, measured in watcher.history]
    return validated, sum(tested), logged(trainer), history


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return on_ranks(0, 1, str(tmp_path_factory.mktemp("one")))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_process(ranks: Any, one_process: Any, world_size: int, tmp_path: Path) -> None:
    """Images over two or three ranks, repeats left out. A training sums its gradients in another order."""
    found = ranks(world_size, on_ranks, str(tmp_path))
    for validated, tested, trained, history in found:
        assert (validated, trained, history) == (found[0][0], found[0][2], found[0][3])  # bit for bit
        assert IMAGES // world_size <= tested <= IMAGES // world_size + 1
    assert found[0][0] == pytest.approx(one_process[0], rel=1e-6)
    assert sum(tested for _, tested, *_ in found) == one_process[1] == IMAGES
    assert found[0][2] == pytest.approx(one_process[2], rel=1e-3)
    assert [step for step, *_ in found[0][3]] == [step for step, *_ in one_process[3]] == [1, 2]
    assert (tmp_path / "normality.png").exists()


def fails_on_some(rank: int, world_size: int, folder: str) -> tuple[list[str], dict[str, float]]:
    lines: list[str] = []
    patch = pytest.MonkeyPatch()
    patch.setattr("builtins.print", lambda *args, **options: lines.append(" ".join(map(str, args))))
    try:
        trainer = rank_trainer(rank, world_size, default_root_dir=folder, callbacks=[callback(images=IMAGES)])
        # Noise of sigma .8 takes a few images' mean above the threshold, no clean image.
        model = module(Of(lambda x: torch.where(x.mean(1, keepdim=True) > 0.45, torch.nan, x[:, :30]), 30))
        trainer.validate(model, datamodule=digits(60 // world_size), verbose=False)
    finally:
        patch.undo()
    return [line for line in lines if "NoiseNormality" in line], logged(trainer)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_network_that_fails_is_noted_and_stops_nothing(ranks: Any, world_size: int, tmp_path: Path) -> None:
    found = ranks(world_size, fails_on_some, str(tmp_path))
    for rank, (lines, values) in enumerate(found):
        assert values == {}
        assert len(lines) == (rank == 0)
    assert found[0][0][0].startswith("note: NoiseNormality is left out: ")
    assert not (tmp_path / "normality.png").exists()


# Nothing else changes


class Dropping(SmallNet):
    """Draws random numbers while it trains, and has a part that stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__(1)
        self.dropout, self.still = nn.Dropout(0.5), nn.BatchNorm1d(12)

    def forward(self, images: Tensor) -> Tensor:
        return self.still(self.dropout(super().forward(images)))


def fit(folder: Path, watchers: list[Any], **options: Any) -> tuple[JointEmbedding, Trainer]:
    model = module(Dropping())
    model.backbone.still.eval()
    trainer = Trainer(**{**QUIET, **options}, limit_train_batches=2, default_root_dir=folder, callbacks=watchers)
    trainer.fit(model, datamodule=digits())
    return model, trainer


def test_a_training_is_the_same_with_it(tmp_path: Path) -> None:
    states = []
    for watchers in ([], [callback()]):
        torch.manual_seed(5)
        model, _ = fit(tmp_path, watchers, max_epochs=2)
        modes = {name: part.training for name, part in model.named_modules()}
        states.append((torch.get_rng_state(), model.state_dict(), modes))
    (rng, weights, modes), (other_rng, other_weights, other_modes) = states
    assert torch.equal(rng, other_rng)
    assert modes == other_modes
    for name, value in weights.items():
        assert torch.equal(value, other_weights[name]), name


def test_evaluation_mode_whatever_the_modules_own_and_restored(tmp_path: Path) -> None:
    """Called by hand on a module in training mode: dropout is off in the measurement, and on again after it."""
    model, watcher = module(Dropping()), callback()
    evaluated = validate(model, watcher, tmp_path)
    chosen = {"clean": torch.randn(2, 1, 8, 8), "index": torch.arange(2)}
    model.eval()
    expected = watcher._measure(model, chosen)
    model.train()
    model.backbone.still.eval()
    before = torch.get_rng_state()
    found = watcher._measure(model, chosen)
    assert found is not None
    assert expected is not None
    assert torch.equal(found.pvalue, expected.pvalue)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert model.backbone.dropout.training
    assert not model.backbone.still.training
    assert evaluated


def test_full_precision_whatever_the_trainers(tmp_path: Path) -> None:
    assert validate(module(), callback(), tmp_path, precision="bf16-mixed") == validate(module(), callback(), tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen = {"clean": torch.randn(2, 1, 8, 8), "index": torch.arange(2)}
        under = callback()._measure(module(), chosen)
    plain = callback()._measure(module(), chosen)
    assert under is not None
    assert plain is not None
    assert torch.equal(under.pvalue, plain.pvalue)


# When, and what is written


def test_the_sanity_check_and_dry_runs_write_nothing(in_tmp: Path) -> None:
    watcher = callback()
    fit(in_tmp, [watcher], max_epochs=1, num_sanity_val_steps=2)
    assert [step for step, _ in watcher.history] == [2]
    (in_tmp / "normality.png").unlink()
    (in_tmp / "normality.txt").unlink()
    _, trainer = fit(in_tmp, [callback()], fast_dev_run=True)
    assert set(logged(trainer)) == {f"{name}_sigma{sigma:g}" for name in QUANTITIES for sigma in SIGMAS}
    assert list(in_tmp.iterdir()) == []


def test_files_and_loggers(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    _, trainer = fit(tmp_path, [callback()], max_epochs=2, logger=loggers)
    run = tmp_path / "tb" / "version_0"
    assert (run / "normality.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    assert [image.step for image in events.Images("info/normality/representation")] == [2, 4]
    for name, value in logged(trainer).items():
        scalars = events.Scalars(f"info/representation/normality_{name}")
        assert scalars[-1].value == pytest.approx(value, rel=1e-6)
        assert len(scalars) == 2
    header = Path(loggers[1].log_dir, "metrics.csv").read_text().splitlines()[0].split(",")
    assert "info/representation/normality_pvalue_sigma0.1" in header


def test_the_picture_has_a_curve_for_each_step_and_says_what_it_shows() -> None:
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    history = [(step, NoiseTests(sigmas, *(torch.rand(4, 2) + step))) for step in (0, 10, 20)]
    figure = draw(history, "3 validation images")
    assert "3 validation images" in figure.get_suptitle()
    assert "step 20" in figure.get_suptitle()
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in panels)
    for axes, name in zip(panels, ("pvalue", "rejected", "kurtosis"), strict=True):
        curves = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "."]
        for line, (_, measured) in zip(curves, history, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), getattr(measured, name))
            np.testing.assert_array_equal(line.get_xdata(), SIGMAS)


def test_history_stays_short_and_keeps_the_first_and_the_last() -> None:
    watcher, longest = callback(), 0
    for step in range(150):
        watcher.history.add((step, NoiseTests(*torch.full((5, 2), float(step)))))
        steps = [at for at, _ in watcher.history]
        assert (steps[0], steps[-1]) == (0, step)
        assert steps == sorted(set(steps))
        assert all(float(measured.pvalue[0]) == at for at, measured in watcher.history)
        longest = max(longest, len(steps))
    assert 10 <= longest <= MOST_SPECTRA + 1
    assert max(np.diff(steps)) < 150 / 4


def test_history_goes_on_after_a_resume_at_other_noise_levels_too(tmp_path: Path) -> None:
    keep = {"enable_checkpointing": True}
    fit(tmp_path, [callback(), ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)], max_epochs=2, **keep)
    watcher = callback(sigmas=(0.2, 0.3, 0.5))
    trainer = Trainer(**QUIET, limit_train_batches=2, max_epochs=3, default_root_dir=tmp_path, callbacks=[watcher])
    trainer.fit(module(Dropping()), datamodule=digits(), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert [(step, len(measured.sigmas)) for step, measured in watcher.history] == [(2, 2), (4, 2), (6, 3)]
    assert (tmp_path / "normality.png").exists()


def test_it_says_that_it_is_off_where_there_are_no_clean_images(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    class Other(LightningModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[callback()])
    trainer.validate(Other(), torch.utils.data.DataLoader(torch.zeros(4, 2)), verbose=False)
    assert "NoiseNormality is off: it needs" in capsys.readouterr().out


def test_by_the_command_line(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sslinfo"])
    cli = main(
        [
            *("validate", "--model", "Frozen", "--model.backbone", "conv4", "--model.backbone_options", '{"width": 4}'),
            *("--model.in_channels", "1", "--data.dataset", "digits", "--trainer.accelerator", "cpu"),
            *("--trainer.devices", "1", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"),
            *("--trainer.callbacks+=NoiseNormality", "--trainer.callbacks.draws", "16"),
            *("--trainer.callbacks.sigmas", "[0.2]"),
        ]
    )
    assert set(logged(cli.trainer)) == {f"{name}_sigma0.2" for name in QUANTITIES}
    assert isinstance(cli.model, Frozen)
    assert list(in_tmp.rglob("normality.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, r"images must be a whole number in \[1, 1e6\], got 0"),
        ({"draws": 7}, r"draws must be a whole number in \[8, 1e9\], got 7"),
        ({"sigmas": ()}, r"sigmas=\[\] must hold one or more noise levels"),
        ({"sigmas": (0.1, 0.0)}, "a sigma of sigmas must be in .*, got 0.0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NoiseNormality(**options)
