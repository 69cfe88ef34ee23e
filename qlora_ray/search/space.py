"""Search spaces: dotted config paths to Optuna's words, checked against the config's own types."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from qlora_ray.config.heads import WEIGHT, Head
from qlora_ray.config.loading import describe_problem
from qlora_ray.config.schema import Lora, SweepConfig, Training
from qlora_ray.errors import ConfigError
from qlora_ray.runs.records import POINTS_KEY, RECOMMENDED_KEY

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# Trials share the base, the data and the cluster, so only these two sections can differ between them,
SEARCHABLE_SECTIONS: dict[str, type[Lora] | type[Training]] = {"lora": Lora, "training": Training}
# and the weights of auxiliary heads: 0 leaves one out.
HEADS = "heads"
# One value for the whole sweep: the sample order is what makes trials comparable, precision is the device's.
FIXED_PATHS = (
    "training.data_seed",
    "training.precision",
    "training.num_train_epochs",
    "training.max_samples",
)
# Of a step: what floats lose in a sum.
STEP_TOLERANCE = 1e-8
# Samplers, and the grid above all, list what they choose from; these are seconds and some hundred MB.
MAX_CHOICES, MAX_STEPS, MAX_GRID_POINTS = 1_000, 1_000_000, 1_000_000
# Each corner of a space is a whole config that is checked, a millisecond each.
MAX_CORNERS = 5_000
MEMORY_PATHS = (
    "lora.r",
    "lora.target_modules",
    "lora.use_dora",
    "lora.lora_dropout",
    "lora.modules_to_save",
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
    "training.optim",
    "training.gradient_checkpointing",
)
# What a learning-rate schedule is made of; the batch decides on the trial's steps.
SCHEDULE_PATHS = (
    "training.lr_scheduler_type",
    "training.lr_scheduler_kwargs",
    "training.learning_rate",
    "training.warmup_ratio",
    "training.warmup_steps",
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
)

# Where Optuna keeps the parameters that a queued trial is to have, an attribute of its own.
FIXED = "fixed_params"
# Of a trial that is to draw what an interrupted one drew: whether that was a proposal, and which.
DRAWS_AS = "draws_as"


@dataclass(frozen=True)
class Parameter:
    """One searched config path: either `choices`, or `low` to `high` (a `log` scale, or a `step`)."""

    path: str
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    is_int: bool = False

    def values(self) -> tuple[Any, ...]:
        """All values of a choice, or the two ends of a range: what has to be valid."""
        return self.choices if self.choices is not None else (self.low, self.high)

    def ends(self) -> tuple[Any, ...]:
        """The smallest and the largest value; all of a choice that are not all numbers."""
        values = self.values()
        is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return tuple(dict.fromkeys((min(values), max(values)))) if is_number else values

    def has(self, value: Any) -> bool:
        """Whether a value is one of the choices, or in the range and on its steps; 8.0 is a whole number too."""
        is_bool = isinstance(value, bool)
        if self.choices is not None:
            return any(choice == value and isinstance(choice, bool) == is_bool for choice in self.choices)
        assert self.low is not None and self.high is not None
        # NaN is in no range, and is not divided by a step.
        if is_bool or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        step = self.step or (1 if self.is_int else None)
        return step is None or abs((value - self.low) / step - round((value - self.low) / step)) < STEP_TOLERANCE

    def describe(self) -> str:
        """The choices, or the range with its steps, for messages."""
        if self.choices is not None:
            return f"{list(self.choices)}"
        step = self.step or (1 if self.is_int else None)
        return f"{self.low} to {self.high}" + (f" in steps of {step}" if step else "")

    def grid(self) -> tuple[Any, ...]:
        """Every value a grid visits; raises ConfigError for a range without a step."""
        count = self.num_grid_values()
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None and self.step is not None
        # The last step may overshoot by a rounding error, beyond what the config allows.
        return tuple(min(self.low + index * self.step, self.high) for index in range(count))

    def num_grid_values(self) -> int:
        """How many values a grid visits, counted without making them; raises ConfigError for a range without a step."""
        if self.choices is not None:
            return len(self.choices)
        if self.step is None:
            raise ConfigError(
                f"search space: {self.path} is a range without a step, which a grid cannot visit. "
                "Give choices or a step, or take another sampler."
            )
        return self.num_steps() + 1

    def num_steps(self) -> int:
        """Steps from the low end of a range to the last value, of 1 for a whole number that has none; at most
        MAX_STEPS and one."""
        assert self.low is not None and self.high is not None
        steps = (self.high - self.low) / (self.step or 1)
        return int(min(steps, MAX_STEPS + 1) + 1e-9)

    def distribution(self) -> BaseDistribution:
        """Optuna's distribution; choices that are lists are known to Optuna by their JSON text."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution([encode_choice(value) for value in self.choices])
        assert self.low is not None and self.high is not None
        if self.is_int:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def decode(self, value: Any) -> Any:
        """The config's value behind Optuna's."""
        if self.choices is None:
            return value
        return next(choice for choice in self.choices if encode_choice(choice) == value)


