"""What the user asks of a running search, carried out between two of its steps."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from qlora_ray.errors import first_line
from qlora_ray.orchestration.cloning import CloneRefused
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.runs.control import ControlAction, ControlRequest, take_requests
from qlora_ray.runs.paths import SweepPaths

LOOK_INTERVAL_S = 1.0
STOPPED_BY_USER = "stopped by the user"
GOES_ON = "new trials again, as asked"


class Controlled(Protocol):
    """The search, as far as requests change it. Called on its event loop."""

    def stop_trial(self, number: int, reason: str) -> bool:
        """Ends a trial as pruned; False if it does not run."""

    async def clone(self, number: int, changes: Mapping[str, Any]) -> str:
        """Has a copy of a trial go on with other values; returns its id, or raises CloneRefused."""

    def finish(self) -> None:
        """Asks the study for no more trials."""

    def set_paused(self, is_paused: bool) -> None:
        """Begins no trial while it is paused."""


class SearchControl:
    """Takes the requests of a sweep's folder, for each of the searches that it runs one after the other.

    Args:
        paths: The sweep's folder.
        ledger: Notes what was asked and what became of it.
    """

    def __init__(self, paths: SweepPaths, ledger: Ledger) -> None:
        self._paths = paths
        self._ledger = ledger
        self._is_paused = False

    async def follow(self, search: Controlled) -> None:
        """Has a search do what is asked, until it is cancelled; one that was asked to pause before begins so."""
        if self._is_paused:
            search.set_paused(True)
        while True:
            requests: list[ControlRequest] = []
            # What breaks goes to the sweep's log, and must not end the search.
            with _printed():
                # The folder may lie on a file server that takes its time.
                requests = await asyncio.to_thread(take_requests, self._paths)
            for request in requests:
                with _printed():
                    await self._answer(request, search)
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _answer(self, request: ControlRequest, search: Controlled) -> None:
        """Does what is asked, and notes what came of it."""
        event = "request_done"
        try:
            reason = await self._carry_out(request, search)
        except _Refused as refusal:
            event, reason = "request_refused", str(refusal)
        except Exception as error:
            traceback.print_exc()
            event, reason = "request_refused", f"{request.action} broke: {first_line(error)}"
        self._ledger.note(
            event,
            reason=reason,
            line=reason if event == "request_done" else f"refused: {reason}",
            action=request.action,
            request=request.id,
            **({"trial": request.trial} if request.trial else {}),
        )

    async def _carry_out(self, request: ControlRequest, search: Controlled) -> str:
        """Does what is asked; returns what was done, or raises _Refused."""
        trial = request.trial or "?"
        if request.action is None:
            actions = ", ".join(ControlAction)
            raise _Refused(f"control/{request.id}.json must have an action of {actions}, and has none of them")
        if request.action is ControlAction.STOP_TRIAL:
            if not (trial.isdecimal() and search.stop_trial(int(trial), STOPPED_BY_USER)):
                raise _Refused(f"trial {trial} does not run")
            return f"trial {trial} is stopped, as asked"
        if request.action is ControlAction.CLONE:
            try:
                if not trial.isdecimal():
                    raise CloneRefused("there is no such trial")
                clone = await search.clone(int(trial), request.params)
            except CloneRefused as error:
                raise _Refused(f"trial {trial} is not cloned: {error}") from None
            return f"trial {clone} is a clone of trial {trial}, as asked"
        if request.action is ControlAction.FINISH:
            self._is_paused = False
            search.finish()
            return "no new trials from now on, as asked; the winner is chosen when the running ones end"
        self._is_paused = request.action is ControlAction.PAUSE
        search.set_paused(self._is_paused)
        return "no new trials until the sweep is told to continue, as asked" if self._is_paused else GOES_ON


class _Refused(Exception):
    """Why a request is not carried out."""


@contextmanager
def _printed() -> Iterator[None]:
    """Prints what goes wrong in the block, and goes on after it."""
    try:
        yield
    except Exception:
        traceback.print_exc()
