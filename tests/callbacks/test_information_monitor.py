"""InformationMonitor: the same numbers on any number of ranks, as documented, in every log, and nothing that grows."""

from __future__ import annotations

import gc
import math
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from matplotlib.figure import Figure
from rank_trainer import QUIET, SmallNet, rank_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import sslinfo
from sslinfo.callbacks import InformationMonitor
from sslinfo.cli import main
from sslinfo.data import TwoViewDataModule, View
from sslinfo.errors import UserError
from sslinfo.evaluation.taps import Tap
from sslinfo.information import Moments
from sslinfo.information.measure import Report, measure
from sslinfo.models import conv4
from sslinfo.objectives import Frozen, JointEmbedding, LogDet, VICReg, by_view
from sslinfo.optim import OptimizerConfig
from sslinfo.outputs import StepOutputs
from sslinfo.reporting import information_figure, publishing

LAYERS = ("representation", "embedding")
MODULES = ("backbone.layers.2", "projector.0")
# No jitter: the colour operations of a batch share one order, which another batch size draws anew.
VIEW = View(degrees=12.0, translate=0.125, scale=(0.9, 1.1), shear=5.0, noise=0.05)
IMAGES = 181  # validation images: a prime, which no number of ranks or batch divides
VAL_FRACTION = IMAGES / 1797


class Cast(SmallNet):
    """Takes images of any precision."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.to(self.layers[0].weight.dtype))


def module(dtype: torch.dtype = torch.float32) -> JointEmbedding:
    torch.manual_seed(0)
    model = VICReg(
        entropy=LogDet(),
        backbone=Cast(1),
        in_channels=1,
        projector=[32, 24],
        projector_norm="layer",
        optimizer=OptimizerConfig("sgd", lr=0.05, schedule="constant"),
    )
    return model.to(dtype)


def digits(batch_size: int, val_fraction: float = VAL_FRACTION) -> TwoViewDataModule:
    return TwoViewDataModule("digits", batch_size=batch_size, views=[VIEW, VIEW], val_fraction=val_fraction, seed=1)


def values(reports: dict[str, Report]) -> dict[str, float]:
    return {f"{prefix}/{name}": q.value for prefix, found in reports.items() for name, q in found.items()}


def about(reports: dict[str, Report]) -> dict[str, tuple]:
    """All of a report but its values."""
    out: dict[str, tuple] = {}
    for prefix, found in reports.items():
        out |= {f"{prefix}/{name}": (q.ceiling, q.unit, q.n, q.d, q.settings) for name, q in found.items()}
        out |= {f"{prefix}/{name}": (reason,) for name, reason in found.reasons.items()}
    return out


def assert_equal(found: dict[str, float], expected: dict[str, float], rel: float, near_zero: float) -> None:
    """Equal names and values; what differs is named with both values."""
    assert list(found) == list(expected)
    close = {name: pytest.approx(value, rel=rel, abs=near_zero) for name, value in expected.items()}
    assert {name: (found[name], expected[name]) for name in found if found[name] != close[name]} == {}


# Any number of ranks


def validate_and_train(rank: int, world_size: int, sizes: tuple[int, int], dtype: torch.dtype) -> list[Any]:
    """(values, about them, logged values) of a validation of the untrained network, and of a training's last ones."""
    model, out = module(dtype), []
    monitor = InformationMonitor(samples=100, modules=MODULES)
    trainer = rank_trainer(rank, world_size, callbacks=[monitor])
    with unwritten():
        trainer.validate(model, datamodule=digits(sizes[0]), verbose=False)
        out.append((values(monitor.reports), about(monitor.reports), logged(trainer)))
        monitor = InformationMonitor(every_n_steps=2, window=2, samples=100, modules=MODULES)
        trainer = rank_trainer(rank, world_size, max_steps=4, limit_train_batches=4, callbacks=[monitor])
        trainer.fit(model, datamodule=digits(sizes[1]))
    out.append((values(monitor.reports), about(monitor.reports), logged(trainer)))
    return out


def logged(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if "info/" in name}


def unwritten() -> Any:
    """No picture is drawn or saved in here: what is drawn has tests of its own."""
    return mock.patch("sslinfo.callbacks.information_monitor.publish", return_value=None)


# Batches of validation and of training: the latter make global batches of 48 on any number of ranks.
SIZES = {1: (59, 48), 2: (32, 24), 3: (17, 16)}


@pytest.fixture(scope="module")
def one_process() -> list[Any]:
    return validate_and_train(0, 1, SIZES[1], torch.float64)


