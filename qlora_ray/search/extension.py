"""Whether a search space only extends another one, so that a study may go on in it with all its trials valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_ray.config.choices import SAMPLERS
from qlora_ray.config.differences import Difference
from qlora_ray.runs.records import POINTS_KEY
from qlora_ray.search.space import Parameter, SearchSpace

# Steps are compared as multiples; a range's ends are decimal numbers.
STEP_TOLERANCE = 1e-8


def list_space_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Returns what differs between two spaces as SearchSpace.to_dict has them: parameters, and their known points."""
    return [
        Difference(f"search space {path}", was.get(path), now.get(path))
        for path in dict.fromkeys([*was, *now])
        if was.get(path) != now.get(path)
    ]


def find_unsound(was: SearchSpace, now: SearchSpace, *, sampler: str) -> list[Difference]:
    """Returns the differences that a study which began in `was` cannot go on with.

    Ranges may become wider and points may be added. Optuna refuses other choices for a parameter that has trials, and
    another scale or step would leave old values off the new one.

    Args:
        was: The space that the study's trials were drawn from.
        now: The space that it is to go on in.
        sampler: A name of config.choices.SAMPLERS.
    """
    parameters = {parameter.path: parameter for parameter in was.parameters}
    sound = {
        f"search space {parameter.path}"
        for parameter in now.parameters
        if SAMPLERS[sampler].takes_wider_ranges
        and parameter.path in parameters
        and _is_wider(parameters[parameter.path], parameter)
    }
    if all(point in now.points_to_evaluate for point in was.points_to_evaluate):
        sound.add(f"search space {POINTS_KEY}")
    return [
        difference for difference in list_space_differences(was.to_dict(), now.to_dict()) if difference.key not in sound
    ]


def _is_wider(was: Parameter, now: Parameter) -> bool:
    if was.choices is not None or now.choices is not None:
        return False
    if (was.log, was.step) != (now.log, now.step):
        return False
    assert was.low is not None and was.high is not None and now.low is not None and now.high is not None
    if now.low > was.low or now.high < was.high:
        return False
    steps = 0.0 if was.step is None else (was.low - now.low) / was.step
    return abs(steps - round(steps)) < STEP_TOLERANCE
