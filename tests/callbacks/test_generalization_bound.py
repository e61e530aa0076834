"""GeneralizationBound: disjoint parts, the same numbers on any number of ranks, and a certificate only where due."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from rank_trainer import QUIET, SmallNet, rank_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from sslinfo.callbacks import GeneralizationBound
from sslinfo.callbacks.generalization_bound import MOST_POINTS
from sslinfo.data import TwoViewDataModule, View
from sslinfo.data.stores import JoinedStore, MemoryStore
from sslinfo.data.stores.files import FileStore
from sslinfo.data.stores.overlap import images_in_both
from sslinfo.errors import UserError
from sslinfo.evaluation import bound_split
from sslinfo.evaluation.bound_split import PARTS, PURPOSE, SHARES, Split, part_of
from sslinfo.evaluation.choice import keys_of
from sslinfo.evaluation.features import clean_features
from sslinfo.information import generalization_bound, within_radius
from sslinfo.information.bound import WITHOUT_LABELS
from sslinfo.objectives import JointEmbedding, LogDet, VICReg
from sslinfo.optim import OptimizerConfig
from sslinfo.reporting.bound_figure import draw

VIEW = View(degrees=12.0, translate=0.125, scale=(0.9, 1.1), noise=0.05)
L = 1000.0  # above ||W_S'||_F of a network that hardly trained


class Cast(SmallNet):
    """Takes images of any precision."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.to(self.layers[0].weight.dtype))


def module(dtype: torch.dtype = torch.float64, backbone: nn.Module | None = None, **options: Any) -> JointEmbedding:
    torch.manual_seed(0)
    return VICReg(
        entropy=LogDet(),
        backbone=backbone or Cast(1),
        in_channels=1,
        projector=[16],
        projector_norm="layer",
        optimizer=OptimizerConfig("sgd", lr=0.05, schedule="constant"),
        **options,
    ).to(dtype)


def digits(batch_size: int = 128, val_fraction: float = 0.5) -> TwoViewDataModule:
    return TwoViewDataModule("digits", batch_size=batch_size, views=[VIEW, VIEW], val_fraction=val_fraction, seed=1)


def fit(callback: GeneralizationBound, data: Any = None, steps: int = 2, epochs: int = 1, **options: Any) -> Trainer:
    quiet = {**QUIET, "max_epochs": epochs, "limit_train_batches": steps, "callbacks": [callback], **options}
    trainer = Trainer(**quiet)
    trainer.fit(module(), datamodule=data or digits())
    return trainer


def everything(callback: GeneralizationBound) -> dict[str, Any]:
    return {**callback.values, **callback.reasons}


# By hand


def test_parts_are_disjoint_and_as_large_as_they_say() -> None:
    """Shares of 200 000 images within 5 standard errors: false alarm rate 2e-6. Ranges of index are shared alike."""
    index = torch.arange(200_000)
    part = part_of(index)
    shares = part.bincount(minlength=len(PARTS)) / len(index)
    for share, expected in zip(shares.tolist(), SHARES, strict=True):
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / len(index))
    for some in (slice(0, 20_000), slice(1, None, 10)):
        assert abs(float((part[some] == 0).double().mean()) - 0.4) < 5 * math.sqrt(0.24 / 20_000)
    shuffled = torch.randperm(1000)
    assert torch.equal(part_of(shuffled), part[:1000][shuffled])


