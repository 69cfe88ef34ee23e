"""Weights fetched into the cache: which files, and no second time."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from qlora_ray.config.schema import Model
from qlora_ray.modeling.fetching import fetch_weights, find_weights, is_on_hub
from qlora_ray.modeling.loading import load_base
from qlora_ray.modeling.quantization import QuantizationSpec
from tests.unit.hub_fixtures import FIRST, DownloadHub, use_download_hub
from tests.unit.model_fixtures import copy_base

NAME = "org/tiny"
PINNED = Model(name=NAME, revision=FIRST)
PLAIN = QuantizationSpec("none", 32, "torch", None, False, "fp32")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DownloadHub]:
    """A hub with the embedded base as org/tiny, and what other repositories have beside the weights."""
    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        folder = copy_base(tmp_path / "first")
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
        (folder / "consolidated.safetensors").write_bytes(b"the same weights for another library")
        hub.publish(NAME, FIRST, folder)
        yield hub


def downloads(hub: DownloadHub) -> list[str]:
    return [
        request.rpartition("/")[2] for request in hub.requests if request.startswith("GET") and "/resolve/" in request
    ]


def test_the_weights_alone_are_downloaded_and_then_the_base_loads_with_no_more_of_them(hub: DownloadHub) -> None:
    assert fetch_weights(PINNED) == ["model.safetensors"]
    assert downloads(hub) == ["model.safetensors"]
    load_base(PINNED, quantization=PLAIN, device="cpu")
    assert downloads(hub).count("model.safetensors") == 1
    assert not {"pytorch_model.bin", "consolidated.safetensors"} & set(downloads(hub))


def test_weights_that_are_there_are_not_downloaded_again(hub: DownloadHub) -> None:
    fetch_weights(PINNED)
    hub.requests.clear()
    assert fetch_weights(PINNED) == ["model.safetensors"]
    assert downloads(hub) == []


def test_the_shards_that_an_index_names_are_downloaded(hub: DownloadHub, tmp_path: Path) -> None:
    folder = tmp_path / "first"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"more")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fetch_weights(PINNED) == shards
    assert downloads(hub) == ["model.safetensors.index.json", *shards]


def test_several_at_once_download_a_file_once(hub: DownloadHub) -> None:
    """As the processes of a node do: the library's locks are those of files."""
    barrier = threading.Barrier(4)

    def fetch() -> None:
        barrier.wait()
        fetch_weights(PINNED)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloads(hub) == ["model.safetensors"]


def test_a_folder_and_a_machine_without_a_network_fetch_nothing(
    hub: DownloadHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_on_hub(Model(name="embedded")) and fetch_weights(Model(name=str(tmp_path / "first"))) == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not is_on_hub(PINNED) and fetch_weights(PINNED) == []
    assert hub.requests == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors.index.json", "pytorch_model.bin"], "model.safetensors.index.json"),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
        (["consolidated.safetensors", "config.json"], None),
    ],
)
def test_safetensors_come_before_pickles_and_others_are_no_weights(files: list[str], found: str | None) -> None:
    assert find_weights(files) == found
