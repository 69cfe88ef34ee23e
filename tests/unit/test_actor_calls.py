"""Calls of actors are made again where a message was lost, and not where the actor is dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from qlora_ray.orchestration import actor_calls
from qlora_ray.orchestration.actor_calls import PAUSES_S, ask, ask_and_wait
from qlora_ray.orchestration.pool.leases import Lease
from qlora_ray.orchestration.trial_port import RayTrialPort
from qlora_ray.training.engine import Report
from tests.unit.orchestration_fixtures import remote

LOST = ActorUnavailableError("connection reset", None)


class Method:
    """A method that loses its first answers.

    Args:
        losses: What is raised, one after another, before the answer.
        awaited: Whether its answer is awaited.
    """

    def __init__(self, *losses: Exception, awaited: bool = True) -> None:
        self._losses = list(losses)
        self._awaited = awaited
        self.calls: list[tuple[Any, ...]] = []

    def remote(self, *arguments: Any) -> Any:
        """A call."""
        self.calls.append(arguments)
        return self._answer() if self._awaited else self.answer

    async def _answer(self) -> str:
        return self.answer()

    def answer(self) -> str:
        """What `ray.get` gives."""
        if self._losses:
            raise self._losses.pop(0)
        return "done"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(actor_calls, "PAUSES_S", (0.0,) * len(PAUSES_S))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Asks a method, in an event loop or outside one."""
    if request.param == "in a loop":
        return lambda method, *arguments: asyncio.run(ask(method, *arguments))
    monkeypatch.setattr(ray, "get", lambda call, timeout: call())
    return ask_and_wait


@pytest.mark.parametrize("call", ["in a loop", "outside"], indirect=True)
def test_a_call_that_was_lost_is_made_again_and_a_dead_actor_is_not_asked_twice(
    call: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    awaited = request.node.callspec.params["call"] == "in a loop"
    method = Method(LOST, LOST, awaited=awaited)
    assert call(method, 7) == "done"
    assert method.calls == [(7,)] * 3
    dead = Method(LOST, ActorDiedError(), awaited=awaited)
    with pytest.raises(ActorDiedError, match="died"):
        call(dead, 7)
    assert len(dead.calls) == 2
    with pytest.raises(ActorUnavailableError, match="connection reset"):
        call(Method(*[LOST] * 99, awaited=awaited), 7)


def test_a_trial_says_how_many_reports_have_come_by_its_lease() -> None:
    heard: list[int] = []

    async def answer(trial_id: str, lease_number: int, *, timeout_s: float, num_heard: int) -> Report | None:
        heard.append(num_heard)
        return None if len(heard) == 2 else Report(trial_id, len(heard), False, {})

    class Executor:
        next_report = remote(answer)

    async def ask_six_times() -> None:
        port = RayTrialPort(pool=None)
        for number in (1, 1, 1, 1, 2, 2):
            await port.next_report(Lease("0000", number, 0, 1, executor=Executor()), "0000", timeout_s=1.0)

    asyncio.run(ask_six_times())
    assert heard == [0, 1, 1, 2, 0, 1]
