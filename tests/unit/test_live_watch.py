"""The watch over a sweep: figures from pool and books, live.json, and what a terminal or a log is shown."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

from qlora_ray.console import Console
from qlora_ray.orchestration.live.collecting import LiveCollector
from qlora_ray.orchestration.live.outlook import Outlook, RowCounts
from qlora_ray.orchestration.live.watch import STATUS_INTERVAL_S, LiveWatch
from qlora_ray.runs.live import LiveFigures, LivePhase, LiveTrialState, read_live
from tests.unit.orchestration_fixtures import Books, make_result, remote


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Sweep:
    """A sweep that is watched: its books, and a pool that says what the test wants.

    Attributes:
        answer: What the pool says, or the error that asking it ends with.
        num_asked: How often it was asked.
        published: What the gauges were told.
    """

    def __init__(self, root: Path) -> None:
        self.books = Books(root)
        self.clock = Clock()
        self.text = io.StringIO()
        self.answer: Any = {"seats": [], "waiting": []}
        self.num_asked = 0
        self.published: list[tuple[LiveFigures, dict[str, Any]]] = []
        rows = RowCounts(trained=600, validation=10, verdict=10, answered=10)
        self.collector = LiveCollector(
            self.books.ledger,
            SimpleNamespace(live=remote(self._ask)),
            outlook=Outlook(self.books.config.search, top_k=3, rows=rows),
            device_kind="cpu",
            earlier_hours=1.0,
            clock=self.clock,
        )
        self.watch = LiveWatch(Console(self.text), clock=self.clock)

    def following(self) -> Any:
        """The watch of its pool."""
        gauges: Any = SimpleNamespace(publish=lambda figures, **books: self.published.append((figures, books)))
        return self.watch.following(self.collector, ledger=self.books.ledger, paths=self.books.paths, gauges=gauges)

    def _ask(self) -> Any:
        self.num_asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """One with two trials in its books."""
    monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)
    sweep = Sweep(tmp_path)
    for number in (0, 1):
        sweep.books.ledger.open(number, {})
    return sweep


def make_seat(executor: int, *, trials: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A seat as the pool describes it."""
    live = None if trials is None else {"trials": trials, "memory_bytes": 5, "total_memory_bytes": 9, "gpu_ids": [2]}
    return {
        "executor": executor,
        "node_id": "n",
        "device_id": "host:0",
        "hostname": "host",
        "device": "T4",
        "device_class": "T4",
        "estimated_memory_bytes": 7,
        "state": "ready",
        "slots": 2,
        "used": 1,
        "trials": ["0000"],
        "live": live,
        **fields,
    }


TRAINING = {"state": "training", "step": 3, "num_steps": 10, "train_loss": 0.5, "eval_loss": None, "tokens_per_s": 8.0}


def test_figures_join_what_executors_say_with_what_the_books_know(sweep: Sweep) -> None:
    sweep.books.ledger.report(make_result(1, 1, metrics={"eval_loss": 0.75, "step": 5}))
    sweep.answer = {"seats": [make_seat(4, trials={"0000": TRAINING}), make_seat(5)], "waiting": ["0001"]}
    figures = sweep.collector.collect(LivePhase.SEARCH)
    first, second = figures.trials["0000"], figures.trials["0001"]
    assert (first.state, first.step, first.num_steps, first.executor) == (LiveTrialState.TRAINING, 3, 10, 4)
    # On no executor: where its last report was.
    assert (second.state, second.step, second.eval_loss, second.executor) == (LiveTrialState.WAITING, 5, 0.75, None)
    assert (figures.slots, figures.slots_used, figures.waiting, figures.num_planned) == (4, 2, 1, 3)
    here, silent = figures.executors
    assert (here.memory_bytes, here.planned_memory_bytes, here.total_memory_bytes, here.gpu_ids) == (5, 7, 9, (2,))
    assert (silent.memory_bytes, silent.planned_memory_bytes) == (None, 7)


