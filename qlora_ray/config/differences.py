"""What differs between two configs, a line per key: `search.num_trials: was 12, now 16`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One key whose value changed."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: was {self.was!r}, now {self.now!r}"


def list_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Returns the keys of two configs that differ, in the later one's order.

    Args:
        was: A config as SweepConfig.model_dump returns it.
        now: Another one. A key that only one of the two has is no difference: the schema grew in between.
    """
    return list(_compare(was, now, ""))


def _compare(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[Difference]:
    for key, value in now.items():
        if key not in was or was[key] == value:
            continue
        # A search space may stand in the config as a mapping of its own, which is compared as a space.
        if isinstance(value, Mapping) and isinstance(was[key], Mapping):
            yield from _compare(was[key], value, f"{prefix}{key}.")
        else:
            yield Difference(prefix + str(key), was[key], value)
