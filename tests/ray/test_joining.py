"""Clusters as users start them, joined from a process of its own; and a private Ray that only this machine sees."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray.real_nodes import clean_environment, free_port, ray_node

JOIN = """
import sys
import ray
from qlora_ray.commands import Result, run_command
from qlora_ray.config.schema import Cluster
from qlora_ray.orchestration.cluster.joining import ray_cluster
from qlora_ray.orchestration.cluster.nodes import list_nodes
@ray.remote(num_cpus=0)
class Called:
    def answer(self):
        return 42
def run():
    with ray_cluster(Cluster(address=sys.argv[1] if len(sys.argv) > 1 else None)):
        print("nodes", len(list_nodes()))
        print("actor", ray.get(Called.remote().answer.remote(), timeout=60))
    return Result({})
sys.exit(run_command(run))
"""
PRIVATE = """
import os
from pathlib import Path
import psutil
import ray
from qlora_ray.config.schema import Cluster
from qlora_ray.orchestration.cluster.joining import ray_cluster
with ray_cluster(Cluster()):
    assert ray.get(ray.remote(lambda: 1).options(num_cpus=0).remote()) == 1
    me = psutil.Process()
    sockets = [one for process in [me, *me.children(recursive=True)] for one in process.net_connections("tcp")]
    print("hosts", *sorted({one.laddr.ip.removeprefix("::ffff:") for one in sockets if one.status == "LISTEN"}))
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    token = os.environ["RAY_AUTH_TOKEN"].encode()
    files = [file for file in session.rglob("*") if file.is_file()]
    assert files
    print("files with the token", sum(token in file.read_bytes() for file in files))
    address = ray.get_runtime_context().gcs_address
    import subprocess, sys
    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    code = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)"
    answer = subprocess.run([sys.executable, "-c", code, address], env=stranger, capture_output=True, text=True)
    print("stranger", answer.returncode, "InvalidAuthToken" in answer.stderr)
