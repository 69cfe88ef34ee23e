"""One sweep and all the pages that are open on it: what is new is read once, and sent to each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_ray.dashboard.following import FileReplaced
from qlora_ray.dashboard.model import Changes
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.typed_json import to_json

if TYPE_CHECKING:
    from qlora_ray.dashboard.sweep_view import SweepView

# Four messages a second at most.
TICK_S = 0.25
AFTER_ERROR_S = 5.0
# Parts of which a message has what is new alone.
GROWING = ("trials", "spans")
# A page that has not taken so many gets everything anew instead: a laptop that slept, a tab in the background.
MAX_WAITING = 40


class Page:
    """A page that is open: messages for it, oldest first. None ends it."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.needs_all = True

    def send(self, message: bytes) -> None:
        """Queues a message; a page that lags behind is sent everything anew."""
        if self.messages.qsize() >= MAX_WAITING:
            while not self.messages.empty():
                self.messages.get_nowait()
            self.needs_all = True
        if not self.needs_all:
            self.messages.put_nowait(message)


class Channel:
    """Follows a sweep while a page is open on it. Used from one event loop; files are read on a thread.

    Args:
        paths: The sweep's folder.
        has_control: Whether its pages may ask something of the sweep.
    """

    def __init__(self, paths: SweepPaths, *, has_control: bool = False) -> None:
        self._paths = paths
        self._has_control = has_control
        self._view: SweepView | None = None
        self._pages: set[Page] = set()
        self._woken = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._importance: asyncio.Task[None] | None = None
        self._is_ending = False
        self._pause_s = TICK_S

    def open_page(self) -> Page:
        """A page that gets everything first, then what is new."""
        page = Page()
        self._pages.add(page)
        self._woken.set()
        if self._follower is None:
            self._follower = asyncio.create_task(self._follow())
        return page

    def close_page(self, page: Page) -> None:
        """Sends nothing more to a page."""
        self._pages.discard(page)

    async def end(self) -> None:
        """Sends what is still new, and ends all pages."""
        self._is_ending = True
        self._woken.set()
        if self._follower is not None:
            await self._follower
        for page in self._pages:
            page.messages.put_nowait(None)

    async def _follow(self) -> None:
        while True:
            # What is written till the end is asked for is told yet.
            is_last = self._is_ending
            self._woken.clear()
            if self._pages:
                await self._tick_safely()
            if is_last:
                return
            with contextlib.suppress(TimeoutError):
                # Without a page nothing is read.
                await asyncio.wait_for(self._woken.wait(), self._pause_s if self._pages else None)

    async def _tick_safely(self) -> None:
        self._pause_s = TICK_S
        try:
            await self._tick()
            return
        except (OSError, FileReplaced):
            # The folder was removed, or made again under its name.
            pass
        except Exception:
            # What a damaged folder says may be of a kind that nobody thought of: its pages go on with what they have.
            traceback.print_exc()
            self._pause_s = AFTER_ERROR_S
        self._view = None
        for page in self._pages:
            page.needs_all = True

    async def _tick(self) -> None:
        message = await asyncio.to_thread(self._poll)
        for page in self._pages:
            if message is not None:
                page.send(message)
        fresh = [page for page in self._pages if page.needs_all]
        if fresh:
            everything = await asyncio.to_thread(self._tell_all)
            for page in fresh:
                page.needs_all = False
                page.messages.put_nowait(everything)
        view = self._view
        if view is not None and (self._importance is None or self._importance.done()) and view.needs_importance():
            self._importance = asyncio.create_task(_run(view.read_importance))

    def _poll(self) -> bytes | None:
        changes = self._get_view().poll()
        return None if changes.is_empty() else encode(changes)

    def _tell_all(self) -> bytes:
        return encode(self._get_view().whole())

    def _get_view(self) -> SweepView:
        if self._view is None:
            # Imports numpy, for which the server's start need not wait.
            from qlora_ray.dashboard.sweep_view import SweepView

            self._view = SweepView(self._paths, has_control=self._has_control)
        return self._view


async def _run(work: Callable[[], None]) -> None:
    await asyncio.to_thread(work)


def encode(changes: Changes) -> bytes:
    """A message as the page takes it: JSON without line breaks, parts that are not new left out.

    A part that has become empty is new: answers of a winner that is chosen again, other sweeps that are gone.
    """
    known = to_json(replace(changes, time=time.time()))
    parts = {name: known[name] for name in known if known[name] is not None and (known[name] or name not in GROWING)}
    return json.dumps(parts, allow_nan=False, separators=(",", ":")).encode()
