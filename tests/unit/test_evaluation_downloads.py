"""Adapters and bundles on the hub, with the hub's answers played by hand."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hub_fixtures import FIRST, use_download_hub
from huggingface_hub.errors import EntryNotFoundError

from qlora_ray.errors import ModelError
from qlora_ray.evaluation.target import finding
from qlora_ray.evaluation.target.finding import download_adapter


def play_hub(monkeypatch: pytest.MonkeyPatch, names: Sequence[str], error: Exception) -> tuple[list[str], list[str]]:
    """A repository with these files; returns the names that were asked for, and those that were fetched."""
    asked: list[str] = []
    fetched: list[str] = []

    def download(repository: str, name: str) -> str:
        asked.append(name)
        if name not in names:
            raise error
        return name

    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        fetched.extend(name for name in names if any(fnmatch(name, one) for one in allow_patterns))
        return "snapshot"

    monkeypatch.setattr(finding, "reach_repository", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return asked, fetched


@pytest.mark.parametrize("home", ["", "adapter/"])
def test_an_adapter_is_found_at_the_top_or_in_a_bundle_and_no_pickle_is_fetched(
    monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    weights = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
    names = [*(home + name for name in weights), "sweep.yaml", "record.json", "conf.py"]
    _, fetched = play_hub(monkeypatch, names, EntryNotFoundError("404"))
    assert download_adapter("me/mine") == Path("snapshot")
    assert set(fetched) == set(names) - {f"{home}adapter_model.bin", "conf.py"}


def test_a_model_is_no_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, _ = play_hub(monkeypatch, ["config.json"], EntryNotFoundError("404"))
    assert download_adapter("me/model") is None
    assert asked == ["adapter_config.json", "adapter/adapter_config.json"]


def test_a_bundle_that_was_fetched_is_found_again_without_the_hub_and_what_was_not_is_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ("adapter/adapter_config.json", "adapter/qlora_ray.json", "record.json", "README.md")
    for name in files:
        path = tmp_path / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.publish("me/bundle", FIRST, tmp_path / "bundle")
        folder = download_adapter("me/bundle")
        assert folder is not None
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {*files} - {"README.md"}
        hub.is_away = True
        hub.requests.clear()
        with pytest.raises(ModelError, match="target: nope is neither a folder here nor in the cache, and http"):
            download_adapter("nope")
        assert len(hub.requests) == 1
        assert download_adapter("me/bundle") == folder
        assert len(hub.requests) == 2
