"""Random views of images, made a batch at a time: what is drawn, how it is applied, and the published settings."""

from sslinfo.data.views.pipeline import ViewPipeline
from sslinfo.data.views.presets import Preset, views_preset
from sslinfo.data.views.view import View

__all__ = ["Preset", "View", "ViewPipeline", "views_preset"]
