"""What a sweep asks of Ray's autoscaler: devices for the trials that wait, and none any more when nobody does."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

Bundles = list[dict[str, float]]
# How long less must be needed before less is asked for.
HOLD_S = 30.0
# What the last request may take: a GCS that has died answers nobody.
LAST_REQUEST_S = 10.0


def count_devices_wanted(
    num_waiting: int, *, num_to_come: int = 0, slots_per_device: int, num_devices: int, max_devices: int | None
) -> int:
    """Devices that the cluster should have in all.

    At most twice as many as there are, unless more trials wait than that: few trials wait at any moment, since the
    study is asked for one when a slot is free, and a device may take minutes to come.

    Args:
        num_waiting: Trials that wait, and that no device is there for or about to be.
        num_to_come: Trials that will be asked for once there are slots.
        slots_per_device: Trials at once on one more device.
        num_devices: Devices that the sweep has.
        max_devices: The most that it may have.

    Returns:
        0 if nothing is wanted: then the autoscaler may end nodes that are idle.
    """
    if not num_waiting:
        return 0
    slots = max(1, slots_per_device)
    useful = math.ceil((num_waiting + num_to_come) / slots)
    wanted = num_devices + min(useful, max(math.ceil(num_waiting / slots), num_devices))
    return wanted if max_devices is None else min(wanted, max_devices)


class CapacityRequest:
    """What is asked of the autoscaler now. It holds until it is asked for something else, also after this process.

    Args:
        device: The resources of one device in Ray's words, as `cluster.scale_up` has them.
        send: Asks the autoscaler for the cluster to hold these bundles in all; tests give their own.
        clock: Monotonic seconds.

    Attributes:
        num_asked: Devices that are asked for.
    """

    def __init__(
        self,
        device: Mapping[str, float],
        *,
        send: Callable[[Bundles], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = dict(device)
        self._send = send or _send_to_autoscaler
        self._clock = clock
        self._less_since: float | None = None
        self.num_asked = 0

    def ask(self, num_devices: int) -> bool:
        """Asks for so many devices in all; says whether that is something new.

        Less is asked for once less has been needed for a while: between two trials nobody waits for a moment, and an
        autoscaler that takes that for an end ends the node that has just come.
        """
        if num_devices >= self.num_asked:
            self._less_since = None
            return num_devices > self.num_asked and self._ask(num_devices)
        if self._less_since is None:
            self._less_since = self._clock()
        return self._clock() - self._less_since >= HOLD_S and self._ask(num_devices)

    def let_go(self) -> None:
        """Asks for nothing any more."""
        if self.num_asked:
            self._ask(0)

    def _ask(self, num_devices: int) -> bool:
        self._send([dict(self._device) for _ in range(num_devices)])
        self.num_asked, self._less_since = num_devices, None
        return True


@contextmanager
def capacity_request(
    device: Mapping[str, float] | None, *, send: Callable[[Bundles], None] | None = None
) -> Iterator[CapacityRequest | None]:
    """A request for the length of the block: however that ends, nothing is asked for any more.

    Args:
        device: See CapacityRequest; None where the autoscaler is not to be asked, which yields None.
        send: See CapacityRequest.
    """
    if not device:
        yield None
        return
    request = CapacityRequest(device, send=send)

    def let_go() -> None:
        with contextlib.suppress(RayError, RuntimeError):
            request.let_go()

    try:
        yield request
    finally:
        # It would hold after this process, and keep machines that somebody pays for.
        thread = threading.Thread(target=let_go, name="last-request", daemon=True)
        thread.start()
        thread.join(LAST_REQUEST_S)


def _send_to_autoscaler(bundles: Bundles) -> None:
    from ray.autoscaler.sdk import request_resources

    if ray.is_initialized():
        request_resources(bundles=bundles)
