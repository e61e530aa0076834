"""Probes and diagnostics."""

from sslinfo.callbacks.information_monitor import InformationMonitor
from sslinfo.callbacks.knn_probe import KNNProbe
from sslinfo.callbacks.linear_probe import LinearProbe
from sslinfo.callbacks.prediction_writer import PredictionWriter
from sslinfo.callbacks.run_summary import RunSummary

__all__ = ["InformationMonitor", "KNNProbe", "LinearProbe", "PredictionWriter", "RunSummary"]