def test_what_the_reports_hold(one_process: list[Any]) -> None:
    """Every quantity exists or has its reason; of all images once, of a window where four times d asks for one."""
    (validated, about_validated, _), (trained, about_trained, _) = one_process
    expected = set(measure([torch.randn(99, 12), torch.randn(99, 12)]))
    for layer in (*LAYERS, *MODULES):
        assert {name.split("/")[-1] for name in about_validated if f"/{layer}/" in name} == expected
        assert {name.split("/")[-1] for name in about_trained if name.startswith(f"train_info/{layer}/")} == expected
    assert {name.rsplit("/", 1)[0] for name in validated} == {f"info/{layer}" for layer in (*LAYERS, *MODULES)}
    # Twelve features fill neither the 32 dimensions of the projector's first layer nor, by far, the embedding.
    absent = set(about_validated) - set(validated)
    assert {name.split("/")[-1] for name in absent} <= {
        "gaussian_entropy",
        "hadamard_gap",
        "gaussian_mutual_information",
    }
    assert not [name for name in absent if name.startswith("info/representation/")]
    assert about_validated["info/embedding/effective_rank"][2:4] == (IMAGES, 24)
    assert about_validated["info/embedding/infonce"][2:4] == (100, 24)
    assert about_trained["train_info/embedding/effective_rank"][2:4] == (96, 24)
    assert about_trained["train_info/representation/effective_rank"][2:4] == (48, 12)
    assert about_trained["train_info/embedding/infonce"][2:4] == (48, 24)
    assert all(math.isfinite(value) for value in [*validated.values(), *trained.values()])
    # A training changes what is measured, so that equality of its end says something.
    assert trained["info/embedding/effective_rank"] != pytest.approx(validated["info/embedding/effective_rank"])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_process_in_float64(ranks: Any, one_process: list[Any], world_size: int) -> None:
    found = ranks(world_size, validate_and_train, SIZES[world_size], torch.float64)
    assert all(answer == found[0] for answer in found)  # bit for bit
    for (ours, ours_about, ours_logged), (whole, whole_about, whole_logged) in zip(found[0], one_process, strict=True):
        assert_equal(ours, whole, 1e-8, 1e-10)
        assert list(ours_about) == list(whole_about)
        for name, entry in ours_about.items():
            assert entry == pytest.approx(whole_about[name]), name
        assert_equal(ours_logged, whole_logged, 1e-8, 1e-10)


def validate_three_views(rank: int, world_size: int, batch_size: int) -> tuple[Any, ...]:
    """Values of a network without a projector, about them, and what was logged."""
    torch.manual_seed(0)
    model = Frozen(backbone=Cast(1), in_channels=1).double()
    data = TwoViewDataModule("digits", batch_size=batch_size, views=[VIEW] * 3, val_fraction=VAL_FRACTION, seed=1)
    monitor = InformationMonitor(samples=100)
    trainer = rank_trainer(rank, world_size, callbacks=[monitor])
    with unwritten():
        trainer.validate(model, datamodule=data, verbose=False)
    return values(monitor.reports), about(monitor.reports), logged(trainer)


@pytest.mark.parametrize("world_size", [2, 3])
def test_lidar_of_three_views_on_ranks_equals_one_process(ranks: Any, world_size: int) -> None:
    whole, whole_about, whole_logged = validate_three_views(0, 1, SIZES[1][0])
    answers = ranks(world_size, validate_three_views, SIZES[world_size][0])
    assert all(answer == answers[0] for answer in answers)
    assert {"info/representation/lidar", "info/representation/lidar_debiased"} <= set(whole_logged)
    assert_equal(answers[0][0], whole, 1e-8, 1e-10)
    assert_equal(answers[0][2], whole_logged, 1e-8, 1e-10)
    assert answers[0][1] == {name: pytest.approx(entry) for name, entry in whole_about.items()}


def test_ranks_equal_one_process_in_float32(ranks: Any) -> None:
    whole = validate_and_train(0, 1, SIZES[1], torch.float32)
    first, second = ranks(2, validate_and_train, SIZES[2], torch.float32)
    assert first == second
    for (ours, *_), (alone, *_) in zip(first, whole, strict=True):
        assert_equal(ours, alone, 1e-4, 1e-6)


def test_logged_names_are_prefix_layer_quantity_and_values_those_of_the_reports(one_process: list[Any]) -> None:
    for found, _, in_log in one_process:
        assert in_log == found  # in float64, not rounded to Lightning's float32
    names = set(one_process[1][2])
    assert {"train_info/embedding/rankme", "info/representation/view_pairwise_total"} <= names


