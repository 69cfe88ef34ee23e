"""What was given to evaluate: found by its files, with the base, the quantization and the config that go with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_fixtures import FIRST, use_download_hub
from huggingface_hub.errors import EntryNotFoundError
from safetensors.numpy import save_file

from qlora_ray.config import SweepConfig
from qlora_ray.config.schema import Model
from qlora_ray.errors import ConfigError, ModelError, RunError
from qlora_ray.evaluation.target import finding
from qlora_ray.evaluation.target.finding import find_target
from qlora_ray.evaluation.target.target import MODEL_NAMES, Request, Target
from qlora_ray.modeling.identity import write_adapter_origin
from qlora_ray.modeling.loading import hash_base

INT8 = {"method": "int8", "double_quantization": False}


def write_adapter(folder: Path, *, base: str = "embedded") -> Path:
    folder.mkdir(parents=True)
    facts = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": base, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    save_file({"lora_A": np.ones((4, 8), dtype=np.float32)}, folder / "adapter_model.safetensors")
    return folder


def write_record(folder: Path, trial: str, **changes: Any) -> None:
    record = {
        "trial": trial,
        "state": "complete",
        "base": {"name": "embedded", "revision": None, "hash": "sha256:0"},
        "ran": {"quantization": INT8},
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record))


def write_sweep(folder: Path, *, winner: str | None = "0001") -> Path:
    """A sweep of three trials: 0000 pruned, 0001 and 0002 complete."""
    folder.mkdir(parents=True)
    config = SweepConfig().model_dump()
    config["data"]["max_length"] = 77
    (folder / "manifest.json").write_text(json.dumps({"config": config, "folder": str(folder), "data": {}}))
    write_record(folder / "trials" / "0000", "0000", state="pruned")
    for trial in ("0001", "0002"):
        write_record(folder / "trials" / trial, trial)
        write_adapter(folder / "trials" / trial / "adapter")
    summary = {"status": "complete" if winner else "no_winner", "winner": winner, "first_failure": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    if winner:
        write_record(folder / "best", winner)
        write_adapter(folder / "best" / "adapter")
    return folder


def write_model(folder: Path, *, merge_report: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if merge_report:
        (folder / "merge_report.json").write_text("{}")
    return folder


def find(target: Path | str, **request: Any) -> Target:
    return find_target(str(target), Request(**request))


def test_a_sweep_is_its_winner_on_the_base_and_quantization_of_its_record(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "x")
    target = find(sweep)
    assert (target.kind, target.trial, target.available) == ("sweep", "0001", ("base", "adapter"))
    assert target.adapter == sweep / "best" / "adapter"
    assert target.base is not None and target.base.name == "embedded"
    assert target.quantization is not None and target.quantization.method == "int8"
    assert target.base_hash == "sha256:0"
    assert target.config.data.max_length == 77
    assert target.to == sweep / "evaluation"


def test_a_trial_is_named_by_its_number_and_has_a_folder_of_its_own(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "x")
    target = find(sweep, trial="2")
    assert (target.trial, target.to) == ("0002", sweep / "trials" / "0002" / "evaluation")
    assert find(sweep, trial="1").to == find(sweep, trial="best").to == sweep / "evaluation"


def test_an_adapter_in_a_sweep_is_evaluated_as_the_sweep_would(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "x")
    best = find(sweep / "best" / "adapter")
    assert (best.kind, best.trial, best.to) == ("adapter", "0001", sweep / "evaluation")
    other = find(sweep / "trials" / "0002" / "adapter")
    assert (other.trial, other.to) == ("0002", sweep / "trials" / "0002" / "evaluation")
    assert best.config.data.max_length == other.config.data.max_length == 77
    assert best.quantization == other.quantization == find(sweep).quantization


def test_an_adapter_alone_is_loaded_on_nf4_and_that_is_said(tmp_path: Path) -> None:
    target = find(write_adapter(tmp_path / "adapter", base=str(write_model(tmp_path / "base"))))
    assert target.base is not None and target.base.name == str(tmp_path / "base")
    assert target.quantization is not None and target.quantization.method == "nf4"
    assert "no record says how it was trained" in target.notes[0]
    # Two adapters side by side do not share an evaluation.
    assert target.to == tmp_path / "adapter-evaluation"
    assert find(tmp_path / "adapter", overrides=["model.quantization.method=none"]).notes == []


def test_a_bundle_brings_its_merged_model_and_its_config(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_adapter(bundle / "adapter")
    write_record(bundle, "0001")
    write_model(bundle / "merged", merge_report=True)
    (bundle / "sweep.yaml").write_text("data: {max_length: 55}\n")
    target = find(bundle)
    assert (target.kind, target.available) == ("bundle", ("base", "adapter", "merged"))
    assert (target.config.data.max_length, target.to) == (55, tmp_path / "bundle-evaluation")


def test_a_model_folder_is_a_base_or_merged_by_its_report(tmp_path: Path) -> None:
    plain, merged = write_model(tmp_path / "plain"), write_model(tmp_path / "merged", merge_report=True)
    assert (find(plain).available, find(plain).quantization) == (("base",), None)
    assert find(merged).available == ("merged",)
    assert find(plain, overrides=["model.quantization.method=nf4"]).quantization is not None
    assert find("embedded").to == Path("results/evaluation-embedded")


def test_a_merged_model_joins_a_sweep(tmp_path: Path) -> None:
    merged = write_model(tmp_path / "merged")
    assert find(write_sweep(tmp_path / "x"), merged=merged).available == ("base", "adapter", "merged")
    with pytest.raises(ModelError, match=r"--merged .*gone: must be a model folder .* got no such folder"):
        find(tmp_path / "x", merged=tmp_path / "gone")


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ("9", r"--trial 9: no such trial in .*Complete trials: 0001, 0002\."),
        ("0", r"--trial 0: must be a complete trial, got one that is pruned\. Complete: 0001, 0002\."),
    ],
)
def test_a_trial_that_is_not_there_or_not_complete_is_named(tmp_path: Path, trial: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        find(write_sweep(tmp_path / "x"), trial=trial)


def test_a_sweep_without_a_winner_says_so_and_names_a_complete_trial(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "x", winner=None)
    with pytest.raises(RunError, match=r"must have a winner, got a sweep without one \(no_winner\).*--trial 0001"):
        find(sweep)
    (sweep / "summary.json").unlink()
    with pytest.raises(RunError, match="must have ended with a winner, got a sweep that has not ended"):
        find(sweep)


def test_a_base_that_is_gone_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", base="/gone/base")
    with pytest.raises(
        ModelError, match=r"its base must be there, got /gone/base \(no such folder\).*--set model.name="
    ):
        find(tmp_path / "adapter")
    target = find(tmp_path / "adapter", overrides=["model.name=embedded"])
    assert target.base is not None and target.base.name == "embedded"


def test_what_is_nothing_of_ours_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"must be a sweep .* got a folder with thesis.txt"):
        find(tmp_path)
    with pytest.raises(RunError, match="no such folder"):
        find(tmp_path / "gone")
    with pytest.raises(RunError, match="got a file"):
        find(tmp_path / "thesis.txt")
    with pytest.raises(ConfigError, match="only a sweep has trials"):
        find(write_model(tmp_path / "model"), trial="1")
    (tmp_path / "model" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ModelError, match="must describe a LoRA adapter"):
        find(tmp_path / "model")


def write_bundle(folder: Path, config: str = "{}\n") -> Path:
    write_adapter(folder / "adapter")
    write_record(folder, "0001")
    write_model(folder / "merged", merge_report=True)
    (folder / "sweep.yaml").write_text(config)
    return folder


def test_what_came_with_a_target_cannot_let_its_code_run(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "model: {trust_remote_code: true}\n")
    sweep = write_sweep(tmp_path / "x")
    manifest = json.loads((sweep / "manifest.json").read_text())
    manifest["config"]["model"]["trust_remote_code"] = True
    (sweep / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "mine.yaml").write_text("model: {trust_remote_code: true}\n")
    for location in (bundle, bundle / "adapter", sweep, sweep / "best" / "adapter"):
        target = find(location)
        assert target.base is not None
        assert not target.base.trust_remote_code and not target.config.model.trust_remote_code
        assert any("allow it with --set model.trust_remote_code=true" in note for note in target.notes)
        for allowed in ({"overrides": ["model.trust_remote_code=true"]}, {"config": tmp_path / "mine.yaml"}):
            target = find(location, **allowed)
            assert target.base is not None and target.base.trust_remote_code
            assert not any("trust" in note for note in target.notes)
    assert not find(bundle / "merged").config.model.trust_remote_code


def test_a_trials_folder_is_that_trial_of_its_sweep(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "x")
    for folder, trial, to in (
        (sweep / "best", "0001", sweep),
        (sweep / "trials" / "0001", "0001", sweep),
        (sweep / "trials" / "0002", "0002", sweep / "trials" / "0002"),
    ):
        target = find(folder)
        assert (target.kind, target.trial, target.to) == ("sweep", trial, to / "evaluation")
    with pytest.raises(RunError, match="must be a complete trial, got one that is pruned"):
        find(sweep / "trials" / "0000")


def test_the_parts_of_a_bundle_are_evaluated_beside_it(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "mine", "data: {max_length: 55}\n")
    adapter, merged = find(bundle / "adapter"), find(bundle / "merged")
    assert (adapter.kind, adapter.config.data.max_length, adapter.available) == ("adapter", 55, ("base", "adapter"))
    assert adapter.to == find(bundle).to == tmp_path / "mine-evaluation"
    assert (merged.available, merged.to) == (("merged",), tmp_path / "mine-merged-evaluation")


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
    target = find(write_sweep(tmp_path / "x"), config=tmp_path / "mine.yaml")
    assert target.quantization is not None and target.quantization.method == "int8"
    assert "loaded in int8, as its record says; --config has nf4" in target.notes[0]
    target = find(tmp_path / "x", overrides=["model={name: embedded, quantization: {method: nf4}}"])
    assert (target.quantization, target.quantization_reason) == (target.config.model.quantization, "as --set says")


def test_a_bundle_on_the_hub_is_found_by_its_adapter_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "snapshot")

    def download(repository: str, name: str) -> str:
        if not (bundle / name).is_file():
            raise EntryNotFoundError(f"404 {name}")
        return str(bundle / name)

    monkeypatch.setattr(finding, "reach_repository", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(bundle))
    target = find("me/my-bundle")
    assert (target.kind, target.path, target.trial) == ("bundle", "me/my-bundle", "0001")
    assert (target.available, target.to) == (MODEL_NAMES, Path("results/evaluation-me--my-bundle"))


def write_merged(folder: Path, base: Path, **report: Any) -> Path:
    """A merged model, and what its report says of its base."""
    write_model(folder)
    written = {"name": str(base), "revision": None, "hash": hash_base(Model(name=str(base)))}
    facts = {"base": written, "quantization": {"method": "int8", "double_quantization": False}, **report}
    (folder / "merge_report.json").write_text(json.dumps(facts))
    return folder


def test_a_merged_model_is_held_against_the_base_that_its_report_names(tmp_path: Path) -> None:
    merged = write_merged(tmp_path / "merged", write_model(tmp_path / "base"))
    target = find(merged)
    assert (target.kind, target.available, target.notes) == ("model", ("base", "merged"), [])
    assert target.base is not None and target.base.name == str(tmp_path / "base")
    assert target.quantization is not None and target.quantization.method == "int8"
    assert (target.quantization_reason, target.to) == ("as merge_report.json says", tmp_path / "merged-evaluation")


def test_a_merged_model_whose_base_is_gone_or_another_is_scored_alone_and_that_is_said(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    merged = write_merged(tmp_path / "merged", base)
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    for words in ("must be used on the base it was trained on", "no such folder"):
        target = find(merged)
        assert target.available == ("merged",)
        assert target.notes[0].startswith("the merged model is scored alone, its base cannot be had: ")
        assert words in target.notes[0]
        shutil.rmtree(base, ignore_errors=True)
    with pytest.raises(ModelError, match="no such folder"):
        find(merged, overrides=[f"model.name={base}"])
    moved = write_model(tmp_path / "moved")
    assert find(merged, overrides=[f"model.name={moved}"]).available == ("base", "merged")


def test_a_merged_model_in_a_bundle_has_the_bundles_rows(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "mine", "data: {max_length: 55}\n")
    shutil.rmtree(bundle / "merged")
    write_merged(bundle / "merged", write_model(tmp_path / "base"))
    target = find(bundle / "merged")
    assert (target.config.data.max_length, target.available) == (55, ("base", "merged"))
    assert target.to == tmp_path / "mine-merged-evaluation"
    (tmp_path / "mine.yaml").write_text("data: {max_length: 44}\n")
    assert find(bundle / "merged", config=tmp_path / "mine.yaml").config.data.max_length == 44


def write_own_origin(adapter: Path, **origin: Any) -> None:
    facts = {"trial": "0007", "base": {"name": "embedded", "hash": "sha256:7"}, "quantization": INT8, **origin}
    write_adapter_origin(adapter, facts)


def test_an_adapter_copied_without_its_record_says_itself_how_it_was_trained(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "copied", base="/gone/base")
    write_own_origin(adapter)
    target = find(adapter)
    assert target.quantization is not None and target.quantization.method == "int8"
    assert (target.quantization_reason, target.notes) == ("as its qlora_ray.json says", [])
    assert target.base is not None and target.base.name == "embedded"
    assert (target.trial, target.base_hash) == ("0007", "sha256:7")
    asked = find(adapter, overrides=["model.quantization.method=none"])
    assert asked.quantization is not None and asked.quantization.method == "none"
    write_record(tmp_path, "0001", ran={"quantization": {"method": "none"}})
    recorded = find(adapter)
    assert (recorded.quantization_reason, recorded.trial) == ("as its record says", "0001")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"qlora_ray\.json: cannot be read: .*Restore it, or delete it\."),
        ("[]", r"qlora_ray\.json: must say base and quantization, got something else"),
        ('{"base": {}, "quantization": 4}', r"must say base and quantization, got something else"),
        ('{"base": {}, "quantization": {"method": "gguf"}}', r"must name a quantization that is known, got 'gguf'"),
    ],
)
def test_an_adapters_own_word_that_is_none_is_refused(tmp_path: Path, content: str, words: str) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "qlora_ray.json").write_text(content)
    with pytest.raises(ModelError, match=words):
        find(adapter)


def test_a_base_named_anew_is_not_asked_for_the_commit_of_the_old_one(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "x")
    manifest = json.loads((sweep / "manifest.json").read_text())
    manifest["config"]["model"] |= {"name": str(write_model(tmp_path / "base")), "revision": "v1"}
    (sweep / "manifest.json").write_text(json.dumps(manifest))
    moved = write_model(tmp_path / "moved")
    for overrides, revision in (
        ([], "v1"),
        ([f"model.name={moved}"], None),
        ([f"model.name={moved}", "model.revision=v2"], "v2"),
    ):
        target = find(sweep, overrides=overrides)
        assert target.base is not None and target.base.revision == revision


def test_a_base_on_the_hub_is_pinned_to_the_commit_that_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(tmp_path / "adapter", base="org/tiny")
    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.publish("org/tiny", FIRST, write_model(tmp_path / "first"))
        for target in (adapter, "org/tiny"):
            target = find(target)
            assert target.base is not None and target.base.revision == FIRST
        with pytest.raises(ModelError, match="target: nope is neither a folder here nor a model on the hub"):
            find("nope")


@pytest.mark.parametrize("has_own_report", [True, False])
def test_a_copy_in_nf4_is_a_merged_model_too(tmp_path: Path, has_own_report: bool) -> None:
    bundle = write_bundle(tmp_path / "mine", "data: {max_length: 55}\n")
    shutil.rmtree(bundle / "merged")
    base = write_model(tmp_path / "base")
    for name in ("merged", "merged-nf4"):
        write_merged(bundle / name, base, nf4_copy="merged-nf4")
    if not has_own_report:
        # As older bundles have it.
        (bundle / "merged-nf4" / "merge_report.json").unlink()
    target, merged = find(bundle / "merged-nf4"), find(bundle / "merged")
    assert (target.config.data.max_length, target.available) == (55, ("base", "merged"))
    assert (target.base, target.quantization) == (merged.base, merged.quantization)
    assert target.to == tmp_path / "mine-merged-nf4-evaluation"


def test_a_model_that_is_only_called_like_a_copy_is_a_model(tmp_path: Path) -> None:
    write_merged(tmp_path / "merged", write_model(tmp_path / "base"), nf4_copy=None)
    assert find(write_model(tmp_path / "merged-nf4")).available == ("base",)
    assert find(write_model(tmp_path / "other-nf4")).available == ("base",)
