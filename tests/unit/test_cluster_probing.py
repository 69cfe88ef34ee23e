"""What the nodes of a cluster are: who answers, who is left out, and what each is called."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from qlora_ray import __version__
from qlora_ray.errors import PlacementError
from qlora_ray.hardware import Plan
from qlora_ray.orchestration.cluster import nodes, planning, probing
from qlora_ray.orchestration.cluster.nodes import list_nodes
from qlora_ray.orchestration.cluster.planning import plan_cluster
from qlora_ray.orchestration.cluster.probing import ProbedCluster, name_apart, probe_cluster
from tests.unit.hardware_fixtures import cpu_node

HERE, OTHER, THIRD, DEAD = (digit * 56 for digit in "abcd")
SILENT = object()


class FakeRay:
    """Ray's nodes, with tasks that `answer(node_id, function, *args)` answers at once; SILENT never does.

    Attributes:
        cancelled: The nodes whose task was given up.
    """

    def __init__(self, answer: Callable[..., Any], cpus: dict[str, int]) -> None:
        self._answer = answer
        self._cpus = cpus
        self.cancelled: list[str] = []

    def nodes(self) -> list[dict[str, Any]]:
        living = [
            {
                "NodeID": one,
                "Alive": True,
                "Resources": {"CPU": float(number)},
                "NodeManagerAddress": f"10.0.0.{number}",
                "NodeManagerHostname": f"host-{one[0]}",
            }
            for one, number in self._cpus.items()
        ]
        return [*living, {"NodeID": DEAD, "Alive": False, "Resources": {}}]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: HERE)

    def remote(self, function: Callable[..., Any]) -> Any:
        def options(*, num_cpus: float, max_retries: int, label_selector: dict[str, str]) -> Any:
            assert (num_cpus, max_retries) == (0, 0)  # runs there, however busy the node is
            node_id = label_selector["ray.io/node-id"]

            def send(*args: Any) -> Any:
                return (node_id, self._answer(node_id, function, *args))

            return SimpleNamespace(remote=send)

        return SimpleNamespace(options=options)

    def wait(self, tasks: list[Any], timeout: float) -> Any:
        return [task for task in tasks if task[1] is not SILENT], []

    def cancel(self, task: Any, *, force: bool) -> None:
        self.cancelled.append(task[0])

    def get(self, task: Any) -> Any:
        if isinstance(task[1], Exception):
            raise task[1]
        return task[1]


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    """Puts a FakeRay in Ray's place, on a node called `head`."""

    def put(answer: Callable[..., Any], cpus: dict[str, int]) -> FakeRay:
        ray = FakeRay(answer, cpus)
        monkeypatch.setattr(nodes, "ray", ray)
        monkeypatch.setattr(probing, "ray", ray)
        monkeypatch.setattr(nodes, "_find_draining", dict)
        monkeypatch.setattr(probing, "probe_node", lambda: cpu_node("head", num_cpus=16))
        return ray

    return put


def profile_of(hostname: str, *, num_cpus: int = 8) -> dict[str, Any]:
    """A node's answer."""
    return {"profile": cpu_node(hostname, num_cpus=num_cpus).to_dict()}


def test_every_living_node_is_probed_and_counts_the_cpus_that_ray_may_use(fake_ray: Callable[..., FakeRay]) -> None:
    here = {"profile": replace(cpu_node("head", num_cpus=16), python_version="asked by a task").to_dict()}
    fake_ray(lambda node_id, *_: {HERE: here, OTHER: profile_of("worker")}[node_id], {HERE: 2, OTHER: 64})
    found = probe_cluster()
    assert not found.left_out
    assert list(found.profiles) == [HERE, OTHER]
    assert found.profiles[HERE] == replace(
        cpu_node("head", num_cpus=16),
        num_cpus=2,
        python_version="asked by a task",
        ray_node_id=HERE,
        address="10.0.0.2",
    )
    assert found.profiles[OTHER] == replace(cpu_node("worker", num_cpus=8), ray_node_id=OTHER, address="10.0.0.64")


def test_several_nodes_on_one_machine_are_told_apart_by_name(fake_ray: Callable[..., FakeRay]) -> None:
    fake_ray(lambda *_: profile_of("head"), {HERE: 1, OTHER: 1})
    # A placement is sent to its node by this name.
    names = {key: profile.hostname for key, profile in probe_cluster().profiles.items()}
    assert names == {HERE: "head#aaaaaa", OTHER: "head#bbbbbb"}


