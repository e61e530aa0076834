"""Probes and diagnostics."""

from sslinfo.callbacks.knn_probe import KNNProbe
from sslinfo.callbacks.linear_probe import LinearProbe

__all__ = ["KNNProbe", "LinearProbe"]