def pairs_by_hand(z: Tensor, label: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """The k-th first of a class by its key with the k-th partner, and how many firsts have none."""
    part, order = part_of(index), keys_of(index, PURPOSE).argsort().tolist()
    pairs, left = [], 0
    for number in label.unique().tolist():
        firsts, partners = ([row for row in order if label[row] == number and part[row] == kind] for kind in (1, 2))
        pairs += list(zip(firsts, partners, strict=False))
        left += max(0, len(firsts) - len(partners))
    first, second = torch.tensor(pairs).T
    return z[first], z[second], label[first], left


def test_values_equal_those_made_by_hand(tmp_path: Path) -> None:
    """Of the clean features of the whole set: parts, pairs, bound, and the risk by numpy's least squares."""
    callback, data = GeneralizationBound(weight_norm=L), digits()
    trainer = fit(callback, data, default_root_dir=tmp_path)
    z, label = clean_features(data, trainer.lightning_module, "val")
    # The same pass in float64, in the order of the index.
    with torch.no_grad():
        batches = [data.to_batch(raw) for raw in data.clean_dataloader("val")]
        z = torch.cat([trainer.lightning_module(batch["clean"])[batch["keep"]] for batch in batches])
        index = torch.cat([batch["index"][batch["keep"]] for batch in batches])
    z = within_radius(z, 1.0, "normalize")
    part = part_of(index)
    first, second, of_pairs, left = pairs_by_hand(z, label, index)
    assert left == callback.values["unmatched"] == 0
    assert len(first) == int((part == 1).sum()) == callback.values["pairs"]
    expected = generalization_bound(
        z[part == 0], label[part == 0], (first, second), pair_targets=of_pairs, num_classes=10, weight_norm=L
    )
    for form in ("certified", "corollary", "top1_error", "best_constant"):
        assert callback.values[form] == pytest.approx(getattr(expected, form), rel=1e-8), form
    assert callback.values["vacuous"] == float(expected.vacuous)
    for name, value in expected.terms.items():
        assert callback.values[name] == pytest.approx(value, rel=1e-8), name
    weights = np.linalg.lstsq(z[part == 0], np.eye(10)[label[part == 0]], rcond=None)[0]
    output, held_out = z[part == 3].numpy() @ weights, label[part == 3].numpy()
    risk = np.linalg.norm(output - np.eye(10)[held_out], axis=1).mean()
    assert callback.values["measured_risk"] == pytest.approx(risk, rel=1e-8)
    assert callback.values["measured_top1_error"] == pytest.approx((output.argmax(1) != held_out).mean())
    assert callback.values["measured_risk"] < callback.values["corollary"]


def test_the_papers_sum_is_of_augmentations(tmp_path: Path) -> None:
    callback, data = GeneralizationBound(weight_norm=L), digits()
    trainer = fit(callback, data, default_root_dir=tmp_path)
    model, rows = trainer.lightning_module, []
    with torch.no_grad():
        for raw in data.val_dataloader():
            batch = data.to_batch(raw)
            features = [model(image)[batch["keep"]] for image in (batch["clean"], *batch["views"])]
            rows.append((*features, batch["label"][batch["keep"]], batch["index"][batch["keep"]]))
    clean, one, other, label, index = (torch.cat(parts) for parts in zip(*rows, strict=True))
    part = part_of(index)
    both = (part == 1) | (part == 2)
    expected = generalization_bound(
        clean[part == 0],
        label[part == 0],
        (one[both], other[both]),
        pair_targets=label[both],
        num_classes=10,
        treatment="normalize",
        pairs_of="image",
    )
    assert callback.values["paper"] == pytest.approx(expected.paper, rel=1e-8)
    for name, value in expected.contributions["paper"].items():
        assert callback.values[f"paper_{name}"] == pytest.approx(value, rel=1e-8, abs=1e-12), name
    # Two augmentations of one image are nearer than two images of one class.
    assert callback.values["paper_invariance"] < callback.values["invariance"]
    assert callback.paper is not None
    assert callback.paper.certified is None


def some_split(z: Tensor, label: Tensor, size: int, classes: int | None = 3) -> Split:
    split = Split(classes, 1.0, "clip")
    index = torch.arange(len(z))
    for rows in index.split(size):
        split.add(z[rows], [z[rows], z[rows].flip(1)], label[rows], rows)
    return split


@pytest.mark.parametrize("size", [1, 7, 500])
def test_firsts_without_a_partner_count_with_the_largest_distance(size: int) -> None:
    """A class of so few images that firsts stay alone: their share of I is that of distance 2 R."""
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(500, 4, generator=generator, dtype=torch.float64), dim=1)
    part = part_of(torch.arange(500))
    label = torch.zeros(500, dtype=torch.long)
    label[(part == 1).nonzero()[:5, 0]] = 2  # firsts alone
    label[(part == 0).nonzero()[:5, 0]] = 1
    split = some_split(z, label, size)
    first, second, _, left = pairs_by_hand(z, label, torch.arange(500))
    found = split.pairs_of_a_class()
    assert left == split.unmatched == 5
    assert found is not None
    assert found.n == len(first) + 5
    distance = float((first - second).norm(dim=1).sum()) + 5 * 2.0
    assert float(found.distance) == pytest.approx(distance, rel=1e-12)


