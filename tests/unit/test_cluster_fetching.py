"""The base fetched by one task per node: who is waited for, and what a failure does."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_ray.config.schema import Model
from qlora_ray.orchestration.cluster import fetching
from qlora_ray.orchestration.cluster.fetching import GRACE_S, fetch_on_nodes

BASE = Model(name="org/base", revision="1" * 40)


class FakeRay:
    """Tasks by the node that runs them.

    Attributes:
        seconds: When each node's task ends; one that is missing never does.
        now: Monotonic seconds, which waiting moves on.
    """

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.cancelled: list[str] = []
        self.read: list[str] = []

    def wait(self, pending: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        self.now += timeout
        done = [node for node in pending if self.seconds.get(node, float("inf")) <= self.now]
        return done, [node for node in pending if node not in done]

    def get(self, task: str) -> None:
        self.read.append(task)

    def cancel(self, task: str, *, force: bool) -> None:
        self.cancelled.append(task)

    def monotonic(self) -> float:
        return self.now


def fetch(
    ray: FakeRay, *nodes: str, monkeypatch: pytest.MonkeyPatch, model: Model = BASE, check: Any = lambda: None
) -> list[str]:
    monkeypatch.setattr(fetching, "ray", ray)
    monkeypatch.setattr(fetching, "time", ray)
    monkeypatch.setattr(fetching, "is_on_hub", lambda model: model is BASE)
    told: list[str] = []
    fetch_on_nodes(model, nodes, tell=told.append, check=check, start=lambda _, node: node)
    return told


def test_every_node_is_waited_for_and_it_is_told_how_many_have_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(a=2, b=5)
    told = fetch(ray, "a", "b", monkeypatch=monkeypatch)
    assert (ray.now, ray.read) == (5, ["a", "b"])
    assert list(dict.fromkeys(told)) == [
        "fetching the base: 0 of 2 nodes have it",
        "fetching the base: 1 of 2 nodes have it",
    ]


def test_a_node_that_hangs_keeps_the_others_no_longer_than_as_long_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(a=100)
    fetch(ray, "a", "hangs", monkeypatch=monkeypatch)
    assert ray.now == 200 + GRACE_S
    # It goes on there: its executors wait for it.
    assert (ray.cancelled, ray.read) == ([], ["a"])


def test_a_sweep_that_is_stopped_ends_the_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()

    def check() -> None:
        if ray.now >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(ray, "a", "b", monkeypatch=monkeypatch, check=check)
    assert ray.cancelled == ["a", "b"]


def test_a_folder_is_fetched_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    assert fetch(ray, "a", monkeypatch=monkeypatch, model=Model(name="embedded")) == []
