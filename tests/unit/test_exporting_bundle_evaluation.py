"""Which evaluation a bundle takes: one of these very weights, or of the part that is theirs, or none."""

from __future__ import annotations

import json

import pytest

from qlora_ray.config.schema import Model
from qlora_ray.errors import RunError
from qlora_ray.exporting.bundle_evaluation import evaluation_beside, take_evaluation
from qlora_ray.exporting.selection import select_trial
from qlora_ray.modeling.identity import hash_adapter
from qlora_ray.modeling.loading import hash_base
from qlora_ray.runs.score_records import EvaluationRecord
from qlora_ray.runs.typed_json import parse_record
from tests.exporting_fixtures import files_of, write_sweep
from tests.sweep_folder import edited, write_adapter
from tests.sweep_records import make_evaluation


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "s")


@pytest.fixture
def folder(tmp_path):
    """The bundle as it is being written: adapter and merged model."""
    folder = tmp_path / ".b.12345678"
    write_adapter(folder / "adapter", base="x")
    (folder / "merged").mkdir()
    (folder / "merged" / "config.json").write_text("{}")
    (folder / "merged" / "model.safetensors").write_bytes(b"weights")
    return folder


def evaluate(place, folder, *, models=("base", "adapter"), merged=None, adapter=None, word="better"):
    """An evaluation of the bundle's own adapter, unless another hash is given."""
    place.mkdir(exist_ok=True)
    found = make_evaluation(word, models=models, exports={"0-shot": "answers.jsonl"}, lm_eval={"task": 1})
    found["target"]["adapter"] = adapter or hash_adapter(folder / "adapter")
    found["verdict"] = word
    for pair in found["comparisons"]:
        pair["verdict"] = "no different" if pair["tuned_model"] == "adapter" else word
    (place / "evaluation.json").write_text(json.dumps(found))
    (place / "evaluation.md").write_text("a table")
    (place / "settings.json").write_text(json.dumps({"models": {"merged": {"hash": merged}}} if merged else {}))
    return parse_record(EvaluationRecord, found)


def read_evaluation(folder):
    return json.loads((folder / "evaluation" / "evaluation.json").read_text())


def take(sweep, folder, tmp_path):
    notes = []
    return take_evaluation(select_trial(sweep), folder, to=tmp_path / "b", notes=notes), notes


def merged_hash(folder):
    return hash_base(Model(name=str(folder / "merged")))


def test_without_one_there_is_none_and_nothing_is_said(sweep, folder, tmp_path):
    assert take(sweep, folder, tmp_path) == (None, [])
    assert not (folder / "evaluation").exists()


def test_the_one_beside_the_bundle_goes_before_the_sweeps(sweep, folder, tmp_path):
    beside = evaluate(
        evaluation_beside(tmp_path / "b"), folder, models=("base", "adapter", "merged"), merged=merged_hash(folder)
    )
    evaluate(sweep / "evaluation", folder, word="worse")
    assert take(sweep, folder, tmp_path) == (beside, [])
    assert read_evaluation(folder) == json.loads((tmp_path / "b-evaluation" / "evaluation.json").read_text())
    assert {name for name in files_of(folder) if name.startswith("evaluation")} == {
        "evaluation/evaluation.json",
        "evaluation/evaluation.md",
    }


@pytest.mark.parametrize(
    ("other", "part"),
    [({"adapter": "0" * 64}, "adapter"), ({"models": ("base", "merged"), "merged": "sha256:other"}, "merged model")],
)
def test_one_beside_it_of_other_weights_gives_way_to_the_sweeps_and_that_is_said(sweep, folder, tmp_path, other, part):
    evaluate(evaluation_beside(tmp_path / "b"), folder, **other)
    own = evaluate(sweep / "evaluation", folder)
    found, (note,) = take(sweep, folder, tmp_path)
    assert found == own
    assert note.startswith(f"{tmp_path / 'b-evaluation'} is of another {part}")


