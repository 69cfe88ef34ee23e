"""A sweep that pushes its adapters to a hub on this machine while it trains, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.sweeps import run_sweep, write_config
from tests.exporting_fixtures import files_of, snapshot
from tests.fake_hub import running_hub


def test_a_sweep_pushes_each_adapter_and_leaves_the_winners_on_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(
        tmp_path,
        search={"num_trials": 2, "num_reports": 2},
        training={"max_samples": 32},
        results={"name": "mine"},
        export={"push_every": "save"},
    )
    with running_hub() as hub:
        for name, value in (("HF_ENDPOINT", hub.endpoint), ("HF_TOKEN", hub.token), ("HF_HUB_OFFLINE", "0")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        run = run_sweep("--config", config, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    folder = tmp_path / "results" / "mine"
    summary = json.loads((folder / "summary.json").read_text())
    repository = hub.repositories["ann/mine"]
    assert repository.private
    for trial in ("0000", "0001"):
        assert repository.branches[f"trial-{trial}"] == snapshot(folder / "trials" / trial / "adapter")
    assert repository.files == snapshot(folder / "trials" / summary["winner"] / "adapter")
    assert summary["pushes"]["repository"] == f"{hub.endpoint}/ann/mine"
    assert (summary["pushes"]["num_pushed"], summary["pushes"]["waiting"]) == (2, [])
    assert "adapter at each report is pushed to a private repository" in run.stdout
    assert f"2 adapters to {hub.endpoint}/ann/mine" in run.stdout
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {event["branch"] for event in events if event["event"] == "adapter_pushed"} == {
        *("main", "trial-0000", "trial-0001")
    }
    told = [run.stdout, run.stderr, *((folder / name).read_bytes().decode("latin-1") for name in files_of(folder))]
    assert not [text for text in told if hub.token in text]
