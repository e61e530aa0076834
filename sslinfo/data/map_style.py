"""A user's own map-style data set: found by the dotted path to its class, and made a store."""

import importlib
import inspect
import os
import re
from typing import Any

from torch.utils.data import Dataset

from sslinfo.data.readers import ReadOptions
from sslinfo.data.stores import ImageStore, MemoryStore, WrappedStore
from sslinfo.errors import UserError


def is_class_path(name: str) -> bool:
    """Whether a data set's name is a dotted path to a class, `module.Class`.

    Example:
        >>> is_class_path("my_module.MyDataset"), is_class_path("cifar-10.1"), is_class_path("cifar10")
        (True, False, False)
    """
    # No wider than what a checkpoint is kept from naming (see sslinfo.cli.checkpoints).
    return re.fullmatch(r"\w+(\.\w+)+", name) is not None and all(part.isidentifier() for part in name.split("."))


def from_class_path(path: str) -> Any:
    """An object of the class at `module.Class`, made without arguments. Any class with a length and items will do.

    Raises:
        UserError: there is no such module or class, the module's import fails, the class is no map-style data set, or
            it needs arguments.

    Example:
        >>> from_class_path("sslinfo.data.View")
        Traceback (most recent call last):
        sslinfo.errors.UserError: data.dataset=sslinfo.data.View is no class with __len__ and __getitem__
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # A module of the user's can raise anything.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"data.dataset={path}: there is no module {missing!r}: check the name, and that it is installed or a "
                f"file of the folder you start from ({os.getcwd()})"
            ) from error
        # Not Python's own words for a missing module: the command line takes those for a module that the user named.
        reason = f"it needs {missing!r}, which is not installed" if missing else f"{type(error).__name__}: {error}"
        raise UserError(f"data.dataset={path}: importing {module_name} fails: {reason}") from error
    kind = getattr(module, name, None)
    if kind is None:
        classes = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        has = f"its classes are {', '.join(classes)}" if classes else "it has no classes of its own"
        raise UserError(f"data.dataset={path}: the module {module_name} has no {name!r}; {has}")
    if not isinstance(kind, type) or not hasattr(kind, "__len__") or not hasattr(kind, "__getitem__"):
        raise UserError(f"data.dataset={path} is no class with __len__ and __getitem__")
    required = _required_arguments(kind)
    if required:
        base = "" if issubclass(kind, Dataset) else ", once it inherits torch.utils.data.Dataset"
        raise UserError(
            f"data.dataset={path} needs arguments ({', '.join(required)}): give them defaults, or say "
            f"--data.dataset {path} {' '.join(f'--data.dataset.init_args.{n} ...' for n in required)}{base}"
        )
    return kind()


def _required_arguments(kind: type) -> list[str]:
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:
        return []  # a class written in C
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def store_of(dataset: Any, options: ReadOptions) -> ImageStore:
    """The store of a map-style data set, which stays where it is unless ``in_memory`` is True.

    Raises:
        UserError: it is no map-style data set, an item is no image, or ``in_memory`` asks for images of one size that
            are not.

    Example:
        >>> import torch
        >>> images = [torch.zeros(1, 2, 2, dtype=torch.uint8)] * 3
        >>> len(store_of(images, ReadOptions(in_memory=True)))
        3
    """
    store = WrappedStore(dataset, channels=options.channels, on_bad_image=options.on_bad_image)
    if options.in_memory is not True:
        return store
    decoded = store.to_memory()
    if not isinstance(decoded, MemoryStore):
        raise UserError(f"the images of {store.where} are not all uint8 and of one size: set data.in_memory: false")
    return decoded