def test_partners_are_independent_images_even_where_neighbours_resemble() -> None:
    """Sorted by class, and every ten neighbours alike, as frames of a film are.

    E||f(x+) - f(x++)|| of independent Gaussian features in d = 3 is 2 Gamma(2)/Gamma(3/2): within 6 standard errors of
    2000 films (pairs of one film are rarer than 1 in 600).
    """
    films = torch.randn(2000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = films.repeat_interleave(10, dim=0)
    label = torch.arange(20_000) * 3 // 20_000
    split = Split(3, 1e3, "clip")
    for rows in torch.arange(20_000).split(64):
        split.add(z[rows], [], label[rows], rows)
    pairs = split.pairs_of_a_class()
    assert pairs is not None
    assert split.unmatched == 0
    expected = 2 * math.gamma(2) / math.gamma(1.5)
    assert abs(float(pairs.invariance()) - expected) < 6 * math.sqrt((2 * 3 - expected**2) / 2000)


def test_kept_features_are_bounded_and_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_split, "MOST_FIRSTS", 70)
    monkeypatch.setattr(bound_split, "MOST_HELD_OUT", 50)
    n = 3000
    z, label = torch.randn(n, 2, dtype=torch.float64), torch.arange(n) % 2
    found = []
    for size in (3000, 321, 10):
        split = some_split(z, label, size, classes=2)
        kept = (split.firsts, split.partners, split.held_out)
        assert all(chosen.count <= 2 * chosen.limit for chosen in kept)
        pairs = split.pairs_of_a_class()
        assert pairs is not None
        found.append((*split.measure(), float(pairs.distance), pairs.n))  # type: ignore[misc]
        assert [chosen.count for chosen in kept] == [70, 140, 50]
    assert found[1] == pytest.approx(found[0], rel=1e-10)
    assert found[2] == pytest.approx(found[0], rel=1e-10)
    # Those with the smallest keys.
    keys = keys_of(torch.arange(n), PURPOSE)[part_of(torch.arange(n)) == 3].sort().values[:50]
    assert torch.equal(keys_of(split.held_out.take()["index"], PURPOSE), keys)


def test_images_that_come_twice_are_refused() -> None:
    z, label = torch.randn(20, 2, dtype=torch.float64), torch.arange(20) % 2
    split = some_split(z, label, 20, classes=2)
    split.add(z[:1], [], label[:1], torch.zeros(1, dtype=torch.long))
    callback = GeneralizationBound()
    callback._measure(split, 0, 20)
    assert set(callback.reasons) == {
        "paper",
        "certified",
        "corollary",
        "sharp",
        "top1_error",
        "best_constant",
        "vacuous",
    }
    assert all("came twice" in reason for reason in callback.reasons.values())
    assert callback.values == {}


