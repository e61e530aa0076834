"""How a folder is read: which of its folders are splits and which are classes, and what is said of it."""

import math
import os
import unicodedata
import warnings

import pytest
from PIL import Image
from rank_trainer import SmallNet, rank_trainer

from sslinfo.callbacks import KNNProbe, LinearProbe
from sslinfo.data import TwoViewDataModule
from sslinfo.data.datasets import load
from sslinfo.errors import UserError
from sslinfo.objectives import VICReg


def make(root, **counts):
    """Folders by name, with "/" written as "__", and how many images lie in each."""
    for name, count in counts.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 9, 9)).save(folder / f"{i}.png")
    return root


def sizes(splits):
    return {split: len(store) for split, store in splits.items()}


@pytest.mark.parametrize("others", [("bus", "car"), ("bus", "test"), ("bus", "test", "val"), ("bus",)])
def test_train_beside_folders_of_images_is_a_class(tmp_path, others, capsys):
    classes = sorted([*others, "train"])
    splits = load("imagefolder", make(tmp_path, **dict.fromkeys(classes, 3)))
    assert sizes(splits) == {"train": 3 * len(classes)}
    assert splits["train"].classes == classes
    assert f"train {3 * len(classes)} images, {len(classes)} classes ({', '.join(classes)})" in capsys.readouterr().out


def test_classes_may_be_called_test_and_val_without_a_train(tmp_path):
    assert load("imagefolder", make(tmp_path, test=2, val=2, zoo=2))["train"].classes == ["test", "val", "zoo"]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "VALID", "Validation"])
def test_spellings_of_the_validation_split(tmp_path, name, capsys):
    root = make(tmp_path, **{"Train__a": 4, "Train__b": 3, f"{name}__a": 2, "TEST__b": 1})
    splits = load("imagefolder", root)
    assert sizes(splits) == {"train": 7, "val": 2, "test": 1}
    assert splits["val"].labels.tolist() == [0, 0]
    assert splits["test"].labels.tolist() == [1]
    said = f"val 2 images{'' if name == 'val' else f' (in {name}/)'}, test 1 images (in TEST/), 2 classes (a, b)"
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("note:"))
    assert line == f"note: {root}: train 7 images (in Train/), {said}"


def test_two_spellings_of_one_split_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has Val/ and valid/, which are both val images: keep one"):
        load("imagefolder", make(tmp_path, train__a=2, Val__a=1, valid__a=1))


def test_what_is_left_out_is_counted(tmp_path, capsys):
    root = make(tmp_path, train__a=2, train__b=2, extra=3)
    for name in ("1.heic", "2.HEIC", "notes.txt"):
        (root / "train" / "a" / name).write_bytes(b"")
    (root / "train" / "README").write_text("")
    (root / "train" / ".hidden.svg").write_text("")
    (root / "stray.png").write_bytes(b"")
    (root / "train" / "b" / "up").symlink_to("../..")
    assert sizes(load("imagefolder", root)) == {"train": 4}
    out = capsys.readouterr().out
    link = root / "train" / "b" / "up"
    assert out.count("\n") == 1
    assert (
        "train 4 images, 2 classes (a, b); left out: 2 .heic, 1 without ending, 1 .txt; "
        f"1 link to what is read already, or to nothing ({link}); the folder extra; 1 images beside train/"
    ) in out


def test_images_without_labels_are_said_to_have_none(tmp_path, capsys):
    root = make(tmp_path, train__a=2, train__b=2, val=3)
    assert load("imagefolder", root)["val"].labels.tolist() == [-1] * 3
    assert "train 4 images, val 3 images without labels, 2 classes (a, b)" in capsys.readouterr().out


def test_two_forms_of_one_name_are_one_class(tmp_path):
    name = "caf\u00e9"
    composed, combining = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    assert composed != combining
    make(tmp_path, **{f"train__{composed}": 2, f"train__{combining}": 3, "train__z": 1, f"val__{combining}": 1})
    splits = load("imagefolder", tmp_path)
    assert splits["train"].labels.tolist() == [0] * 5 + [1]
    assert splits["train"].classes == [composed, "z"]
    assert splits["val"].labels.tolist() == [0]


def test_class_names_that_are_no_utf_8(tmp_path, capsys):
    make(tmp_path, **{os.fsdecode(b"caf\xe9"): 2, " b c ": 1, "7": 1})
    assert load("imagefolder", tmp_path)["train"].labels.tolist() == [0, 1, 2, 2]
    # Printed without an error, whatever the terminal's encoding.
    assert r"3 classes ( b c , 7, caf\xe9)" in capsys.readouterr().out.encode("ascii").decode()