def keep_the_best(rank: int, world_size: int, folder: str) -> tuple[Any, ...]:
    saved: list[str] = []
    save = publishing.save
    publishing.save = lambda picture, path: (saved.append(path.name), save(picture, path))[1]
    try:
        monitor = InformationMonitor(every_n_steps=0)
        best = ModelCheckpoint(folder, "{step}", monitor="info/embedding/effective_rank", mode="max", save_top_k=2)
        trainer = rank_trainer(
            rank,
            world_size,
            max_epochs=2,
            limit_train_batches=2,
            default_root_dir=folder,
            enable_checkpointing=True,
            callbacks=[monitor, best],
        )
        trainer.fit(module(), datamodule=digits(90 // world_size))
    finally:
        publishing.save = save
    scores = {Path(path).stem: float(score) for path, score in best.best_k_models.items()}
    last = monitor.reports["info/embedding"]["effective_rank"].value
    return scores, Path(best.best_model_path).stem, last, saved


def test_a_checkpoint_is_chosen_by_it_and_rank_0_alone_writes(ranks: Any, tmp_path: Path) -> None:
    found = ranks(2, keep_the_best, str(tmp_path))
    scores, name, last, saved = found[0]
    assert found[1][:3] == found[0][:3]
    assert set(scores) == {"step=2", "step=4"}
    assert scores["step=4"] == last
    assert name == max(scores, key=lambda step: scores[step])
    pictures = [f"information_{layer}.png" for layer in LAYERS]
    assert (saved, found[1][3]) == (2 * pictures, [])
    assert {path.name for path in tmp_path.iterdir()} == {*pictures, "information.txt", "step=2.ckpt", "step=4.ckpt"}


# Which samples


class Logged:
    """A module that notes what is logged with it."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float]] = []
        self.global_rank = 0

    def log(self, name: str, value: float, **options: Any) -> None:
        self.values.append((name, float(value)))


def a_trainer(step: int = 0) -> Any:
    """Enough of a Trainer for the hooks; a dry run writes no files."""
    return SimpleNamespace(
        global_step=step,
        sanity_checking=False,
        training=False,
        fast_dev_run=True,
        is_global_zero=True,
        log_dir=".",
        loggers=[],
        lightning_module=None,
    )


def outputs(views: list[Tensor], index: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """A step's outputs and its batch; the embedding is the representation in twice the scale."""
    embeddings = by_view("z", [2 * view for view in views])
    given = StepOutputs(
        torch.zeros_like(index), index, tuple(views), embeddings, projected=tuple(embeddings), uneven=True
    )
    return {"outputs": given}, {"views": views, "keep": torch.ones(len(index), dtype=torch.bool)}


def validated(monitor: InformationMonitor, views: list[Tensor], order: Tensor, batch: int, step: int = 0) -> Logged:
    module, trainer = Logged(), a_trainer(step)
    monitor.on_validation_epoch_start(trainer, module)  # type: ignore[arg-type]
    for number, rows in enumerate(order.split(batch)):
        out, of = outputs([view[rows] for view in views], rows)
        monitor.on_validation_batch_start(trainer, module, of, number)  # type: ignore[arg-type]
        monitor.on_validation_batch_end(trainer, module, out, of, number)  # type: ignore[arg-type]
    monitor.on_validation_epoch_end(trainer, module)  # type: ignore[arg-type]
    return module


def trained(monitor: InformationMonitor, steps: list[list[Tensor]], start: int = 0, module: Any = None) -> Logged:
    """One optimizer step for each entry."""
    module = module or Logged()
    for number, views in enumerate(steps, start=start):
        out, of = outputs(views, torch.arange(len(views[0])))
        monitor.on_train_batch_start(a_trainer(number), module, of, number)
        monitor.on_train_batch_end(a_trainer(number + 1), module, out, of, number)
    return module


def random_views(n: int, d: int, count: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, n, d, generator=generator, dtype=torch.float64)
    return [signal + 0.3 * part for part in noise]


def test_samples_do_not_depend_on_order_or_batches() -> None:
    views = random_views(300, 9)
    found = []
    for seed, batch in ((None, 300), (None, 7), (1, 64), (2, 32), (3, 299)):
        order = (
            torch.arange(300) if seed is None else torch.randperm(300, generator=torch.Generator().manual_seed(seed))
        )
        monitor = InformationMonitor(samples=50)
        validated(monitor, views, order, batch)
        found.append(values(monitor.reports))
        assert {monitor.reports["info/embedding"][name].n for name in ("infonce", "uniformity", "alignment")} == {50}
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-10, abs=1e-12)
    # Fifty of the 300, not one of those that a shorter set would give by itself.
    everything = measure(views)
    assert found[0]["info/representation/infonce"] != pytest.approx(everything["infonce"].value, rel=1e-3)
    assert found[0]["info/representation/effective_rank"] == pytest.approx(everything["effective_rank"].value)


def test_samples_are_of_the_whole_set_though_it_is_sorted_by_class() -> None:
    """The first half lies at +e1, the second at -e1: a tenth of both together is spread, of one it is a point."""
    z = torch.zeros(1000, 4, dtype=torch.float64)
    z[:500, 0], z[500:, 0] = 1, -1
    monitor = InformationMonitor(samples=100)
    validated(monitor, [z, z], torch.arange(1000), 100)
    # Standard deviation 1 in one of four features for an even choice; .98 where a share of .4 is of one half.
    assert 4 * monitor.reports["info/representation"]["feature_std"].value > 0.95


@pytest.mark.parametrize("batch_size", [90, 180, 181])
def test_whole_set_whatever_the_batch_size(batch_size: int) -> None:
    """Batches of 180 leave one image over, for which an objective has no loss: it is one of the set all the same."""
    reports = []
    for size in (37, batch_size):
        monitor = InformationMonitor(samples=60)
        trainer = Trainer(**QUIET, callbacks=[monitor])
        with unwritten():
            trainer.validate(module(torch.float64), datamodule=digits(size), verbose=False)
        assert monitor.reports["info/embedding"]["effective_rank"].n == IMAGES
        reports.append(values(monitor.reports))
    assert reports[1] == pytest.approx(reports[0], rel=1e-8, abs=1e-10)


def test_values_are_those_of_the_images_views() -> None:
    """Against the report of the network's own outputs, image by image, without the callback."""
    model, data = module(torch.float64), digits(50)
    monitor = InformationMonitor()
    with unwritten():
        Trainer(**QUIET, callbacks=[monitor]).validate(model, datamodule=data, verbose=False)
    h, z = by_hand(model, data)
    for layer, views in (("representation", h), ("embedding", z)):
        expected = {f"info/{layer}/{name}": q.value for name, q in sslinfo.report(*views).items()}
        found = values({f"info/{layer}": monitor.reports[f"info/{layer}"]})
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-10)