class TwoPoints(nn.Module):
    """The mean brightness of the halves of an image: two classes, each nearly a point."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        left, right = images.chunk(2, dim=-1)
        return self.scale * torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], dim=1)


class Halves:
    """Items (image, label): the left or the right half is bright, after the label; noise tells the images apart."""

    def __init__(self, n: int, labels: bool = True, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.images = generator.integers(0, 40, (n, 4, 8), dtype=np.uint8)
        self.targets = [int(label) for label in generator.integers(0, 2, n)]
        for image, label in zip(self.images, self.targets, strict=True):
            image[:, 4 * label : 4 * label + 4] += 200
        if not labels:
            self.targets = [-1] * n

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.images[row], self.targets[row]


def halves(dataset: Any, **options: Any) -> TwoViewDataModule:
    view = View(noise=0.01)
    given = {"batch_size": 500, "views": [view, view], "mean": [0.0], "std": [1.0], **options}
    return TwoViewDataModule(dataset, **given)


def test_a_good_representation_has_a_certificate(tmp_path: Path) -> None:
    callback = GeneralizationBound(weight_norm=3.0)
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[callback])
    data = halves(Halves(8000), val_fraction=0.9)
    trainer.validate(module(torch.float32, TwoPoints()), datamodule=data, verbose=False)
    values = callback.values
    assert values["vacuous"] == 0
    assert values["measured_top1_error"] == 0
    assert values["measured_risk"] < values["corollary"] < 0.71 * values["best_constant"]
    assert values["corollary"] < values["certified"]
    assert values["measured_risk"] < values["sharp"] < values["corollary"]
    assert values["corollary"] - values["sharp"] == pytest.approx(values["residual"] - values["mean_residual"])
    text = (tmp_path / "bound.txt").read_text()
    assert "sharp below for sure" in text
    assert "corollary below for sure" in text


# Where there is no certificate


def test_without_labels_there_is_the_papers_sum(tmp_path: Path) -> None:
    callback = GeneralizationBound()
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[callback])
    data = halves(Halves(400, labels=False), val_fraction=0.5)
    trainer.validate(module(torch.float32, TwoPoints()), datamodule=data, verbose=False)
    assert {name for name in callback.values if not name.startswith("paper")} == set()
    assert callback.values["paper_pair_residual_stand_in"] > 1.9  # 2 sqrt(1 - 2/m)
    assert "no labels" in callback.reasons["certified"]
    text = (tmp_path / "bound.txt").read_text()
    assert WITHOUT_LABELS in text
    assert "no bound/corollary: the validation images have no labels" in text
    assert (tmp_path / "bound.png").exists()  # of the paper's sum


def test_images_trained_on_void_the_certificate(tmp_path: Path) -> None:
    class Repeated(Halves):
        """The last seven images are the first seven once more."""

        def __init__(self) -> None:
            super().__init__(60)
            self.images[-7:] = self.images[:7]
            self.targets[-7:] = self.targets[:7]

    data = halves(Repeated(), val_fraction=0.5, batch_size=10)
    data.setup()
    val, train = (set(map(int, data.stores[name].index)) for name in ("val", "pretrain"))
    both = sum(((i + 53) in train) for i in val if i < 7) + sum(((i - 53) in train) for i in val if i >= 53)
    assert 0 < both < 7
    callback = GeneralizationBound()
    trainer = Trainer(**QUIET, max_epochs=1, limit_train_batches=1, default_root_dir=tmp_path, callbacks=[callback])
    trainer.fit(module(torch.float32, TwoPoints()), datamodule=data)
    expected = f"{both} of 30 validation images are among the training images: the network depends on them"
    for name in ("certified", "corollary", "top1_error", "vacuous", "paper"):
        assert name not in callback.values
        assert callback.reasons[name] == expected
    assert "measured_risk" in callback.values
    assert expected in (tmp_path / "bound.txt").read_text()


def memory(*rows: int) -> MemoryStore:
    return MemoryStore(torch.tensor(rows, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous())


def test_overlap_is_counted_by_pixels(tmp_path: Path) -> None:
    assert images_in_both(memory(1, 2, 3), memory(4, 5, 6)) == 0
    assert images_in_both(memory(1, 2, 2, 3), memory(2, 3, 3, 7)) == 3  # images of the first, each once
    joined = JoinedStore(memory(9, 1), memory(8, 2))
    assert images_in_both(memory(1, 2, 3), joined) == 2
    assert images_in_both(joined.subset(torch.tensor([3, 0])), memory(2)) == 1
    # Another shape of the same bytes is another image.
    wide = MemoryStore(torch.ones(1, 1, 1, 4, dtype=torch.uint8))
    assert images_in_both(memory(1), wide) == 0


def test_overlap_of_files_is_counted_by_content(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    paths = {name: tmp_path / f"{name}.png" for name in ("a", "b", "c", "d", "copy")}
    val = FileStore([paths["copy"], paths["b"]])
    assert images_in_both(val, FileStore([paths["c"], paths["d"]])) == 0
    assert images_in_both(val, FileStore([paths["a"], paths["b"]])) == 2
    train = JoinedStore(FileStore([paths["c"]]), FileStore([paths["a"]]))
    assert images_in_both(val, train) == 1
    # Files against images in memory: by pixels.
    assert images_in_both(val, FileStore([paths["a"], paths["c"]]).to_memory()) == 1
    assert images_in_both(FileStore(list(paths.values())).subset(torch.tensor([4])), FileStore([paths["a"]])) == 1


def overlap_on_rank(rank: int, world_size: int) -> int:
    return images_in_both(memory(1, 2, 3, 4, 4), memory(9, 4, 3, 8, 7, 1, 1))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_comparison(ranks: Any, world_size: int) -> None:
    assert ranks(world_size, overlap_on_rank) == [4] * world_size


def test_a_network_that_diverged_is_reported_and_training_goes_on(tmp_path: Path) -> None:
    callback = GeneralizationBound()
    split = Split(3, 1.0, "normalize")
    split.add(torch.full((4, 2), torch.nan), [], torch.arange(4) % 3, torch.arange(4))
    split.add(torch.ones(4, 2), [], torch.arange(4) % 3, torch.arange(4, 8))
    callback._measure(split, 0, 8)
    assert callback.values == {}
    assert "NaN" in callback.reasons["corollary"]
    assert "NaN" in callback.text(split)


def test_labels_of_some_images_only() -> None:
    z, label = torch.randn(300, 3, dtype=torch.float64), torch.arange(300) % 3
    label[::4] = -1
    split = some_split(z, label, 64)
    known = label >= 0
    assert split.unlabelled == 75
    assert split.labelled is not None
    assert split.labelled.n == int((known & (part_of(torch.arange(300)) == 0)).sum())
    callback = GeneralizationBound()
    callback._measure(split, 0, 300)
    assert "75 of 300 validation images have no label and are left out" in callback.text(split)


def test_too_few_images_have_a_reason() -> None:
    callback = GeneralizationBound()
    nothing = int((part_of(torch.arange(100)) == 3).nonzero()[0])
    split = Split(2, 1.0, "clip")
    split.add(torch.ones(1, 2), [], torch.zeros(1, dtype=torch.long), torch.tensor([nothing]))
    callback._measure(split, 0, 1)
    assert "none of 1 validation images is among the labelled part" in callback.reasons["corollary"]
    labelled = (part_of(torch.arange(100)) == 0).nonzero()[:3, 0]
    split = Split(2, 1.0, "clip")
    split.add(torch.ones(3, 2), [torch.ones(3, 2)] * 2, torch.zeros(3, dtype=torch.long), labelled)
    callback._measure(split, 0, 3)
    assert "is among the pairs" in callback.reasons["corollary"]
    assert "is among the pairs" in callback.reasons["paper"]
    assert callback.reasons["measured_risk"] == "no labelled image is held out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0.0}, r"delta must be in \(0, 1\), got 0.0"),
        ({"delta": 1.5}, r"delta must be in \(0, 1\), got 1.5"),
        ({"radius": 0.0}, "radius must be in .*, got 0.0"),
        ({"weight_norm": -1.0}, r"weight_norm must be in \(0, 1e9\], got -1.0"),
        ({"treatment": "whiten"}, "treatment must be normalize or clip, got 'whiten'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GeneralizationBound(**options)


# Any number of ranks


def validate_and_train(rank: int, world_size: int, sizes: tuple[int, int]) -> list[Any]:
    """(values and reasons, logged) of a validation of the untrained network, and of a training's last one."""
    model, out = module(), []
    for train in (False, True):
        callback = GeneralizationBound(weight_norm=L)
        trainer = rank_trainer(rank, world_size, max_epochs=2, limit_train_batches=2, callbacks=[callback])
        with mock.patch("sslinfo.callbacks.generalization_bound.publish"):  # files have tests of their own
            if train:
                trainer.fit(model, datamodule=digits(sizes[1], 0.3))
            else:
                trainer.validate(model, datamodule=digits(sizes[0], 0.3), verbose=False)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("bound/")}
        out.append((everything(callback), metrics, callback.history))
    return out


