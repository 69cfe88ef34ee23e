"""What goes wrong in a schedule, drawn from its seed: how many faults, which, and when."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.simulation.driver import CONFIG
from tests.simulation.study import RealStudy
from tests.simulation.world import LEASE_TIMEOUT_S, World

# Faults come within this time; a trial alone takes a fraction of it.
FAULTS_S = 150.0
MAX_FAULTS = 6
# Of so many schedules one has the real study: it takes more than four times as long as one with the plain one.
REAL_STUDY_EVERY = 20


def crash_executor(world: World) -> None:
    """An executor's process dies."""
    executors = world.living_executors()
    if executors and world.pool is not None:
        key, executor = world.random.choice(executors)
        world.crash(world.pool, key, executor)


def hang_executor(world: World) -> None:
    """An executor answers nothing any more, and does nothing."""
    executors = world.living_executors()
    if executors:
        world.random.choice(executors)[1].is_hung = True


def kill_node(world: World) -> None:
    """A node dies."""
    nodes = [node for node in world.nodes if node.is_up]
    if nodes:
        world.kill_node(world.random.choice(nodes))


def drain_node(world: World) -> None:
    """A node is told to leave."""
    nodes = [node for node in world.nodes if node.is_up and not node.is_draining]
    if nodes:
        world.drain_node(world.random.choice(nodes))


def kill_draining_node(world: World) -> None:
    """A node that was told to leave dies before its trials have left; one that was not is told first."""
    nodes = [node for node in world.nodes if node.is_up and node.is_draining]
    if not nodes:
        drain_node(world)
        nodes = [node for node in world.nodes if node.is_up and node.is_draining]
    if nodes:
        node = world.random.choice(nodes)
        world.after(0.5 * world.random.random(), lambda: world.kill_node(node) if node.is_up else None)


def silence_trial(world: World) -> None:
    """A trial's coroutine does not get on for longer than its lease lasts."""
    if world.driver.processes:
        number = world.random.choice(sorted(world.driver.processes))
        world.driver.freeze(number, world.random.uniform(0.2, 3.0) * LEASE_TIMEOUT_S)


def slow_calls(world: World) -> None:
    """For a while some calls take longer than a lease lasts: admissions come late."""
    world.slow_calls = 0.3
    world.after(world.random.uniform(1.0, 60.0), lambda: setattr(world, "slow_calls", 0.0))


def restart_driver(world: World) -> None:
    """The driver is killed, and the sweep resumed."""
    if world.driver.is_alive:
        world.kill_driver()
        world.after(5.0, lambda: None if world.driver.is_alive else world.start_driver())


def run_out_of_memory(world: World) -> None:
    """An executor has room for one trial only from now on."""
    executors = world.living_executors()
    if executors:
        world.random.choice(executors)[1].room = 1


def join_node(world: World) -> None:
    """A node joins."""
    world.join_node()


def join_bad_node(world: World) -> None:
    """A node joins whose executors cannot start."""
    world.join_node(is_bad=True)


FAULTS: tuple[Callable[[World], None], ...] = (
    crash_executor,
    hang_executor,
    kill_node,
    drain_node,
    kill_draining_node,
    silence_trial,
    slow_calls,
    restart_driver,
    run_out_of_memory,
    join_node,
    join_bad_node,
)


def run_schedule(seed: int, *, make: Callable[..., World] = World) -> World:
    """Runs a sweep with the faults of a seed, and checks it to its end.

    Args:
        seed: Of all choices; the same seed is the same schedule.
        make: Makes the world; tests give faulty ones.

    Raises:
        AssertionError: If something does not hold. The message has the seed.
    """
    choices = random.Random(f"faults {seed}")
    world = make(seed)
    if seed % REAL_STUDY_EVERY == 0:
        world.driver.study = RealStudy(world.driver.num_trials, CONFIG)
    names: list[str] = []
    try:
        for _ in range(choices.choice((1, 1, 2, 3))):
            world.join_node()
        world.start_driver()
        times = sorted(choices.uniform(0.0, FAULTS_S) for _ in range(choices.randint(0, MAX_FAULTS)))
        for at in times:
            world.run(at - world.now)
            fault = choices.choice(FAULTS)
            names.append(f"{fault.__name__} at {world.now:.1f} s")
            fault(world)
        world.settle()
    except Exception as error:
        again = (
            f"{error}\nfaults: {', '.join(names)}\nagain: python -m pytest tests/simulation --simulation-seed {seed}"
        )
        raise AssertionError(f"schedule of seed {seed}: {type(error).__name__}: {again}") from error
    finally:
        world.driver.study.close()
    return world
