"""What a search tries before it knows anything: the recommended setting, then learning rates beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qlora_ray.config.schema import TARGET_PRESETS, SweepConfig
from qlora_ray.search.recommended import ALPHA, Settings
from qlora_ray.search.space import Parameter, SearchSpace, read_value

RANK, RATE, TARGETS, RSLORA = "lora.r", "training.learning_rate", "lora.target_modules", "lora.use_rslora"
ALPHA_PATH, ALPHA_RATIO = "lora.lora_alpha", "lora.alpha_ratio"
BATCH, ACCUMULATION = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
# The steps of the grids behind the recommendation (1e-4, 3e-4, 1e-3). In these, at the highest rank, the rate above the
# best one has a loss that is a median 1.3 % higher, the one below 1.0 %.
RATE_FACTORS = (1.0, 3.0, 1 / 3)
# Rates nearer than this to one that is tried are no other point.
SAME_RATE = 1.5


def find_first_points(space: SearchSpace, config: SweepConfig, settings: Settings) -> tuple[dict[str, Any], ...]:
    """The points of a space that are nearest to a recommended setting at its rate, three times it, and a third.

    Args:
        space: The sweep's.
        config: The sweep's, whose values are taken for what nobody recommends.
        settings: What is recommended for this base and this many steps.

    Returns:
        The setting first, all by config path. Rates beyond the space's range become its end, and are left out
        where that is tried already.
    """
    known = {parameter.path: parameter for parameter in space.parameters}
    wanted = _Wanted(known, config, settings)
    point = {path: _nearest(parameter, wanted.value(path)) for path, parameter in known.items()}
    if RATE not in known:
        return (point,)
    rates: list[Any] = []
    for factor in RATE_FACTORS:
        rate = _nearest(known[RATE], wanted.rate() * factor)
        if all(abs(math.log(float(rate) / float(tried))) >= math.log(SAME_RATE) for tried in rates):
            rates.append(rate)
    return tuple({**point, RATE: rate} for rate in rates)


class _Wanted:
    """The values at which the recommended setting would be had, given those that others take in this space."""

    def __init__(self, known: Mapping[str, Parameter], config: SweepConfig, settings: Settings) -> None:
        self._known = known
        self._config = config
        self._settings = settings

    def value(self, path: str) -> Any:
        """What a parameter would be."""
        values = self._settings.values()
        if path in (ALPHA_PATH, ALPHA_RATIO):
            return self._alpha() / (self._rank() if path == ALPHA_RATIO else 1)
        if path == ACCUMULATION:
            return max(1, self._settings.effective_batch / float(self._taken(BATCH, values[BATCH])))
        if path == BATCH and ACCUMULATION not in self._known:
            return max(1, self._settings.effective_batch / read_value(ACCUMULATION, self._config))
        if path == TARGETS:
            # From few modules to many.
            presets = (name for name in reversed(TARGET_PRESETS) if self._known[path].has(name))
            return next(presets, read_value(path, self._config))
        return values[path] if path in values else read_value(path, self._config)

    def rate(self) -> float:
        """The learning rate: where alpha is not searched, that at which updates are as large as the recommended."""
        if self._known.keys() & {ALPHA_PATH, ALPHA_RATIO}:
            return self._settings.learning_rate
        lora = self._config.lora.model_copy(update={"r": self._rank()})
        return self._settings.learning_rate * self._alpha() / lora.resolved_alpha

    def _alpha(self) -> float:
        """The recommended rates were measured with updates scaled by alpha / r, at one alpha for all ranks."""
        return ALPHA / math.sqrt(self._rank()) if self._taken(RSLORA, self._config.lora.use_rslora) else ALPHA

    def _rank(self) -> int:
        return int(self._taken(RANK, self._settings.r))

    def _taken(self, path: str, wanted: Any) -> Any:
        """The value that is taken: the config's where the parameter is not searched."""
        return _nearest(self._known[path], wanted) if path in self._known else read_value(path, self._config)


def _nearest(parameter: Parameter, wanted: Any) -> Any:
    """The value of a parameter that is nearest to another one: by ratio where all are above 0."""
    if parameter.has(wanted):
        return next((value for value in parameter.choices or () if value == wanted), wanted)
    target = _as_number(wanted)
    if parameter.choices is not None:
        numbers = [_as_number(value) for value in parameter.choices]
        if target is None or None in numbers:
            return parameter.choices[0]
        by_ratio = min(target, *numbers) > 0
        distances = [abs(math.log(number / target) if by_ratio else number - target) for number in numbers]
        return parameter.choices[distances.index(min(distances))]
    assert parameter.low is not None and parameter.high is not None
    clipped = min(max(parameter.low if target is None else target, parameter.low), parameter.high)
    step = parameter.step or (1 if parameter.is_int else None)
    if step is None:
        return clipped
    value = parameter.low + round((clipped - parameter.low) / step) * step
    value = value if value <= parameter.high else value - step
    return int(value) if parameter.is_int else value


def _as_number(value: Any) -> Any:
    """A number, also one that is written as text, which a config takes too; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