@torch.no_grad()
def by_hand(model: JointEmbedding, data: TwoViewDataModule) -> tuple[list[Tensor], list[Tensor]]:
    """Representations and embeddings of both views of the validation images."""
    model.eval()
    batches = [data.to_batch(raw) for raw in data.val_dataloader()]
    h = [torch.cat([model.backbone(batch["views"][view]) for batch in batches]) for view in (0, 1)]
    return h, [model.projector(rows) for rows in h]


# The window of training steps


def test_second_moments_of_as_many_steps_as_four_times_the_width_asks_for() -> None:
    steps = [random_views(16, 8, seed=number) for number in range(40)]
    monitor = InformationMonitor(every_n_steps=10, window=6)
    module = trained(monitor, steps)
    found = monitor.reports["train_info/representation"]
    assert found["effective_rank"].n == 32  # two batches of 16
    assert "window of 2 steps" in found["effective_rank"].settings
    last = np.concatenate([view[0].numpy() for view in steps[-2:]])
    assert found["participation_ratio"].value == pytest.approx(
        np.trace(np.cov(last.T)) ** 2 / (np.cov(last.T) ** 2).sum(), rel=1e-10
    )
    assert found["gaussian_mutual_information"].n == 32
    assert found["infonce"].n == 16
    assert found["alignment"].value == pytest.approx(measure(steps[-1])["alignment"].value, rel=1e-12)
    # Measured at steps 10, 20, 30 and 40, each name once.
    names = [name for name, _ in module.values]
    assert {names.count(name) for name in names} == {4}
    assert set(values(monitor.reports)) == set(names)


def test_a_window_too_short_is_one_batch() -> None:
    steps = [random_views(8, 64, seed=number) for number in range(4)]
    monitor = InformationMonitor(every_n_steps=4, window=2)
    trained(monitor, steps)
    found = monitor.reports["train_info/representation"]
    assert {quantity.n for quantity in found.values()} == {8}
    assert not any("window" in quantity.settings for quantity in found.values())
    assert "N=8" in found.reasons["gaussian_entropy"]
    expected = measure(steps[-1])
    assert values({"": found}) == values({"": expected})


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_more_views_need_no_longer_window(views: int) -> None:
    """Joint moments are of two views, however many there are."""
    steps = [random_views(16, 8, views, seed=number) for number in range(8)]
    monitor = InformationMonitor(every_n_steps=8)
    trained(monitor, steps)
    assert monitor.reports["train_info/embedding"]["effective_rank"].n == 32


def test_one_batch_that_is_large_enough_is_alone() -> None:
    steps = [random_views(64, 8, seed=number) for number in range(4)]
    monitor = InformationMonitor(every_n_steps=4)
    trained(monitor, steps)
    expected = values({"": measure(steps[-1])})
    assert values({"": monitor.reports["train_info/representation"]}) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert monitor.reports["train_info/representation"]["hadamard_gap"].n == 64


def test_measured_once_an_optimizer_step_however_many_batches_make_it(tmp_path: Path) -> None:
    monitor = InformationMonitor(every_n_steps=3, window=2)
    trainer = Trainer(
        **QUIET,
        max_steps=9,
        accumulate_grad_batches=2,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        callbacks=[monitor],
    )
    model, measured = module(), []
    model.log = lambda name, *args, **options: (  # type: ignore[method-assign]
        measured.append(trainer.global_step) if name == "train_info/embedding/rankme" else None
    )
    trainer.fit(model, datamodule=digits(64))
    assert measured == [3, 6, 9]


def test_in_validation_only() -> None:
    monitor = InformationMonitor(every_n_steps=0)
    assert trained(monitor, [random_views(8, 4)] * 3).values == []
    assert validated(monitor, random_views(30, 4), torch.arange(30), 8).values


@pytest.mark.parametrize(("name", "value"), [("every_n_steps", -1), ("window", 0), ("samples", 1)])
def test_bad_numbers_are_named(name: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"{name} must be a whole number in \[\d, 1e\d\], got {value}"):
        InformationMonitor(**{name: value})


def test_wide_layers_have_no_joint_moments_and_a_report_nevertheless() -> None:
    """The published width of VICReg's embedding is 8192; 2100 is past the limit of joint moments already."""
    views = [view.float() for view in random_views(12, 2100)]
    monitor = InformationMonitor(samples=8)
    monitor._keep_spectrum = lambda *args: None  # type: ignore[method-assign]  eigenvalues of that width take a second
    validated(monitor, views, torch.arange(12), 6)
    found = monitor.reports["info/representation"]
    assert found["infonce"].n == 8
    assert found["logdet_entropy"].n == 12
    assert found.reasons["gaussian_mutual_information"]


# What a person reads


