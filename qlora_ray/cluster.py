"""Prints the lines that make a Ray cluster, says what is wrong with a machine or a cluster, shows the nodes and what
sweeps have on them, and drains a node."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qlora_ray.commands import CommandParser, Result, add_json_option, as_place, run_command

DRAIN_REASON = "asked for by `python -m qlora_ray.cluster drain`"
HEAD_PORT, MAX_PORT = 6379, 65_535


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="python -m qlora_ray.cluster", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("up-lines", help="the `ray start` lines that join machines; nothing is run")
    up.add_argument(
        "hosts", nargs="+", metavar="HOST[/GPUS]", help="the head first; GPUS as 0,1: a Ray node of its own"
    )
    up.add_argument("--port", type=_port, default=HEAD_PORT, help=f"the head's (default: {HEAD_PORT})")
    doctor = actions.add_parser(
        "doctor", help="what is wrong with this machine, or with a cluster's nodes, and its mend"
    )
    doctor.add_argument("address", nargs="?", metavar="ADDRESS", help="a running cluster (default: this machine alone)")
    doctor.add_argument(
        "--shared", type=as_place, metavar="DIR", help="the folder for results, which all nodes must see and write"
    )
    status = actions.add_parser("status", help="the nodes, and each sweep's executors, slots and trials on them")
    drain = actions.add_parser("drain", help="have every sweep's trials on a node go on elsewhere")
    drain.add_argument("node", metavar="NODE", help="a node's id or its beginning, its address, or its host name")
    drain.add_argument(
        "--deadline",
        type=_seconds,
        default=None,
        metavar="SECONDS",
        help="then its executors end (default: each sweep's cluster.drain_timeout_s)",
    )
    for action in (status, drain):
        action.add_argument(
            "--address", default=None, metavar="HOST:PORT", help="the cluster (default: RAY_ADDRESS, else auto)"
        )
    for action in (up, doctor, status, drain):
        add_json_option(action)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if the doctor finds a problem, or 2 for what cannot be joined or is not there."""
    arguments = make_parser().parse_args(argv)
    run = {"up-lines": _write_up_lines, "doctor": _look}.get(arguments.action, _ask_cluster)
    return run_command(lambda: run(arguments), json_of=f"cluster {arguments.action}" if arguments.json else None)


def _seconds(text: str) -> float:
    from qlora_ray.config.field_types import MAX_SECONDS

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"must be seconds, 0 or more and at most ten years, got {text}")
    return value


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_PORT):
        raise argparse.ArgumentTypeError(f"must be a port, 1 to {MAX_PORT}, got {text}")
    return int(text)


def _write_up_lines(arguments: argparse.Namespace) -> Result:
    from qlora_ray.orchestration.cluster.up_lines import read_hosts, render_up_lines

    beside = Path(sys.executable).with_name("ray")
    ray = str(beside) if beside.exists() else "ray"
    text = render_up_lines(read_hosts(arguments.hosts), ray=ray, port=arguments.port)
    sys.stdout.write(f"{text}\n")
    return Result({"lines": text.split("\n")})


def _look(arguments: argparse.Namespace) -> Result:
    from qlora_ray.orchestration.doctor.report import examine, look_at_cluster, look_here

    if arguments.address is None:
        nodes, situation = look_here(arguments.shared or Path("results"))
    else:
        from qlora_ray.config.schema import Cluster
        from qlora_ray.orchestration.cluster.joining import ray_cluster
        from qlora_ray.orchestration.cluster.tokens import find_auth_mode

        with ray_cluster(Cluster(address=arguments.address), where="ADDRESS"):
            asks_for_token = find_auth_mode(arguments.address) == "token"
            nodes, situation = look_at_cluster(arguments.shared, asks_for_token=asks_for_token)
    text, facts, exit_code = examine(nodes, situation)
    sys.stdout.write(f"{text}\n")
    return Result(facts, exit_code)


def _ask_cluster(arguments: argparse.Namespace) -> Result:
    from qlora_ray.config.schema import Cluster
    from qlora_ray.orchestration.cluster.joining import find_address, ray_cluster
    from qlora_ray.orchestration.pool_directory import drain_node, find_status, render_drained, render_status

    # Never a private one: that has nothing to show.
    found = find_address(Cluster(address=arguments.address))
    address = found or "auto"
    is_from_environment = found is not None and arguments.address is None
    with ray_cluster(Cluster(address=address), where="RAY_ADDRESS" if is_from_environment else "--address"):
        if arguments.action == "status":
            facts = find_status()
            text = render_status(facts)
        else:
            facts = drain_node(arguments.node, reason=DRAIN_REASON, deadline_s=arguments.deadline)
            text = render_drained(facts)
    sys.stdout.write(f"{text}\n")
    return Result(facts)


if __name__ == "__main__":
    sys.exit(main())
