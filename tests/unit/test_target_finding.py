"""What was given to evaluate: found by its files, with the base, the quantization and the config that go with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config import SweepConfig
from qlora_ray.config.schema import Model
from qlora_ray.errors import ConfigError, ModelError, RunError
from qlora_ray.evaluation.target.finding import find_target
from qlora_ray.evaluation.target.folders import read_merge_report
from qlora_ray.evaluation.target.target import MODEL_NAMES, Request, Target
from qlora_ray.modeling.identity import write_adapter_origin
from qlora_ray.modeling.loading import hash_base
from qlora_ray.runs import write_json
from tests.sweep_folder import Sketch, edited, write_adapter, write_sweep

INT8 = {"method": "int8", "double_quantization": False}


def write_record(folder: Path, trial: str, *, quantization: dict[str, Any] = INT8) -> None:
    """What a trial left of its base and how that was stored."""
    base = {"name": "embedded", "revision": None, "hash": "sha256:0"}
    write_json(folder / "record.json", {"trial": trial, "base": base, "ran": {"quantization": quantization}})


def make_sweep(root: Path, *, winner: int | None = 1) -> Path:
    """A sweep of three trials: 0000 pruned, 0001 and 0002 complete, trained in int8. Its manifest has nf4."""
    config = SweepConfig.model_validate({"data": {"max_length": 77}, "model": {"quantization": INT8}})
    sketches = [Sketch([1.0], state="pruned"), Sketch([0.5]), Sketch([0.6])]
    status = "no_winner" if winner is None else "complete"
    write_sweep(root, sketches, config=config, status=status, winner=winner, has_journal=False, has_adapters=True)
    change_model(root, quantization={"method": "nf4"})
    return root


def write_model(folder: Path, *, merge_report: bool = False) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"model_type": "llama"})
    if merge_report:
        write_json(folder / "merge_report.json", {})
    return folder


def write_bundle(folder: Path, config: str = "{}\n") -> Path:
    write_adapter(folder / "adapter")
    write_record(folder, "0001")
    write_model(folder / "merged", merge_report=True)
    (folder / "sweep.yaml").write_text(config)
    return folder


def write_merged(folder: Path, base: Path, **report: Any) -> Path:
    """A merged model, and what its report says of its base."""
    write_model(folder)
    written = {"name": str(base), "revision": None, "hash": hash_base(Model(name=str(base)))}
    write_json(folder / "merge_report.json", {"base": written, "quantization": INT8, **report})
    return folder


def change_model(sweep: Path, **changes: Any) -> None:
    """Changes the model section of a sweep's config."""
    with edited(sweep / "manifest.json") as manifest:
        manifest["config"]["model"] |= changes


def find(target: Path | str, **request: Any) -> Target:
    return find_target(str(target), Request(**request))


def base_of(target: Target) -> Model:
    assert target.base is not None
    return target.base


def method_of(target: Target) -> str | None:
    """How the target's base is stored."""
    return target.quantization.method if target.quantization else None


def test_a_sweep_is_its_winner_on_the_base_and_quantization_of_its_record(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "x")
    target = find(sweep)
    assert (target.kind, target.trial, target.available) == ("sweep", "0001", ("base", "adapter"))
    assert (target.adapter, target.to) == (sweep / "best" / "adapter", sweep / "evaluation")
    assert (base_of(target).name, target.base_hash, method_of(target)) == ("embedded", hash_base(Model()), "int8")
    assert target.config.data.max_length == 77


@pytest.mark.parametrize(
    ("part", "trial", "kind", "found", "to"),
    [
        (".", "1", "sweep", "0001", "."),
        (".", "best", "sweep", "0001", "."),
        (".", "2", "sweep", "0002", "trials/0002"),
        ("best", None, "sweep", "0001", "."),
        ("trials/0001", None, "sweep", "0001", "."),
        ("trials/0002", None, "sweep", "0002", "trials/0002"),
        ("best/adapter", None, "adapter", "0001", "."),
        ("trials/0002/adapter", None, "adapter", "0002", "trials/0002"),
    ],
)
def test_a_part_of_a_sweep_is_evaluated_as_the_sweep_would(
    tmp_path: Path, part: str, trial: str | None, kind: str, found: str, to: str
) -> None:
    sweep = make_sweep(tmp_path / "x")
    target = find(sweep / part, trial=trial)
    assert (target.kind, target.trial, target.to) == (kind, found, sweep / to / "evaluation")
    assert (target.config.data.max_length, method_of(target)) == (77, "int8")


