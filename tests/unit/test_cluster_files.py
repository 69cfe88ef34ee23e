"""The files of cluster/: held against Ray's own check, a schema of KubeRay's fields, bash and a Dockerfile linter."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from qlora_ray.config.loading import load_config
from qlora_ray.sweep import make_parser
from tests.kuberay_fields import KINDS, Manifest, list_fields

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster"
AUTOSCALED = sorted(path for path in FOLDER.glob("*.yaml") if "provider:" in path.read_text())
KUBERAY = sorted(FOLDER.glob("kuberay-*.yaml"))
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
# Where the whole schemas of KubeRay are, which this repository does not carry.
WHOLE_SCHEMAS = Path(os.environ.get("KUBERAY_SCHEMAS", ROOT.parent / "shared" / "data" / "kuberay"))
RAY_VERSION = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]


def read_documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_every_file_is_checked_here_and_in_the_table_of_the_readme() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    checked = {path.name for path in (*AUTOSCALED, *KUBERAY, *SCRIPTS)} | {"Dockerfile", "grafana.json"}
    assert names - checked - {"README.md", "Dockerfile.dockerignore"} == set()
    table = re.findall(r"^\| .*$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in checked & names if not any(f"[{name}]({name})" in row for row in table)] == []


@pytest.mark.parametrize("path", AUTOSCALED, ids=lambda path: path.name)
def test_a_cluster_yaml_passes_rays_own_check(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.ERROR)
    config = prepare_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    validate_config(config)
    starts = " ".join([*config["head_start_ray_commands"], *config["worker_start_ray_commands"]])
    assert starts.count("RAY_AUTH_MODE=token") == 2
    if config["provider"]["type"] != "local":
        types = config["available_node_types"]
        gpus = {name: node["resources"].get("GPU", 0) for name, node in types.items()}
        # A head that trains nothing, and kinds of GPU that come when they are asked for.
        assert gpus.pop(config["head_node_type"]) == 0
        assert len(gpus) >= 2 and set(gpus.values()) == {1}
        assert all(types[name]["min_workers"] == 0 < types[name]["max_workers"] for name in gpus)


@pytest.mark.parametrize("path", AUTOSCALED, ids=lambda path: path.name)
def test_rays_own_command_takes_the_options_that_a_cluster_yaml_starts_it_with(path: Path) -> None:
    from ray.scripts.scripts import start

    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (line,) = [line for line in config[key] if " start " in line]
        words = shlex.split(line)
        options = start.make_context("start", words[words.index("start") + 1 :]).params
        assert options["head"] is key.startswith("head") and options["object_store_memory"] == 10**9


def test_rays_check_refuses_a_key_that_it_does_not_know() -> None:
    from jsonschema import ValidationError as SchemaError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / "aws.yaml").read_text(encoding="utf-8"))
    with pytest.raises(SchemaError, match="max_worker"):
        validate_config(prepare_config({**config, "max_worker": 2}))


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_a_kubernetes_file_has_known_fields_only(path: Path) -> None:
    documents = read_documents(path)
    assert "PersistentVolumeClaim" in {one["kind"] for one in documents} or "RayJob" in {
        one["kind"] for one in documents
    }
    for document in documents:
        KINDS[document["kind"]].model_validate(document)


def test_the_schema_finds_a_field_that_is_misspelt() -> None:
    (job,) = read_documents(FOLDER / "kuberay-rayjob.yaml")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = job["spec"].pop("entrypoint")
    with pytest.raises(ValidationError, match=r"(?s)2 validation errors.*entrypoint.*replica"):
        KINDS["RayJob"].model_validate(job)


@pytest.mark.skipif(not WHOLE_SCHEMAS.is_dir(), reason="KUBERAY_SCHEMAS names no folder with KubeRay's whole schemas")
@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_our_schema_has_fields_of_kuberays_own_only_and_both_accept_our_files(kind: str) -> None:
    from jsonschema import Draft7Validator

    whole = json.loads((WHOLE_SCHEMAS / f"{kind.lower()}s.v1.strict.json").read_text(encoding="utf-8"))
    assert [field for field in list_fields(KINDS[kind]) if not is_field(whole, field.split("."))] == []
    documents = [one for path in KUBERAY for one in read_documents(path) if one["kind"] == kind]
    assert documents and [error.message for one in documents for error in Draft7Validator(whole).iter_errors(one)] == []


def is_field(schema: dict[str, Any], path: list[str]) -> bool:
    """Whether a schema has a property at a path; items of lists count as the list."""
    schema = schema.get("items", schema)
    return not path or (path[0] in schema.get("properties", {}) and is_field(schema["properties"][path[0]], path[1:]))


def test_the_versions_of_ray_are_those_that_are_tested() -> None:
    named = {
        version
        for path in (*AUTOSCALED, *KUBERAY, FOLDER / "Dockerfile")
        for version in re.findall(r"rayproject/ray:([\d.]+)-|rayVersion: ([\d.]+)", path.read_text())
        for version in version
        if version
    }
    assert named == {RAY_VERSION}


def test_the_jobs_command_is_a_sweep_whose_config_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = read_documents(FOLDER / "kuberay-rayjob.yaml")
    bash, option, script = shlex.split(job["spec"]["entrypoint"])
    assert (bash, option) == ("bash", "-c")
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
    resumed, begun = (
        make_parser().parse_args(shlex.split(text)) for text in re.findall(r"-m qlora_ray.sweep (.*?);", script)
    )
    monkeypatch.chdir(ROOT)
    config = load_config(Path("configs/quickstart.yaml"), overrides=begun.overrides)
    assert resumed.resume == Path(config.results.dir, str(config.results.name))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_bash(path: Path) -> None:
    answer = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")


def write_command(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def test_the_slurm_job_runs_one_task_on_each_node_and_leaves_no_token(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    write_command(tools, "scontrol", "printf 'node7\\nnode8\\n'")
    write_command(tools, "srun", 'printf "%s\\n" "$@" > arguments; cp -p "$RAY_AUTH_TOKEN_PATH" token; mkdir results')
    environment = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4200017",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    command = ["bash", str(FOLDER / "slurm.sbatch"), "--set", "search.num_trials=2"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, umask=0o022)
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:2] == ["--nodes=2", "--ntasks=2"]
    assert arguments[2:8] == ["ray", "symmetric-run", "--address", "node7:20017", "--min-nodes", "2"]
    sweep = arguments[arguments.index("qlora_ray.sweep") + 1 :]
    parsed = make_parser().parse_args(sweep)
    assert parsed.overrides[-1] == "search.num_trials=2" and f"results.dir={tmp_path}/results" in parsed.overrides
    assert len((tmp_path / "token").read_text().strip()) == 64
    assert list(tmp_path.glob(".qlora-ray-token*")) == []
    # The token is the user's alone, and the results are whoever's the umask says.
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("token", "results")] == [0o600, 0o755]


def test_a_token_that_a_killed_slurm_job_left_goes_into_no_image_and_no_commit() -> None:
    for file in (FOLDER / "Dockerfile.dockerignore", FOLDER.parent / ".gitignore"):
        assert ".qlora-ray-token-*" in file.read_text().split(), file.name


def test_the_dockerfile_passes_the_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed: it has no build for this platform")
    answer = subprocess.run([linter, "--no-color", FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "")


def test_an_image_carries_no_secret_and_nothing_of_this_machine() -> None:
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    assert {".env", ".git", ".venv", "results"} <= set(ignored)
    for path in AUTOSCALED:
        assert {".env", ".venv", "results"} <= set(yaml.safe_load(path.read_text())["rsync_exclude"]), path.name


def test_a_manifest_needs_its_kind() -> None:
    with pytest.raises(ValidationError, match="kind"):
        Manifest.model_validate({"apiVersion": "ray.io/v1", "metadata": {"name": "x"}})
