"""Splits, batches and views of TwoViewDataModule, over every kind of data set."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake import write_cifar, write_imagefolder, write_stl10
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import FakeData
from torchvision.transforms.v2.functional import to_image

from sslinfo.callbacks import KNNProbe, LinearProbe
from sslinfo.data import TwoViewDataModule, View
from sslinfo.errors import UserError
from sslinfo.objectives import VICReg


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ready(dataset: Any = "digits", **options: Any) -> TwoViewDataModule:
    data = TwoViewDataModule(dataset, **{"batch_size": 64, "seed": 0, **options})
    data.setup("fit")
    return data


def indices(data: TwoViewDataModule, split: str) -> Tensor:
    return data.stores[split].index


def trainer(**options: Any) -> Trainer:
    settings: dict[str, Any] = {
        **{"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "max_epochs": 1},
        **{"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0},
    }
    return Trainer(**{**settings, **options})


def small_model(channels: int = 3) -> VICReg:
    return VICReg(backbone="conv4", backbone_options={"width": 2}, in_channels=channels, projector=[16, 8])


class Items(Dataset):
    """A data set of the user's: float tensors of three channels, no list of labels."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        return torch.full((3, 12, 12), item / 60), item % 3


class Batches(Callback):
    """The batches of training and validation, by epoch."""

    def __init__(self) -> None:
        self.train: list[dict[str, Any]] = []
        self.val: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.val.append(batch)


# Splits


def test_split_is_disjoint_complete_stratified_and_seeded() -> None:
    data = ready(val_fraction=0.2)
    train, val = indices(data, "train"), indices(data, "val")
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(1797))
    assert len(val) == round(0.2 * 1797)
    counts, held_out = (torch.from_numpy(load_digits().target)[rows].bincount() for rows in (torch.arange(1797), val))
    assert (held_out - 0.2 * counts).abs().max() <= 1
    assert torch.equal(val, indices(ready(val_fraction=0.2, seed=9), "val"))
    assert not torch.equal(val, indices(ready(val_fraction=0.2, split_seed=1), "val"))
    # Pre-training sees only the training part.
    loader = data.train_dataloader()
    assert set(torch.cat([raw["index"] for raw in loader]).tolist()) <= set(train.tolist())