class Pictures(Logger):
    """As the loggers of W&B and of others: pictures by ``log_image``."""

    def __init__(self) -> None:
        super().__init__()
        self.images: dict[str, list[np.ndarray]] = {}
        self.metrics: set[str] = set()

    name, version = "pictures", 0

    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        self.images.setdefault(key, []).extend(images)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics |= set(metrics)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        pass


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training with three loggers over two validations, and what it printed."""
    folder = tmp_path_factory.mktemp("written")
    loggers = [TensorBoardLogger(folder, name="tb"), CSVLogger(folder, name="csv")]
    monitor = InformationMonitor(every_n_steps=2, window=2)
    trainer = Trainer(
        **{**QUIET, "logger": loggers},
        max_epochs=2,
        limit_train_batches=2,
        log_every_n_steps=50,  # what is measured at other steps is written all the same
        callbacks=[monitor],
        default_root_dir=folder,
    )
    lines: list[str] = []
    patch = pytest.MonkeyPatch()
    patch.setattr("builtins.print", lambda *args, **options: lines.append(" ".join(map(str, args))))
    try:
        trainer.fit(module(), datamodule=digits(48))
    finally:
        patch.undo()
    return SimpleNamespace(
        folder=folder, run=folder / "tb" / "version_0", loggers=loggers, monitor=monitor, trainer=trainer, lines=lines
    )


def test_files_of_the_run(written: Any) -> None:
    text = (written.run / "information.txt").read_text()
    assert text.startswith("step 4\n")
    for prefix, found in written.monitor.reports.items():
        assert f"\n{prefix}, step 4\n" in text
        assert str(found) in text
    assert set(written.monitor.reports) == {f"{kind}/{layer}" for kind in ("info", "train_info") for layer in LAYERS}
    assert "float32" in text
    for layer in LAYERS:
        assert (written.run / f"information_{layer}.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_holds_scalars_pictures_and_text(written: Any) -> None:
    events = EventAccumulator(str(written.run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    assert set(values(written.monitor.reports)) <= set(tags["scalars"])
    pictures = {f"info/{layer}/{panel}" for layer in LAYERS for panel in information_figure.PANELS}
    assert pictures <= set(tags["images"])
    for name in pictures:
        assert [image.step for image in events.Images(name)] == [2, 4]
    # TensorBoard shows nothing of a name that two kinds of data share.
    kinds = [set(tags[kind]) for kind in ("scalars", "histograms", "tensors", "images")]
    assert sum(map(len, kinds)) == len(set().union(*kinds))
    (text,) = (tag for tag in tags["tensors"] if tag.startswith("info/settings"))
    last = events.Tensors(text)[-1].tensor_proto.string_val[0].decode()
    assert str(written.monitor.reports["info/embedding"]) in last
    for name, value in values(written.monitor.reports).items():
        assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6, abs=1e-12)
    # At optimizer steps 2 and 4, counted from 0 in Lightning's log.
    for prefix in ("info", "train_info"):
        assert [scalar.step for scalar in events.Scalars(f"{prefix}/embedding/rankme")] == [1, 3]


def test_csv_holds_scalars_and_what_it_cannot_hold_is_noted_once(written: Any) -> None:
    header = Path(written.loggers[1].log_dir, "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(values(written.monitor.reports)) <= set(header)
    assert [line for line in written.lines if "CSVLogger" in line] == [
        "note: CSVLogger takes no pictures: they are files in the run's folder"
    ]


def test_a_logger_of_images_gets_pictures(tmp_path: Path) -> None:
    logger, monitor = Pictures(), InformationMonitor()
    trainer = Trainer(**{**QUIET, "logger": logger}, callbacks=[monitor], default_root_dir=tmp_path)
    trainer.validate(module(), datamodule=digits(181), verbose=False)
    assert set(values(monitor.reports)) <= logger.metrics
    assert set(logger.images) == {f"info/{layer}/{panel}" for layer in LAYERS for panel in information_figure.PANELS}
    for (image,) in logger.images.values():
        assert image.shape[2] in (3, 4)
        assert image.dtype == np.uint8
        assert len(np.unique(image)) > 20  # something is drawn


def test_pictures_say_what_they_show() -> None:
    from sslinfo.reporting.information_figure import draw

    views = random_views(200, 6)
    moments = Moments.of(views[0])
    spectra = [(0, torch.linspace(6, 1, 6)), (40, torch.linspace(3, 0, 6))]
    figure = draw("embedding", spectra, moments)
    for part in figure.subfigs:  # each is a picture of its own in TensorBoard
        assert part.get_suptitle() == "embedding, step 40\n200 validation images, 6 dimensions"
    panels = [axes for part in figure.subfigs for axes in part.axes if axes.get_title()]
    assert len(panels) == 3
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in panels)
    spectrum, covariance, deviations = panels
    assert spectrum.get_yscale() == "log"
    curves = [line.get_ydata() for line in spectrum.lines]
    np.testing.assert_allclose(curves[0], np.linspace(6, 1, 6) / 21, rtol=1e-6)
    assert len(curves) == 2
    expected = np.cov(views[0].numpy().T)
    np.testing.assert_allclose(covariance.images[0].get_array(), expected, atol=1e-12)
    np.testing.assert_allclose(covariance.images[0].get_clim(), np.trace(expected) / 6 * np.array([-1, 1]))
    assert sum(bar.get_height() for bar in deviations.patches) == 6


def test_without_a_logger(tmp_path: Path) -> None:
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[InformationMonitor()])
    trainer.validate(module(), datamodule=digits(181), verbose=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "information.txt",
        "information_embedding.png",
        "information_representation.png",
    }


def test_a_dry_run_writes_nothing(in_tmp: Path) -> None:
    monitor = InformationMonitor(every_n_steps=1)
    trainer = Trainer(**QUIET, fast_dev_run=True, default_root_dir=in_tmp, callbacks=[monitor])
    trainer.fit(module(), datamodule=digits(48))
    assert set(monitor.reports) == {f"{kind}/{layer}" for kind in ("info", "train_info") for layer in LAYERS}
    assert list(in_tmp.iterdir()) == []


# Nothing grows


def test_spectra_stay_few_and_keep_the_first_and_the_last() -> None:
    monitor = InformationMonitor(samples=10)
    views = random_views(20, 5)
    longest = 0
    for step in range(200):
        validated(monitor, [view * (1 + step) for view in views], torch.arange(20), 20, step)
        steps = [at for at, _ in monitor.spectra["representation"]]
        assert steps[0] == 0
        assert steps[-1] == step
        assert steps == sorted(set(steps))
        longest = max(longest, len(steps))
    assert 10 <= longest <= 40
    expected = np.linalg.eigvalsh(np.cov(views[0].numpy().T))[::-1]
    for at, spectrum in monitor.spectra["representation"]:
        np.testing.assert_allclose(spectrum, expected * (1 + at) ** 2, rtol=1e-5)
    # None of the training is left out: gaps are of the order of its length over the number of curves.
    assert max(np.diff(steps)) < 200 / 4


def test_memory_does_not_grow() -> None:
    """As many bytes and tensors after 80 rounds as after 40, at the same phase of the thinned spectra."""
    monitor = InformationMonitor(every_n_steps=4, window=2, samples=10)
    views = random_views(20, 5)

    def rounds(start: int, stop: int) -> tuple[int, int]:
        for number in range(start, stop):
            trained(monitor, [views] * 4, start=4 * number)
            validated(monitor, views, torch.arange(20), 7, 4 * (number + 1))
        monitor.spectra.clear()  # bounded, as shown above, and in one phase or another
        gc.collect()
        return tracemalloc.get_traced_memory()[0], sum(isinstance(thing, Tensor) for thing in gc.get_objects())

    tracemalloc.start()
    try:
        rounds(0, 20)
        first, last = rounds(20, 40), rounds(40, 80)
    finally:
        tracemalloc.stop()
    # Every kept tensor counts. Python's own bytes settle by 100 to 200 a round; a kept report would be some thousands.
    assert last[1] <= first[1]
    assert last[0] - first[0] < 40 * 500


def test_no_samples_are_held_between_measurements() -> None:
    monitor = InformationMonitor(every_n_steps=50, window=4)
    views = random_views(16, 8)
    module = trained(monitor, [views] * 46)
    assert len(monitor._recent) == 0
    trained(monitor, [views] * 3, start=46, module=module)
    assert len(monitor._recent) == 3
    trained(monitor, [views], start=49, module=module)
    assert len(monitor._recent) == 0
    validated(monitor, views, torch.arange(16), 8)
    assert monitor._whole == {}


def test_figures_are_let_go(tmp_path: Path) -> None:
    test_without_a_logger(tmp_path)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Figure)]


# Layers by name


def test_views_that_pass_in_one_batch_are_views_by_themselves() -> None:
    tap = Tap()
    rows = torch.arange(6.0)[:, None]
    tap.outputs = [torch.zeros(3, 1), rows]  # clean images went before
    assert [view.flatten().tolist() for view in tap.take(2, images=3)] == [[0, 1, 2], [3, 4, 5]]
    tap.outputs = [torch.zeros(3, 1), rows[:3], rows[3:]]
    assert [view.flatten().tolist() for view in tap.take(2, images=3)] == [[0, 1, 2], [3, 4, 5]]


def test_activations_of_a_named_module_are_averaged_over_positions() -> None:
    model, data = module(torch.float64), digits(50)
    monitor = InformationMonitor(modules=["backbone.layers.0", "projector.0"])
    with unwritten():
        Trainer(**QUIET, callbacks=[monitor]).validate(model, datamodule=data, verbose=False)
    model.eval()
    seen: dict[str, list[Tensor]] = {"backbone.layers.0": [], "projector.0": []}
    with torch.no_grad():
        for view in (0, 1):
            images = torch.cat([data.to_batch(raw)["views"][view] for raw in data.val_dataloader()]).double()
            seen["backbone.layers.0"].append(model.backbone.layers[0](images).mean((2, 3)))
            seen["projector.0"].append(model.projector[0](model.backbone(images)))
    for name, (z1, z2) in seen.items():
        expected = {quantity: q.value for quantity, q in sslinfo.report(z1, z2).items()}
        found = {quantity: q.value for quantity, q in monitor.reports[f"info/{name}"].items()}
        # Moments resolve singular values down to 1e-8 of the largest, and RankMe counts those that rounding makes.
        assert found.pop("rankme") == pytest.approx(expected.pop("rankme"), rel=1e-6)
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert not model.backbone.layers[0]._forward_hooks


def test_a_module_that_does_not_exist_is_an_error_with_names_that_do() -> None:
    trainer = Trainer(**QUIET, callbacks=[InformationMonitor(modules=["backbone.layer.0"])])
    with pytest.raises(UserError, match=r"backbone.layer.0.*backbone\.layers\.0"):
        trainer.validate(module(), datamodule=digits(50), verbose=False)


# Resuming


def test_spectra_go_on_after_a_resume(tmp_path: Path) -> None:
    def fit(epochs: int, path: Path | None = None) -> InformationMonitor:
        monitor = InformationMonitor(every_n_steps=2, window=2)
        keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
        trainer = Trainer(
            **{**QUIET, "enable_checkpointing": True},
            max_epochs=epochs,
            limit_train_batches=3,
            default_root_dir=tmp_path,
            callbacks=[monitor, keep],
        )
        torch.manual_seed(3)
        with unwritten():
            trainer.fit(module(), datamodule=digits(48), ckpt_path=path, weights_only=True)
        return monitor

    whole = fit(3)
    resumed = fit(3, tmp_path / "step=6.ckpt")
    for layer in LAYERS:
        ours, theirs = resumed.spectra[layer], whole.spectra[layer]
        assert [step for step, _ in ours] == [step for step, _ in theirs] == [3, 6, 9]
        for (_, one), (_, other) in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert values(resumed.reports) == values(whole.reports)


# An encoder that was not trained here


FROZEN = [
    *("validate", "--model", "Frozen", "--model.backbone", "conv4", "--model.backbone_options", '{"width": 4}'),
    *("--model.in_channels", "1", "--data.dataset", "digits", "--data.batch_size", "64"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger", "false"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.callbacks+=InformationMonitor",),
]


def validate_frozen(*options: str) -> tuple[dict[str, float], dict[str, float]]:
    """Values of the command line's report of the representation, and of the report made by hand."""
    cli = main([*FROZEN, *options])
    (monitor,) = (c for c in cli.trainer.callbacks if isinstance(c, InformationMonitor))  # type: ignore[attr-defined]
    h, _ = by_hand(cli.model, cli.datamodule)
    expected = {f"info/representation/{name}": q.value for name, q in sslinfo.report(*h).items()}
    return values({"info/representation": monitor.reports["info/representation"]}), expected


