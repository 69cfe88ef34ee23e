"""Which config an evaluation goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ray.config import SweepConfig
from qlora_ray.config.reuse import is_overridden, read_bundle_config, read_intent, with_absolute_paths
from qlora_ray.errors import ConfigError
from qlora_ray.runs.records import Manifest


def make_manifest(folder: Path, **data: object) -> Manifest:
    config = SweepConfig().model_dump()
    config["data"] |= data
    return Manifest(config=config, folder=str(folder))


def test_the_sweeps_config_counts_and_a_file_goes_before_it(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, max_length=77)
    (tmp_path / "other.yaml").write_text("data: {max_length: 33}\n")
    assert read_intent(manifest, config=None, overrides=[]).data.max_length == 77
    assert read_intent(manifest, config=None, overrides=["data.max_length=5"]).data.max_length == 5
    assert read_intent(manifest, config=tmp_path / "other.yaml", overrides=[]).data.max_length == 33
    assert read_intent(None, config=None, overrides=[]) == SweepConfig()


@pytest.mark.parametrize("section", ["model", "data", "evaluate", "training"])
def test_a_section_of_a_manifest_that_is_damaged_is_named(tmp_path: Path, section: str) -> None:
    manifest = make_manifest(tmp_path)
    damaged = Manifest(config={**manifest.config, section: "x"}, folder=str(tmp_path))
    with pytest.raises(ConfigError, match=rf"manifest\.json: {section} "):
        read_intent(damaged, config=None, overrides=[])


def test_paths_of_the_sweep_are_its_own_from_another_folder_with_namesakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, here = tmp_path / "sweep", tmp_path / "here"
    (sweep / "embedded").mkdir(parents=True)
    here.mkdir()
    for path in (sweep / "rows.jsonl", here / "rows.jsonl", here / "other.jsonl"):
        path.write_text("{}\n")
    monkeypatch.chdir(here)
    manifest = make_manifest(sweep, train="rows.jsonl", test="other.jsonl")
    config = read_intent(manifest, config=None, overrides=[])
    assert (config.data.train, config.data.test) == (str(sweep / "rows.jsonl"), "other.jsonl")
    assert config.model.name == "embedded"
    assert read_intent(manifest, config=None, overrides=["data.train=rows.jsonl"]).data.train == "rows.jsonl"


def test_all_wrong_overrides_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.shot is not a known key"):
        read_intent(make_manifest(tmp_path), config=None, overrides=["evaluate.shot=[3]"])
    with pytest.raises(ConfigError, match=r"(?s)--set nokey.*--set alsonot"):
        read_intent(make_manifest(tmp_path), config=None, overrides=["nokey", "alsonot"])


def test_a_bundles_config_may_have_the_packing_of_the_version_before_and_a_users_may_not(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("cluster: {packing: fused}\n")
    assert read_bundle_config(path, overrides=[]).cluster.packing == "packed"
    with pytest.raises(ConfigError, match=r"cluster\.packing must be .*, got 'fused'"):
        read_intent(None, config=path, overrides=[])


@pytest.mark.parametrize("limits", [{}, {"max_train_rows": 9}])
def test_a_sweep_of_before_rows_were_drawn_goes_on_with_the_first_ones(limits, tmp_path: Path) -> None:
    new = make_manifest(tmp_path, **limits)
    assert read_intent(new, config=None, overrides=[]).data.row_choice == "sample"
    old = make_manifest(tmp_path, **limits)
    del old.config["data"]["row_choice"]
    assert read_intent(old, config=None, overrides=[]).data.row_choice == "first"
    (tmp_path / "sweep.yaml").write_text("data: {max_validation_rows: 9}\n")
    assert read_bundle_config(tmp_path / "sweep.yaml", overrides=[]).data.row_choice == "first"
    assert read_intent(None, config=tmp_path / "sweep.yaml", overrides=[]).data.row_choice == "sample"


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        (["model.quantization.method=none"], "model.quantization", True),
        (["model={quantization: {method: int8}}"], "model.quantization", True),
        (["data.train=model.name"], "model.name", False),
        (["model={name: x}"], "model.quantization", False),
        (["model.names=x", "evaluate=null"], "model.name", False),
    ],
)
def test_an_override_of_a_key_or_under_it_is_seen(overrides: list[str], key: str, expected: bool) -> None:
    assert is_overridden(overrides, key) is expected


def test_other_processes_get_absolute_paths_and_the_users_config_stays(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "shop.db").touch()
    config = SweepConfig.model_validate({"model": {"name": "base"}, "evaluate": {"database": "shop.db"}})
    there = with_absolute_paths(config, tmp_path)
    assert (there.model.name, there.evaluate.database) == (str(tmp_path / "base"), str(tmp_path / "shop.db"))
    assert (config.model.name, config.evaluate.database) == ("base", "shop.db")
    # A name that is no folder here is the hub's.
    assert with_absolute_paths(SweepConfig.model_validate({"model": {"name": "org/base"}}), tmp_path).model.name == (
        "org/base"
    )
