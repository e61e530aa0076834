"""Backbones and projection heads."""

from sslinfo.models.backbones import Conv4, build_backbone, conv4, load_weights
from sslinfo.models.heads import projection_head

__all__ = ["Conv4", "build_backbone", "conv4", "load_weights", "projection_head"]
