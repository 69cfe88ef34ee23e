"""Datasets of any common format, as tokens whose loss counts the answer only, with a report of what was found.

Importing this package loads neither torch, transformers nor datasets.
"""

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
