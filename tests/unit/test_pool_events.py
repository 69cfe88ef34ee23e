"""What the pool tells the driver: noted once, its slots the searcher's, and the end of the search."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from qlora_ray.errors import PoolLost
from qlora_ray.orchestration.pool_events import PoolEvents
from qlora_ray.orchestration.searcher import StudySearcher
from qlora_ray.orchestration.stopping import SearchStop
from qlora_ray.runs import read_events
from tests.unit.orchestration_fixtures import Books, remote


def pool_event(name: str, *, reason: str = "why", slots: int = 2, num_left: int = 2, **facts: Any) -> dict[str, Any]:
    """An event as the pool writes it."""
    counts = {"executor": 0, "hostname": "here", "ready_slots": slots, "num_left": num_left}
    return {"event": name, "reason": reason, **counts, **facts}


def read(books: Books, events: list[dict[str, Any]], *, waits: bool = False) -> tuple[SearchStop, StudySearcher]:
    """Reads these events of a pool, and then that it is gone."""

    async def next_events(seen: int, timeout_s: float) -> list[dict[str, Any]]:
        if seen == len(events):
            raise RayActorError
        return [dict(event) for event in events[seen:]]

    class Pool:
        def __init__(self) -> None:
            self.next_events = remote(next_events)

    searcher, stop = books.make_searcher(num_slots=2), SearchStop()
    reader = PoolEvents(Pool(), ledger=books.ledger, waits_for_nodes=waits)
    reader.follow(searcher, stop)
    with pytest.raises(PoolLost, match="the pool is gone"):
        asyncio.run(reader.read())
    asyncio.run(reader.read_rest())
    return stop, searcher


def test_the_pools_events_are_noted_once_and_its_slots_are_the_searchers(tmp_path: Path) -> None:
    books = Books(tmp_path)
    events = [
        pool_event("executor_ready", slots=4),
        pool_event("trial_leased", slots=4, trial="0000"),
        pool_event("slots_changed", reason="out of memory", slots=3, trial=None) | {"slots": 3},
    ]
    stop, searcher = read(books, events)
    noted = read_events(books.paths.events)
    assert [event["event"] for event in noted] == ["executor_ready", "trial_leased", "slots_changed"]
    assert noted[2]["ready_slots"] == searcher.num_slots == 3
    # What goes as planned is no line of the user's.
    (line,) = books.text.getvalue().splitlines()
    assert "executor 0 has 3 slots" in line and "out of memory" in line
    assert not stop.is_requested and not books.ledger.is_stopping


def test_a_search_without_a_ready_executor_still_asks_for_one_trial(tmp_path: Path) -> None:
    _, searcher = read(Books(tmp_path), [pool_event("executor_lost", slots=0)])
    assert searcher.num_slots == 1


@pytest.mark.parametrize(
    ("num_left", "waits", "reason"), [(1, False, None), (0, False, "CUDA driver died"), (0, True, None)]
)
def test_the_search_ends_when_the_last_executor_is_given_up(
    tmp_path: Path, num_left: int, waits: bool, reason: str | None
) -> None:
    books = Books(tmp_path)
    event = pool_event("executor_failed", reason="CUDA driver died", slots=0, num_left=num_left)
    stop, _ = read(books, [event], waits=waits)
    assert stop.reason == reason
    # Trials that it cuts off are interrupted, not pruned.
    assert books.ledger.is_stopping is (reason is not None)
    assert ("search_stopped" in {event["event"] for event in read_events(books.paths.events)}) is (reason is not None)


def test_the_end_of_the_search_is_told_once_however_much_follows(tmp_path: Path) -> None:
    books = Books(tmp_path)
    stop, _ = read(books, [pool_event(name, num_left=0) for name in ("executor_failed", "node_left_out")])
    assert stop.is_requested
    assert [event["event"] for event in read_events(books.paths.events)].count("search_stopped") == 1
