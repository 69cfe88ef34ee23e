"""What a user asks of a running sweep: a file for each request in its folder, which its driver takes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.runs.files import read_json, write_json
from qlora_ray.runs.links import check_links
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.typed_json import parse_record, to_json

# What a clone may have other values of: a state means the same under each of them.
CLONE_PATHS = (
    "training.learning_rate",
    "training.lr_scheduler_type",
    "training.lr_scheduler_kwargs",
    "training.warmup_ratio",
    "training.warmup_steps",
    "training.weight_decay",
    "training.max_grad_norm",
    "lora.lora_dropout",
)
# A script that writes a request in place takes less; the page renames a whole file.
BEING_WRITTEN_S = 3.0


class ControlAction(StrEnum):
    """What can be asked."""

    STOP_TRIAL = "stop_trial"  # it ends as pruned, where it is
    FINISH = "finish"  # no new trials; then the winner is chosen
    PAUSE = "pause"  # no new trials until it is told to go on
    CONTINUE = "continue"
    CLONE = "clone"  # a copy of a trial goes on from its last state with other values


@dataclass(frozen=True, kw_only=True)
class ControlRequest:
    """One request.

    Attributes:
        id: Its file's name, without `.json`.
        action: None where a file says none that is known.
        trial: The id of the trial to stop, or to clone.
        params: A clone's other values, by config path.
        asked_at: Seconds since 1970.
    """

    id: str = ""
    action: ControlAction | None = None
    trial: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    asked_at: float = 0.0


def write_request(
    paths: SweepPaths, action: ControlAction, *, trial: str | None = None, params: Mapping[str, Any] | None = None
) -> ControlRequest:
    """Leaves a request for the sweep's driver.

    Raises:
        RunError: If the sweep's folder cannot be written, or is a stranger's with links out of it.
    """
    check_links(paths.root)
    request = ControlRequest(id=uuid.uuid4().hex, action=action, trial=trial, params=params or {}, asked_at=time.time())
    with suppress(OSError):
        paths.control.mkdir(exist_ok=True)
    write_json(paths.control / f"{request.id}.json", to_json(request))
    return request


def take_requests(paths: SweepPaths) -> list[ControlRequest]:
    """The requests that nobody has taken, oldest first; their files are gone afterwards.

    One that asks nothing that is known has no action, and its file's name as its id. A file that is no JSON is left for
    a moment: a script may still be writing it.
    """
    found = []
    for path in paths.control.glob("*.json"):
        try:
            data = read_json(path)
        except RunError:
            if _is_new(path):
                continue
            data = None
        with suppress(OSError):
            path.unlink()
            request = parse_record(ControlRequest, data if isinstance(data, dict) else {})
            found.append(request if request.id else replace(request, id=path.stem))
    return sorted(found, key=lambda one: one.asked_at)


def _is_new(path: Path) -> bool:
    try:
        return abs(time.time() - path.stat().st_mtime) < BEING_WRITTEN_S
    except OSError:
        return False
