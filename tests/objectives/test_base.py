"""What JointEmbedding does for an objective: embeddings, precision, logging, outputs, learning rate, checkpoints."""

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from rank_trainer import QUIET, SmallNet, rank_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sslinfo.data import TwoViewDataModule
from sslinfo.errors import UserError
from sslinfo.objectives import JointEmbedding, LogDet, PairDist, VICReg
from sslinfo.optim import OptimizerConfig
from sslinfo.outputs import StepOutputs

EXTERNAL = '''
from sslinfo.objectives import JointEmbedding


class Decorrelation(JointEmbedding):
    """Agreement of the views and a cross-correlation without off-diagonal entries."""

    def __init__(self, weight: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight

    def loss(self, z1, z2):
        a, b = ((z - z.mean(0)) / (z.std(0) + 1e-4) for z in (z1, z2))
        c = a.T @ b / len(a)
        on = (c.diagonal() - 1).square().sum()
        off = c.square().sum() - c.diagonal().square().sum()
        return {"loss": on + self.weight * off, "agreement": on, "redundancy": off}
'''


def digits(batch_size: int = 64) -> TwoViewDataModule:
    return TwoViewDataModule("digits", batch_size=batch_size)


class Plain(JointEmbedding):
    """A small network without batch statistics, and the mean squared distance."""

    def __init__(self, **kwargs: Any) -> None:
        arguments = {"backbone": SmallNet(1), "in_channels": 1, "projector": [8], "projector_norm": "none"}
        super().__init__(**{**arguments, "optimizer": OptimizerConfig("sgd", lr=0.5), **kwargs})

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss": (z1 - z2).square().mean()}


def everything(outputs: Any) -> StepOutputs:
    found = StepOutputs.of(outputs)
    assert found is not None
    return found.whole("labels", "indices", "representations", "embeddings")


class Outputs(Callback):
    """What callbacks are handed, and what is logged, step by step."""

    def __init__(self) -> None:
        self.train: list[Any] = []
        self.val: list[Any] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train.append((everything(outputs), batch))
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.val.append((everything(outputs), batch))


