"""The simulated sweep as a Hypothesis state machine: it looks for the shortest way to break a promise, and shows it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.simulation import faults
from tests.simulation.faulty_rules import EvictsNobody, make_world
from tests.simulation.world import World

MAX_STEPS = 25
SETTINGS = settings(
    max_examples=150,
    stateful_step_count=MAX_STEPS,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class SweepUnderFaults(RuleBasedStateMachine):
    """Every fault of `faults` is a rule, and so is time. What must hold is checked by the world as things happen."""

    make = staticmethod(World)

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @initialize(seed=st.integers(0, 2**16), num_nodes=st.integers(1, 3))
    def start(self, seed: int, num_nodes: int) -> None:
        """A sweep begins on a few nodes."""
        self.world = self.make(seed)
        for _ in range(num_nodes):
            self.world.join_node()
        self.world.start_driver()

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 30.0, 70.0, 200.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self._there.run(seconds)

    @rule(fault=st.sampled_from(faults.FAULTS))
    def suffer(self, fault: Any) -> None:
        """Something goes wrong."""
        fault(self._there)

    @precondition(lambda self: self.world is not None and not self.world.driver.is_alive)
    @rule()
    def resume(self) -> None:
        """The user goes on with a sweep whose driver is dead."""
        self._there.start_driver()

    def teardown(self) -> None:
        """No more faults: all ends, and nothing is left behind."""
        if self.world is not None:
            self.world.settle()

    @property
    def _there(self) -> World:
        assert self.world is not None
        return self.world


def test_no_way_is_found_to_break_a_promise() -> None:
    run_state_machine_as_test(SweepUnderFaults, settings=SETTINGS)


def test_a_way_is_found_to_break_the_promises_of_a_faulty_rule() -> None:
    class Faulty(SweepUnderFaults):
        make = staticmethod(make_world(EvictsNobody))  # type: ignore[assignment]

    with pytest.raises(AssertionError, match=r"everything ends|no lease is left behind"):
        # Found, and not made shorter: nobody has to read it.
        run_state_machine_as_test(Faulty, settings=settings(SETTINGS, phases=[Phase.generate]))