@dataclass(frozen=True)
class SearchSpace:
    """All searched parameters, and the settings that run first: the user's, then those recommended for the base."""

    source: str
    parameters: tuple[Parameter, ...]
    points_to_evaluate: tuple[dict[str, Any], ...] = ()
    recommended_points: tuple[dict[str, Any], ...] = ()

    @property
    def first_points(self) -> tuple[dict[str, Any], ...]:
        """What runs first, in this order, each once."""
        recommended = (point for point in self.recommended_points if point not in self.points_to_evaluate)
        return (*self.points_to_evaluate, *recommended)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distributions by config path."""
        return {parameter.path: parameter.distribution() for parameter in self.parameters}

    def decode(self, params: dict[str, Any]) -> dict[str, Any]:
        """Optuna's parameters as config values."""
        return {parameter.path: parameter.decode(params[parameter.path]) for parameter in self.parameters}

    def encode(self, point: dict[str, Any]) -> dict[str, Any]:
        """Config values as Optuna's parameters."""
        return {path: encode_choice(value) for path, value in point.items()}

    def grid_size(self) -> int:
        """Number of points of the full grid."""
        return math.prod(parameter.num_grid_values() for parameter in self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """The space as it is written in a YAML file."""
        written: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.choices is not None:
                written[parameter.path] = {"choices": list(parameter.choices)}
            else:
                written[parameter.path] = {"low": parameter.low, "high": parameter.high}
                if parameter.log:
                    written[parameter.path]["log"] = True
                if parameter.step is not None:
                    written[parameter.path]["step"] = parameter.step
        if self.points_to_evaluate:
            written[POINTS_KEY] = [dict(point) for point in self.points_to_evaluate]
        if self.recommended_points:
            written[RECOMMENDED_KEY] = [dict(point) for point in self.recommended_points]
        return written

    def extremes(self, config: SweepConfig) -> list[SweepConfig]:
        """Configs at every corner of the parameters that decide memory, for the planner's worst case."""
        deciding = {parameter.path: parameter.ends() for parameter in self.parameters if parameter.path in MEMORY_PATHS}
        return self._corners(config, deciding)

    def schedules(self, config: SweepConfig) -> list[SweepConfig]:
        """Configs at every corner of the parameters that make a learning-rate schedule."""
        deciding = {
            parameter.path: parameter.ends() for parameter in self.parameters if parameter.path in SCHEDULE_PATHS
        }
        return self._corners(config, deciding)

    def _corners(self, config: SweepConfig, values: Mapping[str, Sequence[Any]]) -> list[SweepConfig]:
        number = math.prod(map(len, values.values()))
        if number > MAX_CORNERS:
            several = ", ".join(path for path, choices in values.items() if len(choices) > 2)
            raise ConfigError(
                f"{self.source}: the choices of {several} must make at most {MAX_CORNERS:,} settings that are checked "
                f"before the sweep, got {number:,}. Give fewer choices."
            )
        corners = itertools.product(*values.values())
        return [apply_values(config, dict(zip(values, corner, strict=True))) for corner in corners]


def find_field(path: str, config: SweepConfig) -> FieldInfo | None:
    """The config's field behind a path that can be searched, whatever FIXED_PATHS says; None where there is none."""
    section, _, key = path.partition(".")
    if section == HEADS:
        name, _, key = key.rpartition(".")
        return Head.model_fields[WEIGHT] if name in config.heads and key == WEIGHT else None
    return SEARCHABLE_SECTIONS[section].model_fields.get(key) if section in SEARCHABLE_SECTIONS else None


def read_value(path: str, config: SweepConfig) -> Any:
    """The config's value at a path that can be searched."""
    value: Any = config
    for name in path.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def encode_choice(value: Any) -> Any:
    """A choice as Optuna stores it: scalars as they are, lists as JSON text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def apply_values(config: SweepConfig, values: dict[str, Any]) -> SweepConfig:
    """The config of one trial.

    Args:
        config: The sweep's config, which keeps what is not searched.
        values: Config values by dotted path.

    Raises:
        ConfigError: If the values together break a rule of the config.
    """
    sections: dict[str, Any] = {name: getattr(config, name).model_dump() for name in SEARCHABLE_SECTIONS}
    sections[HEADS] = {name: head.model_dump() for name, head in config.heads.items()}
    for path, value in values.items():
        *names, key = path.split(".")
        section = sections
        for name in names:
            section = section[name]
        section[key] = value
    try:
        return SweepConfig.model_validate({**config.model_dump(), **sections})
    except ValidationError as error:
        details = error.errors()[0]
        raise ConfigError(f"{describe_problem('.'.join(map(str, details['loc'])), details)}.") from None