SIZES = {1: (101, 48), 2: (64, 24), 3: (37, 16)}


@pytest.fixture(scope="module")
def one_process() -> list[Any]:
    return validate_and_train(0, 1, SIZES[1])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_process(ranks: Any, one_process: list[Any], world_size: int) -> None:
    found = ranks(world_size, validate_and_train, SIZES[world_size])
    assert all(answer == found[0] for answer in found)
    for (ours, logged, history), (whole, whole_logged, whole_history) in zip(found[0], one_process, strict=True):
        assert ours == pytest.approx(whole, rel=1e-8, abs=1e-10)
        assert logged == pytest.approx(whole_logged, rel=1e-6)
        assert [entry["step"] for entry in history] == [entry["step"] for entry in whole_history]
    assert {"certified", "corollary", "paper", "measured_risk"} <= set(found[0][1][0])


def test_what_is_logged(one_process: list[Any]) -> None:
    for values, logged, _ in one_process:
        numbers = {f"bound/{name}": value for name, value in values.items() if not isinstance(value, str)}
        assert logged == pytest.approx(numbers, rel=1e-6, abs=1e-12)
    assert one_process[0][0]["corollary"] != pytest.approx(one_process[1][0]["corollary"], rel=1e-4)


# What a person reads


def test_files_and_tensorboard(tmp_path: Path) -> None:
    callback = GeneralizationBound()
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    trainer = fit(callback, epochs=2, logger=logger, default_root_dir=tmp_path)
    folder = Path(trainer.log_dir)
    text = (folder / "bound.txt").read_text()
    assert "step 4" in text
    assert f"{callback.values['corollary']:.4f}" in text
    assert "choosing a checkpoint by its bound" in text
    assert f"risk {callback.values['measured_risk']:.4f}" in text
    assert Image.open(folder / "bound.png").size[0] > 500
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0}).Reload()
    assert len(events.Images("bound/stack")) == 2
    assert "bound/settings/text_summary" in events.Tags()["tensors"]
    scalar = events.Scalars("bound/corollary")
    assert [event.step for event in scalar] == [2, 4] or len(scalar) == 2
    assert scalar[-1].value == pytest.approx(callback.values["corollary"], rel=1e-6)


