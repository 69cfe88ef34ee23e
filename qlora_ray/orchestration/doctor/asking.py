"""The doctor's questions to the nodes of a cluster: all at once, under one deadline, a Ray task each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from qlora_ray import __version__
from qlora_ray.orchestration.cluster.nodes import RayNode, list_nodes, on_node
from qlora_ray.orchestration.cluster.probing import PROBE_TIMEOUT_S, shared_marker
from qlora_ray.orchestration.doctor.facts import NodeFacts, measure_clock
from qlora_ray.orchestration.ray_errors import describe_death
from qlora_ray.runs.typed_json import parse_record


def ask_nodes(shared: Path | None, *, timeout_s: float = PROBE_TIMEOUT_S) -> list[NodeFacts]:
    """The facts of every node of the cluster that this process has joined.

    Args:
        shared: The folder that all are to see; None to ask for nothing of the kind.
        timeout_s: Until when an answer counts, for all nodes together.
    """
    nodes = list_nodes()
    with shared_marker(shared) as marker:
        task = ray.remote(_make_question())
        answers = {
            node_id: _options(task, node).remote(node.name, _text(shared), _text(marker), __version__)
            for node_id, node in nodes.items()
        }
        deadline = time.monotonic() + timeout_s
        facts = {node_id: _read(answers[node_id], node, deadline, timeout_s) for node_id, node in nodes.items()}
    return _with_clocks(facts, nodes)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _options(task: Any, node: RayNode) -> Any:
    return task.options(num_cpus=0, max_retries=0, **on_node(node.node_id))


def _read(answer: Any, node: RayNode, deadline: float, timeout_s: float) -> NodeFacts:
    ready, _ = ray.wait([answer], timeout=max(0.0, deadline - time.monotonic()))
    if not ready:
        with contextlib.suppress(RayError):
            ray.cancel(answer, force=True)
        return NodeFacts(node.name, problem=f"it gave no answer within {timeout_s:g} s")
    try:
        return replace(parse_record(NodeFacts, ray.get(answer)), name=node.name)
    except (RayError, RuntimeError) as error:
        return NodeFacts(node.name, problem=f"it could not be asked: {describe_death(error)}")


def _with_clocks(facts: Mapping[str, NodeFacts], nodes: Mapping[str, RayNode]) -> list[NodeFacts]:
    """The facts, with each clock's difference from this one. A worker is there by now: the question takes no time."""
    task = ray.remote(measure_clock)
    timed = []
    for node_id, fact in facts.items():
        if fact.problem is None:
            asked_at = measure_clock()
            try:
                there = ray.get(_options(task, nodes[node_id]).remote(), timeout=PROBE_TIMEOUT_S)
            except RayError:
                timed.append(fact)
                continue
            error_s = (measure_clock() - asked_at) / 2
            fact = replace(fact, clock_s=there - asked_at - error_s, clock_error_s=error_s)
        timed.append(fact)
    return timed


def _make_question() -> Any:
    """The task that a node answers. It is made in here so that Ray sends its code, as for a probe."""

    def question(name: str, shared: str | None, marker: str | None, version: str) -> dict[str, Any]:
        try:
            import qlora_ray

            if qlora_ray.__version__ != version:
                words = f"it has qlora_ray {qlora_ray.__version__}, and this is {version}; install the same"
                return {"name": name, "problem": words}
            from pathlib import Path

            from qlora_ray.orchestration.doctor.facts import collect_facts
            from qlora_ray.runs.typed_json import to_json
        except ImportError as error:
            words = f"qlora_ray cannot be imported there ({error}); install the same version as here"
            return {"name": name, "problem": words}
        facts = collect_facts(
            name=name,
            shared=None if shared is None else Path(shared),
            marker=None if marker is None else Path(marker),
        )
        return dict(to_json(facts))

    return question
