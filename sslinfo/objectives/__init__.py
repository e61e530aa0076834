"""Objectives: each is an entropy half and a conditional half."""

from sslinfo.objectives.base import JointEmbedding
from sslinfo.objectives.entropy import EntropyHalf, LogDet, PairDist, VarianceCovariance
from sslinfo.objectives.vicreg import VICReg, vicreg_loss

__all__ = [
    "EntropyHalf",
    "JointEmbedding",
    "LogDet",
    "PairDist",
    "VICReg",
    "VarianceCovariance",
    "vicreg_loss",
]