def test_an_adapter_alone_is_loaded_on_nf4_and_that_is_said(tmp_path: Path) -> None:
    target = find(write_adapter(tmp_path / "adapter", base=str(write_model(tmp_path / "base"))))
    assert (base_of(target).name, method_of(target)) == (str(tmp_path / "base"), "nf4")
    assert "no record says" in target.notes[0]
    # Two adapters side by side do not share an evaluation.
    assert target.to == tmp_path / "adapter-evaluation"
    assert find(tmp_path / "adapter", overrides=["model.quantization.method=none"]).notes == []


def test_a_bundle_brings_its_merged_model_and_its_config_and_its_parts_are_evaluated_beside_it(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "mine", "data: {max_length: 55}\n")
    for part, kind, available, to in (
        (".", "bundle", MODEL_NAMES, "mine-evaluation"),
        ("adapter", "adapter", ("base", "adapter"), "mine-evaluation"),
        ("merged", "model", ("merged",), "mine-merged-evaluation"),
    ):
        target = find(bundle / part)
        assert (target.kind, target.available, target.to) == (kind, available, tmp_path / to)
        assert target.config.data.max_length == 55


def test_a_model_folder_is_a_base_or_merged_by_its_report(tmp_path: Path) -> None:
    plain, merged = write_model(tmp_path / "plain"), write_model(tmp_path / "merged", merge_report=True)
    assert (find(plain).available, method_of(find(plain))) == (("base",), None)
    assert find(merged).available == ("merged",)
    assert method_of(find(plain, overrides=["model.quantization.method=nf4"])) == "nf4"
    assert find("embedded").to == Path("results/evaluation-embedded")


def test_a_merged_model_joins_a_sweep(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "x")
    assert find(sweep, merged=write_model(tmp_path / "merged")).available == MODEL_NAMES
    with pytest.raises(ModelError, match=r"--merged .*gone: must be a model folder .* got no such folder"):
        find(sweep, merged=tmp_path / "gone")


@pytest.mark.parametrize(
    ("part", "trial", "words"),
    [
        (".", "9", r"--trial 9: no such trial in .*Complete trials: 0001, 0002\."),
        (".", "0", r"--trial 0: must be a complete trial, got .* pruned\. Complete: 0001, 0002\."),
        ("trials/0000", None, "must be a complete trial, got one that is pruned"),
    ],
)
def test_a_trial_that_is_not_there_or_not_complete_is_named(
    tmp_path: Path, part: str, trial: str | None, words: str
) -> None:
    with pytest.raises(RunError, match=words):
        find(make_sweep(tmp_path / "x") / part, trial=trial)


def test_a_sweep_without_a_winner_says_so_and_names_a_complete_trial(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "x", winner=None)
    with pytest.raises(RunError, match=r"must have a winner, .*\(no_winner\).*--trial 0001"):
        find(sweep)
    (sweep / "summary.json").unlink()
    with pytest.raises(RunError, match="got a sweep that has not ended"):
        find(sweep)


def test_a_base_that_is_gone_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", base="/gone/base")
    with pytest.raises(ModelError, match=r"got /gone/base \(no such folder\).*--set model.name="):
        find(tmp_path / "adapter")
    assert base_of(find(tmp_path / "adapter", overrides=["model.name=embedded"])).name == "embedded"


