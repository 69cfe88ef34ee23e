"""What each node of a cluster is: all asked at once, under one deadline. One that does not answer costs itself only."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from qlora_ray import __version__
from qlora_ray.hardware import NodeProfile, probe_node
from qlora_ray.hardware.simulation import read_claims
from qlora_ray.orchestration.cluster.nodes import RayNode, list_nodes, on_node, own_node_id
from qlora_ray.orchestration.ray_errors import describe_death

# Of all nodes together: a worker process starts, imports torch and opens each GPU.
PROBE_TIMEOUT_S = 120.0
# How much of a node's id is added to the name of a machine that has several Ray nodes.
NAME_DIGITS = 6


@dataclass(frozen=True)
class LeftOut:
    """A node that a sweep does not use, and why."""

    node: RayNode
    reason: str

    def __str__(self) -> str:
        return f"{self.node.name}: {self.reason}"


@dataclass(frozen=True)
class ProbedCluster:
    """What the nodes of a cluster are.

    Attributes:
        profiles: The nodes that can be used, by Ray node id; this one's first.
        left_out: The others, each with its reason.
    """

    profiles: Mapping[str, NodeProfile]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Probe:
    """A question that is on its way to a node.

    Attributes:
        node: Who is asked.
        answer: The task.
        asked_at: When, in monotonic seconds.
    """

    node: RayNode
    answer: Any
    asked_at: float


def probe_cluster(folder: Path | None = None, *, timeout_s: float = PROBE_TIMEOUT_S) -> ProbedCluster:
    """Asks every node what it is, by a task each; a node that is alone is asked directly.

    Where there are others the driver's node is asked by a task too: its environment, which may hold it to a format, is
    that in which Ray was started there, and not the driver's.

    Args:
        folder: What every node must see, the sweep's folder; None to ask for nothing of the kind.
        timeout_s: Until when an answer counts, for all nodes together.
    """
    here, nodes = own_node_id(), list_nodes()
    others = [node for node_id, node in nodes.items() if node_id != here]
    with shared_marker(folder if others else None) as marker:
        probes = [ask_node(node, marker=marker) for node in (nodes.values() if others else ())]
        profiles = {here: describe_node(nodes.get(here, RayNode(here)), probe_node())}
        deadline = time.monotonic() + timeout_s
        left_out = []
        for probe in probes:
            ray.wait([probe.answer], timeout=max(0.0, deadline - time.monotonic()))
            answer = read_answer(probe, is_late=True, timeout_s=timeout_s)
            if isinstance(answer, NodeProfile):
                profiles[probe.node.node_id] = answer
            elif answer is not None and probe.node.node_id != here:
                left_out.append(answer)
    return ProbedCluster(name_apart(profiles), tuple(left_out))


@contextmanager
def shared_marker(folder: Path | None) -> Iterator[Path | None]:
    """A file in the sweep's folder that every node must see, for the length of the block."""
    if folder is None:
        yield None
        return
    marker = folder.resolve() / f".marker-{uuid.uuid4().hex}"
    marker.touch()
    try:
        yield marker
    finally:
        with contextlib.suppress(OSError):
            marker.unlink()


def ask_node(node: RayNode, *, marker: Path | None) -> Probe:
    """Sends a node the question; returns at once."""
    task = ray.remote(_make_question()).options(num_cpus=0, max_retries=0, **on_node(node.node_id))
    return Probe(node, task.remote(None if marker is None else str(marker), __version__), time.monotonic())


def read_answer(probe: Probe, *, is_late: bool, timeout_s: float) -> NodeProfile | LeftOut | None:
    """A node's answer.

    Args:
        probe: The question.
        is_late: Whether one that has not answered yet is given up.
        timeout_s: How long it had, for the words.

    Returns:
        What the node is, or why it is left out; None if it may still answer.
    """
    ready, _ = ray.wait([probe.answer], timeout=0)
    if not ready:
        if not is_late:
            return None
        with contextlib.suppress(RayError):
            ray.cancel(probe.answer, force=True)
        return LeftOut(probe.node, f"it did not say what it is within {timeout_s:g} s")
    try:
        answer = ray.get(probe.answer)
    except (RayError, RuntimeError) as error:
        return LeftOut(probe.node, f"it could not be asked what it is: {describe_death(error)}")
    if problem := answer.get("problem"):
        return LeftOut(probe.node, problem)
    return describe_node(probe.node, NodeProfile.from_dict(answer["profile"]))


def describe_node(node: RayNode, profile: NodeProfile) -> NodeProfile:
    """A profile with what Ray says of the node: how many CPUs it may use, what GPUs it claims, and its names."""
    return replace(
        profile,
        num_cpus=min(profile.num_cpus, node.num_cpus),
        claims=read_claims(node.resources or {}, node.labels or {}),
        ray_node_id=node.node_id,
        address=node.address or None,
    )


def name_apart(profiles: Mapping[str, NodeProfile], *, taken: Iterable[str] = ()) -> dict[str, NodeProfile]:
    """The profiles, with names that differ: several Ray nodes on one machine share its name.

    Args:
        profiles: By Ray node id.
        taken: Names that other nodes have already.
    """
    taken = list(taken)
    names = [*taken, *(profile.hostname for profile in profiles.values())]
    given = set(taken)
    apart = {}
    for node_id, profile in profiles.items():
        name = profile.hostname
        if names.count(name) > 1:
            # Ray draws ids at random; only ones that somebody has set begin alike.
            longer = (f"{name}#{node_id[:digits]}" for digits in range(NAME_DIGITS, len(node_id) + 1))
            name = next((one for one in longer if one not in given), f"{name}#{node_id}")
        given.add(name)
        apart[node_id] = profile if name == profile.hostname else replace(profile, hostname=name)
    return apart


def _make_question() -> Any:
    """The task that a node answers.

    It is made in here so that Ray sends its code: a node that has no package, or another version of it, can say so.
    """

    def question(marker: str | None, version: str) -> dict[str, Any]:
        import os

        try:
            import qlora_ray
            from qlora_ray.hardware import probe_node
        except ImportError as error:
            return {"problem": f"qlora_ray cannot be imported there ({error}); install the same version as here"}
        if qlora_ray.__version__ != version:
            return {"problem": f"it has qlora_ray {qlora_ray.__version__}, and this is {version}; install the same"}
        if marker is not None and not os.path.exists(marker):  # noqa: PTH110  (one import less on a strange node)
            return {
                "problem": f"it does not see {os.path.dirname(marker)}; "  # noqa: PTH120
                "results.dir must be on storage that all nodes share (NFS, a mounted bucket)"
            }
        return {"profile": probe_node().to_dict()}

    return question
