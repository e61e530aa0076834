"""The online probe learns from what the step made and nothing else does; the final one is fitted on frozen features."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from rank_trainer import QUIET, SmallNet, rank_trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

from sslinfo.callbacks import KNNProbe, LinearProbe
from sslinfo.callbacks.linear_probe import label_subset
from sslinfo.data import TwoViewDataModule
from sslinfo.evaluation.features import clean_features
from sslinfo.evaluation.probes import fit_linear
from sslinfo.objectives import JointEmbedding, LogDet, VICReg
from sslinfo.optim import OptimizerConfig
from sslinfo.outputs import StepOutputs


class Handwritten(Dataset):
    """The digits, with every label but one in ``keep_every`` set to -1; 0 keeps none."""

    def __init__(self, keep_every: int = 1, count: int = 400) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images = torch.from_numpy(images.reshape(-1, 1, 8, 8)[:count] * (255 / 16)).to(torch.uint8)
        kept = np.arange(count) % keep_every == 0 if keep_every else np.zeros(count, dtype=bool)
        self.targets = np.where(kept, labels[:count], -1).tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def module() -> JointEmbedding:
    return VICReg(
        entropy=LogDet(),
        backbone=SmallNet(1),
        in_channels=1,
        projector=[16, 12],
        projector_norm="layer",
        optimizer=OptimizerConfig("sgd", lr=0.05, schedule="constant"),
    )


def head_of(probe: LinearProbe) -> dict[str, np.ndarray]:
    assert probe.head is not None
    return {name: tensor.detach().clone().numpy() for name, tensor in probe.head.state_dict().items()}


class Probed(Callback):
    """Loss of the probe at every step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if "probe/linear_loss" in trainer.callback_metrics:
            self.losses[trainer.global_step] = float(trainer.callback_metrics["probe/linear_loss"])


def train(rank: int, world_size: int, batch_size: int, probed: bool = True) -> dict[str, Any]:
    seed_everything(5, verbose=False)
    model, probe, seen = module(), LinearProbe(lr=0.01), Probed()
    callbacks: list[Callback] = [probe, seen] if probed else []
    trainer = rank_trainer(rank, world_size, max_epochs=1, limit_train_batches=6, callbacks=callbacks)
    trainer.fit(model, datamodule=TwoViewDataModule("digits", batch_size=batch_size))
    return {
        "head": head_of(probe) if probed else {},
        "model": {name: tensor.numpy() for name, tensor in model.state_dict().items()},
        "losses": seen.losses,
        "top1": float(trainer.callback_metrics.get("probe/linear_top1", torch.nan)),
    }


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    return train(0, 1, 64)


def test_same_probe_on_every_rank_and_on_one_process(ranks: Any, one_process: dict[str, Any]) -> None:
    first, second = ranks(2, train, 32)
    for name, weight in first["head"].items():
        np.testing.assert_array_equal(weight, second["head"][name])
        # The network's own weights differ by rounding between one process and two.
        np.testing.assert_allclose(weight, one_process["head"][name], rtol=0, atol=1e-4)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(one_process["losses"], rel=1e-4)
    # The validation images of both ranks count: one in 180 may tip over by rounding.
    assert first["top1"] == second["top1"] == pytest.approx(one_process["top1"], abs=0.006)


def test_training_does_not_feel_the_probe(one_process: dict[str, Any]) -> None:
    bare = train(0, 1, 64, probed=False)
    for name, weight in bare["model"].items():
        np.testing.assert_array_equal(weight, one_process["model"][name])


def test_it_learns_at_every_step(one_process: dict[str, Any]) -> None:
    losses = one_process["losses"]
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[6] < 0.98 * losses[1]


def test_it_learns_what_a_linear_classifier_can() -> None:
    """Ten class means far apart: all is right after 60 steps, and a constant guess is right in a tenth."""
    probe = LinearProbe(lr=0.02)
    started(probe, Handwritten())
    means = torch.randn(10, 12)
    for _ in range(60):
        labels = torch.randint(0, 10, (50,))
        fake_step(probe, [5 * means[labels] + torch.randn(50, 12) for _ in range(2)], labels)
    assert probe.head is not None
    labels = torch.arange(10).repeat(20)
    predicted = probe.head.eval()(5 * means[labels] + torch.randn(200, 12)).argmax(1)
    assert (predicted == labels).float().mean() > 0.98