def fit(model: JointEmbedding, *callbacks: Callback, data: Any = None, **options: Any) -> Trainer:
    arguments = {**QUIET, "max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 2, **options}
    trainer = Trainer(**arguments, callbacks=list(callbacks))
    trainer.fit(model, datamodule=digits() if data is None else data)
    return trainer


# A new objective


def test_an_objective_in_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(EXTERNAL.strip().splitlines()) <= 30
    (tmp_path / "outside_objective.py").write_text(EXTERNAL)
    monkeypatch.syspath_prepend(tmp_path)
    model = importlib.import_module("outside_objective").Decorrelation(
        weight=0.05, backbone="conv4", in_channels=1, projector=[16, 16]
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = fit(model)
    assert trainer.global_step == 3
    terms = {"loss", "agreement", "redundancy"}
    names = {name for name in trainer.callback_metrics if name.startswith(("train/", "val/"))}
    assert names == {f"{stage}/{term}" for stage in ("train", "val") for term in terms} | {"train/lr"}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for stage in ("train", "val"):
        whole = metrics[f"{stage}/agreement"] + 0.05 * metrics[f"{stage}/redundancy"]
        assert metrics[f"{stage}/loss"] == pytest.approx(whole, rel=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_every_term_is_logged_with_the_value_it_has() -> None:
    class Terms(Plain):
        def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
            distance = (z1 - z2).square().mean()
            return {"loss": 3 * distance, "distance": distance, "width": z1.new_tensor(float(z1.shape[1]))}

    seen = Outputs()
    fit(Terms(), seen)
    for logged, (outputs, _) in zip(seen.logged, seen.train, strict=True):
        z1, z2 = (outputs.embeddings[name].numpy() for name in ("z1", "z2"))
        distance = float(np.mean((z1 - z2) ** 2))
        assert logged["train/distance"] == pytest.approx(distance, rel=1e-5)
        assert logged["train/loss"] == pytest.approx(3 * distance, rel=1e-5)
        assert logged["train/width"] == 8


def test_validation_averages_over_images() -> None:
    data = TwoViewDataModule("digits", batch_size=100)  # the last batch is smaller
    seen = Outputs()
    trainer = fit(Plain(), seen, data=data, limit_val_batches=1.0)
    sizes = [len(outputs.indices) for outputs, _ in seen.val]
    assert len(set(sizes)) > 1
    losses = [(o.embeddings["z1"] - o.embeddings["z2"]).square().mean().item() for o, _ in seen.val]
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)


def test_extra_entries_of_embed_reach_the_loss_and_the_callbacks() -> None:
    class Predicting(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.predictor = nn.Linear(8, 8)

        def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
            z = super().embed(views)
            return {**z, "p1": self.predictor(z["z1"]), "weight": torch.ones(len(z["z1"]))}

        def loss(self, z1: Tensor, z2: Tensor, p1: Tensor, weight: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            assert p1.requires_grad == self.training
            return {"loss": ((p1 - z2.detach()).square().mean(1) * weight).mean()}

    seen = Outputs()
    model = Predicting()
    before = model.predictor.weight.detach().clone()
    fit(model, seen)
    embeddings = seen.train[-1][0].embeddings
    assert [(name, tuple(z.shape)) for name, z in embeddings.items()] == [
        ("z1", (64, 8)),
        ("z2", (64, 8)),
        ("p1", (64, 8)),
        ("weight", (64,)),
    ]
    assert not any(z.requires_grad for z in embeddings.values())
    assert not torch.equal(model.predictor.weight, before)


@pytest.mark.parametrize("joined", [False, True])
def test_representations_of_each_view_however_the_backbone_is_called(joined: bool) -> None:
    class Joined(Plain):
        def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
            if not joined:
                return super().embed(views)
            z1, z2 = self.projector(self.backbone(torch.cat(list(views)))).chunk(2)
            return {"z1": z1, "z2": z2}

    model = Joined()
    views = [torch.randn(5, 1, 8, 8), torch.randn(5, 1, 8, 8)]
    _, outputs = model.objective(views)
    assert len(outputs.representations) == 2
    for h, view in zip(outputs.representations, views, strict=True):
        torch.testing.assert_close(h, model.backbone(view))
        assert not h.requires_grad


def test_outputs_of_a_step_name_their_images() -> None:
    seen = Outputs()
    data = digits()
    fit(Plain(), seen, data=data)
    for outputs, batch in seen.train:
        assert outputs.indices.tolist() == batch["index"].tolist()
        store = data.stores["train"]
        label_of = dict(zip(store.index.tolist(), store.labels.tolist(), strict=True))
        assert outputs.labels.tolist() == [label_of[index] for index in outputs.indices.tolist()]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda z1, z2: (z1 - z2).square().mean(),
        lambda z1, z2: {"distance": (z1 - z2).square().mean()},
        lambda z1, z2: {"loss": (z1 - z2).square().mean(1)},
        lambda z1, z2: {"loss": 0.0},
        lambda z1, z2: {"loss": (z1 > z2).sum()},
    ],
    ids=["no dict", "no loss", "no scalar", "no tensor", "integer"],
)
def test_a_wrong_loss_is_told_what_to_return(wrong: Any) -> None:
    class Wrong(Plain):
        def loss(self, z1: Tensor, z2: Tensor) -> Any:
            return wrong(z1, z2)

    with pytest.raises(UserError, match=r"Wrong.loss must return a dict of 0-d tensors with 'loss', got"):
        fit(Wrong())


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (lambda z: {"loss": z.mean(), "extra": 1.0}, r"got for 'extra' the float 1\.0: compute it from the embeddings"),
        (lambda z: {"loss": z.mean(), "extra": z.mean(0)}, r"got for 'extra' a tensor of shape \(8,\)"),
        (lambda z: {"loss": z.mean(), "extra": (z > 0).sum()}, r"got for 'extra' a tensor of torch\.int64: .*float"),
        (lambda z: {"loss": torch.complex(z, z).mean()}, r"got for 'loss' a tensor of torch\.complex64: .*abs"),
        (lambda z: {"loss": z.mean().detach()}, r"Wrong\.loss gives a 'loss' without a gradient: .*detach"),
    ],
    ids=["float", "vector", "integer", "complex", "detached"],
)
def test_every_term_is_looked_at(terms: Any, message: str) -> None:
    class Wrong(Plain):
        def loss(self, z1: Tensor, z2: Tensor) -> Any:
            return terms(z1)

    with pytest.raises(UserError, match=rf"^Wrong\.loss .*{message.split('.loss ')[-1]}"):
        fit(Wrong())


