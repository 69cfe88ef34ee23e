"""What a model is worth on held-out rows: its loss, and its answers scored by metrics.

`scores.score_model` does all of it. Importing this package loads no torch: `loss`, `generation`, `inference`
and `scores` do, and are imported by their own names.
"""

from qlora_ray.scoring.metrics.choice import resolve_metrics
from qlora_ray.scoring.metrics.execution import SqlExecution, SqlValid
from qlora_ray.scoring.metrics.metric import Metric, measure
from qlora_ray.scoring.metrics.text import ExactMatch
from qlora_ray.scoring.split import EvaluationSplit

__all__ = ["EvaluationSplit", "ExactMatch", "Metric", "SqlExecution", "SqlValid", "measure", "resolve_metrics"]
