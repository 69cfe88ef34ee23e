"""What executors say of themselves: asked together, seldom, and without waiting for one that hangs or died."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from qlora_ray.orchestration.pool import live_answers
from qlora_ray.orchestration.pool.live_answers import ASK_INTERVAL_S, LiveAnswers

FIRST, SECOND = (0, 1), (1, 1)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Talker:
    """An executor's handle that counts how often it is asked, and answers, hangs or is dead."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.is_dead = False
        self.live = SimpleNamespace(remote=self._live)

    async def _live(self) -> dict[str, Any]:
        self.num_asked += 1
        await self.answering.wait()
        if self.is_dead:
            raise RayActorError
        return {"number": self.num_asked}


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A late answer is not waited for."""
    monkeypatch.setattr(live_answers, "ANSWER_TIMEOUT_S", 0.01)


def test_executors_are_asked_no_more_often_than_the_interval() -> None:
    async def ask_thrice() -> None:
        clock, talker = Clock(), Talker()
        answers = LiveAnswers(clock)
        first = await answers.ask({FIRST: talker})
        clock.now = ASK_INTERVAL_S / 2
        assert await answers.ask({FIRST: talker}) == first == {FIRST: {"number": 1}}
        clock.now = ASK_INTERVAL_S
        assert await answers.ask({FIRST: talker}) == {FIRST: {"number": 2}}

    asyncio.run(ask_thrice())


def test_one_that_hangs_holds_back_no_other_and_is_asked_again_only_once_it_has_answered() -> None:
    async def ask_beside_a_hang() -> None:
        clock, talker, hanging = Clock(), Talker(), Talker()
        answers = LiveAnswers(clock)
        hanging.answering.clear()
        assert await answers.ask({FIRST: hanging, SECOND: talker}) == {SECOND: {"number": 1}}
        clock.now += 2 * ASK_INTERVAL_S
        assert await answers.ask({FIRST: hanging, SECOND: talker}) == {SECOND: {"number": 2}}
        assert hanging.num_asked == 1
        hanging.answering.set()
        clock.now += 2 * ASK_INTERVAL_S
        assert (await answers.ask({FIRST: hanging, SECOND: talker}))[FIRST] == {"number": 1}
        clock.now += 2 * ASK_INTERVAL_S
        assert (await answers.ask({FIRST: hanging, SECOND: talker}))[FIRST] == {"number": 2}
        answers.close()

    asyncio.run(ask_beside_a_hang())


def test_of_one_that_died_or_is_gone_nothing_is_said() -> None:
    async def ask_the_dead() -> None:
        clock, talker = Clock(), Talker()
        answers = LiveAnswers(clock)
        assert await answers.ask({FIRST: talker})
        talker.is_dead = True
        clock.now += 2 * ASK_INTERVAL_S
        assert await answers.ask({FIRST: talker}) == {}
        talker.is_dead = False
        clock.now += 2 * ASK_INTERVAL_S
        assert await answers.ask({FIRST: talker})
        clock.now += 2 * ASK_INTERVAL_S
        assert await answers.ask({}) == {}
        assert await answers.ask({FIRST: talker}) == {}

    asyncio.run(ask_the_dead())
