"""Events in order, for one event loop: appended by whoever acts, awaited by whoever wants to know."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any


class EventFeed:
    """A list of events that can be waited on. Used from one event loop only, so it needs no lock."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._grown = asyncio.Event()

    def append(self, event: dict[str, Any]) -> None:
        """Adds an event and wakes everyone who waits."""
        self._events.append(event)
        self._grown.set()
        # Those who come now wait for the next one.
        self._grown = asyncio.Event()

    async def wait_growth(self) -> None:
        """Waits for the next event."""
        await self._grown.wait()

    async def after(self, seen: int, *, timeout_s: float) -> list[dict[str, Any]]:
        """The events after the first `seen`; waits up to `timeout_s` for one."""
        # Taken now: `wait_for` runs its waiter as a task of its own, which begins after an event that comes meanwhile.
        grown = self._grown
        if len(self._events) <= seen:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(grown.wait(), timeout_s)
        return self._events[seen:]
