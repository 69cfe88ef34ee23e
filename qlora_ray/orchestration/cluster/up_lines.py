"""The shell lines that join machines to a Ray cluster: one `ray start` for each, with its ports, token and label."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_ray.errors import PlacementError

OBJECT_STORE_BYTES = 10**9
# The fixed ports of a node, as options of `ray start`, counted from FIRST_PORT on: a firewall can let them through.
FIRST_PORT = 8076
PORT_OPTIONS = (
    "object-manager-port",
    "node-manager-port",
    "runtime-env-agent-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
)
# Of a node's worker processes. A process takes one while it lives.
FIRST_WORKER_PORT, WORKER_PORTS = 10_002, 1_000
MOST_NODES_OF_A_HOST = 8
# Names and IPv4 addresses: ssh, scp and Ray each write an IPv6 address in another way.
HOST = re.compile(r"[\w.-]+")
GPUS = re.compile(r"\d+(,\d+)*")


@dataclass(frozen=True)
class PlannedNode:
    """A Ray node to be started.

    Attributes:
        host: What ssh and Ray reach the machine by.
        gpus: The GPUs that it has, as CUDA_VISIBLE_DEVICES names them; None for all of the machine.
        number: Its number among the nodes of its machine, from 0 on.
    """

    host: str
    gpus: str | None = None
    number: int = 0


def read_hosts(texts: Sequence[str]) -> list[PlannedNode]:
    """The nodes that `HOST` and `HOST/GPUS` name, the head first.

    Raises:
        PlacementError: If a text is neither, or a host has more nodes than there are ports for.
    """
    counts: Counter[str] = Counter()
    nodes = []
    for text in texts:
        host, slash, gpus = text.partition("/")
        if not HOST.fullmatch(host) or host.startswith("-") or (slash and not GPUS.fullmatch(gpus)):
            raise PlacementError(f"HOSTS: must be HOST or HOST/GPUS, as 10.0.0.2 or 10.0.0.2/0,1, got {text!r}.")
        nodes.append(PlannedNode(host, gpus or None, counts[host]))
        counts[host] += 1
        if counts[host] > MOST_NODES_OF_A_HOST:
            raise PlacementError(
                f"HOSTS: a machine must have at most {MOST_NODES_OF_A_HOST} Ray nodes, got more of {host}. "
                "One node serves all GPUs of a kind."
            )
    return nodes


def render_up_lines(nodes: Sequence[PlannedNode], *, ray: str = "ray", port: int) -> str:
    """The lines to type on the head, which reaches the others by ssh.

    Args:
        nodes: The head first.
        ray: The `ray` command, at the same path on every machine.
        port: Of the head.
    """
    head = nodes[0]
    lines = [
        f"# On {head.host}, the head. A head that trains nothing: add --num-cpus=0 --num-gpus=0.",
        f"{shlex.quote(ray)} get-auth-token --generate > /dev/null",
        _start_line(head, nodes, ray=ray, port=port),
    ]
    known = {head.host}
    for node in nodes[1:]:
        line = _start_line(node, nodes, ray=ray, port=port)
        if node.host == head.host:
            lines += ["# The next node of the head's machine.", line]
            continue
        lines.append(f"# {node.host}, from the head.")
        if node.host not in known:
            lines += [
                f"ssh {node.host} 'mkdir -p -m 700 ~/.ray'",
                f"scp -pq ~/.ray/auth_token {node.host}:.ray/auth_token",
            ]
        known.add(node.host)
        lines.append(f"ssh {node.host} {shlex.quote(line)}")
    most = max(node.number for node in nodes) + 1
    ports = f"{FIRST_PORT}-{FIRST_PORT + most * len(PORT_OPTIONS) - 1}"
    workers = f"{FIRST_WORKER_PORT}-{FIRST_WORKER_PORT + most * WORKER_PORTS - 1}"
    lines += [
        f"# Open between the machines and to nobody else: TCP {port}, {ports}, {workers}.",
        "# Then, on any of them:",
        f"python -m qlora_ray.cluster doctor {head.host}:{port} --shared /shared/results",
        f"python -m qlora_ray.sweep --set cluster.address={head.host}:{port} --set results.dir=/shared/results",
    ]
    return "\n".join(lines)


def _start_line(node: PlannedNode, nodes: Sequence[PlannedNode], *, ray: str, port: int) -> str:
    head = nodes[0]
    shares = sum(other.host == node.host for other in nodes)
    environment = "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0"
    if node.gpus is not None:
        # nvidia-smi counts by bus; CUDA would count by speed.
        environment = f"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={node.gpus} {environment}"
    options = ["--head", f"--port={port}"] if node is head else [f"--address={head.host}:{port}"]
    if _is_address(node.host):
        options.append(f"--node-ip-address={node.host}")
    first = FIRST_PORT + node.number * len(PORT_OPTIONS)
    options += [f"--{option}={first + index}" for index, option in enumerate(PORT_OPTIONS)]
    worker = FIRST_WORKER_PORT + node.number * WORKER_PORTS
    options += [f"--min-worker-port={worker}", f"--max-worker-port={worker + WORKER_PORTS - 1}"]
    options.append(f"--object-store-memory={OBJECT_STORE_BYTES}")
    if shares > 1:
        options.append(f"--num-cpus=$((($(nproc) + {shares - 1}) / {shares}))")
    if node.gpus is not None:
        options.append(f"--labels=gpus={node.gpus.replace(',', '.')}")
    return f"ulimit -n 65536; {environment} {shlex.quote(ray)} start {' '.join(options)}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
