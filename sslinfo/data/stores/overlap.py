"""Which images two sets have in common, by content."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict

import numpy as np
import torch

from sslinfo.data.stores.base import BadImage, ImageStore
from sslinfo.data.stores.decoding import opened
from sslinfo.data.stores.files import FileStore
from sslinfo.data.stores.joined import JoinedStore
from sslinfo.distributed import rank, world_size
from sslinfo.information.reduction import sum_over_ranks

_CHUNK = 1024


def images_in_both(val: ImageStore, train: ImageStore) -> int:
    """How many validation images are among the training images, by a digest of each image; ranks share the work.

    Image files that are decoded on demand are compared as files, by their size and the 4096 bytes in their middle;
    all others by their pixels.

    >>> from sslinfo.data.stores import MemoryStore
    >>> store = MemoryStore(torch.arange(12, dtype=torch.uint8).view(6, 1, 1, 2))
    >>> images_in_both(store.subset(torch.tensor([0, 1, 2])), store.subset(torch.tensor([2, 3, 4, 5])))
    1
    """
    as_files = all(isinstance(leaf, FileStore) for leaf in (*_leaves(val), *_leaves(train)))
    wanted: dict[bytes, list[int]] = defaultdict(list)
    for position, digest in enumerate(_digests(val, as_files, slice(None))):
        if digest:
            wanted[digest].append(position)
    found = torch.zeros(len(val), dtype=torch.float64)
    for digest in _digests(train, as_files, slice(rank(), None, world_size())):
        for position in wanted.get(digest, ()):
            found[position] = 1
    (total,) = sum_over_ranks(found)
    return int((total > 0).sum())


def _leaves(store: ImageStore) -> list[ImageStore]:
    return [*_leaves(store.first), *_leaves(store.second)] if isinstance(store, JoinedStore) else [store]


def _digests(store: ImageStore, as_files: bool, rows: slice) -> list[bytes]:
    """A digest of each image at these positions; empty for one that cannot be read."""
    if as_files:
        return [_file_digest(leaf.path(i)) for leaf in _leaves(store) for i in range(len(leaf))[rows]]  # type: ignore[attr-defined]
    positions = torch.arange(len(store))[rows]
    found = []
    for some in positions.split(_CHUNK):
        fetched = store.read(some.tolist())
        for image in fetched.images:
            pixels = np.ascontiguousarray(image.numpy())
            about = f"{pixels.shape} {pixels.dtype}".encode()
            found.append(hashlib.blake2b(pixels.tobytes(), digest_size=16).digest() + about)
        found += [b""] * (len(some) - len(fetched.index))
    return found


def _file_digest(path: str) -> bytes:
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size // 2 - 2048))
            return hashlib.blake2b(file.read(4096), digest_size=16).digest() + str(size).encode()
    except (OSError, BadImage):
        return b""
