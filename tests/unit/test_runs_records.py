"""The records of a sweep: written and read again, read from the version before, and told from other files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.errors import RunError
from qlora_ray.runs.record_parts import ExecutorRecord, LoraRecord, PlacementRecord, PlanRecord, RanFacts
from qlora_ray.runs.records import (
    SCHEMA,
    Manifest,
    Summary,
    SweepStatus,
    TrialRecord,
    TrialStatus,
    from_dict,
    modernize_config,
    read_record,
    to_dict,
    write_record,
)

HERE = Path("record.json")
RECORDS = [
    TrialRecord(
        trial="0003",
        number=3,
        state=TrialStatus.PRUNED,
        params={"lora.r": 8, "training.learning_rate": 2e-4, "lora.target_modules": ["q_proj"]},
        metrics={"eval_loss": 0.5, "step": 75},
        reports={1: 0.9, 2: 0.5},
        ran=RanFacts(engine="packed", lora=LoraRecord(r=8, target_modules=("q_proj",)), extra={"pack": {"rows": 2}}),
        executor=ExecutorRecord(slots=2, cuda_available=False),
    ),
    Manifest(config={"search": {"num_trials": 4}}, command=("sweep.py",), plan=PlanRecord(total_slots=2)),
    Summary(status=SweepStatus.COMPLETE, counts={"complete": 2}, winner="0003", device_wait_share=0.25),
    Summary(status=SweepStatus.NO_WINNER),
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_read_as_it_was_written(tmp_path: Path, record: Any) -> None:
    write_record(tmp_path / "file.json", record)
    assert json.loads((tmp_path / "file.json").read_text())["schema"] == SCHEMA
    assert read_record(tmp_path / "file.json", type(record)) == record


def test_numbers_that_are_not_finite_are_none(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", TrialRecord(trial="0000", metrics={"eval_loss": math.nan, "step": 3}))
    read = read_record(tmp_path / "r.json", TrialRecord)
    assert read.metrics == {"eval_loss": None, "step": 3}
    for number in (math.inf, 10**400):
        assert from_dict({"trial": "0000", "tokens_per_s": number}, TrialRecord, where=HERE).tokens_per_s is None


def test_the_names_of_the_version_before_are_read_as_todays() -> None:
    data = {
        "trial": "0000",
        "ran": {"engine": "sft", "max_tokens_per_pass": 64},
        "executor": {"engine": "fused", "slots": 2},
    }
    record = from_dict(data, TrialRecord, where=HERE)
    assert (record.ran.engine, record.executor.engine) == ("single", "packed")
    assert record.ran.max_tokens_per_micro_batch == 64
    placement = {"engine": "fused", "max_tokens_per_pass": 64, "slot_bytes": 5}
    config = {"cluster": {"packing": "process", "max_slots": 2}}
    manifest = from_dict({"config": config, "plan": {"placements": [placement]}}, Manifest, where=HERE)
    assert manifest.setting("cluster", "packing") == "single" and manifest.setting("cluster", "max_slots") == 2
    expected = PlacementRecord(engine="packed", max_tokens_per_micro_batch=64, extra={"slot_bytes": 5})
    assert manifest.plan.placements == (expected,)
    assert config["cluster"]["packing"] == "process"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"cluster": None},
        {"cluster": {"packing": "auto"}},
        {"cluster": {"x": 1}},
        {"cluster": {"packing": ["fused"]}},
    ],
)
def test_a_config_without_old_words_stays(config: dict[str, Any]) -> None:
    assert modernize_config(config) == config


def test_what_is_absent_or_of_another_type_is_none_or_empty() -> None:
    for data in (
        {"trial": "0001"},
        {"trial": "0001", "ran": None, "metrics": [1], "times": 3, "state": "asleep", "num_retries": "many"},
        {"trial": "0001", "cause": {"a": 1}, "reports": {"one": 0.5, "²": 1.0}},
    ):
        assert from_dict(data, TrialRecord, where=HERE) == TrialRecord(trial="0001")
    assert from_dict({"config": {}, "data": "x"}, Manifest, where=HERE) == Manifest()


def test_unknown_keys_are_kept() -> None:
    data = {"trial": "0001", "mood": "good", "ran": {"engine": "packed", "pack": {"rows": 2}}}
    written = to_dict(from_dict(data, TrialRecord, where=HERE))
    assert written["mood"] == "good" and written["ran"]["pack"] == {"rows": 2}


SHARED = {name: {"new": 1} for name in ("base", "dataset", "seeds", "git")}
PLACEMENT = {"precision": {"new": 1}, "new": 1}
PARTS = [
    (TrialRecord, {"trial": "0001", **SHARED, **{name: {"new": 1} for name in ("ran", "executor", "memory", "times")}}),
    (TrialRecord, {"trial": "0001", "ran": {"lora": {"new": 1}, "quantization": {"new": 1}}}),
    (Manifest, {"config": {}, **SHARED, "data": {"new": 1}, "plan": {"new": 1, "placements": [PLACEMENT]}}),
    (Manifest, {"config": {}, "resumes": [{"new": 1, "git": {"new": 1}, "base": {"new": 1}}]}),
]


@pytest.mark.parametrize(("kind", "data"), PARTS)
def test_unknown_keys_are_kept_in_every_part(kind: Any, data: dict[str, Any]) -> None:
    lost = [path for path in leaves(data) if path not in leaves(to_dict(from_dict(data, kind, where=HERE)))]
    assert not lost


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values that are neither objects nor lists."""
    if not isinstance(value, dict | list):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, inner in items for leaf in leaves(inner, (*path, key))]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("[1]", TrialRecord, r"must be a trial's record, .*got list"),
        ('{"name": "an app"}', TrialRecord, r"must be a trial's record, .*'trial'"),
        ('{"config": "x"}', Manifest, r"must be a sweep's manifest, .*'config'"),
        ("{}", Summary, r"must be a sweep's summary, .*'winner'"),
        ("{", Summary, r"cannot be read"),
        (
            f'{{"winner": null, "schema": {SCHEMA + 1}}}',
            Summary,
            rf"must have schema {SCHEMA} or older, got {SCHEMA + 1}",
        ),
    ],
)
def test_what_is_no_record_is_refused_in_one_line_that_names_the_file(
    tmp_path: Path, content: str, kind: Any, message: str
) -> None:
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(RunError, match=rf"some\.json: {message}") as raised:
        read_record(path, kind)
    assert "\n" not in str(raised.value)