def test_hours_are_those_of_devices_that_an_executor_holds_and_go_on_from_the_run_before(sweep: Sweep) -> None:
    # Two executors share a device; the third one's was given back.
    shared = [make_seat(0), make_seat(1), make_seat(2, device_id="host:1", state="aside")]
    sweep.answer = {"seats": shared, "waiting": []}
    sweep.collector.collect(LivePhase.SEARCH)
    sweep.clock.now = 3600.0
    assert sweep.collector.collect(LivePhase.SEARCH).gpu_hours == pytest.approx(2.0)


def test_where_the_pool_does_not_answer_its_last_answer_stands(sweep: Sweep) -> None:
    sweep.answer = {"seats": [make_seat(0)], "waiting": []}
    sweep.collector.collect(LivePhase.SEARCH)
    sweep.answer = GetTimeoutError("busy")
    assert len(sweep.collector.collect(LivePhase.SEARCH).executors) == 1


def test_a_trial_that_is_opened_during_a_look_is_in_the_books_of_that_look(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = sweep.books.ledger.running

    def open_another() -> Any:
        sweep.books.ledger.open(2, {})
        return running()

    monkeypatch.setattr(sweep.books.ledger, "running", open_another)
    assert list(sweep.collector.collect(LivePhase.SEARCH).trials) == ["0000", "0001", "0002"]


def test_last_figures_that_cannot_be_told_take_nothing_from_the_sweeps_end(
    sweep: Sweep, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Ray is gone")

    gauges: Any = SimpleNamespace(publish=fail)
    with sweep.watch.following(sweep.collector, ledger=sweep.books.ledger, paths=sweep.books.paths, gauges=gauges):
        pass
    assert "Ray is gone" in capfd.readouterr().err


def test_live_json_is_there_while_the_sweep_runs_and_says_in_the_end_that_it_ended(sweep: Sweep) -> None:
    with sweep.following():
        sweep.watch.begin(LivePhase.SEARCH, "training")
        sweep.watch.look()
        running = read_live(sweep.books.paths)
    assert sweep.published[0][0] == running
    assert sweep.published[0][1] == {"counts": {"running": 2}, "best": None}
    ended = read_live(sweep.books.paths)
    assert running is not None and running.phase is LivePhase.SEARCH
    assert ended is not None and (ended.phase, ended.eta_s) == (LivePhase.ENDED, 0.0)


def test_once_it_follows_no_more_nobody_is_asked_and_nothing_is_shown(sweep: Sweep) -> None:
    with sweep.following():
        sweep.watch.look()
    sweep.clock.now = 2 * STATUS_INTERVAL_S
    sweep.watch.look()
    assert sweep.num_asked == 1
    assert sweep.text.getvalue() == ""


def test_a_log_gets_a_line_a_minute(sweep: Sweep) -> None:
    with sweep.following():
        sweep.watch.begin(LivePhase.SEARCH, "training")
        for _ in range(5):
            sweep.clock.now += 0.5 * STATUS_INTERVAL_S
            sweep.watch.look()
    lines = sweep.text.getvalue().splitlines()
    assert len(lines) == 2
    assert "search: training, 1:00" in lines[0] and "0/3 trials ended · 2 waiting" in lines[0]


def test_a_sweep_in_which_no_step_ends_says_for_how_long(sweep: Sweep) -> None:
    sweep.answer = {"seats": [make_seat(0, trials={"0000": TRAINING})], "waiting": []}
    with sweep.following():
        sweep.watch.begin(LivePhase.SEARCH, "training")
        sweep.watch.look()
        sweep.clock.now = STATUS_INTERVAL_S
        sweep.watch.look()
        sweep.answer = {"seats": [make_seat(0, trials={"0000": {**TRAINING, "step": 4}})], "waiting": []}
        sweep.clock.now = 2 * STATUS_INTERVAL_S
        sweep.watch.look()
    first, second = sweep.text.getvalue().splitlines()
    assert "no step or report ended for 1:00" in first
    assert "no step" not in second


def test_before_there_is_a_pool_what_is_under_way_is_shown_and_nothing_is_written(sweep: Sweep) -> None:
    with sweep.watch.running():
        sweep.watch.say("checking the config")
        sweep.clock.now = STATUS_INTERVAL_S
        sweep.watch.look()
    assert "checking the config, 1:00" in sweep.text.getvalue()
    assert not sweep.books.paths.live.exists()
