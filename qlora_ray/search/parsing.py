"""Reading a search space: every rule it breaks is named with file and line, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from qlora_ray.config.choices import SAMPLERS
from qlora_ray.config.documents import Document, read_document
from qlora_ray.config.foreign import refuse_foreign
from qlora_ray.config.heads import WEIGHT
from qlora_ray.config.loading import closest_path, find_shipped, suggest_key
from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError, shorten_problems
from qlora_ray.runs.records import POINT_KEYS, POINTS_KEY, RECOMMENDED_KEY
from qlora_ray.search.space import (
    FIXED_PATHS,
    HEADS,
    MAX_CHOICES,
    MAX_GRID_POINTS,
    MAX_STEPS,
    SEARCHABLE_SECTIONS,
    Parameter,
    SearchSpace,
    apply_values,
    find_field,
    read_value,
)


def load_space(config: SweepConfig) -> SearchSpace:
    """The sweep's search space, from its file or from the config itself.

    Raises:
        ConfigError: With every problem of the space, one line each.
    """
    given = config.search.space
    if isinstance(given, str):
        document = read_document(find_shipped(Path(given)))
    else:
        document = Document("search.space", dict(given))
    refuse_foreign(document, is_space=True)
    space = parse_space(document, config)
    check_grid_size(space, config)
    return space


def check_grid_size(space: SearchSpace, config: SweepConfig) -> None:
    """Raises ConfigError if a grid has fewer points than the sweep has trials, or too many to be listed."""
    if not SAMPLERS[config.search.sampler].visits_grid:
        return
    size = space.grid_size()
    if size > MAX_GRID_POINTS:
        raise ConfigError(
            f"search.space: a grid must have at most {MAX_GRID_POINTS:,} points, got {size:,} over {space.source}. "
            "Give fewer choices or larger steps, or take another sampler, as random."
        )
    if config.search.num_trials > size:
        raise ConfigError(
            f"search.num_trials: a grid over {space.source} has {size} points, got {config.search.num_trials}. "
            f"Set search.num_trials to {size} or fewer, or widen the space."
        )


def parse_space(document: Document, config: SweepConfig) -> SearchSpace:
    """Checks a space's document against the config's types and ranges; raises ConfigError with all problems."""
    document.check()
    problems: list[str] = []
    parameters: list[Parameter] = []
    for path, words in document.data.items():
        if path in POINT_KEYS:
            continue
        try:
            parameters.append(_parse_parameter(path, words, document, config))
        except ConfigError as error:
            problems.extend(error.problems)
    if not parameters and not problems:
        problems.append(f"{document.source}: must name at least one parameter, e.g. lora.r: {{choices: [8, 16]}}.")
    known = {parameter.path: parameter for parameter in parameters}
    if {"lora.lora_alpha", "lora.alpha_ratio"} <= known.keys():
        where = document.place(("lora.lora_alpha",))
        problems.append(f"{where}: lora.lora_alpha and lora.alpha_ratio are both searched. Drop one of them.")
    # Only a manifest has recommended ones.
    points = {key: document.data.get(key) or [] for key in POINT_KEYS}
    if not problems:
        problems.extend(problem for key in POINT_KEYS for problem in _point_problems(key, points[key], known, document))
    if problems:
        raise ConfigError(shorten_problems(problems))
    own, recommended = (tuple(dict(point) for point in points[key]) for key in (POINTS_KEY, RECOMMENDED_KEY))
    return SearchSpace(document.source, tuple(parameters), own, recommended)


def _parse_parameter(path: str, words: Any, document: Document, config: SweepConfig) -> Parameter:
    where = document.place((path,))
    section, _, key = str(path).partition(".")
    nested = (
        [key for key in words if key in SEARCHABLE_SECTIONS[section].model_fields]
        if (path in SEARCHABLE_SECTIONS and isinstance(words, dict))
        else []
    )
    if nested:
        raise ConfigError(f"{where}: {path} is a section; paths are written whole. Write {path}.{nested[0]}: ...")
    info = find_field(str(path), config)
    if info is None or path in FIXED_PATHS:
        if section == HEADS and key.partition(".")[0] not in config.heads:
            known = ", ".join(f"{HEADS}.{name}.{WEIGHT}" for name in config.heads) or "none, it has no heads"
            raise ConfigError(f"{where}: {path} must name a head of the config, which has {known}.")
        if closest_path(str(path)) == path and path not in SEARCHABLE_SECTIONS:
            raise ConfigError(f"{where}: {path} is the same for all trials of a sweep and cannot be searched.")
        raise ConfigError(f"{where}: {path} names no config path.{_did_you_mean(str(path))}")
    if path == "lora.alpha_ratio" and config.lora.lora_alpha is not None:
        raise ConfigError(f"{where}: {path} is searched while the config sets lora.lora_alpha. Drop one of them.")
    if path == "lora.lora_alpha" and config.lora.alpha_ratio is not None:
        raise ConfigError(f"{where}: {path} is searched while the config sets lora.alpha_ratio. Drop one of them.")
    parameter = _read_words(str(path), words, where, info)
    settled: list[Any] = []
    for value in parameter.values():
        try:
            trial = apply_values(config, {parameter.path: value})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        settled.append(read_value(parameter.path, trial))
    if any(value in settled[:index] for index, value in enumerate(settled)):
        raise ConfigError(f"{where}: {path}: choices must differ from each other, got {list(parameter.values())!r}.")
    return parameter


def _read_words(path: str, words: Any, where: str, info: FieldInfo) -> Parameter:
    if not isinstance(words, dict) or not words:
        raise ConfigError(f"{where}: {path} must be {{choices: [...]}} or {{low: , high: , log: }}, got {words!r}.")
    unknown = set(words) - {"choices", "low", "high", "log", "step"}
    if unknown:
        raise ConfigError(f"{where}: {path} takes choices, or low, high, log and step; got {min(unknown, key=str)!r}.")
    if "choices" in words:
        choices = words["choices"]
        if len(words) > 1 or not isinstance(choices, list) or not choices:
            raise ConfigError(f"{where}: {path}: choices must be a list of at least one value and stand alone.")
        if len(choices) > MAX_CHOICES:
            raise ConfigError(
                f"{where}: {path}: choices must be at most {MAX_CHOICES:,}, got {len(choices):,}. Give a range."
            )
        return Parameter(path, choices=tuple(choices))
    number_type = _number_type(info.annotation)
    if number_type is None:
        raise ConfigError(f"{where}: {path} is not a number. Give choices instead of a range.")
    low, high, log, step = words.get("low"), words.get("high"), words.get("log", False), words.get("step")
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{where}: {path}: {name} must be a number, got {value!r}.")
    assert low is not None and high is not None
    if not low < high:
        raise ConfigError(f"{where}: {path}: low must be below high, got {low!r} and {high!r}.")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: {path}: log must be true or false, got {log!r}.")
    if log and low <= 0:
        raise ConfigError(f"{where}: {path}: a log scale needs low > 0, got {low!r}.")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | float) or not step > 0 or log):
        raise ConfigError(f"{where}: {path}: step must be a number above 0, without log, got {step!r}.")
    if step is not None and step > high - low:
        raise ConfigError(f"{where}: {path}: step must be at most high - low, {high - low!r}, got {step!r}.")
    is_int = number_type is int
    if is_int and step is not None and step != int(step):
        raise ConfigError(f"{where}: {path} is a whole number, so its step must be one too, got {step!r}.")
    parameter = Parameter(path, low=low, high=high, log=log, step=step, is_int=is_int)
    if (step is not None or is_int) and parameter.num_steps() > MAX_STEPS:
        raise ConfigError(f"{where}: {path}: a range must have at most {MAX_STEPS:,} steps. Give a larger step.")
    return parameter


def _number_type(annotation: Any) -> type[int] | type[float] | None:
    """int or float behind an annotation such as `Annotated[float, ...] | None`; None for anything else."""
    if annotation is int or annotation is float:
        return annotation
    return next(filter(None, map(_number_type, get_args(annotation))), None)


def _point_problems(key: str, points: Any, known: dict[str, Parameter], document: Document) -> list[str]:
    if not isinstance(points, list):
        return [f"{document.place((key,))}: {key} must be a list of settings, got {points!r}."]
    problems = []
    for index, point in enumerate(points):
        where = document.place((key, index))
        if not isinstance(point, dict):
            problems.append(f"{where}: a point must be a mapping of searched paths to values, got {point!r}.")
            continue
        for path, value in point.items():
            parameter = known.get(path)
            if parameter is None:
                problems.append(f"{where}: {path} is not searched here. Add it above, or drop it from the point.")
            elif not parameter.has(value):
                problems.append(f"{where}: {path} must be in {parameter.describe()}, got {value!r}.")
    return problems


def _did_you_mean(path: str) -> str:
    return suggest_key(path, prefixes=(*SEARCHABLE_SECTIONS, HEADS))
