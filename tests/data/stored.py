"""Whole data sets as tensors, for comparisons."""

import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from sslinfo.data.stores import ImageStore


def everything(store: ImageStore) -> tuple[torch.Tensor, torch.Tensor]:
    batch = store.read(range(len(store)))
    assert isinstance(batch.images, torch.Tensor)
    return batch.images, batch.labels


def torchvision_pairs(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    items = [dataset[i] for i in range(len(dataset))]
    return torch.stack([pil_to_tensor(image) for image, _ in items]), torch.tensor([label for _, label in items])
