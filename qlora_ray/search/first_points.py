"""What a search tries before it knows anything: the recommended setting, then learning rates beside it."""

from __future__ import annotations

import math
from typing import Any

from qlora_ray.config.schema import TARGET_PRESETS, SweepConfig
from qlora_ray.search.recommended import ALPHA, Settings
from qlora_ray.search.space import Parameter, SearchSpace, read_value

RANK, RATE, TARGETS = "lora.r", "training.learning_rate", "lora.target_modules"
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
        The setting first, all as `points_to_evaluate`. Rates beyond the space's range become its end, and are left out
        where that is tried already.
    """
    known = {parameter.path: parameter for parameter in space.parameters}
    point = {path: _nearest(parameter, _wanted(path, known, config, settings)) for path, parameter in known.items()}
    if RATE not in known:
        return (point,)
    rates: list[float] = []
    for factor in RATE_FACTORS:
        rate = _nearest(known[RATE], settings.learning_rate * factor)
        if all(abs(math.log(rate / tried)) >= math.log(SAME_RATE) for tried in rates):
            rates.append(rate)
    return tuple({**point, RATE: rate} for rate in rates)


def _wanted(path: str, known: dict[str, Parameter], config: SweepConfig, settings: Settings) -> Any:
    """The value at which the recommended one would be had, given the values that the others take in this space."""
    values = settings.values()
    rank = _nearest(known[RANK], values[RANK]) if RANK in known else config.lora.r
    # The recommended rates were measured with updates scaled by alpha / r at one alpha for all ranks.
    alpha = ALPHA / math.sqrt(rank) if config.lora.use_rslora else ALPHA
    if path in (ALPHA_PATH, ALPHA_RATIO):
        return alpha / rank if path == ALPHA_RATIO else alpha
    if path == ACCUMULATION:
        rows = _nearest(known[BATCH], values[BATCH]) if BATCH in known else read_value(BATCH, config)
        return max(1, settings.effective_batch / rows)
    if path == BATCH and ACCUMULATION not in known:
        return max(1, settings.effective_batch / read_value(ACCUMULATION, config))
    if path == TARGETS:
        # From few modules to many.
        return next((name for name in reversed(TARGET_PRESETS) if known[path].has(name)), read_value(path, config))
    return values[path] if path in values else read_value(path, config)


def _nearest(parameter: Parameter, wanted: Any) -> Any:
    """The value of a parameter that is nearest to another one: by ratio where all are above 0."""
    if parameter.has(wanted):
        return next((value for value in parameter.choices or () if value == wanted), wanted)
    is_number = isinstance(wanted, int | float) and not isinstance(wanted, bool)
    if parameter.choices is not None:
        numbers = [value for value in parameter.choices if isinstance(value, int | float)]
        if not is_number or len(numbers) < len(parameter.choices):
            return parameter.choices[0]
        by_ratio = min(wanted, *numbers) > 0
        return min(numbers, key=lambda value: abs(math.log(value / wanted) if by_ratio else value - wanted))
    assert parameter.low is not None and parameter.high is not None
    clipped = min(max(wanted if is_number else parameter.low, parameter.low), parameter.high)
    step = parameter.step or (1 if parameter.is_int else None)
    if step is None:
        return clipped
    value = parameter.low + round((clipped - parameter.low) / step) * step
    value = value if value <= parameter.high else value - step
    return int(value) if parameter.is_int else value
