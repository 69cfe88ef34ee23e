"""What became of what was asked of a running sweep, as its driver notes it in the events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_ray.reporting.timeline import RUN_STARTS
from qlora_ray.runs.control import ControlAction

# Requests that leave the sweep itself as it is.
OF_A_TRIAL = (ControlAction.STOP_TRIAL, ControlAction.CLONE)


class AnsweredRequests:
    """How the requests of the present run have changed it.

    Attributes:
        is_paused: Whether it begins no trials until it is told to continue.
        is_finishing: Whether it begins none any more.
        last: What became of the last request.
    """

    def __init__(self) -> None:
        self.is_paused = False
        self.is_finishing = False
        self.last: str | None = None

    def apply(self, event: Mapping[str, Any]) -> None:
        """Takes one event, in the order of events.jsonl."""
        name, action = event.get("event"), event.get("action")
        if name in RUN_STARTS:
            # Another driver, which was asked for nothing yet.
            self.is_paused, self.is_finishing, self.last = False, False, None
        elif name in ("request_done", "request_refused"):
            self.last = f"{'Refused: ' if name == 'request_refused' else ''}{event.get('reason')}"
            if name == "request_done" and action not in OF_A_TRIAL:
                self.is_paused = action == ControlAction.PAUSE
                self.is_finishing = self.is_finishing or action == ControlAction.FINISH
