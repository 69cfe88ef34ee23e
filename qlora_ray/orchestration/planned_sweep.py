"""What a sweep would run, and where, printed before anything trains: by `plan`, and by `sweep --plan`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_ray.config import SweepConfig
    from qlora_ray.hardware import Plan
    from qlora_ray.preflight.planning import PlanFacts
    from qlora_ray.search.space import SearchSpace


def tell_plan(config: SweepConfig, space: SearchSpace, *, gpus: str | None = None) -> Mapping[str, Any]:
    """Prints the plan and the forecast of a sweep, and returns them as `--json` has them.

    Args:
        config: The sweep's config.
        space: Its space.
        gpus: GPUs to plan for, as `T4:2,A100-40:1`; None: the machines that the sweep would use.

    Raises:
        QloraRayError: If the config cannot be run as it is, a GPU's name is not known, or nothing fits anywhere.
    """
    if gpus is not None:
        # A name that is not known is said before the base is read.
        from qlora_ray.hardware.catalogue import parse_gpus

        parse_gpus(gpus)
    if gpus is not None or (not config.cluster.address and not os.environ.get("RAY_ADDRESS")):
        facts = _find_facts(config, space)
        plan = _plan_without_ray(facts, gpus=gpus)
    else:
        facts, plan = _plan_with_ray(config, space)
    from qlora_ray.exporting.adapter_hub import describe_pushes
    from qlora_ray.preflight.forecast import forecast_sweep

    forecast = forecast_sweep(facts, plan)
    pushes = describe_pushes(config.export)
    told = [*facts.notes, *([] if pushes is None else [pushes])]
    notes = "".join(f"note  {note}\n" for note in told)
    sys.stdout.write(f"{notes}{plan.render()}\n\n{forecast.render()}\n")
    return {**plan.to_dict(), "forecast": forecast.to_dict(), "config_notes": told}


def _find_facts(config: SweepConfig, space: SearchSpace) -> PlanFacts:
    """What is remembered of this config, else what its checks find out."""
    from qlora_ray.preflight.remembered import recall, remember

    facts = recall(config, space)
    if facts is None:
        from qlora_ray.console import Console
        from qlora_ray.preflight.checks import check_sweep

        console = Console()
        facts = check_sweep(config, space, tell=console.progress).plan_facts
        console.end_progress()
        remember(facts, space)
    return facts


def _plan_without_ray(facts: PlanFacts, *, gpus: str | None) -> Plan:
    """The plan for the GPUs that are named, else for this machine: asking it needs no Ray."""
    from qlora_ray.preflight.planning import plan_facts

    if gpus is not None:
        from qlora_ray.hardware.hypothetical import describe_nodes

        return plan_facts(facts, describe_nodes(gpus))
    from qlora_ray.hardware import probe_node

    return plan_facts(facts, [probe_node()])


def _plan_with_ray(config: SweepConfig, space: SearchSpace) -> tuple[PlanFacts, Plan]:
    """The plan for the cluster that `sweep` would join."""
    from qlora_ray.orchestration.cluster.joining import ray_cluster
    from qlora_ray.orchestration.cluster.planning import plan_cluster
    from qlora_ray.orchestration.cluster.probing import probe_cluster
    from qlora_ray.preflight.checks import check_sweep

    preflight = check_sweep(config, space)
    with ray_cluster(config.cluster):
        return preflight.plan_facts, plan_cluster(preflight, probe_cluster())