def test_frozen_encoders_by_the_command_line(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sslinfo"])
    found, expected = validate_frozen()
    lines = capsys.readouterr().out.splitlines()
    note = "note: without a projector the embedding is the representation: it is reported once, under that name"
    assert lines.count(note) == 1
    start = lines.index("info                              representation")
    shown = dict(line.split() for line in lines[start + 1 :])
    assert {f"info/representation/{name}": float(value) for name, value in shown.items()} == pytest.approx(
        found, rel=1e-4
    )
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)  # float32 batches of another size round otherwise
    assert found["info/representation/effective_rank"] > 1
    other = conv4(in_channels=1, width=4)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    torch.save(other.state_dict(), "weights.pt")
    loaded, expected = validate_frozen("--model.weights", "weights.pt")
    assert loaded == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert loaded["info/representation/logdet_entropy"] != pytest.approx(
        found["info/representation/logdet_entropy"], rel=1e-2
    )


def test_fit_of_frozen_is_an_error_that_names_the_way_out(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sslinfo"])
    with pytest.raises(UserError, match="Frozen has nothing to fit: use sslinfo validate"):
        main(["fit", *FROZEN[1:], "--trainer.max_steps", "1"])


# Collapse


@pytest.mark.parametrize("at", [0.0, 0.3])
def test_collapse_to_a_point_is_reported(tmp_path: Path, at: float) -> None:
    model = module()
    last = [layer for layer in model.projector.modules() if isinstance(layer, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    last.bias = torch.nn.Parameter(torch.full_like(last.weight[:, 0], at))
    last.requires_grad_(False)
    monitor = InformationMonitor(every_n_steps=1)
    trainer = Trainer(**QUIET, max_steps=2, limit_train_batches=2, default_root_dir=tmp_path, callbacks=[monitor])
    trainer.fit(model, datamodule=digits(60))
    for prefix in ("info/embedding", "train_info/embedding"):
        found = monitor.reports[prefix]
        assert "one point" in found.reasons["effective_rank"]
        assert found["logdet_entropy"].value == pytest.approx(0, abs=1e-9)
        assert all(math.isfinite(quantity.value) for quantity in found.values())
        if at:
            assert found["feature_std"].value == pytest.approx(0, abs=1e-7)
    assert (tmp_path / "information_embedding.png").exists()


def test_a_step_without_outputs_is_passed_over() -> None:
    """Another LightningModule's outputs: a loss, or nothing."""
    monitor = InformationMonitor(every_n_steps=1)
    module: Any = LightningModule()
    for out in (None, torch.zeros(()), {"loss": torch.zeros(())}):
        of = {"views": [], "keep": torch.ones(0, dtype=torch.bool)}
        monitor.on_train_batch_start(a_trainer(), module, of, 0)
        monitor.on_train_batch_end(a_trainer(1), module, out, of, 0)
        monitor.on_validation_epoch_start(a_trainer(1), module)
        monitor.on_validation_batch_start(a_trainer(1), module, of, 0)
        monitor.on_validation_batch_end(a_trainer(1), module, out, of, 0)
        monitor.on_validation_epoch_end(a_trainer(1), module)
    assert monitor.reports == {}


def test_a_checkpoint_is_reported_at_its_own_step_and_the_spread_is_a_histogram(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}")
    trainer = Trainer(
        **{**QUIET, "enable_checkpointing": True},
        max_epochs=1,
        limit_train_batches=2,
        default_root_dir=tmp_path / "fit",
        callbacks=[InformationMonitor(every_n_steps=0), keep],
    )
    with unwritten():
        trainer.fit(module(), datamodule=digits(90))
    logger = TensorBoardLogger(tmp_path)
    trainer = Trainer(
        **{**QUIET, "logger": logger}, default_root_dir=tmp_path, callbacks=[InformationMonitor(every_n_steps=0)]
    )
    trainer.validate(
        module(), datamodule=digits(90), ckpt_path=tmp_path / "step=2.ckpt", verbose=False, weights_only=True
    )
    text = (Path(logger.log_dir) / "information.txt").read_text()
    assert text.startswith("step 2\n")
    assert "info/embedding, step 2\n" in text
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [event.step for event in events.Histograms("info/representation/deviations_histogram")] == [2]


def test_without_a_validation_the_table_is_of_the_training(tmp_path: Path) -> None:
    monitor = InformationMonitor(every_n_steps=2)
    trainer = Trainer(**QUIET, max_steps=4, limit_val_batches=0, default_root_dir=tmp_path, callbacks=[monitor])
    trainer.fit(module(), datamodule=digits(90))
    assert "train_info/embedding, step 4\n" in (tmp_path / "information.txt").read_text()
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("name", ["beta", "variance", "temperature"])
def test_scales_are_checked_at_once(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be in .*, got -1.0"):
        InformationMonitor(**{name: -1.0})  # type: ignore[arg-type]


def test_samples_that_are_not_finite_stop_nothing_and_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """One batch of a diverging training, or of half precision while its scale is looked for."""
    views = random_views(20, 5)
    views[1][3, 2] = math.nan
    monitor = InformationMonitor(every_n_steps=2)
    assert trained(monitor, [views] * 2).values == []
    said = "InformationMonitor measures nothing of train_info/embedding at step 2: 2 of 80 samples hold NaN or infinity"
    assert capsys.readouterr().out.count(said) == 1
    assert monitor.reports["train_info/embedding"].reasons == {"all": "2 of 80 samples hold NaN or infinity"}
    assert validated(monitor, views, torch.arange(20), 7).values == []
    assert monitor.reports["info/embedding"].reasons == {"all": "1 of 14 samples hold NaN or infinity"}
    assert validated(monitor, random_views(20, 5), torch.arange(20), 7).values  # the next one is measured again


def test_another_fit_starts_anew(tmp_path: Path) -> None:
    monitor, steps = InformationMonitor(every_n_steps=2), []
    for _ in range(2):
        trainer = Trainer(**QUIET, max_steps=2, limit_train_batches=2, default_root_dir=tmp_path, callbacks=[monitor])
        model = module()
        model.log = lambda name, *args, trainer=trainer, **options: (  # type: ignore[method-assign]
            steps.append((name, trainer.global_step)) if name.endswith("embedding/rankme") else None
        )
        with unwritten():
            trainer.fit(model, datamodule=digits(60))
        assert [step for step, _ in monitor.spectra["embedding"]] == [2]
    assert steps == 2 * [("train_info/embedding/rankme", 2), ("info/embedding/rankme", 2)]


def test_every_validation_of_the_command_line_reports(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word about callbacks."""
    monkeypatch.setattr("sys.argv", ["sslinfo"])
    cli = main(FROZEN[:-1])
    (monitor,) = (c for c in cli.trainer.callbacks if isinstance(c, InformationMonitor))  # type: ignore[attr-defined]
    assert monitor.reports["info/representation"]["effective_rank"].value > 1


OWN = """
from torch import nn

class Grey(nn.Module):
    num_features = 64

    def forward(self, images):
        return images.flatten(1)
"""


def test_a_network_of_ones_own_by_the_command_line(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sslinfo"])
    monkeypatch.syspath_prepend(str(in_tmp))
    (in_tmp / "own_network.py").write_text(OWN)
    words = ["validate", "--model", "Frozen", "--data.dataset", "digits", "--trainer.accelerator", "cpu"]
    words += ["--trainer.devices", "1", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    cli = main([*words, "--model.backbone.class_path", "own_network.Grey"])
    (monitor,) = (c for c in cli.trainer.callbacks if isinstance(c, InformationMonitor))  # type: ignore[attr-defined]
    assert monitor.reports["info/representation"]["effective_rank"].d == 64
    with pytest.raises(ValueError, match="say --model.backbone.class_path own_network.Grey"):
        main([*words, "--model.backbone", "own_network.Grey"])