def test_a_validation_batch_without_labels_counts_for_nothing() -> None:
    class SomeLabels(torch.utils.data.Dataset):
        """Forty images without a label behind forty that have one."""

        def __len__(self) -> int:
            return 80

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            generator = torch.Generator().manual_seed(index)
            label = index % 2 if index < 40 else -1
            return torch.randint(0, 256, (1, 8, 8), generator=generator, dtype=torch.uint8), label

    data = TwoViewDataModule(SomeLabels(), test_dataset=SomeLabels(), batch_size=20, val_fraction=0, views="digits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = rank_trainer(0, 1, max_epochs=1, callbacks=[LinearProbe()])
        trainer.fit(module(), datamodule=data)
    assert 0 <= float(trainer.callback_metrics["probe/linear_top1"]) <= 1


def test_another_training_gets_another_head() -> None:
    probe = LinearProbe()
    heads = []
    for _ in range(2):
        data = TwoViewDataModule("digits", batch_size=64)
        trainer = rank_trainer(0, 1, max_steps=2, limit_val_batches=0, callbacks=[probe])
        trainer.fit(module(), datamodule=data)
        heads.append(probe.head)
    assert heads[0] is not heads[1]


def test_saved_and_resumed_it_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def fit(path: Path | None) -> tuple[dict[str, np.ndarray], dict[int, float]]:
        seed_everything(5, verbose=False)
        model, probe, seen = module(), LinearProbe(lr=0.01), Probed()
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        options = {**QUIET, "enable_checkpointing": True, "limit_val_batches": 0}
        trainer = Trainer(**options, max_epochs=2, callbacks=[probe, seen, keep])
        data = TwoViewDataModule(Handwritten(), batch_size=100, val_fraction=0.25)
        trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
        return head_of(probe), seen.losses

    whole, losses = fit(None)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    resumed, later = fit(tmp_path / "step=4.ckpt")  # the middle of the second epoch
    assert later == {step: loss for step, loss in losses.items() if step > 4}
    for name, weight in whole.items():
        np.testing.assert_array_equal(weight, resumed[name])


def fake_step(probe: LinearProbe, views: list[Tensor], labels: Tensor) -> None:
    logged = SimpleNamespace(device=torch.device("cpu"), log=lambda *args, **kwargs: None, global_rank=0)
    outputs = StepOutputs(labels, torch.arange(len(labels)), representations=tuple(views))
    probe.on_train_batch_end(None, logged, outputs, None, 0)  # type: ignore[arg-type]


def started(probe: LinearProbe, dataset: Dataset) -> JointEmbedding:
    """The probe as it is when a training starts."""
    model = module()
    data = TwoViewDataModule(dataset, batch_size=32)
    data.setup("fit")
    trainer = SimpleNamespace(datamodule=data, lightning_module=model, world_size=1)
    probe.on_fit_start(trainer, model)  # type: ignore[arg-type]
    return model


def test_images_without_a_label_are_left_out() -> None:
    probe = LinearProbe(lr=0.02)
    started(probe, Handwritten(keep_every=2))
    assert probe.head is not None
    linear = probe.head[1]
    reference = nn.Linear(12, linear.out_features)
    reference.load_state_dict(linear.state_dict())
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.02)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        views = [torch.randn(20, 12, generator=generator) * 3 + 1 for _ in range(2)]
        labels = torch.randint(0, 10, (20,), generator=generator)
        labels[::3] = -1
        fake_step(probe, views, labels)
        known = [i for i in range(20) if labels[i] != -1]
        x = torch.cat([view[known] for view in views])
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        logits = reference(x)
        y = torch.cat([labels[known]] * 2)
        loss = -(logits[torch.arange(len(y)), y] - logits.logsumexp(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(linear.weight, reference.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(linear.bias, reference.bias, rtol=0, atol=1e-5)


def test_a_batch_without_labels_changes_nothing() -> None:
    probe = LinearProbe()
    started(probe, Handwritten(keep_every=2))
    before = head_of(probe)
    fake_step(probe, [torch.randn(8, 12)] * 2, torch.full((8,), -1))
    for name, weight in head_of(probe).items():
        np.testing.assert_array_equal(weight, before[name])


def test_half_labelled_data_is_trained_and_validated_on_what_is_labelled() -> None:
    probe = LinearProbe()
    data = TwoViewDataModule(Handwritten(keep_every=2), batch_size=64, val_fraction=0.25)
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[probe])
    model = module()
    trainer.fit(model, datamodule=data)
    features, labels = clean_features(data, model, "val")
    known = labels >= 0
    assert 0 < int(known.sum()) < len(labels)
    assert probe.head is not None
    predicted = probe.head.eval()(features[known]).argmax(1)
    expected = (predicted == labels[known]).float().mean().item()
    assert float(trainer.callback_metrics["probe/linear_top1"]) == pytest.approx(expected)


def test_without_labels_it_is_off_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    probe = LinearProbe()
    trainer = Trainer(**QUIET, max_epochs=1, limit_train_batches=2, callbacks=[probe])
    trainer.fit(module(), datamodule=TwoViewDataModule(Handwritten(keep_every=0), batch_size=64))
    assert not any(name.startswith("probe/") for name in trainer.callback_metrics)
    assert capsys.readouterr().out.count("LinearProbe is off: the training images have no labels") == 1
    assert probe.state_dict() == {}
    trainer.test(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    assert not any(name.startswith("probe/") for name in trainer.callback_metrics)


def test_the_final_probe_is_a_fit_on_frozen_features() -> None:
    model, probe = module(), LinearProbe()
    data = TwoViewDataModule(Handwritten(), batch_size=64, test_dataset=Handwritten(count=100))
    trainer = Trainer(**QUIET, callbacks=[probe])
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.test(model, datamodule=data, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    train, labels = clean_features(data, model, "train")
    test, test_labels = clean_features(data, model, "test")
    assert (len(train), len(test)) == (360, 100)
    expected = {}
    for suffix, fraction in (("", 1.0), ("_10pct", 0.1), ("_1pct", 0.01)):
        rows = label_subset(labels, fraction)
        accuracy = fit_linear(train[rows], labels[rows]).accuracy(test, test_labels)
        expected[f"probe/linear_top1{suffix}"] = accuracy
    assert found == pytest.approx(expected, abs=1e-6)
    assert found["probe/linear_top1"] > found["probe/linear_top1_1pct"] > 0.1
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def final_probe(rank: int, world_size: int) -> dict[str, float]:
    torch.manual_seed(0)
    data = TwoViewDataModule(Handwritten(), batch_size=32, test_dataset=Handwritten(count=99))
    trainer = rank_trainer(rank, world_size, callbacks=[LinearProbe()])
    trainer.test(module(), datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_the_final_probe_is_the_same_on_several_ranks(ranks: Any) -> None:
    """99 test images do not divide by 2 ranks: each counts once all the same."""
    first, second = ranks(2, final_probe)
    # Features agree but for rounding, which may tip one image in 99.
    assert first == second == pytest.approx(final_probe(0, 1), abs=0.0102)


@pytest.mark.parametrize("probe", [LinearProbe, KNNProbe])
def test_images_of_one_class_turn_a_probe_off(probe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    digits = Handwritten()
    digits.targets = [4] * len(digits)  # a label that is no 0: it is the only one all the same
    data = TwoViewDataModule(digits, batch_size=50)
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[probe()])
    model = module()
    trainer.fit(model, data)
    trainer.test(model, data)
    assert data.num_classes == 1
    assert trainer.global_step == 360 // 50
    assert not [name for name in trainer.callback_metrics if name.startswith("probe/")]
    assert capsys.readouterr().out.count(f"note: {probe.__name__} is off: all images are of one class") == 1
