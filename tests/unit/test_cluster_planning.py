"""What the plan of a cluster says beyond the planner's own words."""

from __future__ import annotations

from dataclasses import replace

from qlora_ray.orchestration.cluster.planning import note_versions
from tests.unit.hardware_fixtures import cpu_node


def test_packages_that_differ_between_nodes_are_named_with_versions_and_nodes() -> None:
    packages = {"torch": "2.13.0", "peft": "0.21.2"}
    first, second = (replace(cpu_node(name), packages=packages) for name in ("head", "worker"))
    third = replace(cpu_node("old"), packages={"torch": "2.12.1", "peft": "0.21.2"})
    assert note_versions([first, second]) == []
    (note,) = note_versions([first, second, third])
    assert "torch" in note
    assert "2.13.0 on head and worker" in note
    assert "2.12.1 on old" in note


def test_a_package_that_a_node_lacks_is_a_difference() -> None:
    nodes = [replace(cpu_node("a"), packages={"trl": "1.16.0"}), replace(cpu_node("b"), packages={"trl": None})]
    assert ["none on b" in note for note in note_versions(nodes)] == [True]
