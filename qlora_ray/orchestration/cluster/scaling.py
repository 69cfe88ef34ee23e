"""What a sweep asks of Ray's autoscaler: devices for the trials that wait, and none any more when nobody does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import ray

Bundles = list[dict[str, float]]


def count_devices_wanted(num_waiting: int, *, slots_per_device: int, num_devices: int, max_devices: int | None) -> int:
    """Devices that the cluster should have in all.

    Args:
        num_waiting: Trials that wait, and that no device is there for or about to be.
        slots_per_device: Trials at once on one more device.
        num_devices: Devices that the sweep has.
        max_devices: The most that it may have.

    Returns:
        0 if nothing is wanted: then the autoscaler may end nodes that are idle.
    """
    if not num_waiting:
        return 0
    wanted = num_devices + math.ceil(num_waiting / max(1, slots_per_device))
    return wanted if max_devices is None else min(wanted, max_devices)


class CapacityRequest:
    """What is asked of the autoscaler now. It holds until it is asked for something else, also after this process.

    Args:
        device: The resources of one device in Ray's words, as `cluster.scale_up` has them.
        send: Asks the autoscaler for the cluster to hold these bundles in all; tests give their own.
    """

    def __init__(self, device: Mapping[str, float], *, send: Callable[[Bundles], None] | None = None) -> None:
        self._device = dict(device)
        self._send = send or _send_to_autoscaler
        self._asked = 0

    def ask(self, num_devices: int) -> bool:
        """Asks for so many devices in all, 0 for none; says whether that is something new."""
        if num_devices == self._asked:
            return False
        self._send([dict(self._device) for _ in range(num_devices)])
        self._asked = num_devices
        return True


def _send_to_autoscaler(bundles: Bundles) -> None:
    from ray.autoscaler.sdk import request_resources

    if ray.is_initialized():
        request_resources(bundles=bundles)