def test_wrong_arguments() -> None:
    with pytest.raises(NotImplementedError, match=r"JointEmbedding must define loss\(self, z1, z2\)"):
        JointEmbedding(backbone=SmallNet(), projector=[4]).objective([torch.zeros(2, 3, 8, 8)] * 2)
    with pytest.raises(UserError, match="backbone=Linear has no integer num_features: set that attribute"):
        Plain(backbone=nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"in_channels=3, but the images have 1: set --model.in_channels 1"):
        fit(Plain(backbone="conv4", in_channels=3))


# Precision


def test_under_bf16_the_network_is_narrow_and_the_loss_is_not() -> None:
    seen: dict[str, Any] = {}

    class Watching(Plain):
        def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
            z = super().embed(views)
            seen["network"] = z["z1"].dtype
            return z

        def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
            seen["loss"] = z1.dtype
            seen["autocast"] = torch.is_autocast_enabled("cpu")
            seen["product"] = (z1 @ z2.T).dtype
            return super().loss(z1, z2)

    fit(Watching(), precision="bf16-mixed")
    assert seen == {
        "network": torch.bfloat16,
        "loss": torch.float32,
        "autocast": False,
        "product": torch.float32,
    }


def test_the_precision_of_products_is_full_in_the_loss_and_restored_after() -> None:
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    inside = []

    class Watching(Plain):
        def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
            inside.append(backend.fp32_precision)
            return super().loss(z1, z2)

    before = backend.fp32_precision
    try:
        backend.fp32_precision = "bf16"
        Watching().objective([torch.zeros(2, 1, 8, 8)] * 2)
        assert (inside, backend.fp32_precision) == (["ieee"], "bf16")
    finally:
        backend.fp32_precision = before


# Effective batch


def attach(model: JointEmbedding, trainer: Any, batch_size: int = 32) -> JointEmbedding:
    trainer.datamodule = SimpleNamespace(batch_size=batch_size)
    model._trainer = trainer
    return model


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({"devices": 1}, 32),
        ({"devices": "1"}, 32),
        ({"devices": "auto"}, 32),
        ({"devices": 2, "strategy": "ddp"}, 64),
        ({"devices": "2", "strategy": "ddp"}, 64),
        ({"devices": 2, "strategy": "ddp_spawn"}, 64),
        ({"devices": 2, "num_nodes": 3, "strategy": "ddp"}, 192),
        ({"devices": "2", "strategy": "ddp", "accumulate_grad_batches": 4}, 256),
        ({"devices": 1, "accumulate_grad_batches": 4}, 128),
    ],
    ids=str,
)
def test_effective_batch_however_devices_are_spelled(options: dict[str, Any], samples: int) -> None:
    assert attach(Plain(), Trainer(**QUIET, **options)).effective_batch == samples


def test_effective_batch_of_devices_in_a_list() -> None:
    # Lightning takes a list of devices on GPUs alone; what it becomes is a world size.
    fake = SimpleNamespace(world_size=len([0]), accumulate_grad_batches=2)
    assert attach(Plain(), fake).effective_batch == 64


