"""A user's own data set by the dotted path to its class."""

import sys

import pytest

from sslinfo.data.map_style import from_class_path, is_class_path
from sslinfo.errors import UserError

MODULE = """
class Plain:
    def __len__(self):
        return 3

    def __getitem__(self, item):
        return None

class Sized(Plain):
    def __init__(self, size, *rest, scale=1):
        pass

from torch.utils.data import Dataset

class Inherits(Sized, Dataset):
    pass

class NoItems:
    def __len__(self):
        return 3

def function():
    pass
"""


@pytest.fixture
def user_modules(tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text(MODULE)
    (tmp_path / "users_lack.py").write_text("import users_nowhere\n")
    (tmp_path / "users_error.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("users_module", "users_lack", "users_error"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("users_modul.Plain", r"there is no module 'users_modul': check the name, .* folder you start from"),
        ("users_module.inner.Plain", r"there is no module 'users_module\.inner'"),
        ("users_module.Plan", r"users_module has no 'Plan'; its classes are Plain, Sized, Inherits, NoItems"),
        ("users_lack.Plain", r"importing users_lack fails: it needs 'users_nowhere', which is not installed"),
        ("users_error.Plain", r"importing users_error fails: ZeroDivisionError: division by zero"),
        ("users_module.NoItems", r"users_module\.NoItems is no class with __len__ and __getitem__"),
        ("users_module.function", r"users_module\.function is no class with __len__ and __getitem__"),
        ("users_module.Sized", r"needs arguments \(size\): .*--data.dataset.init_args.size \.\.\., once it inherits"),
        ("users_module.Inherits", r"needs arguments \(size\): .*--data.dataset.init_args.size \.\.\.$"),
    ],
)
def test_class_path_that_is_no_data_set_says_why(user_modules, path, message):
    assert is_class_path(path)
    with pytest.raises(UserError, match=message):
        from_class_path(path)


def test_class_path_of_any_class_with_length_and_items(user_modules):
    assert len(from_class_path("users_module.Plain")) == 3


@pytest.mark.parametrize("name", ["cifar10", "cifar-10.v2", "./data", "a..b", ".a", "a.b ", "a.b\n", "a·b.c", "1.5"])
def test_other_names_are_no_class_paths(name):
    assert not is_class_path(name)
