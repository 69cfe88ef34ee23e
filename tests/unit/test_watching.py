"""What the watch over Ray does before a search has begun."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from qlora_ray.config.schema import Cluster
from qlora_ray.errors import PlacementError, SweepInterrupted
from qlora_ray.orchestration import stopping, watching
from qlora_ray.orchestration.stopping import StopSignals, stop_signals
from qlora_ray.orchestration.watching import watched_ray

DEATH = "Ray's GCS has died."


def interrupted(stops: StopSignals) -> None:
    """Ray dies, and the main thread is interrupted for it."""
    stops.end_with_ray(DEATH)
    threading.Event().wait(30)


def told_by_ray(stops: StopSignals) -> None:
    """Ray dies, and a call of the main thread hears of it in the same moment."""
    try:
        interrupted(stops)
    except KeyboardInterrupt:
        raise RayActorError from None


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The signals that come after the sweep has given them back."""
    monkeypatch.setattr(watching, "find_parts", lambda is_private: [])
    monkeypatch.setattr(stopping, "SEARCH_END_S", 0.2)
    came: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda signum, frame: came.append(signum))
    yield came
    signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("die", [interrupted, told_by_ray])
def test_the_death_of_ray_before_the_search_is_one_line_and_no_signal_comes_after_it(
    signals: list[int], die: Callable[[StopSignals], None]
) -> None:
    with pytest.raises(SweepInterrupted, match=f"{DEATH} No trial was running"), stop_signals() as stops:  # noqa: SIM117
        with watched_ray(Cluster(), stops):
            die(stops)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()
    assert signals == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PlacementError("no room"), RayActorError()])
def test_what_else_ends_a_sweep_is_left_as_it_is(signals: list[int], error: BaseException) -> None:
    with pytest.raises(type(error)), stop_signals() as stops, watched_ray(Cluster(), stops):
        raise error
