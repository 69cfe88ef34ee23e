"""A sweep whose base is on a hub: one download of the weights for all processes of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ray.runs import SweepPaths, read_json
from tests.e2e.sweeps import run_sweep, write_config
from tests.unit.hub_fixtures import FIRST, serve_downloads
from tests.unit.model_fixtures import copy_base


@pytest.mark.slow
def test_two_executors_and_their_driver_download_the_weights_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(
        tmp_path,
        model={"name": "org/tiny"},
        cluster={"packing": "single", "slots_per_device": 2, "cpus_per_slot": 1},
        search={"num_trials": 2},
        evaluate={"top_k": 1, "max_rows": 2},
        results={"dir": str(tmp_path), "name": "s"},
    )
    with serve_downloads() as (hub, endpoint):
        hub.publish("org/tiny", FIRST, copy_base(tmp_path / "base"))
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": tmp_path / "cache",
            "HF_HUB_OFFLINE": 0,
            "HF_HUB_DISABLE_XET": 1,
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))
        answer = run_sweep("--config", config, cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    paths = SweepPaths(tmp_path / "s")
    assert read_json(paths.trial("0000").record)["base"]["revision"] == FIRST
    (placement,) = read_json(paths.manifest)["plan"]["placements"]
    assert (placement["engine"], placement["slots_per_device"]) == ("single", 2)
    assert [request for request in hub.requests if request.startswith("GET") and "safetensors" in request] == [
        f"GET /org/tiny/resolve/{FIRST}/model.safetensors"
    ]
