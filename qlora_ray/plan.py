"""Prints what a sweep would run, and where: placements, slots, precision, memory, time. Trains nothing."""

from __future__ import annotations

import argparse
import sys

from qlora_ray.commands import Result, add_config_options, add_json_option, find_config, run_command


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qlora_ray.plan", description=__doc__)
    add_config_options(parser)
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
    from qlora_ray.orchestration.planned_sweep import tell_plan
    from qlora_ray.search.parsing import load_space

    config = load_config(find_config(arguments), overrides=arguments.overrides, preset=arguments.preset)
    return Result(tell_plan(config, load_space(config), gpus=arguments.gpus))


if __name__ == "__main__":
    sys.exit(main())
