"""TwoViewDataModule: images of any of the data sets, and their views made a whole batch at a time on the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import Dataset

from sslinfo.data.datasets import DEFAULT_VIEWS, TABLE, fetch, load, named, names
from sslinfo.data.labels import number_of_classes
from sslinfo.data.loading import BatchSampler, Progress, ResumableLoader
from sslinfo.data.map_style import from_class_path, is_class_path, store_of
from sslinfo.data.normalization import normalization_of
from sslinfo.data.readers import ReadOptions
from sslinfo.data.source import Source
from sslinfo.data.splits import TrainOn, divided
from sslinfo.data.stores import ImageStore, OnBadImage
from sslinfo.data.views import Preset, View, ViewPipeline, views_preset
from sslinfo.data.views.pipeline import SIZES, check_normalization
from sslinfo.distributed import world_size
from sslinfo.errors import UserError
from sslinfo.hyperparameters import HYPERPARAMETERS, plain_hyperparameters
from sslinfo.lightning_compat import batch_in_work, no_batch_yet
from sslinfo.ranges import check_range
from sslinfo.stored import load_parts

Split = Literal["train", "val", "test"]

_SEEDS = f"[0, {2**32 - 1}]"  # what seed_everything takes too


class TwoViewDataModule(LightningDataModule):
    """Batches of augmented views for training, clean images and views for validation, clean images for test.

    A batch is a dict: ``views`` (list of (N, C, S, S) float32), ``clean`` ((N, C, S, S) or None in training), ``label``
    ((N,), -1 where there is none), ``index`` ((N,), the image's place in the data set), ``keep`` ((N,), False for
    repeats that only fill up the last batch), ``skipped`` (how many images of it could not be decoded).

    Args:
        dataset: {datasets}, or a map-style data set of your own: an object, or a class by its dotted path
            (my_module.MyDataset).
        root: folder of the data set.
        batch_size: images per device, in [1, 1e9]; a training needs 2 on all devices together.
        views: name of a published pair of augmentations ({presets}), or a list of View. None:
            {own_views}else {default_views}.
        image_size: side of the images that the network sees, in [1, 8192]; None keeps the data set's own size (224 for
            mixed sizes).
        mean: of each channel, for the normalisation of pixels in [0, 1]; in [0, 1]. None: the data set's published
            constants ({published}). A set without any is measured on its training images where they are in memory, and
            takes ImageNet's where they are not.
        std: standard deviation of each channel, in [0.001, 10]; None as for ``mean``.
        channels: 1 or 3 converts the images to grey or RGB; None takes RGB for image files, and the others as they are.
        transform: your own transform of one image (PIL; a uint8 tensor where the channels are neither 1 nor 3) into a
            float tensor (C, H, W) of one shape for all images, in place of ``views``; it is called once for each view.
            Its result reaches the network as it is. The clean images of probes, test and predict are normalised with
            ``mean`` and ``std``, so end the transform with the same normalisation.
        test_dataset: test images for a ``dataset`` of your own. Where there are none, ``test`` runs on the validation
            images and says so, and ``predict`` leaves the test split out.
        val_fraction: part of the training images that is held out for validation where a data set has no validation
            images of its own, in [0, 1). 0 validates on the test images: do not choose a model or a setting by the
            results.
        train_on: what is pre-trained on where a data set has unlabelled images (stl10): the train split, the unlabelled
            one, or both.
        download: fetch what is missing ({downloads}).
        on_bad_image: an image that cannot be decoded is an error, or is skipped and counted.
        in_memory: hold all images as one uint8 tensor. auto does so up to 2 GiB, but not for a ``dataset`` of your own.
        num_workers: processes that decode images, in [0, 1024]; none are needed for images in memory.
        compile_views: compile the augmentations (needs a C++ compiler on a CPU).
        split_seed: seed of the train/validation split, in [0, 4294967295].
        seed: seed of the order and the augmentations, in [0, 4294967295]; None takes the run's own
            (``seed_everything``).

    Raises:
        UserError: an argument that is out of its range, or data that cannot be read; the message names it.

    Labels are integers of 0 or above, -1 or None where there is none. Labels with gaps or large ones (3, 700) are taken
    as 0, 1, ... in rising order, which is said.

    >>> data = TwoViewDataModule("digits", batch_size=64)
    >>> data.setup("fit")
    >>> batch = data.to_batch(next(iter(data.train_dataloader())))
    >>> [tuple(view.shape) for view in batch["views"]], data.num_classes
    ([(64, 1, 8, 8), (64, 1, 8, 8)], 10)
    """

    def __init__(
        self,
        dataset: str | Dataset = "digits",
        root: str = "data",
        batch_size: int = 256,
        views: str | list[View] | None = None,
        image_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        channels: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        test_dataset: Dataset | None = None,
        val_fraction: float = 0.1,
        train_on: TrainOn = "train",
        download: bool = False,
        on_bad_image: OnBadImage = "error",
        in_memory: bool | Literal["auto"] = "auto",
        num_workers: int = 0,
        compile_views: bool = False,
        split_seed: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.left_out = plain_hyperparameters(self)
        self.options = ReadOptions(on_bad_image, in_memory, channels)
        check_range("data.batch_size", batch_size, "[1, 1e9]", whole=True)
        check_range("data.val_fraction", val_fraction, "[0, 1)")
        check_range("data.num_workers", num_workers, "[0, 1024]", whole=True)
        check_range("data.split_seed", split_seed, _SEEDS, whole=True)
        if seed is not None:
            check_range("data.seed", seed, _SEEDS, whole=True)
        if image_size is not None:
            check_range("data.image_size", image_size, SIZES, whole=True)
        check_normalization(mean, std, "data.")
        if train_on not in get_args(TrainOn):
            raise UserError(f"data.train_on must be one of {', '.join(get_args(TrainOn))}, got {train_on!r}")
        self.dataset, self.root, self.batch_size = dataset, root, batch_size
        # None for a data set of the user's own
        self._row = named(dataset) if isinstance(dataset, str) and not is_class_path(dataset) else None
        if views is None:
            views = self._row.views if self._row else DEFAULT_VIEWS
        self.views = views_preset(cast(Preset, views)) if isinstance(views, str) else list(views)
        if not self.views or not all(isinstance(view, View) for view in self.views):
            raise UserError(f"data.views must be the name of a preset or a list of View, got {views!r}")
        self.image_size, self.mean, self.std = image_size, mean, std
        self.transform, self.test_dataset = transform, test_dataset
        self.val_fraction, self.train_on, self.download = val_fraction, train_on, download
        self.num_workers, self.compile_views, self.split_seed, self.seed = num_workers, compile_views, split_seed, seed
        self.seed_is_given = seed is not None
        self.stores: dict[str, ImageStore] = {}
        self._num_classes: int | None = None
        self.has_test_images = True
        self._said_no_test_images = False
        self.progress = Progress()

    # Splits

    def prepare_data(self) -> None:
        if self.download and self._row is not None:
            fetch(self._row.name, self.root)

    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None and no_batch_yet(self.trainer):
            self.progress.resume(0, 0)  # a new training; load_state_dict tells a resumed one its place later
        if not self.stores:
            self._make_stores()
        if stage in ("test", "predict") and not self.has_test_images and not self._said_no_test_images:
            self._said_no_test_images = True
            way = "the validation images stand in" if stage == "test" else "the test split is left out"
            rank_zero_only(print)(f"note: the data set has no test images: {way}", flush=True)

    def _make_stores(self) -> None:
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
            # The checkpoint keeps the seed in use, so that a resumed run has the same order and augmentations.
            self.hparams["seed"] = self.seed
        loaded = self._load()
        self._num_classes = number_of_classes(loaded)
        stores = divided(loaded, val_fraction=self.val_fraction, train_on=self.train_on, seed=self.split_seed)
        self.has_test_images = "test" in stores
        self.stores = {"test": stores["val"], **stores}
        self.pipeline = self._pipeline_for(self.stores["train"])

    def _load(self) -> dict[str, ImageStore]:
        if self._row is not None:
            return load(self._row.name, self.root, download=self.download, **vars(self.options))
        dataset = from_class_path(self.dataset) if isinstance(self.dataset, str) else self.dataset
        given = {"train": dataset, "test": self.test_dataset}
        return {split: store_of(images, self.options) for split, images in given.items() if images is not None}

    def _pipeline_for(self, train: ImageStore) -> ViewPipeline:
        size = self.image_size
        if size is None:
            size = 224 if train.shape is None else min(train.shape[1:])
        mean, std = self.mean, self.std
        if mean is None or std is None:
            normalization = normalization_of(train, self._row.normalization if self._row else None)
            mean = list(normalization.mean) if mean is None else mean
            std = list(normalization.std) if std is None else std
        if len(mean) != train.channels or len(std) != train.channels:
            raise UserError(
                f"mean={mean} and std={std} must have one entry for each of the {train.channels} channels of the images"
            )
        return ViewPipeline(self.views, size=size, mean=mean, std=std, compile=self.compile_views)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.stores["train"].channels

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the images, None where those of training have no labels."""
        return self._num_classes

    @property
    def predict_splits(self) -> tuple[Split, ...]:
        """Splits of :meth:`predict_dataloader`, in order: without test where the data set has no test images."""
        return ("train", "val", "test") if self.has_test_images else ("train", "val")

    # Loaders

    def _loader(self, source: Source, sampler: BatchSampler) -> ResumableLoader:
        return ResumableLoader(
            source,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> ResumableLoader:
        store = self.stores["pretrain"]
        source = Source(store, self.pipeline, self.seed or 0, True, self.transform)
        sampler = BatchSampler(
            len(store),
            self.batch_size,
            shuffle=True,
            seed=self.seed or 0,
            progress=self.progress,
            fixed=self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0,
        )
        len(sampler)  # says at once when the batch is larger than the data
        if self.batch_size * world_size() < 2:
            raise UserError("data.batch_size=1: an objective compares the images of a batch, so it needs 2 or more")
        return self._loader(source, sampler)

    def val_dataloader(self) -> ResumableLoader:
        return self.clean_dataloader("val", make_views=True)

    def test_dataloader(self) -> ResumableLoader:
        return self.clean_dataloader("test")

    def predict_dataloader(self) -> list[ResumableLoader]:
        return [self.clean_dataloader(split) for split in self.predict_splits]

    def clean_dataloader(self, split: Split, limit: int | None = None, make_views: bool = False) -> ResumableLoader:
        """Every image of a split once, in order, without augmentation; pass each batch to :meth:`to_batch`.

        Args:
            split: train, val or test.
            limit: at most so many images, a random choice that is the same on all ranks and in all epochs.
            make_views: add the augmented views too.
        """
        store = self.stores[split]
        if limit is not None and limit < len(store):
            chosen = torch.randperm(len(store), generator=torch.Generator().manual_seed(self.split_seed))[:limit]
            store = store.subset(chosen.sort().values)
        source = Source(store, self.pipeline, self.seed or 0, False, self.transform, make_views)
        return self._loader(source, BatchSampler(len(store), self.batch_size, shuffle=False))

    # Checkpoints

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The data module of a checkpoint, also of an earlier version.

        The file is read as data, whatever ``weights_only`` says. ``kwargs`` take the place of stored arguments.

        Raises:
            UserError: the file cannot be read, or it names a class or function that is not sslinfo's, such as a data
                set of your own: pass that.
        """
        kind, arguments, bare = load_parts(checkpoint_path, HYPERPARAMETERS[1], cls, kwargs, hparams_file)
        dataset = arguments.get("dataset")
        if "dataset" not in kwargs and isinstance(dataset, str) and is_class_path(dataset):
            raise UserError(
                f"the checkpoint's dataset is the class {dataset}: if you trust it, pass it, "
                f"load_from_checkpoint(..., dataset={dataset!r})"
            )
        load = super(TwoViewDataModule, kind).load_from_checkpoint
        return load(bare, map_location, None, True, **arguments)

    def state_dict(self) -> dict[str, int]:
        """The place in training: that of the last batch trained on, since the loader may have handed out later ones."""
        if self.trainer is None:
            return {}
        epoch, batches = self.progress.epoch, self.progress.batches
        if self.progress.moved and batch_in_work(self.trainer):
            batches -= 1
        if batches >= self.trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        whole = self.batch_size * world_size()
        return {"epoch": epoch, "batches": batches, "global_batch": whole, "seed": self.seed or 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        now = self.batch_size * world_size()
        if state["global_batch"] != now and state["batches"] > 0:
            raise UserError(
                f"the checkpoint stopped after {state['batches']} batches of {state['global_batch']} images in an "
                f"epoch, and now a batch over all devices has {now}: resume with the same data.batch_size x devices"
            )
        self.progress.resume(state["epoch"], state["batches"])
        if not self.seed_is_given:
            self.seed = self.hparams["seed"] = state.get("seed", self.seed)

    # Batches

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if isinstance(batch, dict) and "training" in batch:
            # The views' random numbers are drawn on the host: reading the index back would wait for the device.
            moved["host_index"] = batch["index"]
        return moved

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, dict) or "training" not in batch:
            return batch
        made = self.to_batch(batch)
        if batch["training"]:
            self.progress.trained_on(batch["epoch"], batch["batch"])
        return made

    def to_batch(self, raw: dict[str, Any]) -> dict[str, Any]:
        """A loader's batch, already on its device, with views and clean images made there."""
        batch: dict[str, Any] = {name: raw[name] for name in ("label", "index", "keep", "skipped")}
        batch["clean"] = None if raw["training"] else self.pipeline.clean(raw["images"])
        if "views" in raw:
            batch["views"] = raw["views"]
        elif raw["make_views"]:
            batch["views"] = self.pipeline(
                raw.get("images"),
                crops=raw.get("crops"),
                seed=self.seed or 0,
                epoch=raw["epoch"],
                index=raw.get("host_index", raw["index"]),
                batch=raw["batch"],
            )
        if getattr(self.trainer, "precision", None) == "64-true":
            # Lightning widens what a loader gives; images become floats only here.
            batch["clean"] = None if batch["clean"] is None else batch["clean"].double()
            if "views" in batch:
                batch["views"] = [view.double() for view in batch["views"]]
        return batch


def _rows_with(field: str) -> str:
    return ", ".join(row.name for row in TABLE if getattr(row, field) is not None)


# What the command line's help says of the names is made from the tables.
TwoViewDataModule.__doc__ = (TwoViewDataModule.__doc__ or "").format(
    datasets=names(),
    presets=", ".join(get_args(Preset)),
    own_views="".join(f"{row.views} for {row.name}, " for row in TABLE if row.views != DEFAULT_VIEWS),
    default_views=DEFAULT_VIEWS,
    published=_rows_with("normalization"),
    downloads=_rows_with("download"),
)
