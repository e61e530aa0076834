"""StepOutputs: what one step of an objective gives to whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from sslinfo.distributed import gather, gather_uneven
from sslinfo.errors import UserError

OUTPUTS = "outputs"  # where the mapping that training_step returns holds them, beside "loss"
Rows = Literal["labels", "indices", "representations", "embeddings", "projections", "clean_representations"]


@dataclass
class StepOutputs:
    """What a training, validation, test or prediction step gives: this rank's n rows, detached.

    Rows of the other ranks come by :meth:`whole`, for who asks, in the step in which it is asked.

    Attributes:
        labels: (n,), -1 where there is none.
        indices: (n,), each image's place in its data set.
        representations: (n, num_features), one a view; none in test and prediction.
        embeddings: (n, d) by name, what the loss was computed from.
        projected: which of the embeddings are the online projections, by view, before any predictor.
        clean_representations: (n, num_features) of the images without augmentation; None in training.
        clusters: how many clusters the objective assigns the images to, 0-d, where it does.
        uneven: ranks may hold different numbers of rows.
        gathered: rows of all ranks that somebody asked for already.
        complete: these are the rows of all ranks.

    >>> import torch
    >>> outputs = StepOutputs(torch.tensor([3, 1]), torch.tensor([0, 1]), embeddings={"z1": torch.zeros(2, 4)})
    >>> outputs.whole("labels", "embeddings").labels  # of the only rank
    tensor([3, 1])
    """

    labels: Tensor
    indices: Tensor
    representations: tuple[Tensor, ...] = ()
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    projected: tuple[str, ...] = ()
    clean_representations: Tensor | None = None
    clusters: Tensor | None = None
    uneven: bool = False
    gathered: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    complete: bool = False

    @classmethod
    def of(cls, outputs: Any) -> StepOutputs | None:
        """Those of what a step returned, as Lightning hands it to callbacks; None of a step that is not ours."""
        found = outputs.get(OUTPUTS) if isinstance(outputs, Mapping) else outputs
        return found if isinstance(found, cls) else None

    @property
    def projections(self) -> tuple[Tensor, ...]:
        """The online projections (n, d), one a view."""
        return tuple(self.embeddings[name] for name in self.projected)

    def whole(self, *names: Rows) -> StepOutputs:
        """The named parts with the rows of all ranks, in the order of ranks; parts that are not named are empty.

        One collective for each dtype gathers what was not gathered before in this step. Every rank has to ask, for the
        same parts in the same order. The projections come with all embeddings.

        Raises:
            UserError: these are the rows of all ranks already.
        """
        if self.complete:
            raise UserError(
                f"whole({', '.join(names)}) of what is the rows of all ranks already: ask the step's outputs"
            )
        names = tuple(dict.fromkeys("embeddings" if name == "projections" else name for name in names))
        missing = [name for name in names if name not in self.gathered]
        if missing:
            flat = {f"{name}/{key}": rows for name in missing for key, rows in self._parts(name).items()}
            rows = gather_uneven(flat) if self.uneven else gather(flat)
            for name in missing:
                self.gathered[name] = {key: rows[f"{name}/{key}"] for key in self._parts(name)}
        none = self.labels[:0]
        return StepOutputs(
            **{"labels": none, "indices": none, **{name: self._like(name, self.gathered[name]) for name in names}},
            projected=self.projected if "embeddings" in names else (),
            clusters=self.clusters,
            complete=True,
        )

    def _parts(self, name: str) -> dict[str, Tensor]:
        value = getattr(self, name)
        if isinstance(value, Tensor):
            return {"0": value}
        if isinstance(value, tuple):
            return {str(number): rows for number, rows in enumerate(value)}
        return dict(value or {})

    def _like(self, name: str, parts: dict[str, Tensor]) -> Any:
        """Parts in the form of the attribute that they are of."""
        value = getattr(self, name)
        if isinstance(value, Tensor):
            return parts["0"]
        return tuple(parts.values()) if isinstance(value, tuple) else parts if parts else value
