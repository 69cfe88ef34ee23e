"""Which of the devices that could train are used: the classes and the numbers that the config's `cluster` sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from qlora_ray.config.schema import Cluster
from qlora_ray.errors import PlacementError
from qlora_ray.formats import plural
from qlora_ray.hardware.catalogue import find_class, is_called
from qlora_ray.hardware.fitting import NodeDevice
from qlora_ray.hardware.memory_counts import FRAGMENTATION
from qlora_ray.hardware.plan import Placement
from qlora_ray.hardware.sharing import round_down


def choose_classes(devices: Sequence[NodeDevice], cluster: Cluster) -> tuple[list[NodeDevice], list[str]]:
    """Returns the devices whose class `cluster.gpu_classes` allows, and a note on those it leaves out.

    Args:
        devices: All GPUs that trials could run on; CPUs where there is no GPU.
        cluster: The config's section.

    Raises:
        PlacementError: It allows none of them.
    """
    wanted = cluster.gpu_classes
    if wanted is None:
        return list(devices), []
    if not any(device.profile.kind == "cuda" for device in devices):
        raise PlacementError(
            f"cluster.gpu_classes: one of {', '.join(wanted)} must be there, got no GPU. "
            "Join a cluster that has one, or leave cluster.gpu_classes null."
        )
    chosen = [device for device in devices if any(is_called(device.profile, name) for name in wanted)]
    if not chosen:
        there = ", ".join(dict.fromkeys(device.profile.short_name for device in devices))
        raise PlacementError(
            f"cluster.gpu_classes: one of {', '.join(wanted)} must be there, got {there}. Name a class that is there."
        )
    left_out = dict.fromkeys(device.profile.shown_name for device in devices if device not in chosen)
    return chosen, [f"{name}: not one of cluster.gpu_classes" for name in left_out]


def is_preferred(device: NodeDevice, cluster: Cluster) -> bool:
    """Whether a device's class is one of `cluster.prefer_gpu_classes`."""
    return any(is_called(device.profile, name) for name in cluster.prefer_gpu_classes or ())


def note_unmet(devices: Sequence[NodeDevice], cluster: Cluster) -> list[str]:
    """What the config wishes of classes that are not there.

    Args:
        devices: All devices that there are.
        cluster: The config's section.

    Raises:
        ConfigError: `simulated_limits_gib` names a class that the catalogue lacks: none can be simulated as it.
    """
    for name in cluster.simulated_limits_gib:
        find_class(name, where="cluster.simulated_limits_gib")
    gpus = [device.profile for device in devices if device.profile.kind == "cuda"]
    notes = [
        f"cluster.prefer_gpu_classes: there is no {name}"
        for name in dict.fromkeys(cluster.prefer_gpu_classes or ())
        if not any(is_called(gpu, name) for gpu in gpus)
    ]
    if cluster.simulated_limits_gib and not cluster.simulate:
        notes.append("cluster.simulated_limits_gib: without effect, since cluster.simulate is false")
    if cluster.simulate and not any(gpu.is_simulated for gpu in gpus):
        notes.append("cluster.simulate: without effect, since no node without a GPU claims a class of GPUs")
    return notes


def sort_placements(placements: Sequence[Placement]) -> list[Placement]:
    """Preferred classes first, and then those with more free memory."""
    return sorted(placements, key=lambda item: (not item.is_preferred, -item.available_bytes, item.device_class))


def cap_gpus(placements: Sequence[Placement], cluster: Cluster) -> tuple[list[Placement], list[str]]:
    """Keeps the first `cluster.max_gpus` GPUs; returns them with a note on the others.

    Args:
        placements: In the order of `sort_placements`.
        cluster: The config's section.
    """
    num_gpus = sum(item.num_devices for item in placements if item.device_kind == "cuda")
    if cluster.max_gpus is None or num_gpus <= cluster.max_gpus:
        return list(placements), []
    left = cluster.max_gpus
    kept: list[Placement] = []
    left_out: list[str] = []
    for item in placements:
        num_kept = min(left, item.num_devices)
        left -= num_kept
        if num_kept:
            kept.append(replace(item, devices=item.devices[:num_kept]))
        left_out += item.devices[num_kept:]
    words = f"cluster.max_gpus: {cluster.max_gpus} of {num_gpus} GPUs are used; left out: {', '.join(left_out)}"
    return kept, [words]


def cap_slots(placements: list[Placement], cluster: Cluster) -> tuple[list[Placement], int, list[str]]:
    """Lower slots per device, the same bound everywhere, while max_slots can still be reached."""
    max_slots = cluster.max_slots
    available = sum(placement.num_slots for placement in placements)
    if max_slots is None or available <= max_slots:
        return placements, available, []
    bound = next(
        bound
        for bound in range(1, available + 1)
        if sum(min(item.slots_per_device, bound) * item.num_devices for item in placements) >= max_slots
    )
    words = f"cluster.max_slots: {max_slots} of the {available} trials that fit run at once"
    lowered = [_lower_slots(item, bound, safety_factor=cluster.memory_safety_factor) for item in placements]
    return lowered, max_slots, [words]


def _lower_slots(placement: Placement, bound: int, *, safety_factor: float) -> Placement:
    surplus = placement.slots_per_device - bound
    if surplus <= 0:
        return placement
    words = f"{placement.reason}; {plural(bound, 'slot')} by cluster.max_slots"
    lowered = replace(placement, slots_per_device=bound, reason=words)
    if placement.engine == "packed":
        before = placement.estimate
        adapter_bytes = before.adapter_bytes // placement.slots_per_device * bound
        freed_bytes = before.adapter_bytes - adapter_bytes
        fragmentation_bytes = before.fragmentation_bytes - int(FRAGMENTATION * freed_bytes)
        estimate = replace(before, adapter_bytes=adapter_bytes, fragmentation_bytes=fragmentation_bytes)
        return replace(lowered, estimate=estimate, needed_bytes=math.ceil(estimate.total_bytes * safety_factor))
    return lowered if placement.device_kind == "cpu" else replace(lowered, num_gpus=round_down(1 / bound))
