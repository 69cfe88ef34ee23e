"""The shipped task: it can be made again byte for byte, its splits do not overlap, its queries find rows."""

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from qlora_ray import embedded
from tools.embedded_task import build, splits
from tools.embedded_task.grammar import KINDS

SPLIT_PATHS = {"train": embedded.train_path(), "validation": embedded.validation_path(), "test": embedded.test_path()}
MAX_ASSETS_BYTES = 8_000_000


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads(embedded.manifest_path().read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pairs() -> dict[str, list]:
    return {name: splits.read_split(path) for name, path in SPLIT_PATHS.items()}


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory, manifest: dict) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("rebuilt")
    return folder, build.build_data(folder, seed=manifest["data"]["seed"])


def open_shipped_database() -> sqlite3.Connection:
    return sqlite3.connect(f"{embedded.database_path().as_uri()}?mode=ro", uri=True)


@pytest.mark.slow
def test_pairs_and_database_come_out_the_same(rebuilt: tuple[Path, dict], manifest: dict) -> None:
    for name, path in SPLIT_PATHS.items():
        assert (rebuilt[0] / f"{name}.jsonl").read_bytes() == path.read_bytes(), name
    with closing(open_shipped_database()) as shipped:
        assert rebuilt[1]["rows_sha256"] == build.hash_rows(shipped) == manifest["data"]["rows_sha256"]


@pytest.mark.slow
def test_the_manifest_describes_what_is_shipped(rebuilt: tuple[Path, dict], manifest: dict) -> None:
    assert manifest["data"] == rebuilt[1]
    for relative, sha256 in manifest["sha256"].items():
        content = (embedded.assets_path() / relative).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256, relative
    shipped = {p for p in embedded.assets_path().rglob("*") if p.is_file()} - {embedded.manifest_path()}
    assert {path.relative_to(embedded.assets_path()).as_posix() for path in shipped} == set(manifest["sha256"])
    assert sum(path.stat().st_size for path in shipped) < MAX_ASSETS_BYTES


def test_no_two_splits_share_a_question_or_a_query(pairs: dict[str, list], manifest: dict) -> None:
    questions = {name: {pair.question.lower() for pair in listed} for name, listed in pairs.items()}
    queries = {name: {pair.sql.lower() for pair in listed} for name, listed in pairs.items()}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not questions[first] & questions[second]
        assert not queries[first] & queries[second]
    overlaps = splits.count_overlaps(pairs)
    assert len(overlaps) == 9
    assert set(overlaps.values()) == {0}
    assert set(manifest["data"]["overlaps"].values()) == {0}


def test_an_overlap_is_found_whatever_the_case_and_punctuation() -> None:
    pair = splits.Pair("How many offices are there?", "SELECT COUNT(*) FROM offices", "count")
    shouted = splits.Pair("HOW many  offices are there", "SELECT COUNT(*) FROM offices", "count")
    overlaps = splits.count_overlaps({"train": [pair], "test": [shouted]})
    assert overlaps == {"questions in train and test": 1, "queries in train and test": 1, "pairs in train and test": 1}


@pytest.mark.parametrize("name", SPLIT_PATHS)
def test_every_query_runs_and_finds_something_and_every_kind_is_there(name: str, pairs: dict[str, list]) -> None:
    with closing(open_shipped_database()) as connection:
        for pair in pairs[name]:
            rows = connection.execute(pair.sql).fetchall()
            assert any(value is not None for row in rows for value in row), pair
    assert {pair.kind for pair in pairs[name]} == set(KINDS)
    assert len({pair.question for pair in pairs[name]}) == len(pairs[name])


def test_the_build_refuses_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        build.main(["--steps", "0"])
    assert "--steps: must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_building_the_data_leaves_the_base_and_its_record(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "manifest.json").write_text('{"base": {"steps": 5}}', encoding="utf-8")
    assert build.main(["--to", str(tmp_path), "--only", "data"]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["base"] == {"steps": 5}
    assert {"base/config.json", "test.jsonl", "classicmodels.sqlite"} <= set(manifest["sha256"])
    assert [path.name for path in tmp_path.parent.glob(".build-*")] == []
