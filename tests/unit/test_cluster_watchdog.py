"""When a part of Ray is taken for dead, and when not."""

from __future__ import annotations

import socket
import threading

from qlora_ray.orchestration.cluster.repeating import RepeatingThread
from qlora_ray.orchestration.cluster.watchdog import RayPart, Watchdog, is_listening

GCS = RayPart("Ray's GCS", "127.0.0.1", 6379, grace_s=30.0)
RAYLET = RayPart("the raylet of this node", "127.0.0.1", 7000, grace_s=4.0)


class Watched:
    """A watchdog whose parts are there or not, as a test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.away: set[RayPart] = set()
        self.told: list[str] = []
        self.dog = Watchdog(
            [GCS, RAYLET],
            on_death=self.told.append,
            is_there=lambda part: part not in self.away,
            clock=lambda: self.now,
        )

    def look_until(self, now: float) -> None:
        """Looks every second until then."""
        while self.now < now:
            self.now += 1.0
            self.dog.look()


def test_a_part_that_stays_away_is_dead_after_its_grace_and_told_once() -> None:
    watched = Watched()
    watched.look_until(10)
    watched.away = {RAYLET}
    watched.look_until(13)
    assert not watched.told
    watched.look_until(20)
    assert watched.told == ["the raylet of this node at 127.0.0.1:7000 has died."] == [watched.dog.cause]
    watched.away = {RAYLET, GCS}
    watched.look_until(100)
    assert len(watched.told) == 1


def test_a_gcs_that_comes_back_in_time_is_not_dead() -> None:
    watched = Watched()
    for _ in range(3):
        watched.away = {GCS}
        watched.look_until(watched.now + 29)
        watched.away = set()
        watched.look_until(watched.now + 1)
    assert not watched.told


def test_a_port_is_listened_on_or_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        part = RayPart("it", "127.0.0.1", server.getsockname()[1], grace_s=0)
        assert is_listening(part)
    assert not is_listening(part)


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
