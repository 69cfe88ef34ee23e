"""The trackers of `results.report_to`: whether their libraries are there, and how each begins."""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Callable, Sequence

from qlora_ray.config.choices import TRACKERS
from qlora_ray.errors import ConfigError
from qlora_ray.tracking.tracker import TrackedSweep, Tracker


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for trackers whose library is not installed; imports none of them."""
    missing = [name for name in names if importlib.util.find_spec(TRACKERS[name].library) is None]
    if missing:
        raise ConfigError(
            f"results.report_to: the library of each tracker must be installed, got none of {', '.join(missing)}. "
            f"Run: pip install -c constraints.txt -e '.[{','.join(missing)}]'"
        )


def make_tracker(name: str, sweep: TrackedSweep) -> Tracker:
    """Begins a sweep with a tracker; raises whatever its library does."""
    make: Callable[[TrackedSweep], Tracker] = pkgutil.resolve_name(TRACKERS[name].make)
    return make(sweep)