def test_classes_that_are_links(tmp_path):
    """The usual way to make a subset: class folders that lie elsewhere, a file of them once more by a link."""
    make(tmp_path / "all", cat=2, dog=3, owl=4)
    root = tmp_path / "some"
    (root / "train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (root / "train" / name).symlink_to(tmp_path / "all" / name)
    make(tmp_path / "more", cat=1, dog=1)
    (root / "val").symlink_to(tmp_path / "more")
    splits = load("imagefolder", root)
    assert sizes(splits) == {"train": 5, "val": 2}
    assert splits["train"].labels.tolist() == [0, 0, 1, 1, 1]
    (root / "train" / "zoo").symlink_to(tmp_path / "all")
    # Of the folder around them only owl was not read yet.
    again = load("imagefolder", root)["train"]
    assert again.classes == ["cat", "dog", "zoo"]
    assert again.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("links", [{"val": "train"}, {"val": "../all"}, {"val/a": "../train/a"}, {"test": "val"}])
def test_splits_that_share_a_folder_are_refused(tmp_path, links):
    root = tmp_path / "data"
    make(tmp_path / "all", a=3, b=3)
    root.mkdir()
    (root / "train").symlink_to("../all")
    make(root, **({} if "val" in links else {"val__b": 1}))
    for name, target in links.items():
        (root / name).symlink_to(target)
    with pytest.raises(UserError, match=rf"^{root}/\w+/(.) and {root}/\w+/\1 are one folder, so that .* remove one"):
        load("imagefolder", root)


def test_no_link_leads_from_one_split_into_another(tmp_path):
    make(tmp_path, train__a=2, train__b=2, val__a=1, val__b=1)
    (tmp_path / "train" / "a" / "more").symlink_to("../../val")
    (tmp_path / "valid").symlink_to("valid")  # leads to itself, and is no second split
    assert sizes(load("imagefolder", tmp_path)) == {"train": 4, "val": 2}


@pytest.mark.parametrize(
    ("mode", "message"),
    [("error", r"\d.png cannot be decoded"), ("skip", r"none of 6 images tried in .* can be decoded: check data.root")],
)
@pytest.mark.parametrize("in_memory", ["auto", False])
@pytest.mark.filterwarnings("ignore:Skipped")
def test_all_images_bad(tmp_path, mode, message, in_memory):
    make(tmp_path, a=3, b=3)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=message):
        load("imagefolder", tmp_path, on_bad_image=mode, in_memory=in_memory)


@pytest.mark.parametrize("in_memory", ["auto", False])
@pytest.mark.filterwarnings("ignore:Skipped")
def test_a_class_folder_of_bad_files(tmp_path, in_memory, capsys):
    """Whole batches of evaluation are bad."""
    half_bad(tmp_path)
    data = TwoViewDataModule(
        "imagefolder", str(tmp_path), 5, image_size=8, on_bad_image="skip", in_memory=in_memory, seed=0
    )
    data.setup()
    raws = list(data.val_dataloader())
    kept = [raw["index"][raw["keep"]].tolist() for raw in raws]
    # The ten images of class b, by their place in the set, each once; in memory the bad ones are left out at once.
    assert [index for batch in kept for index in batch] == list(range(10, 20))
    assert all(len(raw["index"]) == 5 for raw in raws)
    assert sum(raw["skipped"] for raw in raws) == (0 if in_memory == "auto" else 10)
    seen = [index for raw in data.train_dataloader() for index in raw["index"].tolist()]
    assert len(seen) % 5 == 0
    assert set(seen) <= set(range(20, 40))
    assert data.num_classes == 2
    said = f"note: 20 of 40 images in {tmp_path / 'train'} are skipped as bad\n"
    assert (said in capsys.readouterr().out) == (in_memory == "auto")


def half_bad(root):
    make(root, train__a=20, train__b=20, val__a=10, val__b=10)
    for folder in ("train/a", "val/a"):
        for path in (root / folder).iterdir():
            path.write_bytes(b"")


def _training_on_rank(rank, world_size, root):
    warnings.filterwarnings("ignore", "Skipped")
    data = TwoViewDataModule("imagefolder", root, 5, image_size=8, on_bad_image="skip", in_memory=False, seed=0)
    model = VICReg(backbone=SmallNet(), projector=[8], projector_norm="layer")
    trainer = rank_trainer(rank, world_size, max_epochs=2, callbacks=[LinearProbe(), KNNProbe(k=2)])
    trainer.fit(model, data)
    whole = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return trainer.global_step, whole, [float(weight.double().sum()) for weight in model.parameters()]


def test_ranks_keep_step_where_one_has_bad_images_alone(tmp_path, ranks):
    """Two ranks take the blocks of a validation batch: the first has class a, of which nothing is good."""
    half_bad(tmp_path)
    (step, logged, weights), (other_step, other_logged, other_weights) = ranks(2, _training_on_rank, str(tmp_path))
    assert step == other_step == 8
    assert weights == other_weights
    assert logged["probe/knn_top1"] == other_logged["probe/knn_top1"] == 1.0  # one class is left, and all are found
    assert all(math.isfinite(value) for value in logged.values())
