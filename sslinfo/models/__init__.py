"""Backbones, projection heads, and what keeps a history: EMA targets and queues."""

from sslinfo.models.backbones import Conv4, build_backbone, check_image_size, conv4, load_weights
from sslinfo.models.ema_target import EMATarget, ema_momentum
from sslinfo.models.heads import projection_head
from sslinfo.models.ring_queue import RingQueue

__all__ = [
    "Conv4",
    "EMATarget",
    "RingQueue",
    "build_backbone",
    "check_image_size",
    "conv4",
    "ema_momentum",
    "load_weights",
    "projection_head",
]