def test_no_held_out_part(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    with pytest.warns(UserWarning, match=r"on the test images\. Do not choose a model or a setting by its results"):
        data = ready("cifar10", root=str(tmp_path), val_fraction=0.0)
    assert [len(data.stores[split]) for split in ("train", "val", "test")] == [100, 20, 20]
    with pytest.raises(UserError, match="val_fraction=0, but the data set has no test images"):
        ready(val_fraction=0.0)


def test_missing_test_images_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    note = "the data set has no test images: the validation images stand in"
    data = ready()
    assert note not in capsys.readouterr().out
    for _ in range(2):
        data.setup("test")
    assert capsys.readouterr().out.count(note) == 1
    assert torch.equal(indices(data, "test"), indices(data, "val"))
    assert data.predict_splits == ("train", "val")
    assert len(data.predict_dataloader()) == 2


def test_test_images_need_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    data = ready(Items(), batch_size=9, test_dataset=Items())
    data.setup("test")
    data.setup("predict")
    assert "no test images" not in capsys.readouterr().out
    assert data.predict_splits == ("train", "val", "test")
    assert len(data.predict_dataloader()) == 3


def test_split_without_labels_and_with_one_image_a_class(tmp_path: Path) -> None:
    class Unlabelled(Items):
        def __getitem__(self, item: int) -> Tensor:  # type: ignore[override]
            return super().__getitem__(item)[0]

    class OneEach(Items):
        def __getitem__(self, item: int) -> tuple[Tensor, int]:
            return super().__getitem__(item)[0], item

    assert len(indices(ready(Unlabelled()), "val")) == len(indices(ready(OneEach()), "val")) == 6
    assert ready(Unlabelled()).num_classes is None


@pytest.mark.parametrize(("train_on", "size"), [("train", 18), ("unlabelled", 30), ("both", 48)])
def test_stl10_pretrains_on_what_it_is_told(tmp_path: Path, train_on: Any, size: int) -> None:
    write_stl10(tmp_path, train=20, test=20, unlabelled=30)
    data = ready("stl10", root=str(tmp_path), batch_size=6, train_on=train_on, image_size=16)
    assert len(data.stores["pretrain"]) == size
    batches = [data.to_batch(raw) for raw in data.train_dataloader()]
    assert len(batches) == size // 6
    labels = torch.cat([batch["label"] for batch in batches])
    assert int((labels < 0).sum()) == {"train": 0, "unlabelled": 30, "both": 30}[train_on]
    # Images are told apart by their index, on which their views depend.
    index = torch.cat([batch["index"] for batch in batches])
    assert len(index.unique()) == len(index)
    # Probes are fitted on the labelled images in each case.
    assert len(data.stores["train"]) == 18
    assert data.num_classes == 10
    model = small_model()
    fit = trainer(callbacks=[LinearProbe(), KNNProbe(k=2)])
    fit.fit(model, data)
    assert "probe/knn_top1" in fit.callback_metrics


def test_unlabelled_split_of_another_data_set() -> None:
    with pytest.raises(
        UserError,
        match="needs an unlabelled split, and this data set has train: set data.train_on: train",
    ):
        ready(train_on="both")


# Batches and views


def test_batch_of_training_and_of_validation() -> None:
    data = ready()
    batch = data.to_batch(next(iter(data.train_dataloader())))
    assert batch["clean"] is None
    assert [tuple(view.shape) for view in batch["views"]] == [(64, 1, 8, 8)] * 2
    batch = data.to_batch(next(iter(data.val_dataloader())))
    digits = load_digits()
    assert torch.equal(batch["label"], torch.from_numpy(digits.target)[batch["index"]])
    pixels = np.round(digits.images[batch["index"]] * 255 / 16) / 255
    train = np.round(digits.images[indices(data, "train")] * 255 / 16) / 255
    expected = (pixels - train.mean()) / train.std(ddof=1)
    np.testing.assert_allclose(batch["clean"][:, 0], expected, atol=1e-4)
    assert len(batch["views"]) == 2
    batch = data.to_batch(next(iter(data.test_dataloader())))
    assert "views" not in batch


def test_any_number_of_views() -> None:
    data = ready(views=[View(), View(flip=1.0), View(noise=0.1)])
    batch = data.to_batch(next(iter(data.train_dataloader())))
    plain, flipped, noisy = batch["views"]
    torch.testing.assert_close(plain.flip(3), flipped, rtol=0, atol=1e-5)
    assert not torch.equal(plain, noisy)


def _views_by_image(batch_size: int, epoch: int = 0) -> dict[int, Tensor]:
    data = ready(batch_size=batch_size)
    data.progress.resume(epoch, 0)
    # Without jitter, whose order of operations belongs to the batch, a view belongs to the image alone.
    data.pipeline.views = [View(crop_scale=(0.3, 1.0), flip=0.5, noise=0.2)] * 2
    made = {}
    for raw in data.train_dataloader():
        batch = data.to_batch(raw)
        for row, index in enumerate(batch["index"].tolist()):
            made[index] = torch.stack([view[row] for view in batch["views"]])
    return made


def _views_on_rank(rank: int, world_size: int) -> dict[int, Tensor]:
    return _views_by_image(32)


def test_views_are_the_same_on_one_rank_and_on_two(ranks: Any) -> None:
    alone = _views_by_image(64)
    first, second = ranks(2, _views_on_rank)
    assert not set(first) & set(second)
    together = {**first, **second}
    assert set(together) == set(alone)
    assert all(torch.equal(together[index], alone[index]) for index in alone)


def test_views_change_from_epoch_to_epoch_and_not_with_the_batch() -> None:
    first, other = _views_by_image(64), _views_by_image(100)
    both = set(first) & set(other)
    assert len(both) > 1500
    assert all(torch.equal(first[index], other[index]) for index in both)
    second = _views_by_image(64, epoch=1)
    assert not any(torch.equal(first[index], second[index]) for index in set(first) & set(second))
    # The two views of an image differ too.
    assert not any(torch.equal(views[0], views[1]) for views in first.values())


def test_validation_sees_the_same_views_in_each_epoch() -> None:
    seen = Batches()
    trainer(max_epochs=2, limit_train_batches=1, limit_val_batches=2, callbacks=[seen]).fit(
        small_model(1), TwoViewDataModule("digits", batch_size=64)
    )
    assert len(seen.val) == 4
    for one, other in zip(seen.val[:2], seen.val[2:], strict=True):
        for name in ("views", "clean"):
            assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))
    assert not torch.equal(seen.train[0]["views"][0], seen.train[1]["views"][0])


