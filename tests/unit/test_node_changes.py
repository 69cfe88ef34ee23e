"""What a sweep does about a node that joins: its plan, its seats, and why it may be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import PlacementError
from qlora_ray.hardware import NodeProfile
from qlora_ray.hardware.device import GpuClaims
from qlora_ray.hardware.simulation import as_if
from qlora_ray.orchestration import node_changes
from qlora_ray.orchestration.cluster.nodes import RayNode
from qlora_ray.orchestration.cluster.scaling import HOLD_S, CapacityRequest
from qlora_ray.orchestration.node_changes import SweepNodes
from qlora_ray.orchestration.pool.actions import CapacityWanted
from qlora_ray.orchestration.pool.leases import ANY_DEVICE
from qlora_ray.preflight.checks import Preflight
from tests.unit.hardware_fixtures import cpu_node, gpu, node, plan

NODE = RayNode("b" * 56, "10.0.0.2", "worker")
T4 = node("worker", gpu("Tesla T4"))


class Pool:
    """Remembers what it was called with.

    Attributes:
        calls: Method and arguments, in order.
        wanted: What the trials that wait need.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.wanted: tuple[CapacityWanted, ...] = ()

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append((method, arguments))
            return self.wanted if method == "wanted_capacity" else None

        return SimpleNamespace(remote=call)

    def notes(self) -> list[str]:
        """The names of the events that it was to note."""
        return [arguments[0] for method, arguments in self.calls if method == "note_node"]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SweepNodes, Pool, list[dict[str, Any]]]]:
    """A sweep's nodes over a Pool, with the real planner, and what the manifest is given."""
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    monkeypatch.setattr(
        node_changes,
        "plan_sweep",
        lambda preflight, profiles: plan(
            *(as_if(profile, profile.claims) for profile in profiles),
            **preflight.config.cluster.model_dump(include={"max_gpus"}),
        ),
    )

    def build(start: NodeProfile, **cluster: Any) -> tuple[SweepNodes, Pool, list[dict[str, Any]]]:
        config = SweepConfig.model_validate({"cluster": cluster})
        data: Any = None
        preflight = Preflight(config, data, [], data, data, "", [])
        pool, joined = Pool(), []  # type: ignore[var-annotated]
        profiles = {"a" * 56: start}
        nodes = SweepNodes(preflight, pool, plan=plan(start), profiles=profiles, on_joined=joined.append)
        return nodes, pool, joined

    return build


def test_a_node_that_joins_gets_seats_of_a_plan_of_its_own(make: Callable[..., Any]) -> None:
    nodes, pool, joined = make(node("head", gpu("Tesla T4")))
    nodes.use(NODE, T4)
    (method, (specs,)) = pool.calls[0]
    assert method == "add_seats"
    assert {(spec.node_id, spec.device) for spec in specs} == {(NODE.node_id, "worker:0")}
    assert all(spec.plan.placements == (spec.placement,) for spec in specs)
    assert pool.notes() == ["node_joined"]
    assert [profile["hostname"] for profile in joined] == ["worker"]
    assert nodes.num_devices == 2
    nodes.lose(NODE, "it is gone")
    assert pool.calls[-1][0] == "lose_node" and nodes.num_devices == 1


def test_a_node_without_a_gpu_is_left_out_of_a_sweep_on_gpus(make: Callable[..., Any]) -> None:
    nodes, pool, joined = make(node("head", gpu("Tesla T4")))
    nodes.use(NODE, cpu_node("worker"))
    assert pool.notes() == ["node_left_out"] and not joined
    assert "no GPU" in pool.calls[-1][1][2]


def test_a_node_that_claims_gpus_counts_as_one_with_gpus_where_claims_are_believed(make: Callable[..., Any]) -> None:
    claiming = replace(cpu_node("worker"), claims=GpuClaims("T4", 2))
    nodes, pool, _ = make(node("head", gpu("Tesla T4")), simulate=True, max_gpus=2)
    nodes.use(NODE, claiming)
    assert pool.notes() == ["node_joined"] and nodes.num_devices == 2
    nodes.use(RayNode("c" * 56), claiming)
    assert "max_gpus is reached" in pool.calls[-1][1][2]


def test_no_more_gpus_are_used_than_the_config_allows(make: Callable[..., Any]) -> None:
    nodes, pool, _ = make(node("head", gpu("Tesla T4")), max_gpus=2)
    nodes.use(NODE, node("worker", gpu("Tesla T4"), gpu("Tesla T4", index=1)))
    assert nodes.num_devices == 2
    nodes.use(RayNode("c" * 56), node("third", gpu("Tesla T4")))
    assert pool.notes() == ["node_joined", "node_left_out"]
    assert "max_gpus is reached" in pool.calls[-1][1][2]


def test_a_node_that_nothing_fits_on_is_left_out_with_the_planners_words(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, pool, _ = make(node("head", gpu("Tesla T4")))

    def refuse(*_: Any) -> None:
        raise PlacementError("placement: one trial needs 21 GiB.\nmore")

    monkeypatch.setattr(node_changes, "plan_sweep", refuse)
    nodes.use(NODE, T4)
    assert pool.notes() == ["node_left_out"]
    assert pool.calls[-1][1][2].endswith("placement: one trial needs 21 GiB.")


def test_the_autoscaler_is_asked_while_trials_wait_and_let_go_after(make: Callable[..., Any]) -> None:
    nodes, pool, _ = make(node("head", gpu("Tesla T4")))
    sent: list[int] = []
    clock = iter([0.0, HOLD_S, HOLD_S])
    request = CapacityRequest({"GPU": 1}, send=lambda bundles: sent.append(len(bundles)), clock=lambda: next(clock))
    pool.wanted = (CapacityWanted(1, ANY_DEVICE),)
    nodes.ask_for_capacity(request)
    nodes.ask_for_capacity(request)
    pool.wanted = ()
    nodes.ask_for_capacity(request)
    nodes.ask_for_capacity(request)
    assert sent == [2, 0]
    assert pool.notes() == ["capacity_wanted", "capacity_wanted"]


def test_a_node_that_is_told_of_again_since_the_manifest_could_not_be_written_is_no_second_gpu(
    make: Callable[..., Any],
) -> None:
    nodes, pool, _ = make(node("head", gpu("Tesla T4")), max_gpus=2)
    for _ in range(2):
        nodes.use(NODE, replace(T4, ray_node_id=NODE.node_id))
    assert pool.notes() == ["node_joined", "node_joined"]
    assert nodes.num_devices == 2