@pytest.mark.parametrize(
    ("part", "trial", "error", "words"),
    [
        ("many", None, RunError, r"must be a sweep .* 0.json, 1.json, 2.json, 3.json, 4.json and 2 more"),
        ("none", None, RunError, "got an empty folder"),
        ("gone", None, RunError, "no such folder"),
        ("many/0.json", None, RunError, "got a file"),
        ("model", "1", ConfigError, "only a sweep has trials"),
        ("foreign", None, ModelError, "must describe a LoRA adapter"),
    ],
)
def test_what_cannot_be_evaluated_is_one_message(
    tmp_path: Path, part: str, trial: str | None, error: type[Exception], words: str
) -> None:
    for folder in ("many", "none"):
        (tmp_path / folder).mkdir()
    for number in range(7):
        (tmp_path / "many" / f"{number}.json").write_text("{}")
    for folder in ("model", "foreign"):
        write_model(tmp_path / folder)
    (tmp_path / "foreign" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(error, match=words):
        find(tmp_path / part, trial=trial)


@pytest.mark.parametrize("part", ["bundle", "bundle/adapter", "x", "x/best/adapter"])
def test_what_came_with_a_target_cannot_let_its_code_run(tmp_path: Path, part: str) -> None:
    write_bundle(tmp_path / "bundle", "model: {trust_remote_code: true}\n")
    change_model(make_sweep(tmp_path / "x"), trust_remote_code=True)
    (tmp_path / "mine.yaml").write_text("model: {trust_remote_code: true}\n")
    target = find(tmp_path / part)
    assert not base_of(target).trust_remote_code and not target.config.model.trust_remote_code
    assert any("--set model.trust_remote_code=true" in note for note in target.notes)
    for allowed in ({"overrides": ["model.trust_remote_code=true"]}, {"config": tmp_path / "mine.yaml"}):
        target = find(tmp_path / part, **allowed)
        assert base_of(target).trust_remote_code
        assert not any("trust" in note for note in target.notes)
    assert not find(tmp_path / "bundle" / "merged").config.model.trust_remote_code


@pytest.mark.parametrize("content", ['{"short_name": "an app"}', "[1]", "no json"])
def test_a_manifest_of_something_else_is_passed_over(tmp_path: Path, content: str) -> None:
    adapter = write_adapter(tmp_path / "app" / "models" / "adapter")
    for folder in (tmp_path / "app", tmp_path / "app" / "models", adapter):
        (folder / "manifest.json").write_text(content)
        assert (find(adapter).kind, find(adapter).manifest) == ("adapter", None)


def test_a_storage_that_cannot_be_had_is_refused_or_said(tmp_path: Path) -> None:
    merged = write_model(tmp_path / "merged", merge_report=True)
    for text in ("model.quantization.method=int8", "model={quantization: {method: int8}}"):
        with pytest.raises(ConfigError, match="is a merged model, which is evaluated as it is stored"):
            find(merged, overrides=[text])
    (tmp_path / "mine.yaml").write_text("model: {name: embedded, quantization: {method: nf4}}\n")
    target = find(make_sweep(tmp_path / "x"), config=tmp_path / "mine.yaml")
    assert method_of(target) == "int8"
    assert "int8" in target.notes[0] and "--config has nf4" in target.notes[0]
    target = find(tmp_path / "x", overrides=["model={name: embedded, quantization: {method: nf4}}"])
    assert (target.quantization, target.quantization_reason) == (target.config.model.quantization, "as --set says")


def test_a_merged_model_is_held_against_the_base_that_its_report_names(tmp_path: Path) -> None:
    target = find(write_merged(tmp_path / "merged", write_model(tmp_path / "base")))
    assert (target.kind, target.available, target.notes) == ("model", ("base", "merged"), [])
    assert (base_of(target).name, method_of(target)) == (str(tmp_path / "base"), "int8")
    assert (target.quantization_reason, target.to) == ("as merge_report.json says", tmp_path / "merged-evaluation")


def test_a_merged_model_whose_base_is_gone_or_another_is_scored_alone_and_that_is_said(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    merged = write_merged(tmp_path / "merged", base)
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    for words in ("must be used on the base it was trained on", "no such folder"):
        target = find(merged)
        assert target.available == ("merged",)
        assert "scored alone" in target.notes[0] and words in target.notes[0]
        shutil.rmtree(base, ignore_errors=True)
    with pytest.raises(ModelError, match="no such folder"):
        find(merged, overrides=[f"model.name={base}"])
    moved = write_model(tmp_path / "moved")
    assert find(merged, overrides=[f"model.name={moved}"]).available == ("base", "merged")


def test_an_adapter_copied_without_its_record_says_itself_how_it_was_trained(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "copied", base="/gone/base")
    own = {"trial": "0007", "base": {"name": "embedded", "hash": "sha256:7"}, "quantization": INT8}
    write_adapter_origin(adapter, own)
    target = find(adapter)
    assert (target.quantization_reason, target.notes) == ("as its qlora_ray.json says", [])
    assert (base_of(target).name, target.base_hash, method_of(target)) == ("embedded", "sha256:7", "int8")
    assert target.trial == "0007"
    assert method_of(find(adapter, overrides=["model.quantization.method=none"])) == "none"
    write_record(tmp_path, "0001", quantization={"method": "none"})
    recorded = find(adapter)
    assert (recorded.quantization_reason, recorded.trial) == ("as its record says", "0001")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"qlora_ray\.json: cannot be read: .*Restore it"),
        ("[]", r"qlora_ray\.json: must say base and quantization"),
        ('{"base": {}, "quantization": 4}', "must say base and quantization"),
        ('{"base": {}, "quantization": {"method": "gguf"}}', "must name a quantization .* got 'gguf'"),
    ],
)
def test_an_adapters_own_word_that_is_none_is_refused(tmp_path: Path, content: str, words: str) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "qlora_ray.json").write_text(content)
    with pytest.raises(ModelError, match=words):
        find(adapter)


