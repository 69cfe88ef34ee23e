"""What `plan` remembers: the same plan without torch, and nothing once anything it was made of has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qlora_ray.config import load_config
from qlora_ray.preflight import remembered
from qlora_ray.preflight.checks import check_sweep
from qlora_ray.preflight.remembered import recall, remember
from qlora_ray.search.parsing import load_space
from tests.unit.model_fixtures import copy_base

COMMAND = [sys.executable, "-c"]
# The command in a process of its own, and which heavy libraries it has imported by then.
PROGRAM = """
import sys
from qlora_ray.plan import main
main(["--json", *sys.argv[1:]])
print([name for name in ("torch", "transformers", "ray", "datasets") if name in sys.modules], file=sys.stderr)
"""


def ask(config, space=None):
    space = space or load_space(config)
    return recall(config, space)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A config whose base, rows and cache are in this folder."""
    monkeypatch.setenv("QLORA_RAY_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"Add {number}", "completion": f"It is {number}"} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = copy_base(tmp_path / "base")
    return load_config(
        None, overrides=[f"data.train={tmp_path / 'rows.jsonl'}", f"model.name={base}", "training.max_samples=64"]
    )


def test_what_is_remembered_is_what_was_found_out(local):
    facts = check_sweep(local, load_space(local)).plan_facts
    assert ask(local) is None
    remember(facts, load_space(local))
    assert ask(local) == facts


def test_anything_that_changes_is_looked_at_again(local, tmp_path):
    remember(check_sweep(local, load_space(local)).plan_facts, load_space(local))
    longer = local.model_copy(update={"data": local.data.model_copy(update={"max_length": 64})})
    assert ask(longer) is None
    elsewhere = local.model_copy(update={"cluster": local.cluster.model_copy(update={"max_gpus": 1})})
    assert ask(elsewhere) is not None
    for name in ("rows.jsonl", "base/config.json"):
        path = tmp_path / name
        before = path.stat().st_mtime_ns
        os.utime(path, ns=(before + 1, before + 1))
        assert ask(local) is None
        os.utime(path, ns=(before, before))
        assert ask(local) is not None


def test_a_damaged_memory_is_none_and_a_base_of_the_hub_has_none(local, tmp_path):
    remember(check_sweep(local, load_space(local)).plan_facts, load_space(local))
    (path,) = (tmp_path / "cache" / "plans").iterdir()
    for text in ("{", "[]", '{"shape": {}}'):
        path.write_text(text)
        assert ask(local) is None
    hub = local.model_copy(update={"model": local.model.model_copy(update={"name": "org/name"})})
    assert ask(hub) is None


def test_a_plan_that_is_remembered_is_the_same_and_imports_no_torch(tmp_path):
    environment = {**os.environ, "QLORA_RAY_CACHE": str(tmp_path / "cache")}
    first, second = (
        subprocess.run([*COMMAND, PROGRAM, "--gpus", "T4"], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert first.stdout == second.stdout and json.loads(second.stdout)["result"]["placements"]
    assert second.stderr.strip().splitlines()[-1] == "[]"
    assert "'torch'" in first.stderr.splitlines()[-1]


def test_a_folder_that_is_no_base_or_has_too_many_files_is_not_looked_through(local, tmp_path, monkeypatch):
    facts = check_sweep(local, load_space(local)).plan_facts
    monkeypatch.setattr(remembered, "MAX_FILES", 2)
    remember(facts, load_space(local))
    assert not (tmp_path / "cache/plans").exists()
    monkeypatch.setattr(remembered, "MAX_FILES", 10_000)
    (tmp_path / "base/config.json").unlink()
    remember(facts, load_space(local))
    assert not (tmp_path / "cache/plans").exists()
