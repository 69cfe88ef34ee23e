"""Executors map the driver's prepared data, and copy it where their node does not see its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qlora_ray.config.schema import Data
from qlora_ray.data import PreparedData, prepare_data
from qlora_ray.data.cache import map_prepared
from qlora_ray.errors import DataError
from qlora_ray.orchestration.executor import shared_data
from qlora_ray.orchestration.executor.shared_data import SharedData, copy_folder
from tests.unit.data_tokenizer import build_byte_level


@pytest.fixture
def prepared(tmp_path: Path, cluster: None) -> PreparedData:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{n}", "answer": f"a{n}"}) + "\n" for n in range(40)))
    cache = tmp_path / "cache"
    return prepare_data(Data(train=str(path)), tokenizer=build_byte_level(), data_seed=7, cache_dir=cache)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a node that is not the driver's."""
    monkeypatch.setenv("QLORA_RAY_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


def test_the_drivers_folder_is_mapped_and_not_copied(prepared: PreparedData, own_cache: Path) -> None:
    found = SharedData.of(prepared).map()
    assert found == prepared and found.folder == prepared.folder
    assert not own_cache.exists()


def test_a_copy_has_every_file_of_the_drivers_folder_and_is_whole(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_data, "PART_BYTES", 1000)
    source = SharedData.of(prepared)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "report.json").write_text("what a crash left")
    copy_folder(source, tmp_path / "copy")
    assert map_prepared(tmp_path / "copy", source.fingerprint) == prepared
    files = {path.relative_to(source.folder): path.read_bytes() for path in source.folder.rglob("*.*")}
    assert files == {
        path.relative_to(tmp_path / "copy"): path.read_bytes() for path in (tmp_path / "copy").rglob("*.*")
    }
    assert max(map(len, files.values())) > 1000


def test_a_node_that_has_a_copy_of_its_own_asks_nobody(prepared: PreparedData, own_cache: Path) -> None:
    source = SharedData.of(prepared)
    shutil.copytree(source.folder, own_cache / source.folder.name)
    shutil.rmtree(source.folder)
    assert source.map().folder == own_cache / source.folder.name


def test_data_that_is_gone_from_the_drivers_node_is_named(prepared: PreparedData, own_cache: Path) -> None:
    source = SharedData.of(prepared)
    shutil.rmtree(source.folder)
    with pytest.raises(DataError, match=r"must stay on the driver's node while a sweep runs, got no such folder"):
        source.map()
