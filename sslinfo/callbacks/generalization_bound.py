"""GeneralizationBound: a certificate on what a linear classifier will do with the representation, while it trains."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import one_hot

from sslinfo.callbacks.features import data_of, note_once
from sslinfo.data.datamodule import TwoViewDataModule
from sslinfo.data.file_store import FileStore
from sslinfo.data.random import stream_keys
from sslinfo.data.stores import ImageStore, JoinedStore
from sslinfo.distributed import rank, world_size
from sslinfo.errors import UserError
from sslinfo.information import Bound, LeastSquares, PairSums, generalization_bound, within_radius
from sslinfo.information.reduction import sum_over_ranks

PARTS = ("labelled", "first", "partner", "held_out")
# Twice as many partners as firsts, so that nearly every first finds one whatever the class.
SHARES = (0.4, 1 / 6, 1 / 3, 0.1)
# Images whose features are kept; there are twice as many partners as firsts.
MOST_LABELLED, MOST_HELD_OUT, MOST_FIRSTS = 20_000, 4096, 10_000
MOST_POINTS = 100  # of the history: older ones are thinned, so that nothing grows with the training's length
_CHUNK = 1024

SAMPLING = (
    "The validation images are taken as independent draws. Each validation holds with its probability by itself: "
    "choosing a checkpoint by its bound among N asks for delta / N."
)
FORMS = ("certified", "corollary", "sharp", "top1_error", "best_constant", "vacuous")


class GeneralizationBound(Callback):
    """The generalization bound of a linear classifier on the representation, in every validation.

    A hash of their index splits the validation images into labelled ones S (40%), pairs S' (50%) and held-out ones
    (10%, at most 4096) on which the risk is measured. Clean representations make the certificate, in which a third of
    the pairs' images are firsts, at most 10,000, each with another image of its class as partner, in the order of that
    hash, since neighbours in a folder may resemble each other. A first without partner counts with the largest
    distance, 2 R, which keeps the bound valid, and is reported. Two augmented views of each of the pairs'
    images make the paper's sum. All is logged as ``bound/<term>``: ``certified``, ``corollary``, ``sharp`` (for at
    most 20,000 labelled images), ``top1_error``, ``best_constant``, ``vacuous`` (0 or 1), ``measured_risk``,
    ``measured_top1_error`` and every term of the certificate; ``paper`` and ``paper_<term>`` of the augmentation pairs. What does not exist is absent, and its reason
    stands in ``bound.txt`` in the run's folder and in TensorBoard's text; ``bound.png`` stacks the sharp form over
    training (the corollary without it).

    The network is frozen to the bound: no validation image may be among the training images. Where some are (the same
    pixels; the same size and middle 4096 bytes for files that do not fit into memory) there is no certificate, and the
    text says how many. Without labels there is the paper's sum alone, with stand-ins for the residuals.

    Memory does not grow with the images but for the numbers of those seen: (d, d) sums, and the features of at most
    54,096. Each validation costs about N d^2 operations and three eigenvalue problems of size d.

    Args:
        delta: probability with which the bound may fail.
        radius: R, the length that representations are brought to.
        treatment: ``normalize`` gives all that length. A representation has no scale of its own, and one taken from the
            data would void the certificate; ``clip`` shortens longer ones only, for a scale known beforehand.
        weight_norm: largest ||W||_F of the certified form; null takes sqrt(K) / radius, which depends on no data.

    >>> GeneralizationBound(delta=0.1).treatment
    'normalize'
    """

    def __init__(
        self,
        delta: float = 0.05,
        radius: float = 1.0,
        treatment: Literal["normalize", "clip"] = "normalize",
        weight_norm: float | None = None,
    ) -> None:
        if not 0 < delta < 1:
            raise UserError(f"delta must lie between 0 and 1, got {delta}: 0.05 for a bound that holds at 95%")
        for name, value in (("radius", radius), ("weight_norm", weight_norm)):
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} must be a number above 0, got {value}")
        if treatment not in ("normalize", "clip"):
            raise UserError(f"treatment must be normalize or clip, got {treatment!r}")
        self.delta, self.radius, self.treatment, self.weight_norm = delta, radius, treatment, weight_norm
        self.bound: Bound | None = None  # of pairs of one class
        self.paper: Bound | None = None  # of augmentations
        self.values: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        self.history: list[dict[str, Any]] = []
        self._validations = 0
        self._stride = 1  # validations between two points of the history
        self._overlap: int | None = None  # validation images that are trained on, counted once a run
        self._split: _Split | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._overlap = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._split = None
        if trainer.sanity_checking:
            return
        data = data_of(trainer, "GeneralizationBound")
        if data is not None:
            self._split = _Split(_classes_of(data), self.radius, self.treatment)

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._split is None or not isinstance(outputs, dict) or "clean" not in outputs:
            return
        views = outputs.get("representations", [])
        self._split.add(outputs["clean"], views[:2], outputs["label"], outputs["index"])

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        split, self._split = self._split, None
        if split is None:
            return
        if split.labelled is None:
            note_once(pl_module, "GeneralizationBound is off: it needs a JointEmbedding")
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._overlap is None:
            self._overlap = images_in_both(data.stores["val"], data.stores["pretrain"])
        self._measure(split, self._overlap, len(data.stores["val"]))
        for name, value in self.values.items():
            pl_module.log(f"bound/{name}", value, batch_size=1)
        self._keep(trainer.global_step)
        folder = trainer.log_dir  # asks all ranks
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(trainer, pl_module, Path(folder or trainer.default_root_dir), split)

    def _measure(self, split: _Split, overlap: int, images: int) -> None:
        """Sets bound, paper, values and reasons."""
        self.bound = self.paper = None
        self.values, self.reasons = {}, {}
        if split.error or split.labelled is None or not split.labelled.n:
            reason = split.error or f"none of {split.count} validation images is among the labelled part"
            self.reasons = dict.fromkeys(("paper", *FORMS), reason)
            return
        trained = f"{overlap} of {images} validation images are among the training images: the network depends on them"
        same_class, views = split.pairs_of_a_class(), split.views
        if split.classes is None:
            self.reasons |= dict.fromkeys(FORMS, "the validation images have no labels, or all the same")
        elif same_class is None:
            self.reasons |= dict.fromkeys(FORMS, f"none of {split.count} validation images is among the pairs")
        else:
            self.bound = self._bound(split.labelled, same_class, "class", overlap, split.mean_residual())
            self.reasons |= {name: self.bound.reasons[name] for name in FORMS if name in self.bound.reasons}
            if overlap:
                self.reasons |= dict.fromkeys(self.reasons, trained)
            found = {name: getattr(self.bound, name) for name in FORMS}
            self.values |= {name: float(value) for name, value in found.items() if value is not None}
            counts = {"labelled": self.bound.n, "pairs": self.bound.m, "unmatched": split.unmatched}
            self.values |= self.bound.terms | {name: float(count) for name, count in counts.items()}
        if views is None or not views.n:
            self.reasons["paper"] = f"none of {split.count} validation images is among the pairs, in two views"
        else:
            self.paper = self._bound(split.labelled, views, "image", overlap)
            if self.paper.paper is None:
                self.reasons["paper"] = trained
            else:
                parts = {f"paper_{name}": value for name, value in self.paper.contributions["paper"].items()}
                self.values |= {"paper": self.paper.paper, **parts}
        measured = split.measure()
        if measured is None:
            self.reasons["measured_risk"] = "no labelled image is held out"
        else:
            self.values |= {"measured_risk": measured[0], "measured_top1_error": measured[1]}

    def _bound(
        self, labelled: LeastSquares, pairs: PairSums, pairs_of: Any, overlap: int, mean_residual: float | None = None
    ) -> Bound:
        return generalization_bound(
            labelled,
            None,
            pairs,
            delta=self.delta,
            radius=self.radius,
            weight_norm=self.weight_norm,
            complexity=None if overlap else 0.0,
            treatment=self.treatment,
            pairs_of=pairs_of,
            mean_residual=mean_residual,
        )

    def _keep(self, step: int) -> None:
        """The stack of now, and at most so many evenly spread over the training."""
        for form, bound in (("sharp", self.bound), ("corollary", self.bound), ("paper", self.paper)):
            if bound is not None and form in bound.contributions:
                entry = {"step": step, "form": form, "contributions": dict(bound.contributions[form])}
                break
        else:
            return
        entry |= {name: self.values.get(name) for name in ("measured_risk", "best_constant")}
        if self.history and (self._validations - 1) % self._stride:
            self.history.pop()
        self.history.append(entry)
        if len(self.history) > MOST_POINTS:
            newest = self.history[-1]
            self.history = self.history[::2]
            if self.history[-1] is not newest:
                self.history.append(newest)
            self._stride *= 2
        self._validations += 1

    # What a person reads

    def text(self, split: _Split) -> str:
        """Both tables, what was measured, and the reasons for what is absent."""
        blocks = []
        if self.bound is not None:
            blocks.append(f"Pairs of one class (the certificate)\n{self.bound}")
        if self.paper is not None:
            blocks.append(f"Pairs of augmentations (the paper's sum)\n{self.paper}")
        lines = []
        if "measured_risk" in self.values:
            risk, error = self.values["measured_risk"], self.values["measured_top1_error"]
            lines.append(
                f"measured on {split.held_out.count} held-out images: risk {risk:.4f}, top-1 error {error:.4f}"
            )
        if self.bound is not None:
            lines.append(f"{split.unmatched} of {self.bound.m} pairs found no partner of their class and count as 2 R")
        if split.unlabelled:
            lines.append(f"{split.unlabelled} of {split.count} validation images have no label and are left out")
        lines += [f"no bound/{name}: {reason}" for name, reason in self.reasons.items()]
        return "\n\n".join([*blocks, "\n".join([*lines, SAMPLING])])

    def _write(self, trainer: Trainer, module: LightningModule, folder: Path, split: _Split) -> None:
        from sslinfo.callbacks.bound_figure import draw
        from sslinfo.callbacks.information_figure import log_to

        folder.mkdir(parents=True, exist_ok=True)
        text = f"step {trainer.global_step}\n\n{self.text(split)}\n"
        (folder / "bound.txt").write_text(text)
        figures = {}
        if self.history:
            some = self.bound or self.paper
            about = f"delta {self.delta:g}" + (f", n={some.n}, m={some.m}, d={some.d}" if some else "")
            figures = {"stack": draw(self.history, about)}
            figures["stack"].savefig(folder / "bound.png", dpi=110)
        for logger in trainer.loggers:
            log_to(logger, module, figures, text, trainer.global_step, prefix="bound")

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "validations": self._validations, "stride": self._stride}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [dict(entry) for entry in state_dict["history"]]
        self._validations, self._stride = state_dict["validations"], state_dict["stride"]


class _Chosen:
    """The rows of a limited number of images, those that come first by the hash of their index."""

    def __init__(self, limit: int) -> None:
        self.limit, self.count = limit, 0
        self._parts: list[dict[str, Tensor]] = []

    def add(self, **rows: Tensor) -> None:
        """Rows (N, ...) by name, "key" among the names."""
        self._parts.append({name: some.clone() for name, some in rows.items()})
        self.count += len(rows["key"])
        if self.count > 2 * self.limit:
            self.take()

    def take(self) -> dict[str, Tensor]:
        """The rows by name, in the order of their keys; none at all without images."""
        if not self._parts:
            return {}
        whole = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        chosen = whole["key"].argsort()[: self.limit]
        self._parts = [{name: some[chosen] for name, some in whole.items()}]
        self.count = len(chosen)
        return self._parts[0]


class _Split:
    """The three parts of one validation: sums in O(d^2) memory, and a limited number of features.

    Batches come whole on any number of ranks, so that every rank has all of this alike.
    """

    def __init__(self, classes: int | None, radius: float, treatment: Any) -> None:
        self.classes, self.radius, self.treatment = classes, radius, treatment
        self.count = self.unlabelled = self.unmatched = 0
        self.error: str | None = None
        self.labelled: LeastSquares | None = None
        self.views: PairSums | None = None
        self.firsts, self.partners = _Chosen(MOST_FIRSTS), _Chosen(2 * MOST_FIRSTS)
        self.held_out, self.own = _Chosen(MOST_HELD_OUT), _Chosen(MOST_LABELLED)
        self._seen: set[int] = set()

    def add(self, clean: Tensor, views: Sequence[Tensor], label: Tensor, index: Tensor) -> None:
        """Add a batch: clean representations (N, d), those of the views, labels and indices (N,)."""
        self.count += len(index)
        before = len(self._seen)
        self._seen.update(index.tolist())
        if len(self._seen) != before + len(index):
            self.error = "some images came twice in this validation: the three parts would not be disjoint"
        keep = torch.ones_like(label, dtype=torch.bool) if self.classes is None else label >= 0
        self.unlabelled += int((~keep).sum())
        label, index = label[keep], index[keep]
        if self.labelled is None:
            self.labelled = LeastSquares.empty(clean.shape[1], self.classes or 0, clean.device)
            self.views = PairSums.empty(clean.shape[1], self.classes or 0, clean.device)
        if self.error is not None:
            return
        try:
            treated = self._treated(clean[keep])
            of_views = [self._treated(view[keep]) for view in views]
        except ValueError as error:  # a network that diverged: the training goes on, and the reason is reported
            self.error = str(error)
            return
        part, key = part_of(index), _keys(index)
        masks = [part == number for number in range(len(PARTS))]
        assert bool((torch.stack(masks).sum(0) == 1).all())  # each image in one part
        of_labelled, of_firsts, of_partners, held_out = masks
        of_pairs = of_firsts | of_partners

        def labels(mask: Tensor) -> Tensor | None:
            return None if self.classes is None else label[mask]

        assert self.views is not None
        self.labelled = self.labelled + LeastSquares.of(treated[of_labelled], labels(of_labelled), self.classes)
        if len(of_views) == 2:
            one, other = (view[of_pairs] for view in of_views)
            self.views = self.views + PairSums.of(one, other, labels(of_pairs), self.classes)
        if self.classes is not None:
            clean = clean[keep]
            for chosen, mask in (
                (self.own, of_labelled),
                (self.firsts, of_firsts),
                (self.partners, of_partners),
                (self.held_out, held_out),
            ):
                chosen.add(z=clean[mask], label=label[mask], key=key[mask])

    def _treated(self, z: Tensor) -> Tensor:
        return within_radius(z, self.radius, self.treatment)

    def pairs_of_a_class(self) -> PairSums | None:
        """Firsts and partners of their class; a first without one counts with the largest distance there is.

        Who meets whom depends on labels and indices alone. None without firsts.
        """
        firsts, partners = self.firsts.take(), self.partners.take()
        if self.classes is None or not self.firsts.count:
            return None
        ours, theirs = [], []
        for label in range(self.classes):
            mine, others = ((rows["label"] == label).nonzero()[:, 0] for rows in (firsts, partners))
            matched = min(len(mine), len(others))
            ours.append(mine[:matched])
            theirs.append(others[:matched])
        first, second = torch.cat(ours), torch.cat(theirs)
        self.unmatched = self.firsts.count - len(first)
        pairs = PairSums.of(self._treated(firsts["z"][first]), self._treated(partners["z"][second]))
        whole = LeastSquares.of(self._treated(firsts["z"]), firsts["label"], self.classes)
        return PairSums(pairs.distance + 2 * self.radius * self.unmatched, whole)

    def mean_residual(self) -> float | None:
        """Mean of ||W_S f - y|| over the labelled images; None where there are too many to keep them all."""
        rows = self.own.take()
        if self.labelled is None or self.own.count < self.labelled.n or not self.own.count:
            return None
        return self._risk(rows)[0]

    def measure(self) -> tuple[float, float] | None:
        """Risk and top-1 error on the held-out images of least squares on the labelled ones; None without any."""
        rows = self.held_out.take()
        return self._risk(rows) if self.held_out.count and self.labelled is not None and self.classes else None

    def _risk(self, rows: dict[str, Tensor]) -> tuple[float, float]:
        assert self.labelled is not None
        assert self.classes is not None
        output = self._treated(rows["z"]) @ self.labelled.solve().weights.T
        risk = torch.linalg.vector_norm(output - one_hot(rows["label"], self.classes), dim=1).mean()
        return float(risk), float((output.argmax(1) != rows["label"]).double().mean())


def _keys(index: Tensor) -> Tensor:
    return stream_keys(0, 0, index.long(), 0, "generalization bound")


def part_of(index: Tensor) -> Tensor:
    """The part, a number into ``PARTS``, of the images with these indices (N,): a hash of the index alone.

    >>> [round(share, 2) for share in (part_of(torch.arange(1_000_000)).bincount() / 1_000_000).tolist()]
    [0.4, 0.17, 0.33, 0.1]
    """
    uniform = ((_keys(index) >> 11) & ((1 << 53) - 1)).double() / 2**53
    edges = torch.tensor(SHARES, dtype=torch.float64, device=index.device).cumsum(0)[:-1]
    return torch.bucketize(uniform, edges, right=True)


def _classes_of(data: TwoViewDataModule) -> int | None:
    """Classes of the training and validation images, None where the latter have no labels or all have one."""
    labels = data.stores["val"].labels
    if not len(labels) or int(labels.max()) < 0:
        return None
    classes = max(int(labels.max()) + 1, data.num_classes or 0)
    return classes if classes > 1 else None


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
        fetched = store.__getitems__(some.tolist())
        for image in fetched.images:
            pixels = np.ascontiguousarray(image.numpy())
            about = f"{pixels.shape} {pixels.dtype}".encode()
            found.append(hashlib.blake2b(pixels.tobytes(), digest_size=16).digest() + about)
        found += [b""] * (len(some) - len(fetched.index))
    return found


def _file_digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size // 2 - 2048))
            return hashlib.blake2b(file.read(4096), digest_size=16).digest() + str(size).encode()
    except OSError:
        return b""
