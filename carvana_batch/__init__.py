"""Mask cars in very large folders of photographs at full resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carvana_batch.api import Masker

__all__ = ["Masker", "__version__"]
__version__ = "0.3.0.dev0"


def __getattr__(name: str) -> Any:
    """Import what needs torch only on demand, so that ``carvana-batch --help`` stays fast."""
    if name == "Masker":
        from carvana_batch.api import Masker

        return Masker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
