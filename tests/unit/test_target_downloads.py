"""Adapters, bundles and bases on a hub, downloaded or found in the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.errors import ModelError
from qlora_ray.evaluation.target.finding import download_adapter, find_target
from qlora_ray.evaluation.target.target import MODEL_NAMES, Request
from tests.unit.hub_fixtures import FIRST, use_download_hub

LORA = json.dumps({"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/tiny", "target_modules": ["q_proj"]})
# A header of two bytes, `{}`: no tensors.
NO_TENSORS = "\x02" + 7 * "\0" + "{}"
ADAPTER = {"adapter_config.json": LORA, "adapter_model.safetensors": NO_TENSORS}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        yield hub


def publish(hub: Any, name: str, folder: Path, files: dict[str, str]) -> None:
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    hub.publish(name, FIRST, folder)


@pytest.mark.parametrize("home", ["", "adapter/"])
def test_an_adapter_is_found_at_the_top_or_in_a_bundle_and_no_pickle_is_fetched(
    hub: Any, tmp_path: Path, home: str
) -> None:
    fetched = {home + name: text for name, text in ADAPTER.items()} | {"sweep.yaml": "{}", "record.json": "{}"}
    publish(hub, "me/mine", tmp_path / "mine", {**fetched, f"{home}adapter_model.bin": "", "conf.py": ""})
    folder = download_adapter("me/mine")
    assert folder is not None
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == set(fetched)


def test_a_model_is_no_adapter(hub: Any, tmp_path: Path) -> None:
    publish(hub, "me/model", tmp_path / "model", {"config.json": "{}"})
    assert download_adapter("me/model") is None


def test_a_bundle_that_was_fetched_is_found_again_without_the_hub_and_what_was_not_is_one_request(
    hub: Any, tmp_path: Path
) -> None:
    publish(hub, "me/bundle", tmp_path / "bundle", {"adapter/adapter_config.json": LORA})
    folder = download_adapter("me/bundle")
    hub.is_away = True
    hub.requests.clear()
    with pytest.raises(ModelError, match="nope is neither a folder here nor in the cache"):
        download_adapter("nope")
    assert len(hub.requests) == 1
    assert folder is not None and download_adapter("me/bundle") == folder
    assert len(hub.requests) == 2


def test_what_is_on_the_hub_is_found_by_its_files_and_its_base_pinned_to_the_commit_that_is_loaded(
    hub: Any, tmp_path: Path
) -> None:
    publish(hub, "org/tiny", tmp_path / "tiny", {"config.json": '{"model_type": "llama"}'})
    files = {"merged/config.json": "{}", "record.json": '{"trial": "0001"}'}
    publish(hub, "me/mine", tmp_path / "mine", {f"adapter/{name}": text for name, text in ADAPTER.items()} | files)
    bundle, base = (find_target(name, Request()) for name in ("me/mine", "org/tiny"))
    assert (bundle.kind, bundle.path, bundle.trial) == ("bundle", "me/mine", "0001")
    assert (bundle.available, bundle.to) == (MODEL_NAMES, Path("results/evaluation-me--mine"))
    for target in (bundle, base):
        assert target.base is not None and target.base.revision == FIRST
    with pytest.raises(ModelError, match="nope is neither a folder here nor a model on the hub"):
        find_target("nope", Request())
