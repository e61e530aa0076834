"""The k-NN probe: what it votes with, when, and with how many images."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from rank_trainer import QUIET, SmallNet, rank_trainer
from torch import Tensor
from torch.utils.data import TensorDataset

from sslinfo.callbacks import KNNProbe
from sslinfo.data import TwoViewDataModule
from sslinfo.evaluation.features import clean_features
from sslinfo.evaluation.probes import knn_scores
from sslinfo.objectives import JointEmbedding, VICReg


class Recorded(KNNProbe):
    """Notes the bank of every evaluation it takes part in, and the training step it was at."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.banks: list[tuple[int, Tensor, Tensor]] = []

    def _start(self, trainer: Any, module: Any) -> None:
        super()._start(trainer, module)
        if self.bank is not None:
            self.banks.append((trainer.global_step, *self.bank))


def module() -> JointEmbedding:
    torch.manual_seed(0)
    return VICReg(backbone=SmallNet(1), in_channels=1, projector=[8], projector_norm="none")


def digits(batch_size: int = 100, **options: Any) -> TwoViewDataModule:
    return TwoViewDataModule("digits", batch_size=batch_size, **options)


def expected_top1(model: JointEmbedding, data: TwoViewDataModule, bank: int | None, **options: Any) -> float:
    features, labels = clean_features(data, model, "train", limit=bank)
    queries, truth = clean_features(data, model, "val")
    scores = knn_scores(queries, features, labels, 10, **options)
    return (scores.argmax(1) == truth).float().mean().item()


@pytest.mark.parametrize(("k", "temperature", "bank"), [(20, 0.07, 10_000), (1, 0.07, 300), (5, 0.5, 300)])
def test_validation_alone(k: int, temperature: float, bank: int) -> None:
    model, data, probe = module(), digits(), Recorded(k, temperature, bank)
    trainer = Trainer(**QUIET, callbacks=[probe])
    trainer.validate(model, datamodule=data, verbose=False)
    found = float(trainer.callback_metrics["probe/knn_top1"])
    assert found == pytest.approx(expected_top1(model, data, bank, k=k, temperature=temperature))
    assert found > 0.3, "chance is .1"
    assert len(probe.banks[0][1]) == min(bank, len(data.stores["train"]))


def test_the_bank_is_of_clean_training_images_and_let_go() -> None:
    model, data, probe = module(), digits(), Recorded(bank_size=50)
    Trainer(**QUIET, callbacks=[probe]).validate(model, datamodule=data, verbose=False)
    ((_, features, labels),) = probe.banks
    assert features.shape == (50, 12)
    store = data.stores["train"]
    images = data.pipeline.clean(store.read(range(len(store))).images)
    whole = model.eval()(images)
    for feature, label in zip(features, labels.tolist(), strict=True):
        nearest = int((whole - feature).abs().amax(1).argmin())
        torch.testing.assert_close(whole[nearest], feature, rtol=1e-5, atol=1e-6)
        assert int(store.labels[nearest]) == label
    assert probe.bank is None


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4]), (2, [1, 3]), (3, [1, 4])])
def test_cadence_in_training(every: int, steps: list[int]) -> None:
    probe = Recorded(bank_size=50, every_n_validations=every)
    options = {**QUIET, "num_sanity_val_steps": 1}
    trainer = Trainer(**options, max_epochs=4, limit_train_batches=1, limit_val_batches=1, callbacks=[probe])
    trainer.fit(module(), datamodule=digits())
    assert [step for step, _, _ in probe.banks] == steps
    assert probe.state_dict() == {"validations": 4}
    # Outside training it takes part whatever the count.
    trainer.validate(trainer.lightning_module, datamodule=digits(), verbose=False)
    assert len(probe.banks) == len(steps) + 1


def test_the_choice_of_images_stays() -> None:
    probe = Recorded(bank_size=40)
    options = {"max_epochs": 2, "limit_train_batches": 1, "limit_val_batches": 1}
    Trainer(**QUIET, **options, callbacks=[probe]).fit(module(), datamodule=digits())
    (_, first, labels), (_, second, labels_later) = probe.banks
    assert torch.equal(labels, labels_later)
    assert not torch.equal(first, second), "the features follow the network"


def test_the_count_of_validations_is_resumed() -> None:
    probe = KNNProbe(every_n_validations=2)
    probe.load_state_dict({"validations": 3})
    assert probe.state_dict() == {"validations": 3}


def train(probed: bool) -> dict[str, Tensor]:
    model = module()
    callbacks = [KNNProbe(bank_size=100)] if probed else []
    options = {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}
    Trainer(**QUIET, **options, callbacks=callbacks).fit(model, datamodule=digits())
    return model.state_dict()


def test_training_does_not_feel_the_probe() -> None:
    bare, probed = train(False), train(True)
    assert all(torch.equal(tensor, probed[name]) for name, tensor in bare.items())


def evaluate(rank: int, world_size: int) -> dict[str, float]:
    """The validation and the test images, 179 and 360, do not divide by the ranks and their batches."""
    trainer = rank_trainer(rank, world_size, callbacks=[KNNProbe(bank_size=500)])
    out = {}
    for stage in (trainer.validate, trainer.test):
        stage(module(), datamodule=digits(batch_size=50), verbose=False)
        out[stage.__name__] = float(trainer.callback_metrics["probe/knn_top1"])
    return out


def test_several_ranks_count_every_image_once(ranks: Any) -> None:
    one = evaluate(0, 1)
    for found in ranks(3, evaluate):
        # Features agree but for rounding: a tie may tip over, one image in 144.
        assert found == pytest.approx(one, abs=0.0071)


def labelled(labels: Tensor) -> TensorDataset:
    torch.manual_seed(1)
    images = (labels.clamp(min=0)[:, None, None, None] * 60 + torch.randint(0, 60, (len(labels), 1, 8, 8))).byte()
    return TensorDataset(images, labels)


def test_without_labels_it_is_off_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    data = TwoViewDataModule(labelled(torch.full((60,), -1)), batch_size=20)
    trainer = Trainer(**QUIET, callbacks=[KNNProbe()])
    trainer.validate(module(), datamodule=data, verbose=False)
    assert "probe/knn_top1" not in trainer.callback_metrics
    assert "KNNProbe is off: the training images have no labels" in capsys.readouterr().out


def test_images_without_a_label_neither_vote_nor_count() -> None:
    labels = torch.arange(90) % 3
    labels[::2] = -1
    data, probe, model = TwoViewDataModule(labelled(labels), batch_size=20, val_fraction=0.3), Recorded(k=3), module()
    trainer = Trainer(**QUIET, callbacks=[probe])
    trainer.validate(model, datamodule=data, verbose=False)
    ((_, bank, bank_labels),) = probe.banks
    assert len(bank_labels) == int((data.stores["train"].labels >= 0).sum()) < len(data.stores["train"])
    assert int(bank_labels.min()) == 0
    queries, truth = clean_features(data, model, "val")
    known = truth >= 0
    right = (knn_scores(queries[known], bank, bank_labels, 3, 3).argmax(1) == truth[known]).float().mean().item()
    assert float(trainer.callback_metrics["probe/knn_top1"]) == pytest.approx(right)
