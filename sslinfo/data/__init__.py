"""Images and their views."""

from sslinfo.data.datamodule import TwoViewDataModule
from sslinfo.data.views import View, ViewPipeline, views_preset

__all__ = ["TwoViewDataModule", "View", "ViewPipeline", "views_preset"]
