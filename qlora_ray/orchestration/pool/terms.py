"""What a pool is told once: its limits in time and number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolTerms:
    """The limits of a pool.

    Attributes:
        lease_timeout_s: A lease this old whose trial its executor does not hold is taken back.
        heartbeat_timeout_s: An executor that answers no heartbeat for this long is ended and replaced.
        progress_timeout_s: So is one that trains, or starts, without any progress for this long.
        heartbeat_interval_s: How often executors are asked.
        max_slots: Leases at once over all executors; None for no bound.
        idle_timeout_s: An executor that nobody has used for this long is ended, so that its node can go; None for
            never.
        drain_timeout_s: What a node is given to drain where nobody says how long it may take.
        waits_for_nodes: Whether trials wait when every node has left, since others may come.
    """

    lease_timeout_s: float
    heartbeat_timeout_s: float = 60.0
    progress_timeout_s: float = 1800.0
    heartbeat_interval_s: float = 5.0
    max_slots: int | None = None
    idle_timeout_s: float | None = None
    drain_timeout_s: float = 600.0
    waits_for_nodes: bool = False


# A seat whose executor died this often after it was ready, with no trial that has ended there in between, is given up:
# the cause is on the node, not in a trial.
MAX_RESTARTS = 3
# A start that died gets one more try: its predecessor may not have let its memory go yet.
MAX_FAILED_STARTS = 1
