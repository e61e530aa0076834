"""Self-supervised learning seen through information theory.

Every objective is read as an entropy half H(Z) and a conditional half E log q(z|z')
(Shwartz-Ziv, Balestriero, Kawaguchi, Rudner, LeCun, arXiv:2303.00633). The estimators in
``sslinfo.information`` serve the objectives that train on them and the callbacks that watch with them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslinfo.information.report import report

__all__ = ["report"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``report`` brings torch: it is imported when asked for, so that ``sslinfo --version`` answers at once."""
    if name == "report":
        from sslinfo.information.report import report

        return report
    raise AttributeError(f"module 'sslinfo' has no attribute {name!r}")
