"""The doctor's findings as lines for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.formats import plural
from qlora_ray.orchestration.doctor.checks import check_all
from qlora_ray.orchestration.doctor.facts import NodeFacts, collect_facts
from qlora_ray.orchestration.doctor.findings import Finding, Situation, Status
from qlora_ray.runs.typed_json import to_json


def look_here(shared: Path) -> tuple[list[NodeFacts], Situation]:
    """The facts of this machine alone; Ray is not started."""
    place = shared if shared.is_dir() else shared.parent
    return [collect_facts(shared=place)], Situation(shared=str(place))


def look_at_cluster(shared: Path | None, *, asks_for_token: bool) -> tuple[list[NodeFacts], Situation]:
    """The facts of every node of the cluster that this process has joined.

    Args:
        shared: The folder for results; None to look at none.
        asks_for_token: Whether the cluster does.

    Raises:
        RunError: If there is no such folder here, or it cannot be written.
    """
    # Here: importing ray takes a third of a second, which a look at this machine need not wait for.
    from qlora_ray.orchestration.doctor.asking import ask_nodes

    if shared is not None and not shared.is_dir():
        raise RunError(f"--shared: must be a folder that all nodes see, got {shared}, which is not there. Make it.")
    try:
        facts = ask_nodes(shared)
    except OSError as error:
        raise RunError(f"--shared: {shared} cannot be written: {error.strerror}. Choose another folder.") from None
    return facts, Situation(is_cluster=True, asks_for_token=asks_for_token, shared=str(shared or ""))


def examine(nodes: Sequence[NodeFacts], situation: Situation) -> tuple[str, Mapping[str, Any], int]:
    """The findings as text and as JSON, and the exit code: 1 where there is a problem."""
    findings = check_all(nodes, situation)
    counts = Counter(finding.status for finding in findings)
    facts = {
        "findings": [to_json(finding) for finding in findings],
        "counts": {status.value: counts[status] for status in Status},
        "nodes": [to_json(node) for node in nodes],
    }
    return render(findings), facts, 1 if counts[Status.PROBLEM] else 0


def render(findings: Sequence[Finding]) -> str:
    """A line for each finding, with its mend below it, and a last one that counts them."""
    status_width = max(len(status) for status in Status)
    check_width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    node = None
    for finding in findings:
        if finding.node != node:
            node = finding.node
            lines.append(node or "the cluster")
        lines.append(f"  {finding.status:{status_width}}  {finding.check:{check_width}}  {finding.text}")
        if finding.mend:
            lines.append(f"  {'':{status_width}}  {'':{check_width}}  -> {finding.mend}")
    counts = Counter(finding.status for finding in findings)
    named = [plural(counts[status], status.value) for status in (Status.PROBLEM, Status.WARNING) if counts[status]]
    lines.append(", ".join(named) if named else "all is well")
    return "\n".join(lines)