class Loose(Dataset):
    """Batches as a plain DataLoader makes them."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"views": list(torch.randn(2, 1, 8, 8, generator=generator)), "label": -1, "index": index}


def test_a_plain_dataloader_serves_and_gives_its_batch_size() -> None:
    model = Plain()
    trainer = Trainer(**QUIET, max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(model, DataLoader(Loose(), batch_size=6))
    assert (trainer.global_step, model.effective_batch) == (2, 12)
    other = Trainer(**QUIET, max_epochs=1)
    with pytest.raises(UserError, match="the batch size is unknown"):
        other.fit(Plain(), DataLoader(Loose(), batch_sampler=[[0, 1], [2, 3]]))


# Several processes


def train_small(rank: int, world_size: int, batch_size: int, norm: str) -> dict[str, Any]:
    seed_everything(3, verbose=False)
    seen = Outputs()
    model = VICReg(
        entropy=LogDet(),
        backbone=SmallNet(1),
        in_channels=1,
        projector=[16, 12],
        projector_norm=norm,
        optimizer=OptimizerConfig("sgd", lr=0.05, warmup_steps=2, options={"momentum": 0.9}),
    )
    with torch.random.fork_rng():
        trainer = rank_trainer(
            rank, world_size, max_epochs=1, limit_train_batches=6, limit_val_batches=2, callbacks=[seen]
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(model, datamodule=digits(batch_size))
    return {
        "weights": {name: tensor.numpy() for name, tensor in model.state_dict().items()},
        "logged": seen.logged,
        "index": [outputs.indices.tolist() for outputs, _ in seen.train],
        "val": {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")},
        "warned": [str(warning.message) for warning in caught if "batch norm keeps" in str(warning.message)],
    }


def test_training_on_two_ranks_is_training_on_one(ranks: Any) -> None:
    """Sampler, views, gather, DDP, learning rate and optimizer together: weights after six steps."""
    one = train_small(0, 1, 64, "layer")
    results = ranks(2, train_small, 32, "layer")
    for result in results:
        assert result["index"] == one["index"]
        for name, weight in one["weights"].items():
            np.testing.assert_allclose(result["weights"][name], weight, rtol=0, atol=2e-5)
        for logged, expected in zip(result["logged"], one["logged"], strict=True):
            assert logged == pytest.approx(expected, rel=1e-4)
        assert result["val"] == pytest.approx(one["val"], rel=1e-4)
    assert one["logged"][0]["train/loss"] != pytest.approx(one["logged"][-1]["train/loss"], rel=1e-2)


def test_unsynchronised_batch_norm_is_said_once(ranks: Any) -> None:
    first, second = ranks(2, train_small, 32, "batch")
    assert len(first["warned"]) == 1
    assert "on each of the 2 ranks" in first["warned"][0]
    assert "--trainer.sync_batchnorm true" in first["warned"][0]
    assert second["warned"] == []
    assert train_small(0, 1, 64, "batch")["warned"] == []


def test_strategies_other_than_ddp_are_refused_on_several_devices() -> None:
    model = Plain()
    model._trainer = SimpleNamespace(world_size=2, strategy=FSDPStrategy(), datamodule=None)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"strategy=FSDPStrategy is not supported .*: set --trainer.strategy ddp"):
        model.setup("validate")
    model._trainer.strategy = DDPStrategy()  # type: ignore[misc]
    model.setup("validate")
    model._trainer.strategy, model._trainer.world_size = FSDPStrategy(), 1  # type: ignore[misc]
    model.setup("validate")


# Random numbers


class Noisy(Plain):
    def __init__(self) -> None:
        torch.manual_seed(11)
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.masks: list[list[float]] = []

    def embed(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        if self.training:
            self.masks.append(self.dropout(torch.ones(16)).tolist())
        return super().embed(views)


class Thief(Callback):
    """Draws random numbers between the steps."""

    def on_train_batch_end(self, *args: Any) -> None:
        torch.rand(7)


def test_random_numbers_in_the_network_are_a_function_of_seed_epoch_and_batch() -> None:
    def masks(seed: int, *callbacks: Callback) -> list[list[float]]:
        seed_everything(seed, verbose=False)
        model = Noisy()
        fit(model, *callbacks, max_epochs=2, limit_val_batches=0)
        return model.masks

    first = masks(1)
    assert masks(1, Thief()) == first
    assert len({tuple(mask) for mask in first}) == 6
    assert all(a != b for a, b in zip(masks(2), first, strict=True))


# Checkpoints


def test_a_checkpoint_rebuilds_its_model_without_arguments(tmp_path: Path) -> None:
    model = VICReg(
        entropy=PairDist(variance=0.3, bound="lower"),
        invariance=7.0,
        backbone="conv4",
        in_channels=1,
        backbone_options={"width": 4},
        projector=[16, 12],
        projector_norm="layer",
        optimizer=OptimizerConfig("lars", lr=0.2, options={"momentum": 0.8}),
    )
    trainer = fit(model)
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["entropy"]["init_args"]["variance"] == 0.3
    for again in (VICReg.load_from_checkpoint(path), VICReg.load_from_checkpoint(path, weights_only=True)):
        assert isinstance(again.entropy, PairDist)
        assert (again.entropy.variance, again.entropy.bound, again.invariance) == (0.3, "lower", 7.0)
        assert again.optimizer_config == model.optimizer_config
        assert dict(again.hparams) == dict(model.hparams)
        views = [torch.randn(6, 1, 8, 8), torch.randn(6, 1, 8, 8)]
        expected, found = (m.eval().objective(views)[0] for m in (model, again))
        assert {name: term.item() for name, term in found.items()} == {
            name: term.item() for name, term in expected.items()
        }


def test_a_rebuilt_model_is_trained_and_saved_again(tmp_path: Path) -> None:
    first = tmp_path / "first.ckpt"
    fit(VICReg(entropy=LogDet(beta=3.0), backbone="conv4", in_channels=1, projector=[8])).save_checkpoint(first)
    again = VICReg.load_from_checkpoint(first)
    assert again.entropy.beta == 3.0  # type: ignore[union-attr]
    fit(again).save_checkpoint(tmp_path / "second.ckpt")
    parameters = [torch.load(path, weights_only=True)["hyper_parameters"] for path in (first, tmp_path / "second.ckpt")]
    assert parameters[0] == parameters[1]


def test_arguments_beside_the_checkpoint_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    fit(VICReg(entropy=LogDet(beta=3.0), backbone="conv4", in_channels=1, projector=[8])).save_checkpoint(path)
    again = VICReg.load_from_checkpoint(path, invariance=2.0)
    assert again.invariance == 2.0
    assert again.entropy.beta == 3.0  # type: ignore[union-attr]


def test_a_users_own_backbone_is_given_again(tmp_path: Path) -> None:
    model = VICReg(backbone=SmallNet(1), in_channels=1, projector=[8], projector_norm="none")
    path = tmp_path / "run.ckpt"
    fit(model).save_checkpoint(path)
    again = VICReg.load_from_checkpoint(path, backbone=SmallNet(1))
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(images), model(images))


# Batches of ordinary loaders


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("form", ["pair", "tensor", "dict"])
def test_batches_of_an_ordinary_loader_are_refused_in_words(stage: str, form: str) -> None:
    images = torch.rand(8, 3, 8, 8)
    items: list[Any] = {
        "pair": [(image, 0) for image in images],
        "tensor": list(images),
        "dict": [{"image": image, "label": 0} for image in images],
    }[form]
    model = VICReg(backbone="conv4", backbone_options={"width": 2}, projector=[8])
    trainer = Trainer(**QUIET, max_epochs=1)
    needed = "views, label, index" if stage == "fit" else "views, clean" if stage == "validate" else "clean, label"
    got = {"pair": "a list", "tensor": "a Tensor", "dict": "a dict of image, label"}[form]
    message = rf"VICReg takes batches that are dicts with {needed}.*got {got}: pass datamodule="
    with pytest.raises(UserError, match=message):
        getattr(trainer, stage)(model, DataLoader(items, 4))
