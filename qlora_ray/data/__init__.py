"""Datasets of any common format, as tokens whose loss counts the answer only, with a report of what was found.

Importing this package loads nothing; importing all that is in it loads numpy, and neither torch, transformers, pyarrow
nor datasets.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_ray.data.examples import Example, Turn
    from qlora_ray.data.preparation import prepare_data
    from qlora_ray.data.preview import render_preview
    from qlora_ray.data.report import DataReport, LengthStats, PreparedData
    from qlora_ray.data.tokenized import TokenizedSplit

__all__ = [
    "DataReport",
    "Example",
    "LengthStats",
    "PreparedData",
    "TokenizedSplit",
    "Turn",
    "prepare_data",
    "render_preview",
]

_MODULES = {
    "DataReport": "report",
    "Example": "examples",
    "LengthStats": "report",
    "PreparedData": "report",
    "TokenizedSplit": "tokenized",
    "Turn": "examples",
    "prepare_data": "preparation",
    "render_preview": "preview",
}


def __getattr__(name: str) -> Any:
    # A plan that is remembered needs the report alone, and answers before numpy is loaded.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(f"{__name__}.{_MODULES[name]}:{name}")