def test_csv_logger_and_a_checkpoint_chosen_by_it(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "{step}", monitor="bound/sharp", mode="min")
    callback = GeneralizationBound()
    trainer = Trainer(
        **{**QUIET, "enable_checkpointing": True, "logger": CSVLogger(tmp_path)},
        max_epochs=2,
        limit_train_batches=2,
        callbacks=[callback, best],
    )
    trainer.fit(module(), datamodule=digits())
    totals = {entry["step"]: sum(entry["contributions"].values()) for entry in callback.history}
    assert float(best.best_model_score) == pytest.approx(min(totals.values()), rel=1e-6)
    header = (Path(trainer.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert "bound/corollary" in header.split(",")


def test_nothing_in_a_dry_run_and_no_sanity_check(tmp_path: Path) -> None:
    callback = GeneralizationBound()
    fit(callback, fast_dev_run=True, default_root_dir=tmp_path)
    assert callback.values
    assert not list(tmp_path.rglob("bound.*"))
    callback = GeneralizationBound()
    seen: list[bool] = []
    measure = callback._measure
    callback._measure = lambda *args: (seen.append(trainer.sanity_checking), measure(*args))[1]  # type: ignore[method-assign]
    trainer = Trainer(
        **{**QUIET, "num_sanity_val_steps": 1},
        max_epochs=1,
        limit_train_batches=1,
        default_root_dir=tmp_path,
        callbacks=[callback],
    )
    trainer.fit(module(), datamodule=digits())
    assert seen == [False]
    assert [entry["step"] for entry in callback.history] == [1]


def test_validate_alone_writes_its_files(tmp_path: Path) -> None:
    callback = GeneralizationBound()
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[callback])
    trainer.validate(module(), datamodule=digits(), verbose=False)
    assert (tmp_path / "bound.txt").exists()
    assert (tmp_path / "bound.png").exists()
    assert len(callback.history) == 1


def test_other_data_turns_it_off_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = digits()
    data.setup()
    raw = next(iter(data.val_dataloader()))
    batch = data.to_batch(raw)
    callback = GeneralizationBound()
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[callback])
    trainer.validate(module(), dataloaders=torch.utils.data.DataLoader([batch], batch_size=None), verbose=False)
    assert callback.values == {}
    assert "GeneralizationBound is off: it needs a TwoViewDataModule" in capsys.readouterr().out


