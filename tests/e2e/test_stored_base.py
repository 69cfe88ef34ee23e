"""A base that bitsandbytes quantized before: one sweep on it as it is, evaluated and exported as what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from qlora_ray import evaluate, export
from qlora_ray.runs import SweepPaths, read_json
from tests.e2e.sweeps import run_sweep, write_config
from tests.unit.stored_fixtures import save_quantized

pytestmark = pytest.mark.slow


def test_a_stored_base_is_swept_evaluated_and_merged_as_it_is(tmp_path: Path) -> None:
    base = save_quantized(tmp_path / "base", "nf4", double=False)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    config = write_config(tmp_path)
    options = ("--set", f"model.name={base}", "--set", "results.name=stored", "--set", "search.num_trials=1")
    run = run_sweep("--config", config, *options, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "nf4, as it is stored" in run.stdout
    paths = SweepPaths(tmp_path / "results" / "stored")
    ran = read_json(paths.trial("0000").record)["ran"]
    # The config asks for double quantization, which this base does not have.
    assert ran["engine"] == "packed"
    assert ran["quantization"] == {
        "method": "nf4",
        "bits": 4,
        "backend": "bitsandbytes",
        "block_size": 64,
        "double_quantization": False,
        "compute_dtype": "fp32",
        "is_stored": True,
        "symmetric": None,
        "desc_act": None,
        "layout": None,
    }
    # An adapter alone, without its record, says the same itself, and evaluate reads it back.
    alone = shutil.copytree(paths.best / "adapter", tmp_path / "alone")
    assert evaluate.main([str(alone), "--to", str(tmp_path / "scores"), "--rows", "2"]) == 0
    settings = read_json(tmp_path / "scores" / "settings.json")
    assert settings["models"]["adapter"]["quantization"] == ran["quantization"]
    assert export.main([str(paths.root), "--to", str(tmp_path / "bundle")]) == 0
    with safe_open(tmp_path / "bundle" / "merged" / "model.safetensors", framework="pt") as merged:
        assert not [name for name in merged.keys() if "absmax" in name or "quant" in name]  # noqa: SIM118
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "nf4, as the base is stored, computed in fp32" in card
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
