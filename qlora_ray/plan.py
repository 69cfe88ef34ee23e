"""Prints what a sweep would run, and where: placements, slots, precision, memory. Trains nothing."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from qlora_ray.commands import run_command

DEFAULT_CONFIG = Path("configs/quickstart.yaml")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qlora_ray.plan", description=__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"sweep YAML (default: {DEFAULT_CONFIG})")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one config value"
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
    from qlora_ray.preflight.checks import check_sweep, plan_sweep

    preflight = check_sweep(config, space)
    if config.cluster.address is None:
        # One machine, this one: asking it needs no Ray.
        from qlora_ray.hardware import probe_node

        plan = plan_sweep(preflight, [probe_node()])
    else:
        from qlora_ray.orchestration.cluster.joining import ray_cluster
        from qlora_ray.orchestration.cluster.planning import plan_cluster
        from qlora_ray.orchestration.cluster.probing import probe_cluster

        with ray_cluster(config.cluster):
            plan = plan_cluster(preflight, probe_cluster())
    notes = "".join(f"note  {note}\n" for note in preflight.notes)
    sys.stdout.write((json.dumps(plan.to_dict(), indent=2) if arguments.json else notes + plan.render()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
