"""Where images come from: one interface, ``store.read(indices)``, over memory, files and any map-style data set.

A store knows nothing of views or augmentation.
"""

from sslinfo.data.stores.base import BadImage, Fetched, ImageStore, OnBadImage, Shape
from sslinfo.data.stores.files import FileStore
from sslinfo.data.stores.joined import JoinedStore
from sslinfo.data.stores.memory import MemoryStore
from sslinfo.data.stores.wrapped import WrappedStore

__all__ = [
    "BadImage",
    "Fetched",
    "FileStore",
    "ImageStore",
    "JoinedStore",
    "MemoryStore",
    "OnBadImage",
    "Shape",
    "WrappedStore",
]
