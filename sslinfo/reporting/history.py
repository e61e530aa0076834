"""What a diagnostic keeps of a training of any length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Entry = TypeVar("Entry")


class History(list[Entry], Generic[Entry]):
    """The newest entry and at most so many others, evenly spread over the training.

    >>> history = History(4)
    >>> for step in range(10):
    ...     history.add(step)
    >>> history
    [0, 4, 8, 9]
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.numbers: list[int] = []  # of the entries that are kept, among all that were added
        self.stride = 1  # between those, but for the newest

    def add(self, entry: Entry) -> None:
        """Keep this entry; the one before stays if it is among the evenly spread ones."""
        number = self.numbers[-1] + 1 if self else 0
        if self and self.numbers[-1] % self.stride:
            self.pop()
            self.numbers.pop()
        self.append(entry)
        self.numbers.append(number)
        if len(self) > self.most:
            self.stride *= 2
            kept = [i for i, own in enumerate(self.numbers) if own % self.stride == 0 or own == number]
            self[:], self.numbers = [self[i] for i in kept], [self.numbers[i] for i in kept]

    def state_dict(self, plain: Callable[[Entry], Any] = lambda entry: entry) -> dict[str, Any]:
        """Plain values, each entry through ``plain``."""
        return {"entries": [plain(entry) for entry in self], "numbers": list(self.numbers), "stride": self.stride}

    def load_state_dict(self, state: dict[str, Any], entry: Callable[[Any], Entry] = lambda plain: plain) -> None:
        """Go on where that state was taken."""
        self[:] = [entry(plain) for plain in state["entries"]]
        self.numbers, self.stride = list(state["numbers"]), state["stride"]
