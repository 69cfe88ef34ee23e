"""Ray is started beside the checks: what fails there, or in it, leaves nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from qlora_ray.config.schema import Cluster
from qlora_ray.errors import PlacementError
from qlora_ray.orchestration.background import BackgroundCall
from qlora_ray.orchestration.cluster.starting import RayStart

WAIT_S = 20.0


class FakeRay:
    """In place of `ray_cluster`: comes up when it is let, and says which thread it was ended on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, error: Exception | None = None) -> None:
        self.may_start = threading.Event()
        self.num_starts = 0
        self.threads: list[threading.Thread] = []
        self.error = error
        monkeypatch.setattr("qlora_ray.orchestration.cluster.joining.ray_cluster", self._start)

    @contextlib.contextmanager
    def _start(self, cluster: Cluster) -> Iterator[None]:
        self.num_starts += 1
        self.threads.append(threading.current_thread())
        assert self.may_start.wait(WAIT_S)
        if self.error:
            raise self.error
        try:
            yield
        finally:
            self.threads.append(threading.current_thread())


def test_ray_is_begun_without_waiting_and_is_up_in_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, start = FakeRay(monkeypatch), RayStart()
    start.begin(Cluster())
    ray.may_start.set()
    with start.running(Cluster()):
        assert ray.num_starts == 1 and len(ray.threads) == 1
        # Ray's processes end with the thread that started them.
        assert ray.threads[0].is_alive()
    assert ray.threads == [ray.threads[0]] * 2
    assert not ray.threads[0].is_alive()


def test_ray_that_nobody_waited_for_ends_once_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, start = FakeRay(monkeypatch), RayStart()
    start.begin(Cluster())
    ray.may_start.set()
    start.end()
    assert len(ray.threads) == 2


def test_what_was_never_begun_has_nothing_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(monkeypatch)
    RayStart().end()
    assert ray.num_starts == 0


def test_a_cluster_that_cannot_be_joined_is_told_where_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, start = FakeRay(monkeypatch, error=PlacementError("cluster.address: nobody is there")), RayStart()
    start.begin(Cluster())
    ray.may_start.set()
    with pytest.raises(PlacementError, match="nobody is there"), start.running(Cluster()):
        raise AssertionError("the block was entered")


def test_an_error_in_the_block_ends_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, start = FakeRay(monkeypatch), RayStart()
    ray.may_start.set()
    with pytest.raises(KeyboardInterrupt), start.running(Cluster()):
        raise KeyboardInterrupt
    assert len(ray.threads) == 2


def test_a_background_call_has_its_result_or_its_error() -> None:
    assert BackgroundCall(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        BackgroundCall(lambda: 1 / 0).result()
