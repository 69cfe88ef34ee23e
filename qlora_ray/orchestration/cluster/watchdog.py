"""Notices the death of Ray itself before Ray ends this process over it.

Seen with Ray 2.60, kill -9, private cluster: after the GCS died everything goes on for 60 s, then the driver's process
exits with 1, without a Python exception, and no summary is written. After the raylet of the driver's node died,
actors on it answer for another 14 s and are then dead; new ones are never started, and the driver waits for ever.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray

from qlora_ray.orchestration.cluster.nodes import own_node_id
from qlora_ray.orchestration.cluster.repeating import RepeatingThread

CHECK_INTERVAL_S = 1.0
CONNECT_TIMEOUT_S = 2.0
# A raylet does not come back: its node would be another one.
RAYLET_GRACE_S = 4.0
# Nor does the GCS of a private Ray. That of a cluster does where its tables are in Redis; Ray gives it 60 s.
PRIVATE_GCS_GRACE_S = 4.0
GCS_GRACE_S = 30.0


@dataclass(frozen=True)
class RayPart:
    """A process of Ray's that the sweep cannot be without.

    Attributes:
        name: What it is, for people.
        host: Where it listens.
        port: The port.
        grace_s: How long it may be away before it is taken for dead.
    """

    name: str
    host: str
    port: int
    grace_s: float


def find_parts(*, is_private: bool) -> list[RayPart]:
    """The GCS, and the raylet of this process's node."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    gcs_grace_s = PRIVATE_GCS_GRACE_S if is_private else GCS_GRACE_S
    parts = [RayPart("Ray's GCS", host.strip("[]"), int(port), gcs_grace_s)]
    here = own_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here:
            address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            parts.append(RayPart("the raylet of this node", address, int(port), RAYLET_GRACE_S))
    return parts


def is_listening(part: RayPart) -> bool:
    """Whether a process takes connections there. One that is only slow does: its kernel answers for it."""
    try:
        with socket.create_connection((part.host, part.port), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


class Watchdog:
    """Looks every second whether Ray's parts are there.

    Args:
        parts: What to look at.
        on_death: Is told once, with one sentence, from the watchdog's thread.
        is_there: Whether a part is there; tests give their own.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        parts: list[RayPart],
        *,
        on_death: Callable[[str], None],
        is_there: Callable[[RayPart], bool] = is_listening,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = parts
        self._on_death = on_death
        self._is_there = is_there
        self._clock = clock
        self._seen_at = {part: clock() for part in parts}
        self._thread = RepeatingThread(self.look, interval_s=CHECK_INTERVAL_S, name="ray-watchdog")
        # What has died, as one sentence; None while all is well.
        self.cause: str | None = None

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def close(self) -> None:
        """Ends."""
        self._thread.close(timeout_s=0.0)

    def look(self) -> None:
        """Looks once."""
        for part in self._parts:
            if self.cause is not None:
                return
            if self._is_there(part):
                self._seen_at[part] = self._clock()
            elif self._clock() - self._seen_at[part] >= part.grace_s:
                self.cause = f"{part.name} at {part.host}:{part.port} has died."
                self._on_death(self.cause)
