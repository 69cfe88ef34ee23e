"""The lines that join machines: ports that no two nodes of a machine share, and shell that bash reads."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from qlora_ray.errors import PlacementError
from qlora_ray.orchestration.cluster.up_lines import MOST_NODES_OF_A_HOST, read_hosts, render_up_lines


def start_lines(*hosts: str) -> list[str]:
    return [line for line in render_up_lines(read_hosts(hosts), port=6379).split("\n") if " start " in line]


def list_ports(line: str) -> set[int]:
    fixed = {int(port) for port in re.findall(r"--(?:object|node|runtime|dashboard|metrics)[\w-]+-port=(\d+)", line)}
    low, high = (int(re.findall(rf"--{end}-worker-port=(\d+)", line)[0]) for end in ("min", "max"))
    return fixed | set(range(low, high + 1))


def test_the_first_host_is_the_head_and_the_others_join_it_over_ssh_with_its_token() -> None:
    text = render_up_lines(read_hosts(["10.0.0.1", "node2"]), port=6379)
    head, worker = start_lines("10.0.0.1", "node2")
    assert "--head --port=6379 --node-ip-address=10.0.0.1" in head and "--address" not in head
    assert worker.startswith("ssh node2 ") and "--address=10.0.0.1:6379" in worker and "--node-ip-address" not in worker
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    assert text.index("get-auth-token --generate") < text.index("scp -pq ~/.ray/auth_token node2:.ray/auth_token")
    assert "--set cluster.address=10.0.0.1:6379" in text


def test_two_nodes_of_one_machine_share_no_port_and_have_a_label_and_half_of_its_cpus() -> None:
    first, second = start_lines("10.0.0.1/0", "10.0.0.1/1,2")
    assert list_ports(first) & list_ports(second) == set() and len(list_ports(first)) == len(list_ports(second))
    assert "CUDA_VISIBLE_DEVICES=0 " in first and "CUDA_VISIBLE_DEVICES=1,2 " in second
    assert "--labels=gpus=0" in first and "--labels=gpus=1.2" in second
    assert "--num-cpus=$((($(nproc) + 1) / 2))" in first
    assert not second.startswith("ssh")


def test_a_worker_machine_gets_the_token_once_and_the_firewall_line_covers_every_port() -> None:
    text = render_up_lines(read_hosts(["a", "b/0", "b/1"]), port=6379)
    assert text.count("scp") == 1
    low, high, low_worker, high_worker = map(int, re.findall(r"TCP 6379, (\d+)-(\d+), (\d+)-(\d+)", text)[0])
    covered = {*range(low, high + 1), *range(low_worker, high_worker + 1)}
    assert all(list_ports(line) <= covered for line in start_lines("a", "b/0", "b/1"))


def test_the_lines_are_valid_bash_whatever_the_command_is_called() -> None:
    text = render_up_lines(
        read_hosts(["10.0.0.1", "10.0.0.2/0,1", "10.0.0.2/2"]), port=6379, ray="/home/a b/.venv/bin/ray"
    )
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    (line,) = [line for line in text.split("\n") if line.startswith("ssh") and "VISIBLE_DEVICES=2" in line]
    _, host, there = shlex.split(line)
    assert host == "10.0.0.2" and "'/home/a b/.venv/bin/ray' start" in there


@pytest.mark.parametrize("text", ["", "-o", "a b", "10.0.0.1/", "10.0.0.1/a", "a;b", "$(x)", "[::1]"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(PlacementError, match="HOSTS: must be HOST or HOST/GPUS"):
        read_hosts(["10.0.0.1", text])


def test_more_nodes_of_a_machine_than_there_are_ports_for_are_refused() -> None:
    with pytest.raises(PlacementError, match="at most 8 Ray nodes"):
        read_hosts(["a"] * (MOST_NODES_OF_A_HOST + 1))


def start_options(line: str) -> list[str]:
    """What `ray start` is given in a line, as bash would."""
    words = shlex.split(line.replace("$((($(nproc) + 1) / 2))", "1"))
    if words[0] == "ssh":
        words = shlex.split(words[2])
    return words[words.index("start") + 1 :]


def test_rays_own_command_takes_every_option() -> None:
    from ray.scripts.scripts import start

    parsed = [start.make_context("start", start_options(line)).params for line in start_lines("a", "b/0", "b/1,2")]
    assert [options["head"] for options in parsed] == [True, False, False]
    assert [options["labels"] for options in parsed] == ["", "gpus=0", "gpus=1.2"]
    assert len({options["metrics_export_port"] for options in parsed[1:]}) == 2
