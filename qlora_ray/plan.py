"""Prints what a sweep would run, and where: placements, slots, precision, memory, time. Trains nothing."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.commands import Result, add_json_option, run_command

if TYPE_CHECKING:
    from qlora_ray.config import SweepConfig
    from qlora_ray.hardware import Plan
    from qlora_ray.preflight.planning import PlanFacts
    from qlora_ray.search.space import SearchSpace

DEFAULT_CONFIG = Path("configs/quickstart.yaml")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qlora_ray.plan", description=__doc__)
    parser.add_argument("--config", type=Path, help=f"sweep YAML (default: {DEFAULT_CONFIG})")
    parser.add_argument("--preset", metavar="NAME", help="one of configs/presets, under --config and --set")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one config value"
    )
    parser.add_argument(
        "--gpus", metavar="T4:2,A100-40:1", help="plan for these GPUs, and not for the machines that sweep would use"
    )
    add_json_option(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 for bad input and for a plan that fits nowhere."""
    arguments = make_parser().parse_args(argv)
    return run_command(lambda: _run(arguments), json_of="plan" if arguments.json else None)


def _run(arguments: argparse.Namespace) -> Result:
    from qlora_ray.config import load_config
    from qlora_ray.search.parsing import load_space

    source = arguments.config if arguments.config or arguments.preset else DEFAULT_CONFIG
    config = load_config(source, overrides=arguments.overrides, preset=arguments.preset)
    space = load_space(config)
    if arguments.gpus is not None:
        # A name that is not known is said before the base is read.
        from qlora_ray.hardware.catalogue import parse_gpus

        parse_gpus(arguments.gpus)
    if arguments.gpus is not None or (not config.cluster.address and not os.environ.get("RAY_ADDRESS")):
        facts = _find_facts(config, space)
        plan = _plan_without_ray(facts, gpus=arguments.gpus)
    else:
        facts, plan = _plan_with_ray(config, space)
    from qlora_ray.preflight.forecast import forecast_sweep

    forecast = forecast_sweep(facts, plan)
    notes = "".join(f"note  {note}\n" for note in facts.notes)
    sys.stdout.write(f"{notes}{plan.render()}\n\n{forecast.render()}\n")
    return Result({**plan.to_dict(), "forecast": forecast.to_dict(), "config_notes": list(facts.notes)})


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


if __name__ == "__main__":
    sys.exit(main())
