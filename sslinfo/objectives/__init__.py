"""Objectives: each is an entropy half and a conditional half."""

from sslinfo.objectives.barlow_twins import BarlowTwins, barlow_twins_loss
from sslinfo.objectives.base import JointEmbedding, by_view
from sslinfo.objectives.byol import BYOL, byol_loss
from sslinfo.objectives.entropy import EntropyHalf, LogDet, PairDist, SIGReg, VarianceCovariance, VonNeumann
from sslinfo.objectives.frozen import Frozen
from sslinfo.objectives.moco import MoCo, moco_loss, moco_queue_loss
from sslinfo.objectives.simclr import SimCLR, nt_xent_loss
from sslinfo.objectives.simsiam import SimSiam, simsiam_loss
from sslinfo.objectives.swav import SwAV, sinkhorn, swav_loss
from sslinfo.objectives.vicreg import VICReg, vicreg_loss
from sslinfo.objectives.wmse import WMSE, whiten, wmse_loss

__all__ = [
    "BYOL",
    "WMSE",
    "BarlowTwins",
    "EntropyHalf",
    "Frozen",
    "JointEmbedding",
    "LogDet",
    "MoCo",
    "PairDist",
    "SIGReg",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "VICReg",
    "VarianceCovariance",
    "VonNeumann",
    "barlow_twins_loss",
    "by_view",
    "byol_loss",
    "moco_loss",
    "moco_queue_loss",
    "nt_xent_loss",
    "simsiam_loss",
    "sinkhorn",
    "swav_loss",
    "vicreg_loss",
    "whiten",
    "wmse_loss",
]
