"""What the facts of all nodes say: their versions, the cluster's token, and then each node's findings. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from qlora_ray.orchestration.doctor.facts import NodeFacts
from qlora_ray.orchestration.doctor.findings import COMPARED_PACKAGES, Finding, Situation, Status
from qlora_ray.orchestration.doctor.node_checks import NODE_CHECKS


def check_all(nodes: Sequence[NodeFacts], situation: Situation) -> list[Finding]:
    """Every finding: those of all nodes together first, then each node's."""
    answered = [node for node in nodes if node.problem is None]
    findings = [*_check_versions(answered)] if situation.is_cluster else []
    findings += _check_cluster(situation)
    for node in nodes:
        if node.problem is not None:
            findings.append(Finding("node", Status.PROBLEM, node.problem, node.name, "A sweep leaves it out."))
            continue
        for check in NODE_CHECKS:
            findings += check(node, situation)
    return findings


def _check_versions(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    names = ("python", "qlora_ray", *COMPARED_PACKAGES)
    differing = 0
    for name in names:
        by_version = defaultdict(list)
        for node in nodes:
            by_version[_version_of(node, name)].append(node.name)
        if len(by_version) > 1:
            differing += 1
            words = "; ".join(f"{version} on {', '.join(where)}" for version, where in sorted(by_version.items()))
            is_needed = name in ("qlora_ray", "ray", "python")
            yield Finding(
                "versions",
                Status.PROBLEM if is_needed else Status.WARNING,
                f"{name} differs: {words}",
                mend=f"Install the same {name} on all nodes: pip install -c constraints.txt -e .",
            )
    if not differing and nodes:
        some = ", ".join(f"{name} {_version_of(nodes[0], name)}" for name in ("python", "ray", "torch", "bitsandbytes"))
        yield Finding("versions", Status.OK, f"the same on {len(nodes)} nodes: {some}")


def _version_of(node: NodeFacts, name: str) -> str:
    if name == "python":
        return node.python
    if name == "qlora_ray":
        return node.package
    # A CPU build beside a CUDA build of one version is what a mixed cluster has.
    return (node.packages.get(name) or "none").partition("+")[0]


def _check_cluster(situation: Situation) -> Iterator[Finding]:
    if situation.is_cluster and not situation.shared:
        text = "not looked at: no folder was named"
        yield Finding("storage", Status.WARNING, text, mend="Add --shared DIR, the folder that results.dir will be.")
    if situation.asks_for_token is False:
        yield Finding(
            "token",
            Status.WARNING,
            "the cluster asks for none: who reaches its ports can run code on its nodes",
            mend="Start Ray with RAY_AUTH_MODE=token, after `ray get-auth-token --generate`.",
        )
    elif situation.asks_for_token:
        yield Finding("token", Status.OK, "the cluster asks for a token")
