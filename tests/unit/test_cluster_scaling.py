"""What is asked of the autoscaler, and when."""

from __future__ import annotations

import pytest

from qlora_ray.orchestration.cluster.scaling import Bundles, CapacityRequest, count_devices_wanted


@pytest.mark.parametrize(
    ("num_waiting", "slots_per_device", "num_devices", "max_devices", "wanted"),
    [
        (0, 4, 3, None, 0),  # nothing waits: idle nodes may go
        (1, 4, 3, None, 4),
        (9, 4, 3, None, 6),
        (9, 4, 3, 4, 4),
        (2, 0, 0, None, 2),
    ],
)
def test_devices_are_wanted_for_those_that_wait_beside_those_that_are_there(
    num_waiting: int, slots_per_device: int, num_devices: int, max_devices: int | None, wanted: int
) -> None:
    assert (
        count_devices_wanted(
            num_waiting, slots_per_device=slots_per_device, num_devices=num_devices, max_devices=max_devices
        )
        == wanted
    )


def test_the_same_is_asked_once_and_let_go_by_asking_for_nothing() -> None:
    sent: list[Bundles] = []
    request = CapacityRequest({"GPU": 1}, send=sent.append)
    assert [request.ask(number) for number in (0, 2, 2, 0, 0)] == [False, True, False, True, False]
    assert sent == [[{"GPU": 1}, {"GPU": 1}], []]
