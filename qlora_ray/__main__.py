"""Lists the commands, and runs one: `python -m qlora_ray sweep` and `qlora-ray sweep` do what its module does."""

from __future__ import annotations

import runpy
import sys

from qlora_ray.commands import Result, run_command

# What each command does, in a line; its module has its name.
COMMANDS = {
    "sweep": "find the best adapter for a base and a dataset",
    "plan": "what a sweep would run, and where: devices, slots, memory, time",
    "report": "write a sweep's page again, finished or not",
    "dashboard": "a live page of a sweep on this machine, also of one that has ended or was killed",
    "evaluate": "score a base, its adapter and the merged model on the same rows",
    "export": "write the winner as a bundle: adapter, merged model, card; zip it, push it",
    "cluster": "the nodes of a Ray cluster, and what sweeps have on them",
}
USAGE_EXIT_CODE = 2


def main() -> int:
    """Runs the command that the first word names, as `python -m` does; returns 0 for the list, 2 for any other word."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        return run_command(_tell_commands)
    name, *options = words
    if name not in COMMANDS:
        sys.stderr.write(f"COMMAND: must be one of {', '.join(COMMANDS)}, got {name}.\n")
        return USAGE_EXIT_CODE
    module = f"qlora_ray.{name}"
    sys.argv = [module, *options]
    # It ends the process with its own exit code.
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _tell_commands() -> Result:
    sys.stdout.write(_list_commands())
    return Result({})


def _list_commands() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {words}" for name, words in COMMANDS.items()]
    return "\n".join(
        [
            "qlora-ray COMMAND [OPTIONS]        (or: python -m qlora_ray.COMMAND)",
            "",
            *lines,
            "",
            "COMMAND --help lists its options. Without any, sweep runs configs/quickstart.yaml.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
