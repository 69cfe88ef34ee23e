"""Which settings are known to be too large: those that want as much as one that ran out of memory, in every respect.

A trial fails as `oom` only after micro-batches of one row, a whole device and the largest class have been tried. So
its batch sizes say nothing, and a setting with at least its rank, its modules and the rest cannot fit either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from qlora_ray.search.space import SearchSpace

Settings = Mapping[str, Any]

# From the least memory to the most: hardware/memory.py counts their moments.
OPTIMIZERS = ("paged_adamw_8bit", "adamw_8bit", "adamw_torch")
TARGET_PRESETS = ("attention-qv", "attention", "all-linear")


def _has_targets(value: Any, other: Any) -> bool:
    if isinstance(value, str) and isinstance(other, str):
        return TARGET_PRESETS.index(value) >= TARGET_PRESETS.index(other)
    # Of a list of names and a preset only the largest preset is known to hold the other.
    return value == TARGET_PRESETS[-1] or (not isinstance(value, str | None) and set(value) >= _names(other))


def _names(value: Any) -> set[str]:
    return {value} if isinstance(value, str) else set(value or ())


# By config path: whether a value wants at least the memory of another. In the order in which a setting is made smaller.
WANTS_AT_LEAST: Mapping[str, Callable[[Any, Any], bool]] = {
    "lora.r": lambda value, other: value >= other,
    "lora.target_modules": _has_targets,
    "lora.modules_to_save": lambda value, other: _names(value) >= _names(other),
    "lora.use_dora": lambda value, other: value >= other,
    # Masks of any rate are as large as those of another.
    "lora.lora_dropout": lambda value, other: bool(value) >= bool(other),
    "training.optim": lambda value, other: OPTIMIZERS.index(value) >= OPTIMIZERS.index(other),
    "training.gradient_checkpointing": lambda value, other: value <= other,
}


class MemoryLimits:
    """What trials showed of the memory that settings need. Settings are config values by path.

    Args:
        space: The searched parameters; those that decide no memory are left aside.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._parameters = {parameter.path: parameter for parameter in space.parameters}
        self._paths = [path for path in WANTS_AT_LEAST if path in self._parameters]
        self._failed: list[Settings] = []
        self._fitting: list[Settings] = []

    def __bool__(self) -> bool:
        """Whether any setting is known to be too large."""
        return bool(self._failed)

    def add_failed(self, settings: Settings) -> None:
        """Notes that a setting ran out of memory.

        Where something larger has fitted, another program had the memory, or the device that it fitted on is gone:
        the first such failure takes that evidence away, and only the next one counts.
        """
        if not self._paths:
            return
        contradicted = [other for other in self._fitting if self._wants_at_least(other, settings)]
        if contradicted:
            self._fitting = [other for other in self._fitting if other not in contradicted]
            return
        self._failed = [other for other in self._failed if not self._wants_at_least(other, settings)]
        self._failed.append(dict(settings))

    def add_fitting(self, settings: Settings) -> None:
        """Notes that a setting trained, and with it all smaller ones."""
        if not self._paths:
            return
        self._failed = [other for other in self._failed if not self._wants_at_least(settings, other)]
        if not any(self._wants_at_least(other, settings) for other in self._fitting):
            self._fitting = [other for other in self._fitting if not self._wants_at_least(settings, other)]
            self._fitting.append(dict(settings))

    def is_too_large(self, settings: Settings) -> bool:
        """Whether a setting wants at least what one that failed wanted."""
        return self._find_failed(settings) is not None

    def shrink(self, settings: Settings) -> dict[str, Any] | None:
        """Returns the setting made smaller, one value at a time; None if even the smallest is too large.

        A rank is halved towards the largest one that is known to fit: to go down one by one would try each that fails.
        """
        smaller = dict(settings)
        while (failed := self._find_failed(smaller)) is not None:
            found = ((path, self._below(path, failed[path], smaller)) for path in self._paths)
            path, value = next(((path, value) for path, value in found if value is not None), (None, None))
            if path is None:
                return None
            smaller[path] = value
        return smaller

    def _find_failed(self, settings: Settings) -> Settings | None:
        return next((failed for failed in self._failed if self._wants_at_least(settings, failed)), None)

    def _wants_at_least(self, settings: Settings, other: Settings) -> bool:
        return all(WANTS_AT_LEAST[path](settings[path], other[path]) for path in self._paths)

    def _below(self, path: str, value: Any, settings: Settings) -> Any:
        """A value of a parameter that wants less memory than `value`; None if there is none."""
        parameter, wants_at_least = self._parameters[path], WANTS_AT_LEAST[path]
        if parameter.choices is not None:
            below = [choice for choice in parameter.choices if not wants_at_least(choice, value)]
            return max(below, key=lambda one: sum(wants_at_least(one, other) for other in below), default=None)
        assert parameter.low is not None
        if not parameter.is_int:
            # A dropout of nothing wants less than any other, if the range has it.
            return 0.0 if parameter.low == 0 and value > 0 else None
        fitting = [
            other[path]
            for other in self._fitting
            if self._wants_at_least({**other, path: value}, {**settings, path: value})
        ]
        step = parameter.step or 1
        num_steps = math.ceil((value - parameter.low) / step)
        if num_steps == 0:
            return None
        num_fitting = max((int((one - parameter.low) / step) for one in fitting), default=0)
        return int(parameter.low + (num_fitting + num_steps) // 2 * step) if num_fitting < num_steps else None
