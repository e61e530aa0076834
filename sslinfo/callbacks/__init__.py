"""Probes and diagnostics."""

from sslinfo.callbacks.collapse_alarm import CollapseAlarm
from sslinfo.callbacks.generalization_bound import GeneralizationBound
from sslinfo.callbacks.information_monitor import InformationMonitor
from sslinfo.callbacks.knn_probe import KNNProbe
from sslinfo.callbacks.linear_probe import LinearProbe
from sslinfo.callbacks.noise_normality import NoiseNormality
from sslinfo.callbacks.prediction_writer import PredictionWriter
from sslinfo.callbacks.rank_watch import RankWatch
from sslinfo.callbacks.run_summary import RunSummary
from sslinfo.callbacks.stop_on_signal import StopOnSignal

__all__ = [
    "CollapseAlarm",
    "GeneralizationBound",
    "InformationMonitor",
    "KNNProbe",
    "LinearProbe",
    "NoiseNormality",
    "PredictionWriter",
    "RankWatch",
    "RunSummary",
    "StopOnSignal",
]
