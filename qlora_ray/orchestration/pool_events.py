"""The pool's events, in the driver: noted in the books, and what they say of the slots."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from qlora_ray.orchestration.actor_calls import ask
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.ray_errors import pool_lost
from qlora_ray.orchestration.searcher import StudySearcher
from qlora_ray.orchestration.stopping import SearchStop

EVENT_POLL_S = 30.0
# What was told at the very end is worth this wait, and no more.
LAST_LOOK_S = 5.0


class PoolEvents:
    """Brings the pool's events into the ledger, each once, and its slots to the searcher of the search that runs.

    Args:
        pool: The pool's actor.
        ledger: Notes each event.
        waits_for_nodes: Whether more nodes may come, so that a sweep without an executor goes on.
    """

    def __init__(
        self,
        pool: Any,
        *,
        ledger: Ledger,
        waits_for_nodes: bool = False,
    ) -> None:
        self._pool = pool
        self._ledger = ledger
        self._searcher: StudySearcher | None = None
        self._stop: SearchStop | None = None
        self._waits_for_nodes = waits_for_nodes
        self._seen = 0
        self._on_slots: Callable[[], object] = lambda: None

    def listen(self, on_slots: Callable[[], object]) -> None:
        """Sets who is told that there are more or fewer slots than before."""
        self._on_slots = on_slots

    def follow(self, searcher: StudySearcher | None, stop: SearchStop | None) -> None:
        """From now on this searcher is told of the slots, and this search is ended with the last executor; None: none
        runs."""
        self._searcher, self._stop = searcher, stop

    async def read(self) -> None:
        """Reads events as they come, until it is cancelled.

        Raises:
            PoolLost: If the pool is gone.
        """
        while True:
            try:
                await self._read(EVENT_POLL_S)
            except RayError as error:
                raise pool_lost(error) from None

    async def read_rest(self) -> None:
        """Reads what came since the last look."""
        with contextlib.suppress(RayError, TimeoutError):
            await asyncio.wait_for(self._read(0), LAST_LOOK_S)

    def note_rest(self) -> None:
        """The same outside an event loop."""
        with contextlib.suppress(RayError):
            self._take_all(ray.get(self._pool.next_events.remote(self._seen, 0), timeout=LAST_LOOK_S))

    async def _read(self, timeout_s: float) -> None:
        self._take_all(await ask(self._pool.next_events, self._seen, timeout_s))

    def _take_all(self, events: list[dict[str, Any]]) -> None:
        self._seen += len(events)
        for event in events:
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        num_slots = max(1, event["ready_slots"])
        if self._searcher is not None and num_slots != self._searcher.num_slots:
            self._searcher.num_slots = num_slots
            self._on_slots()
        name, reason = event.pop("event"), event.pop("reason")
        self._ledger.note(name, reason=reason, line=_line_of(name, reason, event), **event)
        if event["num_left"] == 0 and not self._waits_for_nodes and self._stop is not None:
            if not self._ledger.is_stopping:
                self._ledger.note("search_stopped", reason=reason, line=f"the search ends: {reason}")
            # Trials that it cuts off are interrupted, not pruned.
            self._ledger.is_stopping = True
            self._stop.request(reason)


def _line_of(name: str, reason: str, event: dict[str, Any]) -> str | None:
    """What the user reads of a pool's event; None for what goes as planned."""
    executor = f"executor {event.get('executor')}"
    lines = {
        "executor_lost": f"{executor} lost, starting another: {reason}",
        "executor_failed": f"{executor} given up: {reason}",
        "slots_changed": f"{executor} has {event.get('slots')} slots from now on: {reason}",
        "trial_preempted": f"trial {event.get('trial')} preempted on {executor}: {reason}; "
        "it goes on in the next free slot",
        "node_joined": f"node joined: {reason}",
        "node_left_out": f"node left out: {reason}",
        "node_lost": f"node lost: {reason}",
        "node_draining": reason,
    }
    return lines.get(name)
