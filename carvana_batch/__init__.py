"""Mask cars in very large folders of photographs at full resolution."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from carvana_batch.garbage import search_for_garbage_paused

if TYPE_CHECKING:
    from carvana_batch.api.masked_photo import MaskedPhoto
    from carvana_batch.api.masker import CarvanaBatchWarning, Masker
    from carvana_batch.api.tables import score, submit
    from carvana_batch.errors import CarvanaBatchError
    from carvana_batch.output.report import RunReport
    from carvana_batch.scoring.scores import Scores
    from carvana_batch.values import Failure

__all__ = [
    "CarvanaBatchError",
    "CarvanaBatchWarning",
    "Failure",
    "MaskedPhoto",
    "Masker",
    "RunReport",
    "Scores",
    "__version__",
    "score",
    "submit",
]
__version__ = "0.3.0.dev0"

_HOMES = {
    "CarvanaBatchError": "errors",
    "CarvanaBatchWarning": "api.masker",
    "Failure": "values",
    "MaskedPhoto": "api.masked_photo",
    "Masker": "api.masker",
    "RunReport": "output.report",
    "Scores": "scoring.scores",
    "score": "api.tables",
    "submit": "api.tables",
}
"""Public names, and the modules that they are imported from when they are first used."""


def __getattr__(name: str) -> Any:
    """Import what needs torch only on demand, so that ``carvana-batch --help`` stays fast."""
    if name in _HOMES:
        with search_for_garbage_paused():
            return getattr(importlib.import_module(f"carvana_batch.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
