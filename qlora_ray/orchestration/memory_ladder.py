"""What a trial asks for when it was out of memory alone: more of its device, then a larger one."""

from __future__ import annotations

from qlora_ray.orchestration.pool.leases import Lease, LeaseNeeds


def next_needs(lease: Lease, needs: LeaseNeeds) -> LeaseNeeds:
    """The needs of a trial that was out of memory on the slot of a lease, at one row and with nobody beside it.

    Executors that share a device have a fixed part of it each, so that the whole of one as large comes first. After
    that it is a device with more memory; there is an end to those.

    Args:
        lease: The lease of that slot.
        needs: What it was leased for.
    """
    memory_bytes = int(lease.facts.get("memory_bytes", 0))
    if needs.whole_device or lease.facts.get("is_whole"):
        return larger_needs(lease, needs)
    return LeaseNeeds(needs.size_bytes, min_memory_bytes=memory_bytes, whole_device=True)


def larger_needs(lease: Lease, needs: LeaseNeeds) -> LeaseNeeds:
    """A device with more memory than that of a lease, whole or not."""
    return LeaseNeeds(needs.size_bytes, min_memory_bytes=int(lease.facts.get("memory_bytes", 0)) + 1)
