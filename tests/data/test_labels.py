"""Labels as users have them: ids, gaps, none, and lists that disagree with the items."""

import pytest
import torch
from store_images import IMAGES, Items

from sslinfo.data import TwoViewDataModule
from sslinfo.data.labels import number_of_classes
from sslinfo.data.stores import MemoryStore
from sslinfo.errors import UserError


def ready(labels, test=None, **options):
    items, more = Items(with_labels(labels), **options.pop("attributes", {})), None
    if test is not None:
        more = Items(with_labels(test))
    data = TwoViewDataModule(items, batch_size=4, test_dataset=more, seed=0, **options)
    data.setup()
    return data


def with_labels(labels):
    return [(IMAGES[i % 12], label) for i, label in enumerate(labels)]


def labels_of(data, split="train"):
    """Labels by index, as the batches have them."""
    found = {}
    for raw in data.clean_dataloader(split):
        found |= dict(zip(raw["index"].tolist(), raw["label"].tolist(), strict=True))
    return found


@pytest.mark.parametrize("in_memory", ["auto", True])
def test_ids_become_0_to_k_minus_1(in_memory, capsys):
    ids = [3, 700, 2**40]
    data = ready([ids[i % 3] for i in range(30)], in_memory=in_memory)
    assert data.num_classes == 3
    assert labels_of(data) == {i: i % 3 for i in data.stores["train"].index.tolist()}
    assert data.stores["train"].labels.tolist() == [i % 3 for i in data.stores["train"].index.tolist()]
    assert (
        "note: the labels of Items are taken as 0 ... 2, in this order: 3, 700, 1099511627776"
        in capsys.readouterr().out
    )


def test_labels_from_1_on_and_images_without():
    data = ready([[1, 2, None][i % 3] for i in range(30)])
    assert data.num_classes == 2
    assert labels_of(data) == {i: [0, 1, -1][i % 3] for i in data.stores["train"].index.tolist()}


def test_labels_that_count_from_0_stay(capsys):
    data = ready([i % 4 for i in range(40)], test=[0, 1])
    assert data.num_classes == 4
    assert labels_of(data) == {i: i % 4 for i in data.stores["train"].index.tolist()}
    assert "are taken as" not in capsys.readouterr().out


def test_a_class_that_only_the_test_set_has_is_no_gap(capsys):
    data = ready([[0, 1, 3][i % 3] for i in range(30)], test=[2, 3])
    assert data.num_classes == 4
    assert labels_of(data, "test") == {0: 2, 1: 3}
    assert "are taken as" not in capsys.readouterr().out


def test_all_splits_change_alike():
    data = ready([[10, 30][i % 2] for i in range(30)], test=[30, 20, 10])
    assert data.num_classes == 3
    assert labels_of(data, "test") == {0: 2, 1: 1, 2: 0}
    assert set(labels_of(data).values()) == {0, 2}


def test_a_class_whose_only_image_is_held_out_has_a_label():
    data = ready(list(range(30)), val_fraction=0.2)
    assert data.num_classes == 30
    assert labels_of(data, "val") == {i: i for i in data.stores["val"].index.tolist()}


def test_label_that_no_training_image_has():
    data = ready([i % 2 for i in range(30)], test=[0, 5])
    with pytest.raises(UserError, match=r"item 1 of Items has the label 5, which no training image has"):
        labels_of(data, "test")


@pytest.mark.parametrize("label", [-2, -5, 2**63])
def test_negative_and_endless_labels_are_named(label):
    with pytest.raises(UserError, match=rf"the label of item 7 of Items must be 0 or above, .* got {label}"):
        ready([label if i == 7 else i % 2 for i in range(30)])
    if label < 0:
        listed = [label if i == 7 else i % 2 for i in range(400)]
        with pytest.raises(UserError, match=rf"labels of Items must be at least -1, .* image 7 has {label}"):
            ready([i % 2 for i in range(400)], attributes={"targets": listed})


@pytest.mark.parametrize("name", ["targets", "labels"])
def test_a_list_that_disagrees_with_the_items_is_found_out(name):
    labels = [i % 3 for i in range(60)]
    with pytest.warns(
        UserWarning, match=r"Items lists the label 2 for item 0, and the item has 0: the labels of the items"
    ):
        data = ready(labels, attributes={name: labels[::-1]})
    assert data.stores["train"].labels.tolist() == [i % 3 for i in data.stores["train"].index.tolist()]
    with pytest.warns(UserWarning, match=r"Items lists the label 1 for item 0, and the item has none"):
        data = ready([None] * 60, attributes={name: [1] * 60})
    assert data.num_classes is None


def test_a_data_set_of_one_image():
    with pytest.raises(UserError, match=r"Items has one image: none is left for validation"):
        ready([0])


def test_named_classes_without_images_keep_their_places():
    """Of three named classes the second has no images: the third is still the third."""
    store = MemoryStore(IMAGES, torch.arange(12) % 2 * 2, ["a", "b", "c"])
    assert number_of_classes({"train": store}) == 3
    assert store.labels.tolist() == [0, 2] * 6
