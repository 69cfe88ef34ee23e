"""The faults of a soak, and in which order they come: drawn from a seed, by events of the sweep and not by a clock."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

# Lines of events.jsonl between two faults: a trial of three reports makes eight.
MAX_EVENTS = 14
# Of the faults at zero events: before the first event, so in the start of a sweep, which takes about this long.
MAX_START_DELAY_S = 25.0
MAX_DELAY_S = 1.5
# Of the faults that a driver may meet at any time, how many meet it in its start.
START_SHARE = 0.35
# Of the faults that end a driver, after how many the next one does not wait for that end.
FOLLOWED_SHARE = 0.2


class FaultKind(StrEnum):
    """What is done to a running sweep, by the words of the table."""

    DRIVER_KILLED = "driver killed"
    DRIVER_TERMINATED = "driver terminated"
    DRIVER_INTERRUPTED = "Ctrl-C"
    EVENTS_TORN = "driver killed, events torn"
    JOURNAL_TORN = "driver killed, journal torn"
    TABLE_TORN = "driver killed, table torn"
    EVERYTHING_KILLED = "everything killed"
    EXECUTOR_KILLED = "executor killed"
    EXECUTOR_FROZEN_SHORTLY = "executor frozen shortly"
    EXECUTOR_FROZEN = "executor frozen for long"
    POOL_KILLED = "pool killed"
    RAYLET_KILLED = "raylet killed"
    GCS_KILLED = "GCS killed"
    DISK_FULL = "disk full"


# These need nothing but a driver, which there is from the start.
AT_ANY_TIME = frozenset(
    {
        FaultKind.DRIVER_KILLED,
        FaultKind.DRIVER_TERMINATED,
        FaultKind.DRIVER_INTERRUPTED,
        FaultKind.EVERYTHING_KILLED,
        FaultKind.GCS_KILLED,
        FaultKind.RAYLET_KILLED,
    }
)


# These leave the driver to go on.
GOES_ON = frozenset({FaultKind.EXECUTOR_KILLED, FaultKind.EXECUTOR_FROZEN_SHORTLY, FaultKind.EXECUTOR_FROZEN})


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: What is done.
        after_events: So many events after the last fault, or after the start of the driver; 0: in its start.
        delay_s: So much later still.
        share: In [0, 1): how much of a last line is torn off, or how long something is frozen within its kind.
        is_followed: Whether the same driver may meet another one; one that ends may do so while it ends.
    """

    kind: FaultKind
    after_events: int
    delay_s: float
    share: float
    is_followed: bool


def draw_faults(seed: int, *, kinds: Sequence[FaultKind] = tuple(FaultKind)) -> Iterator[Fault]:
    """Faults without end; of any so many in a row that there are kinds, each has its turn.

    Args:
        seed: The same seed draws the same faults.
        kinds: Which there are.
    """
    draw = random.Random(seed)
    while True:
        for kind in draw.sample(kinds, len(kinds)):
            is_in_start = draw.random() < START_SHARE and kind in AT_ANY_TIME
            after_events = 0 if is_in_start else draw.randint(1, MAX_EVENTS)
            delay_s = draw.uniform(0, MAX_START_DELAY_S if is_in_start else MAX_DELAY_S)
            is_followed = kind in GOES_ON or draw.random() < FOLLOWED_SHARE
            yield Fault(kind, after_events, delay_s, draw.random(), is_followed)
