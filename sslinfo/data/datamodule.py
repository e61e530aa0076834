"""TwoViewDataModule: images of any of the data sets, and their views made a whole batch at a time on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset

from sslinfo.data.datasets import fetch, from_class_path, is_class_path, load
from sslinfo.data.loading import BatchSampler, Progress, ResumableLoader
from sslinfo.data.source import Source
from sslinfo.data.stores import ImageStore, JoinedStore, MemoryStore, WrappedStore
from sslinfo.data.views import Preset, View, Views, views_preset
from sslinfo.distributed import world_size
from sslinfo.errors import UserError
from sslinfo.hyperparameters import plain_hyperparameters
from sslinfo.lightning_compat import batch_in_work, no_batch_yet

# Mean and standard deviation of the training images of each set, channel by channel, in [0, 1]: published constants.
NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
Split = Literal["train", "val", "test"]


class TwoViewDataModule(LightningDataModule):
    """Batches of augmented views for training, clean images and views for validation, clean images for test.

    A batch is a dict: ``views`` (list of (N, C, S, S) float32), ``clean`` ((N, C, S, S) or None in training), ``label``
    ((N,), -1 where there is none), ``index`` ((N,), the image's place in the data set), ``keep`` ((N,), False for
    repeats that only fill up the last batch), ``skipped`` (how many images of it could not be decoded).

    Args:
        dataset: digits, cifar10, cifar100, stl10, tinyimagenet, imagefolder, or a map-style data set of your own: an
            object, or a class by its dotted path (my_module.MyDataset).
        root: folder of the data set.
        batch_size: images per device.
        views: name of a published pair of augmentations (vicreg, simclr, swav, moco, simsiam, barlow_twins, byol, wmse,
            digits), or a list of View. None: digits for the digits, else vicreg.
        image_size: side of the images that the network sees; None keeps the data set's own size (224 for mixed sizes).
        mean, std: channel-wise normalisation; None: the published constants of CIFAR, else measured on the training
            images when they are in memory, else ImageNet's.
        channels: 1 or 3 converts the images to grey or RGB; None takes RGB for image files, and the others as they are.
        transform: your own transform of one image (PIL; a uint8 tensor where the channels are neither 1 nor 3) into a
            float tensor (C, S, S), in place of ``views``; it is called once for each view. What it returns reaches the
            network as it is, while the clean images of probes, test and predict are normalised with ``mean`` and
            ``std``: end it with the same normalisation.
        test_dataset: test images for a ``dataset`` of your own. Where there are none, ``test`` runs on the validation
            images and says so, and ``predict`` leaves the test split out.
        val_fraction: part of the training images that is held out for validation where a data set has no validation
            images of its own. 0 validates on the test images, so choose nothing by it.
        train_on: stl10: pre-train on its train split, its unlabelled one, or both.
        download: fetch the data where torchvision can.
        on_bad_image: an image that cannot be decoded is an error, or is skipped and counted.
        in_memory: hold all images as one uint8 tensor; auto does so up to 2 GiB, never for a ``dataset`` of your own.
        num_workers: processes that decode images; none are needed for images in memory.
        compile_views: compile the augmentations (needs a C++ compiler on a CPU).
        split_seed: seed of the train/validation split.
        seed: seed of the order and the augmentations; None takes the run's own (``seed_everything``).

    >>> data = TwoViewDataModule("digits", batch_size=64)
    >>> data.setup("fit")
    >>> batch = data.to_batch(next(iter(data.train_dataloader())))
    >>> [tuple(view.shape) for view in batch["views"]], data.num_classes
    ([(64, 1, 8, 8), (64, 1, 8, 8)], 10)
    """

    def __init__(
        self,
        dataset: Dataset | str = "digits",
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
        train_on: Literal["train", "unlabelled", "both"] = "train",
        download: bool = False,
        on_bad_image: Literal["error", "skip"] = "error",
        in_memory: bool | Literal["auto"] = "auto",
        num_workers: int = 0,
        compile_views: bool = False,
        split_seed: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.left_out = plain_hyperparameters(self)
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        if not 0 <= val_fraction < 1:
            raise UserError(f"val_fraction={val_fraction} must be in [0, 1)")
        if channels not in (None, 1, 3):
            raise UserError(f"data.channels must be 1, 3 or null, got {channels}")
        self.dataset, self.root, self.batch_size = dataset, root, batch_size
        self.view_list = self._view_list(views, dataset)
        self.image_size, self.mean, self.std = image_size, mean, std
        self.convert_to = channels  # `channels` are those of the images in use
        self.transform, self.test_dataset = transform, test_dataset
        self.val_fraction, self.train_on, self.download = val_fraction, train_on, download
        self.on_bad_image, self.in_memory, self.num_workers = on_bad_image, in_memory, num_workers
        self.compile_views, self.split_seed, self.seed = compile_views, split_seed, seed
        self.stores: dict[str, ImageStore] = {}
        self.has_test_images = True
        self._said_no_test_images = False
        self.progress = Progress()

    @staticmethod
    def _view_list(views: str | list[View] | None, dataset: Dataset | str) -> list[View]:
        if views is None:
            views = "digits" if dataset == "digits" else "vicreg"
        return views_preset(cast(Preset, views)) if isinstance(views, str) else list(views)

    # Splits

    def prepare_data(self) -> None:
        if self.download and isinstance(self.dataset, str):
            fetch(self.dataset, self.root)

    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None and no_batch_yet(self.trainer):
            self.progress.resume(0, 0)  # another training; one from a checkpoint says later where it is
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
        train = loaded["train"]
        test = loaded.get("test")
        if "val" in loaded:
            val = loaded["val"]
        elif self.val_fraction > 0:
            train, val = self._split(train)
        elif test is not None:
            rank_zero_warn("val_fraction=0: validation runs on the test images, so choose nothing by it")
            val = test
        else:
            raise UserError("val_fraction=0, but the data set has no test images to validate on: set data.val_fraction")
        pretrain = train
        if self.train_on != "train":
            if "unlabelled" not in loaded:
                raise UserError(f"train_on={self.train_on!r} needs an unlabelled split, which only stl10 has")
            unlabelled = loaded["unlabelled"]
            pretrain = unlabelled if self.train_on == "unlabelled" else JoinedStore(train, unlabelled)
        self.has_test_images = test is not None
        # What is pre-trained on, and the labelled images that probes are fitted on: the same but for train_on.
        self.stores = {
            "pretrain": pretrain,
            "train": train,
            "val": val,
            "test": test if test is not None else val,
        }
        self._make_views(train)

    def _load(self) -> dict[str, ImageStore]:
        dataset = self.dataset
        if isinstance(dataset, str) and is_class_path(dataset):
            dataset = from_class_path(dataset)
        if isinstance(dataset, str):
            return load(
                dataset,
                self.root,
                download=self.download,
                on_bad_image=self.on_bad_image,
                in_memory=self.in_memory,
                channels=self.convert_to,
            )
        stores = {"train": self._wrapped(dataset)}
        if self.test_dataset is not None:
            stores["test"] = self._wrapped(self.test_dataset)
        return stores

    def _wrapped(self, dataset: Dataset) -> ImageStore:
        store = WrappedStore(dataset, channels=self.convert_to, on_bad_image=self.on_bad_image)
        if self.in_memory is not True:
            return store
        decoded = store.to_memory()
        if not isinstance(decoded, MemoryStore):
            raise UserError(f"the images of {store.where} are not all uint8 and of one size: set data.in_memory: false")
        return decoded

    def _split(self, store: ImageStore) -> tuple[ImageStore, ImageStore]:
        labels = store.labels.numpy()
        counts = np.unique(labels, return_counts=True)[1]
        held_out = max(1, round(len(store) * self.val_fraction))
        stratify = labels if counts.min() >= 2 and held_out >= len(counts) <= len(store) - held_out else None
        train, val = train_test_split(
            np.arange(len(store)), test_size=held_out, random_state=self.split_seed, stratify=stratify
        )
        return store.subset(torch.from_numpy(np.sort(train))), store.subset(torch.from_numpy(np.sort(val)))

    def _make_views(self, store: ImageStore) -> None:
        size = self.image_size
        if size is None:
            shape = store.shape
            size = 224 if shape is None else min(shape[1:])
        mean, std = self.mean, self.std
        if mean is None or std is None:
            found = self._normalization(store)
            mean = list(found[0]) if mean is None else mean
            std = list(found[1]) if std is None else std
        if len(mean) != store.channels or len(std) != store.channels:
            raise UserError(
                f"mean={mean} and std={std} must have one entry for each of the {store.channels} channels of the images"
            )
        self.views = Views(self.view_list, size=size, mean=mean, std=std, compile=self.compile_views)

    def _normalization(self, store: ImageStore) -> tuple[Sequence[float], Sequence[float]]:
        if isinstance(self.dataset, str) and self.dataset in NORMALIZATION and store.channels == 3:
            return NORMALIZATION[self.dataset]
        if isinstance(store, MemoryStore):
            images = store.read(range(0, len(store), max(1, len(store) // 10_000))).images
            assert isinstance(images, Tensor)
            pixels = images.double().transpose(0, 1).flatten(1) / 255
            return pixels.mean(1).tolist(), pixels.std(1).clamp(min=1e-3).tolist()
        if store.channels == 3:
            return NORMALIZATION["imagenet"]
        return [0.5] * store.channels, [0.25] * store.channels

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.stores["train"].channels

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the training images, None where they have no labels."""
        labels = self.stores["train"].labels
        return int(labels.max()) + 1 if len(labels) and int(labels.max()) >= 0 else None

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
        source = Source(store, self.views, self.seed or 0, True, self.transform)
        sampler = BatchSampler(len(store), self.batch_size, shuffle=True, seed=self.seed or 0, progress=self.progress)
        len(sampler)  # says at once when the batch is larger than the data
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
        source = Source(store, self.views, self.seed or 0, False, self.transform, make_views)
        return self._loader(source, BatchSampler(len(store), self.batch_size, shuffle=False))

    # Resuming

    def state_dict(self) -> dict[str, int]:
        """Where training is: what the loader has handed out may be ahead of what was trained on."""
        if self.trainer is None:
            return {}
        epoch, batches = self.progress.epoch, self.progress.batches
        if self.progress.moved and batch_in_work(self.trainer):
            batches -= 1
        if batches >= self.trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches, "global_batch": self.batch_size * world_size()}

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
        if batch["training"]:
            self.progress.trained_on(batch["epoch"], batch["batch"])
        return self.to_batch(batch)

    def to_batch(self, raw: dict[str, Any]) -> dict[str, Any]:
        """A loader's batch, already on its device, with views and clean images made there."""
        batch: dict[str, Any] = {name: raw[name] for name in ("label", "index", "keep", "skipped")}
        batch["clean"] = None if raw["training"] else self.views.clean(raw["images"])
        if "views" in raw:
            batch["views"] = raw["views"]
        elif raw["make_views"]:
            batch["views"] = self.views(
                raw.get("images"),
                crops=raw.get("crops"),
                seed=self.seed or 0,
                epoch=raw["epoch"],
                index=raw.get("host_index", raw["index"]),
                batch=raw["batch"],
            )
        return batch
