"""Prints what a sweep would run, and where: placements, slots, precision, memory, time. Trains nothing."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from qlora_ray.commands import (
    CommandParser,
    Result,
    add_config_options,
    add_json_option,
    find_config,
    run_command,
)
from qlora_ray.errors import ConfigError

if TYPE_CHECKING:
    from qlora_ray.config import SweepConfig
    from qlora_ray.search.space import SearchSpace


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="python -m qlora_ray.plan", description=__doc__)
    add_config_options(parser)
    parser.add_argument(
        "--gpus", metavar="T4:2,A100-40:1", help="plan for these GPUs, and not for the machines that sweep would use"
    )
    parser.add_argument(
        "--recommend", action="store_true", help="settings by the size of the base, with their sources; plans nothing"
    )
    add_json_option(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 for bad input and for a plan that fits nowhere."""
    arguments = make_parser().parse_args(argv)
    return run_command(lambda: _run(arguments), json_of="plan" if arguments.json else None)


def _run(arguments: argparse.Namespace) -> Result:
    if arguments.recommend and arguments.gpus is not None:
        raise ConfigError("--gpus: is of a plan, got --recommend, which goes by the base alone. Drop one of them.")
    from qlora_ray.config import load_config
    from qlora_ray.search.parsing import load_space

    config = load_config(find_config(arguments), overrides=arguments.overrides, preset=arguments.preset)
    space = load_space(config)
    if arguments.recommend:
        return _recommend(config, space)
    from qlora_ray.orchestration.planned_sweep import tell_plan

    return Result(tell_plan(config, space, gpus=arguments.gpus))


def _recommend(config: SweepConfig, space: SearchSpace) -> Result:
    """Prints settings for the config's base, and what to paste."""
    from qlora_ray.modeling.loading import read_shape
    from qlora_ray.search.first_points import find_first_points
    from qlora_ray.search.recommended import recommend

    shape = read_shape(config.model)
    found = recommend(num_parameters=shape.num_parameters, hidden_size=shape.hidden_size)
    points = find_first_points(space, config, found.settings)
    lines = found.render(config.model.name, space, points)
    sys.stdout.write("\n".join(lines) + "\n")
    return Result({"recommended": {**found.to_dict(), "first_points": list(points)}})


if __name__ == "__main__":
    sys.exit(main())
