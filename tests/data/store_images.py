"""A few images and labels, as files, as items of a map-style dataset, and as files that are broken."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fake import pixels
from PIL import Image

IMAGES = torch.from_numpy(pixels(np.arange(12) % 3, (5, 4)))
LABELS = torch.arange(12) % 3


def files(folder: Path, images: torch.Tensor = IMAGES) -> list[Path]:
    paths = [folder / f"{i:02d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)
    return paths


class Items:
    """A map-style dataset of given items, which counts how often it is read."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items, self.reads = items, 0
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


def pil_items() -> list[Any]:
    return [(Image.fromarray(image.permute(1, 2, 0).numpy()), int(y)) for image, y in zip(IMAGES, LABELS, strict=True)]


def broken(kind: str, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-40], "empty": b"", "text": b"not an image", "header": whole[:20]}[kind])