def test_seed_of_the_run_is_the_seed_of_the_data() -> None:
    def first(**options: Any) -> dict[str, Any]:
        seen = Batches()
        data = TwoViewDataModule("digits", batch_size=64, **options)
        trainer(max_steps=1, limit_val_batches=0, callbacks=[seen]).fit(small_model(1), data)
        return seen.train[0]

    seed_everything(7, verbose=False)
    by_run, by_argument = first(), first(seed=7)
    assert torch.equal(by_run["index"], by_argument["index"])
    assert torch.equal(by_run["views"][0], by_argument["views"][0])
    assert not torch.equal(by_run["index"], first(seed=8)["index"])


def test_second_training_on_one_data_module_is_like_the_first() -> None:
    data = TwoViewDataModule("digits", batch_size=256)
    orders = []
    for _ in range(2):
        seen = Batches()
        trainer(max_epochs=2, limit_val_batches=0, callbacks=[seen]).fit(small_model(1), data)
        orders.append(torch.cat([batch["index"] for batch in seen.train]))
    assert torch.equal(*orders)
    assert not torch.equal(orders[0][: len(orders[0]) // 2], orders[0][len(orders[0]) // 2 :])


# The user's own


class Recorded:
    """A random transform that draws from all three generators."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: Image.Image) -> Tensor:
        assert (image.mode, image.size) == ("L", (8, 8))
        self.calls += 1
        pixels = torch.from_numpy(np.array(image))[None].float() / 255
        return pixels + torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002


def test_transform_of_the_user() -> None:
    def first_batch(batch_size: int = 64, epoch: int = 0, **options: Any) -> tuple[dict[str, Any], Recorded]:
        transform = Recorded()
        data = ready(transform=transform, batch_size=batch_size, **options)
        data.progress.resume(epoch, 0)
        return data.to_batch(next(iter(data.train_dataloader()))), transform

    batch, transform = first_batch()
    assert transform.calls == 2 * 64  # once for each view
    pixels = torch.from_numpy(np.round(load_digits().images[batch["index"]] * 255 / 16) / 255).float()
    offsets = [(view[:, 0] - pixels).flatten(1) for view in batch["views"]]
    for offset in offsets:
        assert offset.std(1).max() < 1e-5  # the image and one number
        assert len(offset[:, 0].round(decimals=4).unique()) > 60
    assert (offsets[0][:, 0] - offsets[1][:, 0]).abs().min() > 0
    again, _ = first_batch()
    assert torch.equal(batch["views"][0], again["views"][0])
    larger, _ = first_batch(batch_size=100)
    assert torch.equal(larger["views"][1][:64], batch["views"][1])
    # The program's own random numbers are as if there had been no transform.
    batches = iter(ready(transform=Recorded()).train_dataloader())
    before = torch.get_rng_state(), random.getstate()
    next(batches)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert not torch.equal(first_batch(seed=1)[0]["views"][0], batch["views"][0])


def test_transform_with_workers_equals_one_without() -> None:
    batches = []
    for workers in (0, 2):
        data = ready(transform=Recorded(), num_workers=workers, batch_size=256)
        batches.append(data.to_batch(next(iter(data.train_dataloader()))))
    assert torch.equal(batches[0]["views"][0], batches[1]["views"][0])


def test_transform_of_wrong_results() -> None:
    data = ready(transform=lambda image: torch.zeros(1, 4 + image.getpixel((2, 0)) % 2, 4))
    with pytest.raises(UserError, match=r"data\.transform must turn an image into a float tensor .* of one shape, got"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image: to_image(image), r"got Image of torch.uint8 and shape \(1, 8, 8\): end it with ToImage"),
        (lambda image: torch.zeros(64), r"got Tensor of torch.float32 and shape \(64,\)"),
        (lambda image: torch.zeros(3, 8, 8), r"with the 1 channel of the images, got Tensor .* \(3, 8, 8\)"),
        (lambda image: torch.zeros(2, 1, 8, 8), r"got Tensor of torch.float32 and shape \(2, 1, 8, 8\)"),
        (lambda image: np.zeros((1, 8, 8)), r"got ndarray of float64 and shape \(1, 8, 8\)"),
        (lambda image: image, r"got Image: end it"),
        (lambda image: None, r"got NoneType"),
        (lambda image: torch.full((1, 8, 8), torch.nan), r"makes NaN or infinity of image \d+ of digits"),
        (lambda image: 1 / torch.zeros(1, 8, 8), r"makes NaN or infinity of image \d+ of digits"),
        (lambda image: image.nothing, r"fails on a L PIL image \(image \d+ of digits\): AttributeError: .*nothing"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_transform_must_return(transform: Any, message: str, num_workers: int) -> None:
    data = ready(transform=transform, num_workers=num_workers)
    with pytest.raises(UserError, match=rf"^data\.transform .*{message}"):
        next(iter(data.train_dataloader()))


def test_a_transform_may_make_views_that_are_not_square() -> None:
    data = ready(transform=lambda image: to_image(image.resize((10, 7))).float() / 255)
    seen = Batches()
    fit = trainer(callbacks=[seen])
    fit.fit(small_model(1), data)
    assert {tuple(view.shape[1:]) for batch in seen.train for view in batch["views"]} == {(1, 7, 10)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_a_transform_become_float32(dtype: torch.dtype) -> None:
    data = ready(transform=lambda image: to_image(image).to(dtype) / 256)
    batch = data.to_batch(next(iter(data.train_dataloader())))
    assert {view.dtype for view in batch["views"]} == {torch.float32}
    pixels = torch.from_numpy(np.round(load_digits().images[batch["index"]] * 255 / 16) / 256)
    # Half precision keeps 8 bits or more of a number below 1.
    torch.testing.assert_close(batch["views"][0][:, 0].double(), pixels, rtol=2**-8, atol=0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_transform_is_told_by_the_file(tmp_path: Path, in_memory: bool) -> None:
    write_imagefolder(tmp_path, splits=("train",), size=(8, 8))
    data = ready("imagefolder", root=str(tmp_path), batch_size=4, in_memory=in_memory, transform=lambda image: 1 / 0)
    with pytest.raises(UserError, match=r"data.transform fails on a RGB PIL image \(.*train/class\d/00\d.png\): Zero"):
        next(iter(data.train_dataloader()))
    assert data.stores["train"].file_of(5) == str(tmp_path / "train" / "class0" / "005.png")


def test_batch_of_one_image() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=1: an objective compares the images of a batch"):
        ready(batch_size=1).train_dataloader()
    assert len(ready(batch_size=1).test_dataloader()) == 180


def test_map_style_data_set_of_the_user() -> None:
    data = TwoViewDataModule(Items(), batch_size=9, test_dataset=Items(), image_size=8)
    fit = trainer(callbacks=[LinearProbe(), KNNProbe(k=1)])
    fit.fit(small_model(), data)
    assert data.num_classes == 3
    assert len(data.stores["train"]) + len(data.stores["val"]) == len(data.stores["test"]) == 60
    assert "probe/knn_top1" in fit.callback_metrics
    assert "dataset" not in data.hparams


def test_data_set_of_the_user_by_its_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No class of torch is inherited, so that the command line hands the path over as a string."""
    (tmp_path / "users_images.py").write_text(
        "import numpy as np\n"
        "class Images:\n"
        "    def __len__(self): return 20\n"
        "    def __getitem__(self, i): return np.full((8, 8), 10 * i, dtype=np.uint8), i % 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = ready("users_images.Images", batch_size=5, mean=[0.0], std=[1.0])
    assert data.hparams["dataset"] == "users_images.Images"
    batch = data.to_batch(next(iter(data.val_dataloader())))
    assert torch.equal(batch["label"], batch["index"] % 2)
    torch.testing.assert_close(batch["clean"][:, 0, 3, 4], 10 * batch["index"] / 255)


def test_data_set_of_torchvision() -> None:
    fakes = FakeData(size=24, image_size=(3, 16, 16), num_classes=2)
    data = ready(fakes, batch_size=5)
    batch = data.to_batch(next(iter(data.train_dataloader())))
    assert [tuple(view.shape) for view in batch["views"]] == [(5, 3, 16, 16)] * 2
    assert batch["label"].tolist() == [int(fakes[i][1]) for i in batch["index"].tolist()]


# Folders


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_of_many_sizes(tmp_path: Path, num_workers: int) -> None:
    write_imagefolder(tmp_path, mixed=True, size=(20, 24))
    data = TwoViewDataModule(
        "imagefolder", root=str(tmp_path), batch_size=4, image_size=16, num_workers=num_workers, val_fraction=0.25
    )
    seen = Batches()
    fit = trainer(callbacks=[seen, LinearProbe(), KNNProbe(k=1)])
    fit.fit(small_model(), data)
    assert fit.global_step == 18 // 4
    assert {tuple(view.shape) for batch in seen.train for view in batch["views"]} == {(4, 3, 16, 16)}
    assert sum(int(batch["keep"].sum()) for batch in seen.val) == 6
    assert "probe/knn_top1" in fit.callback_metrics


@pytest.mark.parametrize("in_memory", [True, False])
def test_folder_of_grey_images_trains_on_one_channel(tmp_path: Path, in_memory: bool) -> None:
    write_imagefolder(tmp_path, splits=("train",), channels=1)
    data = TwoViewDataModule("imagefolder", root=str(tmp_path), batch_size=4, channels=1, in_memory=in_memory)
    seen = Batches()
    fit = trainer(callbacks=[seen])
    fit.fit(small_model(1), data)
    assert torch.isfinite(fit.callback_metrics["train/loss"])
    assert data.channels == data.hparams["channels"] == 1
    assert {tuple(view.shape) for batch in seen.train for view in batch["views"]} == {(4, 1, 32, 32)}
    (mean,), (std,) = data.pipeline.mean, data.pipeline.std
    clean = torch.cat([batch["clean"][batch["keep"]] for batch in seen.val])
    index = torch.cat([batch["index"][batch["keep"]] for batch in seen.val])
    files = sorted((tmp_path / "train").rglob("*.png"))
    for image, row in zip(clean, index.tolist(), strict=True):
        pixels = torch.from_numpy(np.asarray(Image.open(files[row])) / 255)
        torch.testing.assert_close(image[0].double(), (pixels - mean) / std, rtol=0, atol=1e-5)


def test_channels_of_other_data_sets(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    assert ready("cifar10", root=str(tmp_path), batch_size=4, channels=1).channels == 1
    assert ready(channels=3).channels == 3
    assert ready(Items(), batch_size=4, channels=1).channels == 1
    with pytest.raises(UserError, match=r"data\.channels must be 1, 3 or null, got 2"):
        TwoViewDataModule(Items(), channels=2)


def test_flat_folder_trains_without_probes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_imagefolder(tmp_path / "classes", splits=("",), classes=1, per_class=20)
    data = TwoViewDataModule("imagefolder", root=str(tmp_path / "classes" / "class0"), batch_size=4, image_size=16)
    fit = trainer(callbacks=[LinearProbe(), KNNProbe(k=1)])
    fit.fit(small_model(), data)
    assert data.num_classes is None
    assert not [name for name in fit.callback_metrics if name.startswith("probe/")]
    assert torch.isfinite(fit.callback_metrics["val/loss"])
    printed = capsys.readouterr().out
    assert printed.count("LinearProbe is off: the training images have no labels") == 1
    assert printed.count("KNNProbe is off: the training images have no labels") == 1


def _broken_folder(root: Path) -> list[str]:
    write_imagefolder(root, splits=("train",), per_class=16, size=(16, 16))
    broken = sorted((root / "train").rglob("*.png"))[::9]
    for path in broken:
        path.write_bytes(b"no image")
    return [str(path) for path in broken]


def test_bad_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    broken = _broken_folder(tmp_path)
    with pytest.raises(UserError, match=r"cannot be decoded.*data\.on_bad_image: skip") as caught:
        list(ready("imagefolder", root=str(tmp_path), batch_size=4, in_memory=False).train_dataloader())
    assert any(path in str(caught.value) for path in broken)


@pytest.mark.filterwarnings("ignore:Skipped")
def test_bad_images_are_skipped_and_counted(tmp_path: Path) -> None:
    broken = _broken_folder(tmp_path)
    options: dict[str, Any] = {"root": str(tmp_path), "batch_size": 8, "on_bad_image": "skip", "in_memory": False}
    seen = Batches()
    data = TwoViewDataModule("imagefolder", **options)
    fit = trainer(callbacks=[seen])
    fit.fit(small_model(), data)
    paths = [data.stores["train"].path(i) for i in range(len(data.stores["train"]))]  # type: ignore[attr-defined]
    bad = {int(data.stores["train"].index[i]) for i, path in enumerate(paths) if path in broken}
    skipped = sum(batch["skipped"] for batch in seen.train)
    # 43 images, of which 40 are in a batch: all but at most three of the bad ones are met.
    assert len(bad) - 3 <= skipped <= len(bad)
    assert float(fit.callback_metrics["data/skipped"]) == skipped > 0
    for batch in seen.train:
        assert len(batch["index"]) == len(batch["views"][0]) == 8
        assert not set(batch["index"].tolist()) & bad


def _skipping_on_rank(rank: int, world_size: int, root: str) -> list[tuple[list[int], int]]:
    data = ready("imagefolder", root=root, batch_size=4, on_bad_image="skip", in_memory=False)
    assert all(len(raw["index"]) == 4 for raw in data.train_dataloader())
    kept = []
    for raw in data.val_dataloader():
        kept.append((raw["index"][raw["keep"]].tolist(), raw["skipped"]))
    return kept


@pytest.mark.filterwarnings("ignore:Skipped")
def test_ranks_keep_step_where_images_are_bad(tmp_path: Path, ranks: Any) -> None:
    broken = _broken_folder(tmp_path)
    data = ready("imagefolder", root=str(tmp_path), batch_size=4, on_bad_image="skip", in_memory=False)
    val = data.stores["val"]
    good = {int(val.index[i]) for i in range(len(val)) if val.path(i) not in broken}  # type: ignore[attr-defined]
    answers = ranks(2, _skipping_on_rank, str(tmp_path))
    assert len({len(answer) for answer in answers}) == 1
    seen = [index for answer in answers for rows, _ in answer for index in rows]
    assert len(seen) == len(set(seen))
    assert set(seen) == good


def test_no_image_of_a_batch_can_be_decoded(tmp_path: Path) -> None:
    write_imagefolder(tmp_path, splits=("train",), size=(8, 8))
    data = ready("imagefolder", root=str(tmp_path), batch_size=4, on_bad_image="skip", in_memory=False)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with (
        pytest.warns(UserWarning, match="Skipped"),
        pytest.raises(UserError, match=r"none of 22 images of .* can be decoded: check data\.root"),
    ):
        next(iter(data.train_dataloader()))


def test_four_channels(tmp_path: Path) -> None:
    class Bands(Items):
        def __getitem__(self, item: int) -> tuple[Tensor, int]:
            return torch.full((4, 12, 12), item, dtype=torch.uint8), item % 3

    data = TwoViewDataModule(Bands(), batch_size=9, views=[View(crop_scale=(0.5, 1.0))] * 2)
    fit = trainer()
    fit.fit(small_model(4), data)
    assert torch.isfinite(fit.callback_metrics["train/loss"])
    with pytest.raises(UserError, match=r"in_channels=3, but the images have 4: set --model\.in_channels 4"):
        trainer().fit(small_model(3), TwoViewDataModule(Bands(), batch_size=9))


# Arguments


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 0}, r"data\.batch_size must be a whole number in \[1, .*\], got 0"),
        ({"val_fraction": 1.0}, r"data\.val_fraction must be in \[0, 1\), got 1\.0"),
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"mean": [0.5, 0.5, 0.5]}, "one entry for each of the 1 channels"),
        ({"batch_size": 1700}, "more than the 1617 training images"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        ready(**options).train_dataloader()


def test_normalisation(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    data = ready("cifar10", root=str(tmp_path))
    assert data.pipeline.mean == [0.4914, 0.4822, 0.4465]
    data = ready("cifar10", root=str(tmp_path), mean=[0.0] * 3, std=[1.0] * 3)
    clean = data.to_batch(next(iter(data.test_dataloader())))["clean"]
    assert clean.min() >= 0
    assert clean.max() <= 1


def test_hyper_parameters_are_plain_values() -> None:
    data = TwoViewDataModule("digits", views=[View(flip=0.5), View()], batch_size=32)
    torch.save(dict(data.hparams), buffer := io.BytesIO())
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    assert stored["batch_size"] == 32
    assert stored["views"][0]["class_path"].endswith(".View")
    assert stored["views"][0]["init_args"]["flip"] == 0.5
    data = TwoViewDataModule(Items(), transform=Recorded())
    assert not {"dataset", "transform"} & set(data.hparams)


def test_limited_choice_of_images_is_fixed() -> None:
    data = ready()
    chosen = [
        torch.cat([raw["index"][raw["keep"]] for raw in data.clean_dataloader("train", limit=100)]) for _ in range(2)
    ]
    assert torch.equal(*chosen)
    assert len(chosen[0].unique()) == 100
    assert set(chosen[0].tolist()) <= set(indices(data, "train").tolist())
    # A random choice, not the first ones: of 1617, the largest of 100 exceeds 1000 but for a chance of 1e-25.
    assert chosen[0].max() > 1000


def test_grey_images_of_a_folder_become_rgb(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"c{number % 2}").mkdir(exist_ok=True)
        Image.new("L", (10, 10), 20 * number).save(tmp_path / f"c{number % 2}" / f"{number}.png")
    data = ready("imagefolder", root=str(tmp_path), batch_size=4)
    assert data.channels == 3
    assert data.num_classes == 2
