"""Images and their views."""

from sslinfo.data.datamodule import TwoViewDataModule
from sslinfo.data.views import View, Views, views_preset

__all__ = ["TwoViewDataModule", "View", "Views", "views_preset"]
