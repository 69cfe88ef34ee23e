"""`python -m qlora_ray.config schema`: the config's JSON Schema, for editors."""

from __future__ import annotations

import argparse
import json
import sys

from qlora_ray.commands import Result, run_command
from qlora_ray.config.schema import SweepConfig


def main(argv: list[str] | None = None) -> int:
    """Prints the JSON Schema of a sweep config."""
    parser = argparse.ArgumentParser(prog="python -m qlora_ray.config", description=__doc__)
    parser.add_argument("command", choices=["schema"])
    parser.parse_args(argv)
    return run_command(_print_schema)


def _print_schema() -> Result:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SweepConfig.model_json_schema()}
    sys.stdout.write(json.dumps(schema, indent=2) + "\n")
    return Result(schema)


if __name__ == "__main__":
    sys.exit(main())
