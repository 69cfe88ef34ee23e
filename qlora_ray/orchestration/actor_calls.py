"""Calls of actors that are made again where a message was lost, which Ray tells apart from an actor that is dead.

Seen with Ray 2.60: where a call or its answer does not get through, Ray raises ActorUnavailableError; it does not know
whether the call was carried out. So every method that is called by these may be carried out twice. Ray's own
`max_task_retries` does the same, but prints a line for each call that was under way when an executor died.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError

# Between the tries: 7.75 s in all. One that is dead is known to be so within 2 s.
PAUSES_S = (0.25, 0.5, 1.0, 2.0, 4.0)


async def ask(method: Any, *arguments: Any, **named: Any) -> Any:
    """An actor's answer.

    Args:
        method: A method of an actor's handle.
        arguments: What it is called with.
        named: The same.

    Raises:
        RayTaskError: What the method raised.
        RayError: If the actor is dead, or has not been reached in all tries.
    """
    for pause_s in PAUSES_S:
        try:
            return await method.remote(*arguments, **named)
        except ActorUnavailableError:
            await asyncio.sleep(pause_s)
    return await method.remote(*arguments, **named)


def ask_and_wait(method: Any, *arguments: Any, timeout_s: float | None = None, **named: Any) -> Any:
    """The same outside an event loop.

    Raises:
        GetTimeoutError: If a try had no answer within `timeout_s`.
    """
    return get_again(lambda: method.remote(*arguments, **named), timeout_s=timeout_s)


def get_again(call: Callable[[], Any], *, timeout_s: float | None = None) -> Any:
    """What the references that a function makes stand for; it is called again as `ask` calls a method."""
    for pause_s in PAUSES_S:
        try:
            return ray.get(call(), timeout=timeout_s)
        except ActorUnavailableError:
            time.sleep(pause_s)
    return ray.get(call(), timeout=timeout_s)