print("home", *sorted(str(path) for path in Path.home().rglob("*")))
"""

DASHBOARD = """
import time
import urllib.error
import urllib.request
from pathlib import Path
import psutil
import ray
from qlora_ray.config.schema import Cluster
from qlora_ray.orchestration.cluster.joining import find_dashboard_link, ray_cluster
from qlora_ray.orchestration.gauges import SweepGauges
from qlora_ray.runs.live import LiveFigures
def status(path, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(find_dashboard_link() + path, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code
with ray_cluster(Cluster(ray_dashboard=True)):
    token = (Path.home() / ".ray" / "auth_token").read_text()
    print("page", status("/"), "stranger", status("/api/version"), "user", status("/api/version", token))
    me = psutil.Process()
    sockets = [one for process in [me, *me.children(recursive=True)] for one in process.net_connections("tcp")]
    print("hosts", *sorted({one.laddr.ip.removeprefix("::ffff:") for one in sockets if one.status == "LISTEN"}))
    SweepGauges("mine").publish(LiveFigures(slots_used=3), counts={"pruned": 2}, best=0.5)
    (node,) = ray.nodes()
    lines = []
    while not any(line.startswith("ray_qlora_ray_trials") for line in lines):
        try:
            page = urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics").read().decode()
            lines = [line for line in page.splitlines() if 'sweep="mine"' in line]
        except OSError:
            pass  # the port opens a while after the node
        time.sleep(0.5)
    print("gauges", *sorted({line.partition("{")[0] for line in lines}))
    print("pruned", *(line.split()[-1] for line in lines if 'state="pruned"' in line))
"""

SMALL_SHM = """
import shutil
import ray
from qlora_ray.config.schema import Cluster
from qlora_ray.orchestration.cluster.joining import ray_cluster
print("MiB", shutil.disk_usage("/dev/shm").total >> 20)
with ray_cluster(Cluster()):
    count = ray.remote(lambda data: len(data)).options(num_cpus=0)
    print("letters", ray.get(count.remote(b"x" * 30_000_000), timeout=60))
"""
# With mounts of its own, where the system lets who runs the tests make them.
OWN_MOUNTS = ["unshare", "--mount", "--map-root-user", "sh", "-c"]


def run_python(code: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=clean_environment(home),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_a_cluster_with_a_token_is_joined_by_its_address_and_refused_without_the_token(tmp_path: Path) -> None:
    home, stranger = tmp_path / "home", tmp_path / "stranger"
    (home / ".ray").mkdir(parents=True)
    stranger.mkdir()
    (home / ".ray" / "auth_token").write_text("ab" * 32)
    port = free_port()
    with ray_node(home, "--head", f"--port={port}", "--num-cpus=1"):
        # As Ray itself prints it: the machine's own address.
        import ray

        address = f"{ray.util.get_node_ip_address()}:{port}"
        joined = run_python(JOIN, address, home=home)
        refused = run_python(JOIN, address, home=stranger)
    assert (joined.returncode, joined.stdout.splitlines()) == (0, ["nodes 1", "actor 42"]), joined.stderr
    assert refused.returncode == 2
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"cluster.address: the Ray cluster at {address} must be joined with its token, got none")
    assert "ab" * 32 not in joined.stdout + joined.stderr


@pytest.mark.slow
def test_a_cluster_without_tokens_is_joined_with_and_without_one(tmp_path: Path) -> None:
    home, owner = tmp_path / "home", tmp_path / "owner"
    home.mkdir()
    (owner / ".ray").mkdir(parents=True)
    (owner / ".ray" / "auth_token").write_text("cd" * 32)
    port = free_port()
    with ray_node(home, "--head", f"--port={port}", "--num-cpus=1", environment={"RAY_AUTH_MODE": "disabled"}):
        import ray

        address = f"{ray.util.get_node_ip_address()}:{port}"
        for user in (home, owner):
            joined = run_python(JOIN, address, home=user)
            assert (joined.returncode, joined.stdout.splitlines()) == (0, ["nodes 1", "actor 42"]), joined.stderr


@pytest.mark.slow
def test_a_private_ray_listens_on_loopback_and_asks_for_a_token_that_is_in_no_file(tmp_path: Path) -> None:
    answer = run_python(PRIVATE, home=tmp_path)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert "hosts 127.0.0.1" in lines
    assert "files with the token 0" in lines
    assert "stranger 1 True" in lines
    assert lines[-1] == "home"


@pytest.mark.slow
def test_a_private_ray_needs_no_home_that_can_be_written(tmp_path: Path) -> None:
    # As a container's random user has it, or a compute node.
    home = tmp_path / "home"
    home.touch()
    answer = run_python(JOIN, home=home)
    assert (answer.returncode, answer.stdout.splitlines()) == (0, ["nodes 1", "actor 42"]), answer.stderr
    assert home.read_bytes() == b""


@pytest.mark.slow
def test_a_private_ray_needs_no_large_shared_memory(tmp_path: Path) -> None:
    mounted = "mount -t tmpfs -o size=8m tmpfs /dev/shm"
    if shutil.which("unshare") is None or subprocess.run([*OWN_MOUNTS, mounted], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    answer = subprocess.run(
        [*OWN_MOUNTS, f'{mounted} && exec "$0" -c "$1"', sys.executable, SMALL_SHM],
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
    )
    # More than fits there: Ray puts it on the disk.
    assert (answer.returncode, answer.stdout.splitlines()) == (0, ["MiB 8", "letters 30000000"]), answer.stderr


@pytest.mark.slow
def test_rays_dashboard_listens_on_loopback_for_who_has_the_token_and_prometheus_can_read_a_sweeps_gauges(
    tmp_path: Path,
) -> None:
    from qlora_ray.orchestration.gauges import GaugeName

    answer = run_python(DASHBOARD, home=tmp_path)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert "page 200 stranger 401 user 200" in lines
    assert "hosts 127.0.0.1" in lines
    assert " ".join(["gauges", *sorted(f"ray_{name}" for name in GaugeName)]) in lines
    assert "pruned 2.0" in lines
    assert (tmp_path / ".ray" / "auth_token").read_text() not in answer.stdout + answer.stderr
