"""Which node a user means."""

from __future__ import annotations

import pytest

from qlora_ray.errors import PlacementError
from qlora_ray.orchestration.cluster.nodes import RayNode
from qlora_ray.orchestration.pool_directory import find_node

NODES = {
    node.node_id: node
    for node in (
        RayNode("ab" * 28, "10.0.0.1", "head"),
        RayNode("ac" * 28, "10.0.0.2", "worker"),
        RayNode("cd" * 28, "10.0.0.3", "worker"),
    )
}


@pytest.mark.parametrize(
    ("text", "address"), [("10.0.0.2", "10.0.0.2"), ("head", "10.0.0.1"), ("cd", "10.0.0.3"), ("ac" * 28, "10.0.0.2")]
)
def test_a_node_is_named_by_id_address_or_host(text: str, address: str) -> None:
    assert find_node(text, NODES).address == address


@pytest.mark.parametrize(("text", "number"), [("a", 2), ("worker", 2), ("10.0.0.9", "none"), ("", "none")])
def test_a_text_that_names_none_or_several_is_refused_with_the_nodes(text: str, number: int | str) -> None:
    with pytest.raises(PlacementError, match=f"got {text}, which names {number}") as caught:
        find_node(text, NODES)
    assert ("head" in str(caught.value)) is (text != "worker")