@pytest.mark.parametrize("hashed", ["sha256:other", None])
def test_figures_of_a_merged_model_that_is_not_this_one_are_taken_out_of_every_part(sweep, folder, tmp_path, hashed):
    evaluate(sweep / "evaluation", folder, models=("base", "adapter", "merged"), merged=hashed)
    found, (note,) = take(sweep, folder, tmp_path)
    written = read_evaluation(folder)
    assert "merged" not in json.dumps(written) and {"exports", "lm_eval"}.isdisjoint(written)
    assert [row["model"] for row in written["scores"]] == ["base", "adapter"]
    # The verdict on the bundle is the adapter's now.
    assert written["verdict"] == "no different"
    assert found == parse_record(EvaluationRecord, written)
    assert not (folder / "evaluation" / "evaluation.md").exists()
    assert "figures of a merged model" in note


def test_an_evaluation_of_nothing_but_another_merged_model_leaves_nothing(sweep, folder, tmp_path):
    evaluate(sweep / "evaluation", folder, models=("merged",), merged="sha256:other")
    found, notes = take(sweep, folder, tmp_path)
    assert found is None and len(notes) == 1 and not (folder / "evaluation").exists()


def test_an_evaluation_of_another_adapter_is_named_with_the_trial(sweep, folder, tmp_path):
    evaluate(sweep / "evaluation", folder, adapter="0" * 64)
    found, (note,) = take(sweep, folder, tmp_path)
    assert found is None
    assert note.startswith(f"{sweep / 'evaluation'} is of another adapter") and "0001" in note


def test_an_evaluation_that_is_no_object_counts_as_none(sweep, folder, tmp_path):
    (sweep / "evaluation").mkdir()
    (sweep / "evaluation" / "evaluation.json").write_text("[]")
    assert take(sweep, folder, tmp_path) == (None, [])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "x"),
        ("rows", ["x"]),
        ("settings", {"evaluate": {"sampling": "x"}}),
        ("scores", "x"),
        ("scores", [None]),
        ("scores", [{"loss": 1.0}]),
        ("scores", [{"model": "base", "prompts": "0-shot", "metrics": {"exact_match": "x"}}]),
        ("comparisons", {"x": 1}),
        ("comparisons", [{}]),
        ("comparisons", [{"base_model": "base", "tuned_model": "adapter", "prompts": "0-shot", "verdict": "fine"}]),
        ("models", "x"),
        ("notes", 1),
    ],
)
def test_a_damaged_evaluation_is_refused_by_its_file(sweep, folder, tmp_path, key, value):
    evaluate(sweep / "evaluation", folder)
    with edited(sweep / "evaluation" / "evaluation.json") as written:
        written[key] = value
    with pytest.raises(RunError, match=rf"^{sweep}/evaluation/evaluation\.json: .*\b{key}\b.*\.$"):
        take(sweep, folder, tmp_path)


def test_an_evaluation_without_comparisons_is_taken_without_its_merged_model(sweep, folder, tmp_path):
    evaluate(sweep / "evaluation", folder, models=("base", "adapter", "merged"))
    with edited(sweep / "evaluation" / "evaluation.json") as written:
        written["comparisons"] = None
    found, _ = take(sweep, folder, tmp_path)
    assert len(found.scores) == 2 and found.comparisons == ()


@pytest.mark.parametrize("settings", ["[]", '{"models": "x"}', '{"models": {"merged": 1}}'])
def test_settings_that_do_not_tell_the_merged_models_hash_leave_its_figures_out(sweep, folder, tmp_path, settings):
    evaluate(sweep / "evaluation", folder, models=("base", "adapter", "merged"))
    (sweep / "evaluation" / "settings.json").write_text(settings)
    found, (note,) = take(sweep, folder, tmp_path)
    assert [row.model for row in found.scores] == ["base", "adapter"] and "left out" in note
