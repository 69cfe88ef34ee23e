"""What the first and the second signal do, before the search, in it, after it, and at the very end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ray.orchestration import stopping
from qlora_ray.orchestration.stopping import SIGNALS, SearchStop, StopSignals, stop_signals

pytestmark = pytest.mark.parametrize("signum", SIGNALS)


@pytest.fixture
def stops() -> Iterator[StopSignals]:
    """The signals, handled for the length of the test."""
    with stop_signals() as stops:
        yield stops


@pytest.fixture
def search() -> Any:
    """A running search: what a stop would set."""
    return SimpleNamespace(stop=SearchStop(), ledger=SimpleNamespace(is_stopping=False))


def test_before_the_search_a_signal_interrupts_at_once(stops: StopSignals, signum: signal.Signals) -> None:
    stops.check()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signum)


@pytest.mark.parametrize("phase", ["between two phases", "as the search begins"])
def test_an_interrupt_that_a_callback_swallowed_is_raised_again(
    stops: StopSignals, search: Any, signum: signal.Signals, phase: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signum)
    with pytest.raises(KeyboardInterrupt):
        stops.check() if phase == "between two phases" else stops.begin_search(search.stop, search.ledger)
    assert not search.stop.is_requested


def test_in_the_search_the_first_signal_ends_it_between_two_steps(
    stops: StopSignals, search: Any, signum: signal.Signals
) -> None:
    stops.begin_search(search.stop, search.ledger)
    signal.raise_signal(signum)  # and does not raise: a trial may be half told
    assert search.stop.is_requested and search.ledger.is_stopping
    stops.end_search()
    with pytest.raises(KeyboardInterrupt):
        stops.check()


def test_in_the_search_the_second_signal_interrupts(stops: StopSignals, search: Any, signum: signal.Signals) -> None:
    stops.begin_search(search.stop, search.ledger)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signum)


def test_after_the_search_a_signal_interrupts_again(stops: StopSignals, search: Any, signum: signal.Signals) -> None:
    stops.begin_search(search.stop, search.ledger)
    stops.end_search()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signum)
    assert not search.stop.is_requested


def test_at_the_very_end_nothing_stops(stops: StopSignals, signum: signal.Signals) -> None:
    stops.ignore()
    signal.raise_signal(signum)
    signal.raise_signal(signum)
    stops.check()


def test_signals_that_ray_took_over_are_taken_back_and_given_back_at_the_end(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with stop_signals() as stops:
        signal.signal(signum, signal.SIG_IGN)
        stops.install()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signum)
    assert signal.getsignal(signum) is before


def test_the_death_of_ray_ends_a_search_for_that_reason(
    stops: StopSignals, search: Any, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops.begin_search(search.stop, search.ledger)
    threading.Thread(target=stops.end_with_ray, args=("Ray's GCS has died.",)).run()
    assert search.stop.reason == stops.ray_death == "Ray's GCS has died."
    stops.ignore()


def test_a_search_that_waits_for_a_dead_ray_is_interrupted_after_a_while(
    stops: StopSignals, search: Any, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "SEARCH_END_S", 0.05)
    stops.begin_search(search.stop, search.ledger)
    with pytest.raises(KeyboardInterrupt):
        stops.end_with_ray("Ray's GCS has died.")
        threading.Event().wait(30)
