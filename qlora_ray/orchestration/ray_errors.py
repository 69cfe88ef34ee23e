"""What Ray says of an actor, or of a task, that ended: one line of it, and whether it was an error of ours."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from qlora_ray.errors import PoolLost, QloraRayError

# How Ray's account of an actor that failed to start names our exceptions.
OUR_ERRORS = "qlora_ray.errors."


def describe_death(error: Exception) -> str:
    """One line of why an actor or a task ended: its own error if it raised one of ours, else Ray's account."""
    cause = _cause_of(error)
    if isinstance(cause, QloraRayError):
        return str(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Ray appends the remote traceback to the message; the exception itself is its last line.
    last = lines[-1] if lines else type(error).__name__
    return last.split(": ", 1)[1] if last.startswith(OUR_ERRORS) else last


def is_ours(error: Exception) -> bool:
    """Whether an executor ended by an error of ours, which would come again: a base that cannot be loaded, say."""
    lines = str(error).strip().splitlines()
    return isinstance(_cause_of(error), QloraRayError) or (bool(lines) and lines[-1].startswith(OUR_ERRORS))


def pool_lost(error: Exception) -> PoolLost:
    """The end of the pool, by what a call of it raised."""
    return PoolLost(f"the pool is gone: {describe_death(error)}")


def _cause_of(error: Exception) -> BaseException:
    """The exception an actor raised, where Ray carries it: as the cause of a task, or in a failed creation."""
    if isinstance(error, RayTaskError):
        return error.cause
    return error