def test_nodes_whose_ids_begin_alike_are_told_apart_too_also_from_those_that_are_there() -> None:
    nodes = {f"{'f' * 51}0000{digit}": cpu_node("vm") for digit in (1, 2)}
    names = [profile.hostname for profile in name_apart(nodes).values()]
    assert len(set(names)) == 2
    (late,) = name_apart({f"{'f' * 51}00003": cpu_node("vm")}, taken=["vm", *names]).values()
    assert late.hostname not in {"vm", *names}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (SILENT, "did not say what it is within 0.5 s"),
        (RayError("remote traceback\nthe worker died"), "could not be asked what it is: the worker died"),
        ({"problem": "it has qlora_ray 0.0.1"}, "it has qlora_ray 0.0.1"),
    ],
)
def test_a_node_that_does_not_answer_costs_itself_only_and_is_named(
    fake_ray: Callable[..., FakeRay], answer: Any, reason: str
) -> None:
    ray = fake_ray(
        lambda node_id, *_: answer if node_id == OTHER else profile_of("good"), {HERE: 1, OTHER: 2, THIRD: 3}
    )
    found = probe_cluster(timeout_s=0.5)
    assert set(found.profiles) == {HERE, THIRD}
    (left_out,) = found.left_out
    assert left_out.node.node_id == OTHER and reason in left_out.reason
    assert str(left_out).startswith("host-b (10.0.0.2, node bbbbbbbb): ")
    assert ray.cancelled == ([OTHER] if answer is SILENT else [])


def test_a_node_that_does_not_see_the_folder_is_left_out_and_no_marker_stays(
    fake_ray: Callable[..., FakeRay], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"

    def answer(node_id: str, question: Callable[..., Any], marker: str, version: str) -> Any:
        assert Path(marker).is_absolute() and Path(marker).exists()
        # What the other node has at this path is a folder of its own.
        return question(marker if node_id == THIRD else str(elsewhere / Path(marker).name), version)

    fake_ray(answer, {HERE: 1, OTHER: 1, THIRD: 1})
    found = probe_cluster(tmp_path)
    assert set(found.profiles) == {HERE, THIRD}
    assert f"does not see {elsewhere}" in found.left_out[0].reason
    assert list(tmp_path.iterdir()) == []


def test_one_node_has_nothing_to_share(fake_ray: Callable[..., FakeRay], tmp_path: Path) -> None:
    fake_ray(lambda *_: None, {HERE: 1})
    assert set(probe_cluster(tmp_path / "not-even-there").profiles) == {HERE}


def test_a_node_says_itself_what_is_wrong_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    question = probing._make_question()
    assert "this is 9.9.9" in question(None, "9.9.9")["problem"]
    assert set(question(None, __version__)) == {"profile"}
    real_import = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "qlora_ray":
            raise ModuleNotFoundError("No module named 'qlora_ray'")
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert "No module named 'qlora_ray'" in question(None, __version__)["problem"]


def test_a_draining_node_is_known_by_its_deadline(
    fake_ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ray(lambda *_: None, {HERE: 1, OTHER: 1})
    monkeypatch.setattr(nodes, "_find_draining", lambda: {OTHER: 1234})
    found = list_nodes()
    assert set(found) == {HERE, OTHER}
    assert (found[HERE].drain_deadline_ms, found[OTHER].drain_deadline_ms) == (None, 1234)


def test_who_is_left_out_stands_in_the_plan_and_in_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = (probing.LeftOut(nodes.RayNode(OTHER, "10.0.0.2", "box"), "it has no package"),)
    preflight: Any = None
    monkeypatch.setattr(planning, "plan_sweep", lambda *_: Plan((), (), ("P4: too small",), 1))
    plan = plan_cluster(preflight, ProbedCluster({}, left_out))
    assert plan.skipped == ("P4: too small", "box (10.0.0.2, node bbbbbbbb): it has no package")

    def refuse(*_: Any) -> Plan:
        raise PlacementError("placement: nothing fits.")

    monkeypatch.setattr(planning, "plan_sweep", refuse)
    with pytest.raises(PlacementError, match=r"nothing fits\.\nleft out: box .* no package"):
        plan_cluster(preflight, ProbedCluster({}, left_out))


def test_gpus_that_are_named_by_uuid_have_no_index_and_stop_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"is_initialized": lambda: True, "get_gpu_ids": lambda: [2, "3", "MIG-5c2b", "GPU-0a1b"]}
    for name, answer in named.items():
        monkeypatch.setattr(nodes.ray, name, answer)
    assert nodes.own_gpu_ids() == [2, 3]
