"""What a config chooses by name: samplers, schedulers, metrics, trackers and data formats. One line here adds one.

An entry names its code as `module:attribute`, which `pkgutil.resolve_name` imports when it is chosen, as entry points
of packages do: a config is checked before torch, optuna or ray are imported, and no import points upward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema


@dataclass(frozen=True)
class SamplerEntry:
    """A sampler of Optuna's, or one with its interface.

    Attributes:
        make: A function (search, space, seed) that returns the sampler, see search/samplers.py.
        max_objectives: How many objectives it can search for at once.
        uses_startup_trials: Whether it reads search.num_startup_trials.
        visits_grid: Whether it proposes the points of a finite grid and nothing else.
        searches_ranges_only: Whether it draws parameters with `choices` at random.
        history: Of so many best complete trials, and so many that ended last, it proposes; None: of all.
        takes_wider_ranges: Whether a study may go on with wider ranges: what it keeps of old trials does not depend
            on their ends.
        max_draws: How often it is asked for a setting that is not known to be too large, before its proposal is made
            smaller. A sampler that proposes its model's optimum would propose the same again.
    """

    make: str
    max_objectives: int = 1
    uses_startup_trials: bool = False
    visits_grid: bool = False
    searches_ranges_only: bool = False
    history: tuple[int, int] | None = None
    takes_wider_ranges: bool = True
    max_draws: int = 8


@dataclass(frozen=True)
class SchedulerEntry:
    """A scheduler of Ray Tune's, or one with its interface.

    Attributes:
        make: A function (search) that returns the scheduler, see orchestration/schedulers.py.
        reads: The keys of `search` that it reads, of those that only some schedulers do (SCHEDULER_KEYS).
        pauses: Whether it pauses trials, which then go on from their saved state.
    """

    make: str
    reads: tuple[str, ...] = ()
    pauses: bool = False


@dataclass(frozen=True)
class MetricEntry:
    """A metric of answers.

    Attributes:
        make: A class with what `scoring.metrics.metric.Metric` has, made without arguments.
        needs_database: Whether it is made with the path of evaluate.database instead.
        option: A key of `evaluate` whose value it is made with instead; empty: none.
        library: What it imports of the extra `metrics`; empty: nothing.
    """

    make: str
    needs_database: bool = False
    option: str = ""
    library: str = ""


@dataclass(frozen=True)
class TrackerEntry:
    """An experiment tracker.

    Attributes:
        make: A class with what `tracking.tracker.Tracker` has, made with a TrackedSweep.
        library: What it imports; the extra that installs it has the tracker's name.
    """

    make: str
    library: str


# TPE compares the best tenth, 25 at most, with all others, and weighs these by age: from 1 / n for the oldest to 1 for
# the last 25 (optuna 5.0, default_gamma and default_weights). So the best are all there, and the rest loses those that
# weigh least.
TPE_HISTORY = (50, 200)
# A Gaussian process costs the cube of its points.
GP_HISTORY = (50, 150)

SAMPLERS = {
    "tpe": SamplerEntry(
        "qlora_ray.search.samplers:make_tpe", max_objectives=2, uses_startup_trials=True, history=TPE_HISTORY
    ),
    "random": SamplerEntry("qlora_ray.search.samplers:make_random", max_objectives=2),
    "grid": SamplerEntry(
        "qlora_ray.search.samplers:make_grid", max_objectives=2, visits_grid=True, takes_wider_ranges=False
    ),
    "cma-es": SamplerEntry(
        "qlora_ray.search.samplers:make_cma_es",
        uses_startup_trials=True,
        searches_ranges_only=True,
        takes_wider_ranges=False,
        # Each draw writes the distribution's state into the journal.
        max_draws=2,
    ),
    "gp": SamplerEntry("qlora_ray.search.samplers:make_gp", uses_startup_trials=True, history=GP_HISTORY, max_draws=1),
    "nsga2": SamplerEntry("qlora_ray.search.samplers:make_nsga2", max_objectives=2),
}

SCHEDULER_KEYS = ("grace_reports", "reduction_factor")
SCHEDULERS = {
    "asha": SchedulerEntry("qlora_ray.orchestration.schedulers:make_asha", reads=SCHEDULER_KEYS),
    "hyperband": SchedulerEntry(
        "qlora_ray.orchestration.schedulers:make_hyperband", reads=("reduction_factor",), pauses=True
    ),
    "median": SchedulerEntry("qlora_ray.orchestration.schedulers:make_median", reads=("grace_reports",), pauses=True),
    "none": SchedulerEntry("qlora_ray.orchestration.schedulers:make_none"),
}

METRICS = {
    "exact_match": MetricEntry("qlora_ray.scoring.metrics.text:ExactMatch"),
    "token_f1": MetricEntry("qlora_ray.scoring.metrics.text:TokenF1"),
    "numeric": MetricEntry("qlora_ray.scoring.metrics.numeric:NumericMatch"),
    "boxed_match": MetricEntry("qlora_ray.scoring.metrics.boxed:BoxedMatch"),
    "eq_bench": MetricEntry("qlora_ray.scoring.metrics.eq_bench:EqBench"),
    "math_verify": MetricEntry("qlora_ray.scoring.metrics.math_verification:MathVerify", library="math_verify"),
    "sql_execution": MetricEntry("qlora_ray.scoring.metrics.execution:SqlExecution", needs_database=True),
    "sql_equivalent": MetricEntry(
        "qlora_ray.scoring.metrics.sql_equivalence:SqlEquivalent", option="sql_dialect", library="sqlglot"
    ),
    "rouge": MetricEntry("qlora_ray.scoring.metrics.rouge:Rouge", library="rouge_score"),
}

TRACKERS = {
    "tensorboard": TrackerEntry("qlora_ray.tracking.tensorboard:TensorboardTracker", library="tensorboard"),
    "wandb": TrackerEntry("qlora_ray.tracking.wandb:WandbTracker", library="wandb"),
    "mlflow": TrackerEntry("qlora_ray.tracking.mlflow:MlflowTracker", library="mlflow"),
    "trackio": TrackerEntry("qlora_ray.tracking.trackio:TrackioTracker", library="trackio"),
}

# Each a `RowFormat`, see data/row_formats.py; `data.format: auto` tries them in this order.
FORMATS = {
    "messages": "qlora_ray.data.row_formats:MESSAGES",
    "sharegpt": "qlora_ray.data.row_formats:SHAREGPT",
    "alpaca": "qlora_ray.data.row_formats:ALPACA",
    "prompt-completion": "qlora_ray.data.row_formats:PROMPT_COMPLETION",
    "squad": "qlora_ray.data.row_formats:SQUAD",
    "columns": "qlora_ray.data.row_formats:COLUMNS",
    "text": "qlora_ray.data.row_formats:TEXT",
}


@dataclass(frozen=True, eq=False)  # hashed by identity: typing hashes what is in a union, and a dict has no hash
class OneOf:
    """Type of a config's field: `Annotated[str, OneOf(TABLE)]` allows the table's names, in the words of a Literal."""

    table: Mapping[str, Any]
    also: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The allowed names, in their order."""
        return [*self.also, *self.table]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": self.names}

    def _check(self, value: Any) -> str:
        if isinstance(value, str) and value in self.names:
            return value
        *most, last = map(repr, self.names)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(most)} or {last}"})
