"""The doctor's findings: pure functions of facts, without a cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_ray import cluster
from qlora_ray.orchestration.doctor.checks import check_all
from qlora_ray.orchestration.doctor.facts import DeviceFacts, NodeFacts, find_ray_token
from qlora_ray.orchestration.doctor.findings import Finding, Situation, Status
from qlora_ray.orchestration.doctor.report import examine
from qlora_ray.runs.typed_json import parse_record, to_json

GIB = 1024**3
PACKAGES = dict.fromkeys(("ray", "torch", "transformers", "peft", "trl", "bitsandbytes", "optuna", "datasets"), "1.0")
GPU = DeviceFacts("Tesla T4", "cuda", "7.5", "fp16: compute capability 7.5 of Tesla T4 lacks bf16 (8.0 has it)")
WELL = NodeFacts(
    "a",
    python="3.11.7",
    package="0.1.0",
    packages=PACKAGES,
    torch_cuda="12.8",
    driver="570.1",
    driver_gpus=("Tesla T4",),
    devices=(GPU,),
    sees_marker=True,
    is_writable=True,
    hub_cache="/cache",
    has_hub_token=True,
    free_bytes={"/tmp": 100 * GIB},
    shm_bytes=8 * GIB,
    open_files=65_536,
    clock_s=0.01,
    clock_error_s=0.01,
    niceness=0,
    num_cpus=4,
    load=9.0,
    ray_token="file",
)
CLUSTER = Situation(is_cluster=True, asks_for_token=True, shared="/shared")


def bad_findings(*nodes: NodeFacts, situation: Situation = CLUSTER) -> list[Finding]:
    return [one for one in check_all(nodes, situation) if one.status is not Status.OK]


def test_a_cluster_that_is_well_has_no_other_finding_and_every_check_says_so() -> None:
    findings = check_all([WELL, replace(WELL, name="b")], CLUSTER)
    assert {finding.status for finding in findings} == {Status.OK}
    expected = {"versions", "token", "GPUs", "device", "storage", "hub", "disk", "/dev/shm", "open files", "clock"}
    assert {finding.check for finding in findings} == {*expected, "niceness"}
    text, facts, code = examine([WELL], CLUSTER)
    assert (code, text.splitlines()[-1]) == (0, "all is well")
    assert "fp16: compute capability 7.5" in text
    assert json.loads(json.dumps(facts))["counts"] == {
        "ok": len(check_all([WELL], CLUSTER)),
        "warning": 0,
        "problem": 0,
    }


@pytest.mark.parametrize(
    ("change", "check", "status", "words"),
    [
        ({"problem": "it gave no answer within 120 s"}, "node", "problem", "no answer"),
        ({"packages": {**PACKAGES, "bitsandbytes": None}}, "packages", "problem", "not installed: bitsandbytes"),
        ({"torch_cuda": None, "devices": (DeviceFacts("CPU"),)}, "GPUs", "problem", "this torch is a CPU build"),
        ({"devices": (DeviceFacts("CPU"),)}, "GPUs", "problem", "built for CUDA 12.8, sees none"),
        ({"devices": (replace(GPU, problem="no kernels"),)}, "device", "problem", "7.5: no kernels"),
        (
            {"devices": (replace(GPU, step_problem="no gradient"),)},
            "device",
            "problem",
            "bitsandbytes fails: no gradient",
        ),
        ({"sees_marker": False}, "storage", "problem", "does not see /shared"),
        ({"is_writable": False}, "storage", "problem", "cannot be written"),
        ({"free_bytes": {"/tmp": GIB}}, "disk", "problem", "1 GiB free at /tmp"),
        ({"free_bytes": {"/tmp": 5 * GIB}}, "disk", "warning", "5 GiB free at /tmp"),
        ({"shm_bytes": 64 * 1024**2}, "/dev/shm", "warning", "64"),
        ({"open_files": 4096}, "open files", "warning", "4,096"),
        ({"open_files": 1000}, "open files", "problem", "1,000"),
        ({"clock_s": -30.0}, "clock", "warning", "30 s behind"),
        ({"clock_s": 90.0}, "clock", "problem", "90 s ahead of"),
        ({"niceness": 15}, "niceness", "warning", "9.0 processes want 4 CPUs"),
        ({"ray_token": "file that others may read"}, "token", "warning", "other users"),
    ],
)
def test_one_fact_that_is_wrong_is_one_finding_with_its_mend(change: dict, check: str, status: str, words: str) -> None:
    (finding,) = bad_findings(replace(WELL, **change))
    assert (finding.check, finding.status, finding.node) == (check, status, "a")
    assert words in finding.text and finding.mend
    assert examine([replace(WELL, **change)], CLUSTER)[2] == (1 if status == "problem" else 0)


@pytest.mark.parametrize(
    "change",
    [
        {"clock_s": 5.0, "clock_error_s": 4.0},  # the question took longer than the difference
        {"niceness": 15, "load": 0.5},
        {"open_files": 2**63 - 1},
        {"driver_gpus": (), "devices": (DeviceFacts("CPU", precision="fp32: a CPU"),)},
        {"free_bytes": {}, "shm_bytes": None, "open_files": None, "niceness": None, "clock_s": None},
    ],
)
def test_what_is_only_unknown_or_harmless_is_no_finding(change: dict) -> None:
    assert bad_findings(replace(WELL, **change)) == []


@pytest.mark.parametrize(("name", "status"), [("ray", "problem"), ("torch", "warning"), ("bitsandbytes", "warning")])
def test_versions_that_differ_are_named_with_their_nodes(name: str, status: str) -> None:
    other = replace(WELL, name="b", packages={**PACKAGES, name: "2.0"})
    (finding,) = bad_findings(WELL, replace(WELL, name="c"), other)
    assert (finding.status, finding.text) == (status, f"{name} differs: 1.0 on a, c; 2.0 on b")


def test_builds_of_one_version_are_no_difference() -> None:
    cpu = replace(WELL, name="b", packages={**PACKAGES, "torch": "1.0+cpu"})
    assert bad_findings(WELL, cpu) == []


def test_a_cluster_without_a_token_or_a_named_folder_is_warned_of() -> None:
    findings = bad_findings(replace(WELL, sees_marker=None, is_writable=None), situation=Situation(True, False, ""))
    assert [(finding.check, finding.node) for finding in findings] == [("storage", ""), ("token", "")]


def test_facts_survive_the_way_through_json() -> None:
    assert parse_record(NodeFacts, json.loads(json.dumps(to_json(WELL)))) == WELL


def test_where_rays_token_is_found_is_told_and_the_token_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert find_ray_token() == "none"
    (tmp_path / "token").write_text("ab" * 32)
    (tmp_path / "token").chmod(0o600)
    assert find_ray_token() == "file"
    (tmp_path / "token").chmod(0o644)
    assert find_ray_token() == "file that others may read"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
    assert find_ray_token() == "environment"


def test_the_doctor_of_this_machine_starts_no_ray_and_prints_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "z" * 34)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
    code = cluster.main(["doctor", "--shared", str(tmp_path), "--json"])
    output = capsys.readouterr().out
    answer = json.loads(output)
    assert "zzz" not in output and "abab" not in output
    assert answer["command"] == "cluster doctor" and answer["exit_code"] == code
    (node,) = answer["result"]["nodes"]
    assert (node["has_hub_token"], node["ray_token"], node["is_writable"]) == (True, "environment", True)
    found = {finding["check"]: finding["status"] for finding in answer["result"]["findings"]}
    assert found["device"] == found["storage"] == found["packages"] == "ok"


def test_a_folder_that_is_not_there_ends_the_look_at_a_cluster(tmp_path: Path) -> None:
    from qlora_ray.errors import RunError
    from qlora_ray.orchestration.doctor.report import look_at_cluster

    with pytest.raises(RunError, match=r"--shared: must be a folder that all nodes see, got .*missing"):
        look_at_cluster(tmp_path / "missing", asks_for_token=True)
