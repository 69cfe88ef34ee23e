"""When a part of Ray is taken for dead, and when not."""

from __future__ import annotations

import socket
import threading

import pytest

from qlora_ray.orchestration.cluster.repeating import RepeatingThread
from qlora_ray.orchestration.cluster.watchdog import GRACE_S, Presence, RayPart, Watchdog, find_presence

GCS = RayPart("Ray's GCS", "127.0.0.1", 6379, may_return=True)
RAYLET = RayPart("the raylet of this node", "127.0.0.1", 7000)


class Watched:
    """A watchdog whose parts are there or not, as a test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.away: dict[RayPart, Presence] = {}
        self.told: list[str] = []
        self.dog = Watchdog(
            [GCS, RAYLET],
            on_death=self.told.append,
            presence=lambda part: self.away.get(part, Presence.THERE),
            clock=lambda: self.now,
        )

    def look_for(self, duration_s: float) -> None:
        """Looks every second for so long."""
        for _ in range(int(duration_s)):
            self.now += 1.0
            self.dog.look()


def test_a_raylet_that_refuses_is_dead_at_once_and_told_once() -> None:
    watched = Watched()
    watched.look_for(10)
    watched.away = {RAYLET: Presence.REFUSED}
    watched.look_for(1)
    assert watched.told == ["the raylet of this node at 127.0.0.1:7000 has died."] == [watched.dog.cause]
    watched.away |= {GCS: Presence.REFUSED}
    watched.look_for(100)
    assert len(watched.told) == 1


@pytest.mark.parametrize(
    ("part", "presence"), [(GCS, Presence.REFUSED), (GCS, Presence.SILENT), (RAYLET, Presence.SILENT)]
)
def test_what_may_come_back_is_dead_after_its_grace_only(part: RayPart, presence: Presence) -> None:
    watched = Watched()
    for _ in range(3):
        watched.away = {part: presence}
        watched.look_for(GRACE_S - 1)
        watched.away = {}
        watched.look_for(1)
    assert not watched.told
    watched.away = {part: presence}
    watched.look_for(GRACE_S)
    assert [part.name in words for words in watched.told] == [True]


def test_a_port_is_listened_on_or_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        part = RayPart("it", "127.0.0.1", server.getsockname()[1])
        assert find_presence(part) is Presence.THERE
    assert find_presence(part) is Presence.REFUSED


def test_a_call_that_fails_does_not_end_the_watch() -> None:
    calls = []
    done = threading.Event()

    def call() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("once")
        done.set()

    thread = RepeatingThread(call, interval_s=0.001, name="test")
    thread.start()
    assert done.wait(30)
    thread.close()
    assert not thread._thread.is_alive()
