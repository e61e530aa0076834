"""Source: turns a request for images into one rank's batch on the host. Each worker of the loader holds one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import to_pil_image

from sslinfo.data.keyed_random import stream_keys
from sslinfo.data.loading import Request
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

    def __getitem__(self, request: Request) -> dict[str, Any]:
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
        if len(fetched.index) == 0:
            raise UserError(
                f"no image of a batch of {len(request.positions)} from {self.store.where} could be decoded: "
                "check data.root"
            )
        rows = torch.arange(len(request.positions)) % len(fetched.index)
        images = (
            [fetched.images[i] for i in rows.tolist()] if isinstance(fetched.images, list) else fetched.images[rows]
        )
        keep = request.keep
        if not self.training:
            survived = torch.isin(self.store.index[request.positions], fetched.index)
            keep = torch.zeros_like(keep)
            keep[: len(fetched.index)] = request.keep[survived]
        return Fetched(images, fetched.labels[rows], fetched.index[rows]), keep

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
                for image, key in zip(images, keys, strict=True):
                    torch.manual_seed(key % 2**63)
                    random.seed(key)
                    np.random.seed(key % 2**32)  # noqa: NPY002
                    rows.append(self.transform(image))
                if not all(isinstance(row, Tensor) and row.shape == rows[0].shape for row in rows):
                    raise UserError(
                        "data.transform must turn an image into a float tensor (C, S, S) of one shape, got "
                        f"{sorted({str(tuple(r.shape)) if isinstance(r, Tensor) else type(r).__name__ for r in rows})}"
                    )
                views.append(torch.stack(rows))
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
        return views
