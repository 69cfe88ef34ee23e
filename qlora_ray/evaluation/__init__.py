"""What a model is worth on held-out rows: its loss, and its answers scored by metrics.

`scoring.score_model` does all of it. Importing this package loads no torch: `loss`, `generation`, `inference`
and `scoring` do, and are imported by their own names.
"""

from qlora_ray.evaluation.measurement import Metric, measure
from qlora_ray.evaluation.metrics import ExactMatch, SqlExecution, SqlValid, resolve_metrics
from qlora_ray.evaluation.split import EvaluationSplit

__all__ = ["EvaluationSplit", "ExactMatch", "Metric", "SqlExecution", "SqlValid", "measure", "resolve_metrics"]
