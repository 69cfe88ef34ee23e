"""The files of cluster/, really run, as far as one machine can: each a small sweep to its end."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import ray
import yaml

from qlora_ray.runs import SweepPaths, read_json
from tests.e2e.sweeps import read_until, write_config
from tests.ray.apart import needs_namespaces, path_with, run_apart, started_apart
from tests.ray.real_nodes import ROOT, free_port

BIN = Path(sys.executable).parent
FEW = {"search": {"num_trials": 2}, "training": {"max_samples": 48}, "evaluate": {"top_k": 1, "max_rows": 2}}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(420), needs_namespaces]


def make_tool(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def test_the_commands_of_local_yaml_join_two_nodes_and_a_sweep_uses_both(tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config

    config = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text(encoding="utf-8"))
    address, port = ray.util.get_node_ip_address(), str(free_port())
    config["provider"] |= {"head_ip": address, "worker_ips": []}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(prepare_config(config)), encoding="utf-8")
    # What `ray up` would have made: the repository and its environment under the home, and the token.
    (tmp_path / "qlora_ray").mkdir()
    (tmp_path / "qlora_ray" / ".venv").symlink_to(BIN.parent)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("ab" * 32)
    head, worker = (
        "\n".join(config[key]).replace("6379", port) for key in ("head_start_ray_commands", "worker_start_ray_commands")
    )
    # Both would take all CPUs of this machine, and the same port for their agents.
    head = head.replace("ray start", "ray start --num-cpus=1")
    worker = worker.replace("ray start", "ray start --num-cpus=1 --dashboard-agent-listen-port=0")
    sweep = write_config(tmp_path, **FEW, cluster={"slots_per_device": 1, "address": f"{address}:{port}"})
    script = f"""
        set +e  # as ssh runs them: a limit that cannot be raised stops nobody
        {head}
        set -e
        export RAY_HEAD_IP={address}
        $APART bash -c {shlex.quote(worker + chr(10) + "sleep infinity")} &
        until [ "$({BIN}/python -m qlora_ray.cluster status | grep -c ' 1 ')" -ge 2 ]; do sleep 1; done
        {BIN}/python -m qlora_ray.sweep --config {sweep} --set results.name=s
    """
    code, output = run_apart(script, home=tmp_path)
    assert code == 0, output
    paths = SweepPaths(tmp_path / "results" / "s")
    assert read_json(paths.summary)["status"] == "complete"
    nodes = {node["ray_node_id"] for node in read_json(paths.manifest)["nodes"]}
    assert len(nodes) == 2, output
    assert "ab" * 32 not in output


def test_the_slurm_job_runs_a_sweep_and_ends_ray_after_it(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    make_tool(tools, "scontrol", f"echo {ray.util.get_node_ip_address()}")
    # One task, on this machine.
    make_tool(tools, "srun", 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"')
    sweep = write_config(tmp_path, **FEW)
    script = f"""
        bash {ROOT}/cluster/slurm.sbatch --config {sweep} --set results.name=s
        if pgrep raylet; then exit 9; fi
    """
    code, output = run_apart(
        script,
        home=tmp_path,
        PATH=path_with(tools, BIN),
        SLURM_JOB_ID=str(free_port()),
        SLURM_JOB_NODELIST="here",
        SLURM_JOB_NUM_NODES="1",
        SLURM_CPUS_PER_TASK="1",
    )
    assert code == 0, output
    assert read_json(SweepPaths(tmp_path / "results" / "s").summary)["status"] == "complete"


def test_a_job_of_rays_that_is_stopped_is_resumed_by_another_job(tmp_path: Path) -> None:
    address, port, page = ray.util.get_node_ip_address(), free_port(), free_port()
    sweep = write_config(tmp_path, **{**FEW, "training": {"max_samples": 240}}, cluster={"slots_per_device": 1})
    folder = tmp_path / "results" / "s"
    submit = f"ray job submit --address=http://127.0.0.1:{page}"
    command = f"{BIN}/python -m qlora_ray.sweep"
    # Jobs are started by the node's agent, whose usual port another test's Ray may have.
    own = f"--node-ip-address={address} --dashboard-agent-listen-port={free_port()}"
    begin = f"{command} --config {sweep} --set results.dir={folder.parent} --set results.name=s"
    script = f"""
        ray get-auth-token --generate > /dev/null
        export RAY_AUTH_MODE=token
        ray start --head --port={port} --dashboard-port={page} --num-cpus=1 {own}
        {submit} --no-wait --submission-id=first -- {begin}
        until grep -q trial_reported {folder}/events.jsonl 2> /dev/null; do sleep 0.5; done
        ray job stop --address=http://127.0.0.1:{page} first
        echo resuming
        {submit} -- {command} --resume {folder}
    """
    with started_apart(script, home=tmp_path, PATH=path_with(BIN)) as process:
        read_until(process, "resuming")
        assert read_json(SweepPaths(folder).manifest)["config"]["cluster"]["address"] is None
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert read_json(SweepPaths(folder).summary)["status"] == "complete", output


def test_two_kinds_sh_starts_two_nodes_and_the_doctor_steps_on_each(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    script = f"""
        bash {ROOT}/cluster/two-kinds.sh 0 1,2
        python -m qlora_ray.cluster doctor {address} --shared {shared} --json 2> log || true
    """
    code, output = run_apart(script, home=tmp_path, PATH=path_with(BIN), PORT=str(port))
    assert code == 0, output
    answer = json.loads(output[output.index('{\n  "command"') :])
    findings = answer["result"]["findings"]
    for check in ("device", "storage", "clock", "hub"):
        assert [one["status"] for one in findings if one["check"] == check] == ["ok", "ok"], findings
    cluster_wide = {(one["check"], one["status"]) for one in findings if not one["node"]}
    assert cluster_wide == {("versions", "ok"), ("token", "ok")}
    assert list(shared.iterdir()) == []
    assert (tmp_path / ".ray" / "auth_token").read_text().strip() not in output
