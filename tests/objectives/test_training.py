"""Every objective trains on digits without collapse, in bfloat16 too, and says which batches it cannot use."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from rank_trainer import rank_trainer
from torch import Tensor

from sslinfo.callbacks import CollapseAlarm
from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.evaluation.features import clean_features
from sslinfo.evaluation.probes import label_efficiency
from sslinfo.information import UndefinedEstimate, effective_rank
from sslinfo.objectives import (
    BYOL,
    WMSE,
    BarlowTwins,
    JointEmbedding,
    LogDet,
    MoCo,
    PairDist,
    SIGReg,
    SimCLR,
    SimSiam,
    SwAV,
    VICReg,
    VonNeumann,
)
from sslinfo.optim import OptimizerConfig

Build = Callable[..., JointEmbedding]


def with_half(build: Build, half: Callable[[], Any]) -> Build:
    """A half of its own for each model: some have a state."""
    return lambda **options: build(entropy=half(), **options)


byol = partial(BYOL, predictor=[64], momentum=0.9)
simsiam = partial(SimSiam, predictor=[16], projector_last_norm=True)
OBJECTIVES: dict[str, Build] = {
    "vicreg": VICReg,
    "vicreg and logdet": with_half(VICReg, LogDet),
    "vicreg and pairdist": with_half(VICReg, PairDist),
    "vicreg and vonneumann": with_half(VICReg, lambda: VonNeumann(weight=25.0)),
    "vicreg and sigreg": with_half(VICReg, lambda: SIGReg(slices=32)),
    "byol": byol,
    "byol and logdet": with_half(byol, lambda: LogDet(weight=1.0)),
    "byol and pairdist": with_half(byol, lambda: PairDist(weight=0.2)),
    "simclr": SimCLR,
    "simsiam": simsiam,
    "simsiam and logdet": with_half(simsiam, lambda: LogDet(weight=1.0)),
    "barlow twins": partial(BarlowTwins, scale=0.1),
    "barlow twins and pairdist": with_half(partial(BarlowTwins, scale=0.1), lambda: PairDist(weight=0.2)),
    "moco v2+": partial(MoCo, queue=700, predictor=None, momentum=0.9),
    "moco v3": partial(MoCo, predictor=[64], momentum=0.9, projector_last_norm=True),
    "swav": partial(SwAV, prototypes=30, freeze_prototypes_epochs=1),
    "w-mse": partial(WMSE, slice_size=64),
}


def build(name: str) -> JointEmbedding:
    torch.manual_seed(0)
    optimizer = OptimizerConfig("adamw", lr=2e-3, warmup_steps=5)
    return OBJECTIVES[name](
        backbone="conv4", backbone_options={"width": 8}, in_channels=1, projector=[64, 32], optimizer=optimizer
    )


class Remembering(TwoViewDataModule):
    """Makes the views of a batch once for all objectives: they are a function of the key and of no network."""

    made: ClassVar[dict[tuple[Any, ...], dict[str, Any]]] = {}

    def to_batch(self, raw: dict[str, Any]) -> dict[str, Any]:
        where = (raw[name] for name in ("training", "make_views", "epoch", "batch"))
        key = (self.seed, *where, *raw["index"].tolist())
        if key not in self.made:
            self.made[key] = super().to_batch(raw)
        batch = dict(self.made[key])
        if "views" in batch:
            batch["views"] = [view.clone() for view in batch["views"]]
        return batch


def digits_data() -> TwoViewDataModule:
    return Remembering("digits", batch_size=128, val_fraction=0.25)


@pytest.fixture(scope="module")
def digits() -> TwoViewDataModule:
    data = digits_data()
    data.setup("fit")
    return data


def probe(model: JointEmbedding, data: TwoViewDataModule) -> float:
    """Linear probe with three labels a class, mean over 8 draws: far enough from 1 to tell networks apart."""
    train, labels = clean_features(data, model, "train")
    test, truth = clean_features(data, model, "val")
    return label_efficiency(train, labels, test, truth, per_class=3, draws=8).mean


@pytest.fixture(scope="module")
def untrained(digits: TwoViewDataModule) -> float:
    model = build("vicreg")
    model.backbone.train()
    with torch.no_grad():  # batch-norm statistics of the data: a network that was never run has none
        for raw in digits.train_dataloader():
            model.backbone(digits.pipeline.clean(raw["images"]))
    return probe(model, digits)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_200_steps_do_not_collapse_and_teach(
    name: str, precision: Any, digits: TwoViewDataModule, untrained: float
) -> None:
    data = digits_data()
    model = build(name)
    alarm = CollapseAlarm()
    trainer = rank_trainer(0, 1, max_steps=200, check_val_every_n_epoch=20, precision=precision, callbacks=[alarm])
    trainer.fit(model, data)
    assert not alarm.alarms
    metrics = {metric: float(value) for metric, value in trainer.callback_metrics.items()}
    assert {"train/loss", "val/loss"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    features, _ = clean_features(digits, model, "val")
    assert effective_rank(features) > 5
    assert probe(model, digits) > untrained


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


BATCHES: dict[str, list[Tensor]] = {
    "two images": [images(2), images(2, 1)],
    "identical images": [images(1).expand(64, 1, 8, 8)] * 2,
    "identical images, views apart": [images(1).expand(64, 1, 8, 8), images(1, 1).expand(64, 1, 8, 8)],
    "constant": [torch.zeros(64, 1, 8, 8)] * 2,
}


# What cannot be computed, and the words that say so; every other pair of objective and batch trains.
REFUSED = {
    ("w-mse", "two images"): "2 samples have a covariance of rank 1.*model.eps",
    ("w-mse", "identical images"): "covariance is singular.*model.eps",
    ("w-mse", "identical images, views apart"): "covariance is singular.*model.eps",
    ("w-mse", "constant"): "covariance is singular.*model.eps",
    ("vicreg and vonneumann", "constant"): "z is zero throughout",
}


def three_steps(model: JointEmbedding, views: list[Tensor]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        terms, _ = model.objective(views)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        assert all(torch.isfinite(term) for term in terms.values()), terms
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_poor_batch_trains_or_says_what_is_wrong(name: str, batch: str) -> None:
    if (name, batch) in REFUSED:
        with pytest.raises((UserError, UndefinedEstimate), match=REFUSED[name, batch]):
            three_steps(build(name), BATCHES[batch])
    else:
        three_steps(build(name), BATCHES[batch])


# These ask nothing of a batch but its own rows; a statistic of one sample is refused.
SERVES_ONE = {"byol", "simclr", "simsiam", "moco v2+", "moco v3", "swav"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_image(name: str) -> None:
    model = build(name).eval()  # batch norm would refuse it first
    if name in SERVES_ONE:
        assert torch.isfinite(model.objective([images(1), images(1, 1)])[0]["loss"])
    else:
        with pytest.raises(
            (UserError, UndefinedEstimate), match=r"got 1: (raise data.batch_size|pass a larger)|^1 samples"
        ):
            model.objective([images(1), images(1, 1)])
