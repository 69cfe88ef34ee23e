"""Prints what a sweep would run, and where: placements, slots, precision, memory, time. Trains nothing."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.commands import run_command

if TYPE_CHECKING:
    from qlora_ray.hardware import Plan
    from qlora_ray.preflight.checks import Preflight

DEFAULT_CONFIG = Path("configs/quickstart.yaml")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qlora_ray.plan", description=__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"sweep YAML (default: {DEFAULT_CONFIG})")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one config value"
    )
    parser.add_argument(
        "--gpus", metavar="T4:2,A100-40:1", help="plan for these GPUs, and not for the machines that sweep would use"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 for bad input and for a plan that fits nowhere."""
    arguments = make_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from qlora_ray.config import load_config
    from qlora_ray.search.parsing import load_space

    config = load_config(arguments.config, overrides=arguments.overrides)
    space = load_space(config)
    if arguments.gpus is not None:
        # A name that is not known is said before the base is read.
        from qlora_ray.hardware.catalogue import parse_gpus

        parse_gpus(arguments.gpus)
    from qlora_ray.preflight.checks import check_sweep
    from qlora_ray.preflight.forecast import forecast_sweep

    preflight = check_sweep(config, space)
    plan = _plan(preflight, gpus=arguments.gpus)
    forecast = forecast_sweep(preflight, plan)
    if arguments.json:
        sys.stdout.write(json.dumps({**plan.to_dict(), "forecast": forecast.to_dict()}, indent=2) + "\n")
        return 0
    notes = "".join(f"note  {note}\n" for note in preflight.notes)
    sys.stdout.write(f"{notes}{plan.render()}\n\n{forecast.render()}\n")
    return 0


def _plan(preflight: Preflight, *, gpus: str | None) -> Plan:
    """The plan for the GPUs that are named, else for the machines that `sweep` would use."""
    from qlora_ray.preflight.checks import plan_sweep

    if gpus is not None:
        from qlora_ray.hardware.hypothetical import describe_nodes

        return plan_sweep(preflight, describe_nodes(gpus))
    if preflight.config.cluster.address is None and "RAY_ADDRESS" not in os.environ:
        # One machine, this one: asking it needs no Ray.
        from qlora_ray.hardware import probe_node

        return plan_sweep(preflight, [probe_node()])
    from qlora_ray.orchestration.cluster.joining import ray_cluster
    from qlora_ray.orchestration.cluster.planning import plan_cluster
    from qlora_ray.orchestration.cluster.probing import probe_cluster

    with ray_cluster(preflight.config.cluster):
        return plan_cluster(preflight, probe_cluster())


if __name__ == "__main__":
    sys.exit(main())
