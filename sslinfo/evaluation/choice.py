"""A limited choice of images by a hash of their index: the same on any number of ranks, in batches of any size.

Neighbours in a folder resemble each other, so the first images of a set do not stand for it. A hash of the index
spreads the choice over the set, and the batches may come in any order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sslinfo.data.keyed_random import stream_keys


def keys_of(index: Tensor, purpose: str) -> Tensor:
    """A hash of each index: who sorts by it has a random order of the images, another one for each purpose.

    Args:
        index: (N,) integers, the images' places in their data set.
        purpose: what the images are chosen for.

    Returns:
        (N,) int64, distinct for distinct indices.

    Source: derived; see ``sslinfo.data.keyed_random``.

    >>> keys_of(torch.arange(1000), "an example").argsort()[:4].tolist()
    [323, 762, 922, 551]
    """
    return stream_keys(0, 0, index.long(), 0, purpose)


def first(rows: Mapping[str, Tensor], limit: int, purpose: str) -> dict[str, Tensor]:
    """The rows of the ``limit`` images whose keys are smallest, in the order of the keys.

    Args:
        rows: name -> (N, ...), with ``index`` among the names.
        limit: how many images at most.
        purpose: as in :func:`keys_of`.

    >>> chosen = first({"index": torch.arange(1000), "double": 2 * torch.arange(1000)}, 2, "an example")
    >>> chosen["index"].tolist(), chosen["double"].tolist()
    ([323, 762], [646, 1524])
    """
    order = keys_of(rows["index"], purpose).argsort()[:limit]
    return {name: some[order] for name, some in rows.items()}


class Chosen:
    """:func:`first` of rows that come in batches; a quarter more than ``limit`` rows are held at most.

    >>> chosen = Chosen(2, "an example")
    >>> for batch in torch.arange(1000).split(64):
    ...     chosen.add({"index": batch})
    >>> chosen.take()["index"].tolist()
    [323, 762]
    """

    def __init__(self, limit: int, purpose: str) -> None:
        self.limit, self.purpose = limit, purpose
        self._parts: list[dict[str, Tensor]] = []

    @property
    def count(self) -> int:
        """Rows held: once taken, the number of those chosen."""
        return sum(len(part["index"]) for part in self._parts)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Add rows, name -> (N, ...), with ``index`` among the names."""
        self._parts.append(first(rows, self.limit, self.purpose))
        if self.count > self.limit + self.limit // 4:  # not at each batch: sorting out copies all rows
            self.take()

    def take(self) -> dict[str, Tensor]:
        """The rows chosen, by name, in the order of their keys; an empty dict where none were added."""
        if not self._parts:
            return {}
        whole = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        self._parts = [first(whole, self.limit, self.purpose)]
        return self._parts[0]
