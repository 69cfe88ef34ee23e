"""What the user asks of a running search, carried out between two of its steps."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping
from typing import Any, Protocol

from qlora_ray.orchestration.cloning import CloneRefused
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.runs.control import ControlAction, ControlRequest, take_requests
from qlora_ray.runs.paths import SweepPaths

LOOK_INTERVAL_S = 1.0
STOPPED_BY_USER = "stopped by the user"


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

    Attributes:
        is_finishing: Whether no search is to begin any more.
    """

    def __init__(self, paths: SweepPaths, ledger: Ledger) -> None:
        self._paths = paths
        self._ledger = ledger
        self._is_paused = False
        self.is_finishing = False

    async def follow(self, search: Controlled) -> None:
        """Has a search do what is asked, until it is cancelled; one that was asked to pause before begins so."""
        if self._is_paused:
            search.set_paused(True)
        while True:
            try:
                # The folder may lie on a file server that takes its time.
                for request in await asyncio.to_thread(take_requests, self._paths):
                    await self._carry_out(request, search)
            except Exception:
                # It goes to the sweep's log: a request that breaks must not end the search.
                traceback.print_exc()
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _carry_out(self, request: ControlRequest, search: Controlled) -> None:
        refusal, clone = None, ""
        if request.action is ControlAction.STOP_TRIAL:
            trial = request.trial or ""
            is_stopped = trial.isdecimal() and search.stop_trial(int(trial), STOPPED_BY_USER)
            refusal = None if is_stopped else f"trial {trial or '?'} does not run"
        elif request.action is ControlAction.CLONE:
            trial = request.trial or ""
            try:
                if not trial.isdecimal():
                    raise CloneRefused("there is no such trial")
                clone = await search.clone(int(trial), request.params)
            except CloneRefused as error:
                refusal = f"trial {trial or '?'} is not cloned: {error}"
        elif request.action is ControlAction.FINISH:
            self.is_finishing, self._is_paused = True, False
            search.finish()
        else:
            self._is_paused = request.action is ControlAction.PAUSE
            search.set_paused(self._is_paused)
        self._note(request, refusal, clone)

    def _note(self, request: ControlRequest, refusal: str | None, clone: str) -> None:
        words = {
            ControlAction.CLONE: f"trial {clone} is a clone of trial {request.trial}, as asked",
            ControlAction.STOP_TRIAL: f"trial {request.trial} is stopped, as asked",
            ControlAction.FINISH: "no new trials from now on, as asked; the winner is chosen when the running ones end",
            ControlAction.PAUSE: "no new trials until the sweep is told to continue, as asked",
            ControlAction.CONTINUE: "new trials again, as asked",
        }
        assert request.action is not None
        reason = refusal or words[request.action]
        self._ledger.note(
            "request_refused" if refusal else "request_done",
            reason=reason,
            line=f"refused: {refusal}" if refusal else reason,
            action=request.action,
            request=request.id,
            **({"trial": request.trial} if request.trial else {}),
        )
