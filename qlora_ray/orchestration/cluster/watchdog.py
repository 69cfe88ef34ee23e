"""Notices the death of Ray itself before Ray ends this process over it.

Seen with Ray 2.60, kill -9, private cluster: after the GCS died everything goes on for 60 s, then the driver's process
exits with 1, without a Python exception, and no summary is written. After the raylet of the driver's node died,
actors on it answer for another 14 s and are then dead; new ones are never started, and the driver waits for ever, or is
ended by Ray with 1 as soon as it reads a large object. So a raylet's death must be seen within a moment.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import ray

from qlora_ray.orchestration.cluster.nodes import own_node_id
from qlora_ray.orchestration.cluster.repeating import RepeatingThread

CHECK_INTERVAL_S = 0.5
CONNECT_TIMEOUT_S = 2.0
# How long a part may be out of reach; the network of a cluster may be away for a while.
GRACE_S = 30.0


class Presence(Enum):
    """Whether a process takes connections at its port."""

    THERE = "there"
    SILENT = "silent"  # no answer, no refusal: a network that is away, or a machine that is too busy
    REFUSED = "refused"  # nothing listens there


@dataclass(frozen=True)
class RayPart:
    """A process of Ray's that the sweep cannot be without.

    Attributes:
        name: What it is, for people.
        host: Where it listens.
        port: The port.
        may_return: Whether it may be started again at its place. The GCS of a cluster may, where its tables are in
            Redis, and Ray gives it 60 s; a raylet would be another node.
    """

    name: str
    host: str
    port: int
    may_return: bool = False


def find_parts(*, is_private: bool) -> list[RayPart]:
    """The GCS, and the raylet of this process's node."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    parts = [RayPart("Ray's GCS", host.strip("[]"), int(port), may_return=not is_private)]
    here = own_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here:
            address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            parts.append(RayPart("the raylet of this node", address, int(port)))
    return parts


def find_presence(part: RayPart) -> Presence:
    """Whether a process takes connections there. One that is only slow does: its kernel answers for it."""
    try:
        with socket.create_connection((part.host, part.port), timeout=CONNECT_TIMEOUT_S):
            return Presence.THERE
    except ConnectionRefusedError:
        return Presence.REFUSED
    except OSError:
        return Presence.SILENT


class Watchdog:
    """Looks twice a second whether Ray's parts are there.

    Args:
        parts: What to look at.
        on_death: Is told once, with one sentence, from the watchdog's thread.
        presence: Whether a part is there; tests give their own.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        parts: list[RayPart],
        *,
        on_death: Callable[[str], None],
        presence: Callable[[RayPart], Presence] = find_presence,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = parts
        self._on_death = on_death
        self._presence = presence
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
            presence = self._presence(part)
            if presence is Presence.THERE:
                self._seen_at[part] = self._clock()
                continue
            is_gone = presence is Presence.REFUSED and not part.may_return
            if is_gone or self._clock() - self._seen_at[part] >= GRACE_S:
                self.cause = f"{part.name} at {part.host}:{part.port} has died."
                self._on_death(self.cause)
