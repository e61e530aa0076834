"""Source: turns a request for images into one rank's batch on the host. Each worker of the loader holds one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torchvision.transforms.v2.functional import to_pil_image

from sslinfo.data.keyed_random import stream_keys
from sslinfo.data.loading import Failure, Request
from sslinfo.data.stores import Fetched, ImageStore
from sslinfo.data.views import ViewPipeline
from sslinfo.errors import UserError


class Source(Dataset):
    """A store of images, and the pipeline that crops the views where they are made on the host.

    ``source[request]`` is one rank's batch before its transfer to the device, and always as long as the request.
    """

    def __init__(
        self,
        store: ImageStore,
        pipeline: ViewPipeline,
        seed: int,
        training: bool,
        transform: Callable[[Tensor], Any] | None = None,
        make_views: bool = True,
    ) -> None:
        self.store, self.pipeline, self.seed, self.training = store, pipeline, seed, training
        self.transform, self.make_views = transform, make_views

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, request: Request) -> dict[str, Any] | Failure:
        if get_worker_info() is None:
            return self._batch(request)
        try:
            return self._batch(request)
        except (UserError, OSError) as error:
            if isinstance(error, OSError) and error.errno is None and not isinstance(error, UserError):
                raise
            return Failure.of(error)

    def _batch(self, request: Request) -> dict[str, Any]:
        fetched = self.store.read(request.positions.tolist())
        keep = request.keep
        skipped = len(request.positions) - len(fetched.index)
        if skipped:
            fetched, keep = self._fill(fetched, request)
        raw: dict[str, Any] = {
            "label": fetched.labels,
            "index": fetched.index,
            "keep": keep,
            # Validation images are seen in the same views each time, so that its curves compare.
            "epoch": request.epoch if self.training else 0,
            "batch": request.batch,
            "training": self.training,
            "make_views": self.make_views,
            "skipped": skipped,
        }
        images = fetched.images
        if self.make_views and self.transform is not None:
            raw["views"] = self._transformed(fetched, raw["epoch"])
        elif self.make_views and isinstance(images, list):
            raw["crops"] = self.pipeline.host_crops(images, seed=self.seed, epoch=raw["epoch"], index=fetched.index)
        if not isinstance(images, list):
            raw["images"] = images
        elif not self.training:
            raw["images"] = self.pipeline.host_clean(images)
        return raw

    def _fill(self, fetched: Fetched, request: Request) -> tuple[Fetched, Tensor]:
        """As many rows as were asked for, since ranks must agree: repeats of good images stand in for bad ones.

        In training a repeat counts as a sample, in evaluation it is dropped like any other repeat.
        """
        survived = torch.isin(self.store.index[request.positions], fetched.index)
        if len(fetched.index) == 0:
            fetched = self._good_ones(request)
        rows = torch.arange(len(request.positions)) % len(fetched.index)
        images = (
            [fetched.images[i] for i in rows.tolist()] if isinstance(fetched.images, list) else fetched.images[rows]
        )
        keep = request.keep
        if not self.training:
            keep = torch.zeros_like(keep)
            keep[: int(survived.sum())] = request.keep[survived]
        return Fetched(images, fetched.labels[rows], fetched.index[rows]), keep

    def _good_ones(self, request: Request) -> Fetched:
        """Images that stand in where a whole batch is bad: the next good ones of the store, for it may be a folder."""
        count, first = len(request.positions), int(request.positions[0])
        for start in range(0, len(self.store), count):
            positions = (first + start + torch.arange(count)) % len(self.store)
            fetched = self.store.read(positions.tolist())
            if len(fetched.index):
                return fetched
        raise UserError(f"none of {len(self.store)} images of {self.store.where} can be decoded: check data.root")

    def _transformed(self, fetched: Fetched, epoch: int) -> list[Tensor]:
        """The user's own transform, once for each view, its random numbers a function of (seed, epoch, index, view)."""
        assert self.transform is not None
        images = [to_pil_image(i) if i.shape[0] in (1, 3) and i.dtype == torch.uint8 else i for i in fetched.images]
        views = []
        with torch.random.fork_rng(devices=[]):
            states = random.getstate(), np.random.get_state()  # noqa: NPY002
            for view in range(len(self.pipeline.views)):
                keys = stream_keys(self.seed, epoch, fetched.index, view, "transform").tolist()
                rows = []
                for image, key, index in zip(images, keys, fetched.index.tolist(), strict=True):
                    torch.manual_seed(key % 2**63)
                    random.seed(key)
                    np.random.seed(key % 2**32)  # noqa: NPY002
                    rows.append(self._one(image, index))
                shapes = sorted({tuple(row.shape) for row in rows})
                if len(shapes) > 1:
                    raise UserError(
                        "data.transform must turn an image into a float tensor (C, H, W) of one shape, got "
                        f"{' and '.join(map(str, shapes))} in a batch"
                    )
                views.append(torch.stack(rows))
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
        return views

    def _one(self, image: Any, index: int) -> Tensor:
        """What the user's transform makes of one image, as float32 (C, H, W)."""
        assert self.transform is not None
        try:
            made = self.transform(image)
        except Exception as error:
            # Anything can happen in it.
            given = f"{image.mode} PIL image" if isinstance(image, Image.Image) else f"{image.dtype} tensor"
            raise UserError(
                f"data.transform fails on a {given} ({self.store.name_of(index)}): {type(error).__name__}: {error}"
            ) from error
        channels = self.store.channels
        if not isinstance(made, Tensor) or not made.is_floating_point() or made.ndim != 3 or len(made) != channels:
            got = type(made).__name__
            if hasattr(made, "shape") and hasattr(made, "dtype"):
                got = f"{got} of {made.dtype} and shape {tuple(made.shape)}"
            raise UserError(
                f"data.transform must turn an image into a float tensor (C, H, W) with the {channels} channel"
                f"{'s' if channels > 1 else ''} of the images, got {got}: end it with ToImage, ToDtype(torch.float32, "
                "scale=True) and Normalize of torchvision.transforms.v2"
            )
        made = made.as_subclass(Tensor).float()
        if not bool(made.isfinite().all()):
            raise UserError(
                f"data.transform makes NaN or infinity of {self.store.name_of(index)}: look at its divisions"
            )
        return made