def test_history_is_thinned_and_resumes(tmp_path: Path) -> None:
    def fit_to(epochs: int, path: Path | None = None) -> GeneralizationBound:
        callback, keep = GeneralizationBound(), ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1)
        trainer = Trainer(
            **{**QUIET, "enable_checkpointing": True},
            max_epochs=epochs,
            limit_train_batches=2,
            default_root_dir=tmp_path,
            callbacks=[callback, keep],
        )
        trainer.fit(module(), datamodule=digits(), ckpt_path=path, weights_only=True)
        return callback

    whole = fit_to(3)
    resumed = fit_to(3, tmp_path / "step=4.ckpt")
    assert [entry["step"] for entry in whole.history] == [2, 4, 6]
    assert resumed.history == whole.history
    assert resumed.state_dict() == whole.state_dict()

    long = GeneralizationBound()
    long.bound, long.values = whole.bound, whole.values
    for step in range(1, 1001):
        long._keep(step)
    steps = [entry["step"] for entry in long.history]
    assert len(steps) <= MOST_POINTS
    assert steps[0] == 1
    assert steps[-1] == 1000
    gaps = np.diff(steps[:-1])
    assert gaps.min() == gaps.max()


def entries(scale: float, steps: int) -> list[dict[str, Any]]:
    return [
        {
            "step": 10 * (number + 1),
            "form": "corollary",
            "contributions": {"invariance": scale / (number + 1), "residual": 0.5},
            "measured_risk": 0.4,
            "best_constant": 0.9,
        }
        for number in range(steps)
    ]


@pytest.mark.parametrize(("scale", "axis_scale"), [(1.0, "linear"), (300.0, "symlog")])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_figure_stacks_what_the_corollary_is_made_of(scale: float, axis_scale: str, steps: int) -> None:
    axis = draw(entries(scale, steps), "delta 0.05").axes[0]
    assert axis.get_yscale() == axis_scale
    if steps == 1:
        tops = [patch.get_y() + patch.get_height() for patch in axis.patches]
    else:
        tops = [float(area.get_paths()[0].vertices[:, 1].max()) for area in axis.collections]
    assert tops == pytest.approx([scale, scale + 0.5])
    assert axis.get_ylim()[1] > scale + 0.5 or scale < 0.5
    labels = axis.get_legend_handles_labels()[1]
    last = scale / steps
    assert {f"invariance {last:.3g}", "residual 0.5", "measured risk 0.4"} <= set(labels)
    assert "best constant: vacuous above 0.9" in labels
    assert axis.get_xlabel() == "optimizer step"
    assert "delta 0.05" in axis.get_title()
    assert list(axis.lines[0].get_ydata()) == pytest.approx([0.4] * max(steps, 2))


def test_targets_of_the_bound_are_one_hot_rows() -> None:
    """The same bound from labels and from one-hot rows of the callback's own parts."""
    z, label = torch.randn(300, 3, dtype=torch.float64), torch.arange(300) % 3
    split = some_split(z, label, 64)
    assert split.labelled is not None
    part = part_of(torch.arange(300))
    rows = F.one_hot(label, 3)[part == 0].double()
    np.testing.assert_allclose(split.labelled.cross, within_radius(z)[part == 0].T @ rows, atol=1e-10)