def test_a_base_named_anew_is_not_asked_for_the_commit_of_the_old_one(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "x")
    change_model(sweep, name=str(write_model(tmp_path / "base")), revision="v1")
    anew = f"model.name={write_model(tmp_path / 'moved')}"
    for overrides, revision in (([], "v1"), ([anew], None), ([anew, "model.revision=v2"], "v2")):
        assert base_of(find(sweep, overrides=overrides)).revision == revision


@pytest.mark.parametrize("has_own_report", [True, False])
def test_a_merged_model_in_a_bundle_and_its_copy_in_nf4_have_the_bundles_rows(
    tmp_path: Path, has_own_report: bool
) -> None:
    bundle = write_bundle(tmp_path / "mine", "data: {max_length: 55}\n")
    shutil.rmtree(bundle / "merged")
    base = write_model(tmp_path / "base")
    for name in ("merged", "merged-nf4"):
        write_merged(bundle / name, base, nf4_copy="merged-nf4")
    if not has_own_report:
        # As older bundles have it.
        (bundle / "merged-nf4" / "merge_report.json").unlink()
    for name in ("merged", "merged-nf4"):
        target = find(bundle / name)
        assert (target.config.data.max_length, target.available) == (55, ("base", "merged"))
        assert (base_of(target).name, method_of(target)) == (str(base), "int8")
        assert target.to == tmp_path / f"mine-{name}-evaluation"
    (tmp_path / "mine.yaml").write_text("data: {max_length: 44}\n")
    assert find(bundle / "merged", config=tmp_path / "mine.yaml").config.data.max_length == 44


def test_a_model_that_is_only_called_like_a_copy_is_a_model(tmp_path: Path) -> None:
    write_merged(tmp_path / "merged", write_model(tmp_path / "base"), nf4_copy=None)
    assert find(write_model(tmp_path / "merged-nf4")).available == ("base",)
    assert find(write_model(tmp_path / "other-nf4")).available == ("base",)


@pytest.mark.parametrize("content", ["[1]", "null", '"x"', '{"adapter": [1]}'])
def test_a_merge_report_of_another_kind_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "merge_report.json").write_text(content)
    with pytest.raises(RunError, match=r"merge_report\.json: must be the report of a merge"):
        read_merge_report(tmp_path)
