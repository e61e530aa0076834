"""How data sets lie on disk: a reader turns a folder into a store for each split.

A reader is a function of the data set's folder and of `ReadOptions`. It returns the splits by name: `train` always, and
what there is of `val`, `test` and `unlabelled`.
"""

from sslinfo.data.readers.base import MissingData, Reader, ReadOptions, Splits

__all__ = ["MissingData", "ReadOptions", "Reader", "Splits"]
