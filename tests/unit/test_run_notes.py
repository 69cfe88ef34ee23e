"""What is said of an evaluation's rows: whose they are, whether they chose the winner, and what did not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config.schema import Data, SweepConfig
from qlora_ray.data import PreparedData, TokenizedSplit, prepare_data
from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.run.notes import MAYBE_CHOSEN_ON_THEM, note_weaknesses
from qlora_ray.evaluation.target.target import Target
from qlora_ray.runs.record_parts import DataRecord, DatasetRecord
from qlora_ray.runs.records import Manifest, TrialRecord
from qlora_ray.runs.typed_json import parse_record
from qlora_ray.scoring.token_budget import TokenBudget
from qlora_ray.scoring.verdict import CHOSEN_ON_THEM
from tests.unit.evaluation_fixtures import make_split, make_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Three splits of a few rows each, in files."""
    folder = tmp_path_factory.mktemp("rows")
    config = Data(format="prompt-completion", template="raw", max_length=64, **_write_rows(folder))
    return prepare_data(config, tokenizer=make_tokenizer(), data_seed=7)


def _write_rows(folder: Path) -> dict[str, str]:
    paths = {}
    for name, count in (("train", 6), ("validation", 3), ("test", 4)):
        path = folder / f"{name}.jsonl"
        lines = (f'{{"prompt": "{name} {number}?", "completion": "yes"}}' for number in range(count))
        path.write_text("\n".join(lines))
        paths[name] = str(path)
    return paths


def target_of(**facts: Any) -> Target:
    """A sweep's winner, whose data is named."""
    config = SweepConfig(data=Data(train="rows.jsonl"))
    target = Target("sweep", "results/s", config, None, None, "as it trained", Path("to"))
    return replace(target, **{"manifest": Manifest(), "trial": "0001", **facts})


def notes_of(
    target: Target, prepared: PreparedData, split: TokenizedSplit | None, *sets: PromptSet, **budgets: TokenBudget
) -> list[str]:
    limited = {prompts.name: budgets.get(prompts.name, TokenBudget(96)) for prompts in sets}
    return note_weaknesses(target, prepared, split, sets, limited)


def manifest_of(prepared: PreparedData, **changes: Any) -> Manifest:
    """A sweep's manifest, that had these rows but for the changes."""
    return Manifest(data=parse_record(DataRecord, prepared.report.to_dict() | changes))


def test_the_sweeps_own_test_rows_need_no_note_though_they_were_moved(prepared: PreparedData) -> None:
    assert notes_of(target_of(manifest=manifest_of(prepared)), prepared, prepared.test) == []
    # The fingerprint is of paths too; what the files hold decides.
    manifest = manifest_of(prepared, fingerprint="of another folder")
    assert notes_of(target_of(manifest=manifest), prepared, prepared.test) == []


@pytest.mark.parametrize("key", ["digests", "num_rows", "num_tokens", "num_completion_tokens", "template"])
def test_rows_that_differ_from_the_sweeps_are_told(prepared: PreparedData, key: str) -> None:
    written = prepared.report.to_dict()[key]
    changed = "other" if key == "template" else written | {"test": 0}
    manifest = manifest_of(prepared, fingerprint="other", **{key: changed})
    [note] = notes_of(target_of(manifest=manifest), prepared, prepared.test)
    assert note.startswith("test is not what the sweep had")
    if key != "template":
        # Those of another split may differ.
        manifest = manifest_of(prepared, fingerprint="other", **{key: written | {"train": 0}})
        assert notes_of(target_of(manifest=manifest), prepared, prepared.test) == []


def test_validation_rows_of_the_sweep_chose_its_winner(prepared: PreparedData) -> None:
    target = target_of(manifest=manifest_of(prepared))
    assert notes_of(target, prepared, prepared.validation) == [CHOSEN_ON_THEM]
    changed = target_of(manifest=manifest_of(prepared, fingerprint="other", template="chat"))
    [note] = notes_of(changed, prepared, prepared.validation)
    assert note.startswith("validation is not what the sweep had")


@pytest.mark.parametrize(
    ("fingerprint", "trial", "expected"),
    [
        ("these", "0001", [CHOSEN_ON_THEM]),
        # A record of before there were fingerprints: it may well be these.
        ("", "0001", [CHOSEN_ON_THEM]),
        ("others", "0001", []),
        # No sweep chose an adapter that is of no trial.
        ("these", None, []),
        (None, None, []),
        # Copied without its record: its trial is known, and that trial's rows are not.
        (None, "0001", [MAYBE_CHOSEN_ON_THEM]),
    ],
)
def test_without_a_manifest_the_record_says_whether_rows_chose_the_adapter(
    prepared: PreparedData, fingerprint: str | None, trial: str | None, expected: list[str]
) -> None:
    these = replace(prepared, report=replace(prepared.report, fingerprint="these"))
    dataset = DatasetRecord(fingerprint=fingerprint or None)
    record = None if fingerprint is None else TrialRecord(trial="0001", dataset=dataset)
    target = target_of(manifest=None, record=record, trial=trial)
    assert notes_of(target, these, these.validation) == expected
    assert notes_of(target, these, these.test) == []


def test_rows_that_nobody_named_are_told(prepared: PreparedData) -> None:
    target = target_of(manifest=None, trial=None, config=SweepConfig())
    (note,) = notes_of(target, prepared, prepared.test)
    assert "the embedded task's" in note
    assert notes_of(target, prepared, None) == []


def test_each_set_says_what_did_not_fit(prepared: PreparedData) -> None:
    split = make_split([(3, 1)] * 4)
    zero = PromptSet("0-shot", split, list("abcd"), 4)
    few = PromptSet("few", split, list("abcd"), 4, num_dropped_shots=5)
    target = target_of(manifest=manifest_of(prepared))
    notes = notes_of(target, prepared, prepared.test, zero, few, few=TokenBudget(96, num_cut_prompts=2))
    assert [note.partition(":")[0] for note in notes] == ["few", "few"]
    assert "5 examples" in notes[0] and "2 prompts" in notes[1]
