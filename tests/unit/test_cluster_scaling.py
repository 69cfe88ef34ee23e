"""What is asked of the autoscaler, and when."""

from __future__ import annotations

import contextlib
import threading

import pytest

from qlora_ray.orchestration.cluster import scaling
from qlora_ray.orchestration.cluster.scaling import (
    HOLD_S,
    Bundles,
    CapacityRequest,
    capacity_request,
    count_devices_wanted,
)


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


@pytest.mark.parametrize(
    ("num_to_come", "num_devices", "wanted"),
    [
        (0, 1, 2),  # one more, for the one that waits
        (100, 1, 2),  # twice as many at most
        (100, 4, 8),
        (9, 4, 7),  # three devices are enough for the ten that are left
        (100, 0, 1),  # the first one
    ],
)
def test_trials_to_come_are_reckoned_with_up_to_twice_the_devices_there_are(
    num_to_come: int, num_devices: int, wanted: int
) -> None:
    assert (
        count_devices_wanted(1, num_to_come=num_to_come, slots_per_device=4, num_devices=num_devices, max_devices=None)
        == wanted
    )


class Clock:
    """Stands still until a test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_more_is_asked_for_at_once_and_less_once_less_has_been_needed_for_a_while() -> None:
    sent: list[Bundles] = []
    clock = Clock()
    request = CapacityRequest({"GPU": 1}, send=sent.append, clock=clock)
    assert [request.ask(number) for number in (0, 1, 2, 2, 0)] == [False, True, True, False, False]
    clock.now += HOLD_S - 1
    # Between two trials nobody waits; then the next one does.
    assert [request.ask(number) for number in (0, 2, 0)] == [False, False, False]
    clock.now += HOLD_S - 1
    assert not request.ask(0)
    clock.now += 1
    assert request.ask(0) and request.num_asked == 0
    assert sent == [[{"GPU": 1}], [{"GPU": 1}, {"GPU": 1}], []]


def test_at_the_end_nothing_is_asked_for_at_once_and_once() -> None:
    sent: list[Bundles] = []
    request = CapacityRequest({"GPU": 1}, send=sent.append, clock=Clock())
    request.let_go()
    request.ask(1)
    request.let_go()
    request.let_go()
    assert sent == [[{"GPU": 1}], []]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), RuntimeError("no base")])
def test_however_a_sweep_ends_nothing_is_asked_for_after_it(error: BaseException | None) -> None:
    sent: list[Bundles] = []
    with (
        contextlib.suppress(KeyboardInterrupt, RuntimeError),
        capacity_request({"GPU": 1}, send=sent.append) as request,
    ):
        assert request is not None
        request.ask(1)
        if error is not None:
            raise error
    assert sent == [[{"GPU": 1}], []]


def test_a_cluster_that_does_not_answer_any_more_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LAST_REQUEST_S", 0.01)
    answers = threading.Event()

    def send(bundles: Bundles) -> None:
        if not bundles:
            answers.wait()

    with capacity_request({"GPU": 1}, send=send) as request:
        assert request is not None
        request.ask(1)
    assert request.num_asked == 1
    answers.set()


def test_nothing_is_asked_where_the_config_names_no_device() -> None:
    with capacity_request(None) as request:
        assert request is None
