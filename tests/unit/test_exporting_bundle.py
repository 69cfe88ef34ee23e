"""The bundle's folder: what is in it, what it never overwrites, and that it is whole or not there."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from qlora_ray import embedded
from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError, RunError
from qlora_ray.exporting import bundle as bundle_module
from qlora_ray.exporting.bundle import write_bundle
from qlora_ray.exporting.merge.options import MergeOptions
from qlora_ray.exporting.selection import select_trial
from qlora_ray.modeling.identity import hash_adapter
from qlora_ray.modeling.loading import hash_base, load_tokenizer
from tests.exporting_fixtures import files_of, snapshot, write_sweep
from tests.sweep_folder import edited
from tests.sweep_records import make_evaluation

ALONE = {
    "README.md",
    "RUN_RECORD.md",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/qlora_ray.json",
    "adapter/tokenizer_config.json",
    "bundle.json",
    "record.json",
    "scores.json",
    "sweep.yaml",
    "trial.yaml",
}


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "s")


def write(sweep, to, *, trial="best", merge=None):
    return write_bundle(select_trial(sweep, trial=trial), to=to, merge=merge, device="cpu", tell=print)


def write_evaluation(folder, *, adapter, merged=None):
    """An evaluation as `evaluate` leaves one, of base and adapter, and of a merged model if its hash is given."""
    folder.mkdir()
    made = make_evaluation(models=("base", "adapter", "merged") if merged else ("base", "adapter"), exports={})
    made["target"] = {"kind": "sweep", "trial": "0001", "adapter": adapter}
    (folder / "evaluation.json").write_text(json.dumps(made))
    (folder / "evaluation.md").write_text("a table")
    (folder / "settings.json").write_text(json.dumps({"models": {"merged": {"hash": merged}} if merged else {}}))


def fake_merge(selection, folder, *args, **settings):
    """A merged model that is the same each time."""
    (folder / "merged").mkdir()
    (folder / "merged" / "config.json").write_text("{}")
    (folder / "merged" / "model.safetensors").write_bytes(b"weights")


def test_all_that_a_bundle_has_is_in_it_and_counted(sweep, tmp_path):
    bundle = write(sweep, tmp_path / "out" / "b")
    assert files_of(bundle.folder) == ALONE
    inventory = json.loads((bundle.folder / "bundle.json").read_text())
    assert inventory == bundle.inventory
    assert {file["path"] for file in inventory["files"]} == ALONE - {"bundle.json"}
    for file in inventory["files"]:
        content = (bundle.folder / file["path"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert bundle.name == "embedded-classicmodels_SFT_LoRa4_QLORA_w4_headfp32"
    assert inventory["trial"] == "0001" and inventory["merge"] is None


def test_a_bundle_with_a_merged_model_has_ollamas_file_of_it(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "_load_own_tokenizer", lambda *args: load_tokenizer(Model()))
    monkeypatch.setattr(bundle_module, "_merge", fake_merge)
    bundle = write(sweep, tmp_path / "b", merge=MergeOptions())
    lines = (bundle.folder / "Modelfile").read_text().splitlines()
    end = load_tokenizer(Model()).eos_token
    assert "FROM ./merged.gguf" in lines and f'PARAMETER stop "{end}"' in lines
    assert "Modelfile" in {file["path"] for file in bundle.inventory["files"]}


def test_the_adapter_is_the_winners_byte_by_byte_and_readable_by_all(sweep, tmp_path):
    folder = write(sweep, tmp_path / "b").folder
    source = sweep / "best" / "adapter" / "adapter_model.safetensors"
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == source.read_bytes()
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}
    assert json.loads((folder / "record.json").read_text())["adapter"] == "adapter"


def test_an_embedded_base_is_named_by_its_folder_and_that_is_said(sweep, tmp_path):
    bundle = write(sweep, tmp_path / "b")
    config = json.loads((bundle.folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(embedded.base_path())
    assert len(bundle.notes) == 1 and "embedded base" in bundle.notes[0]


def test_a_base_of_the_hub_is_named_by_its_id(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    sweep = write_sweep(tmp_path / "s", model={"name": "Qwen/Qwen3-0.6B", "revision": commit})
    bundle = write(sweep, tmp_path / "b")
    config = json.loads((bundle.folder / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("Qwen/Qwen3-0.6B", commit)
    assert bundle.notes == () and bundle.name.startswith("Qwen3-0.6B-classicmodels_SFT_")


def test_a_trial_that_has_no_tokenizer_gets_the_bases(sweep, tmp_path):
    folder = write(sweep, tmp_path / "b", trial="2").folder
    tokenizer = (folder / "adapter" / "tokenizer.json").read_bytes()
    assert json.loads(tokenizer)["model"] == json.loads((embedded.base_path() / "tokenizer.json").read_text())["model"]
    assert not (folder / "scores.json").exists()


MANIFEST, RECORD, SCORES = "manifest.json", "trials/0001/record.json", "best/scores.json"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        (MANIFEST, "command", "x"),
        (MANIFEST, "data.digests", ["x"]),
        (MANIFEST, "space", "x"),
        (RECORD, "base.name", None),
        (RECORD, "dataset", "x"),
        (RECORD, "dataset.num_rows", "x"),
        (RECORD, "dataset.num_rows.train", "x"),
        (RECORD, "dataset.num_rows.train", 0),
        (RECORD, "dataset.sources", ["x"]),
        (RECORD, "params", "x"),
        (RECORD, "params", {}),
        (RECORD, "params", {"nosuch": 1}),
        (RECORD, "params", {"nosuch.key": 1}),
        (RECORD, "params", {"lora.r": "x"}),
        (RECORD, "ran.training", "x"),
        (RECORD, "ran.training.learning_rate", "x"),
        (RECORD, "ran.training.lr_scheduler_type", None),
        (RECORD, "ran.training.optim", ["x"]),
        (RECORD, "ran.lora", "x"),
        (RECORD, "ran.lora.target_modules", "x"),
        (RECORD, "ran.quantization", "x"),
        (RECORD, "ran.quantization.compute_dtype", "x"),
        (RECORD, "ran.quantization.bits", None),
        (RECORD, "seeds.seed", "x"),
        (RECORD, "times.train_s", "x"),
        (RECORD, "times.closed", 1e300),
        (SCORES, "trial", ["x"]),
        (SCORES, "winner", "x"),
        (SCORES, "base", ["x"]),
        (SCORES, "base.metrics", ["x"]),
        (SCORES, "winner.loss", "x"),
        (SCORES, "winner.details", {"exact_match": 1.0}),
        (SCORES, "winner.sampling", "x"),
        (SCORES, "verdict", "x"),
        (SCORES, "verdict.split", ["x"]),
        (SCORES, "verdict.note", {"x": 1}),
    ],
)
def test_a_damaged_file_is_refused_by_its_name(sweep, tmp_path, file, key, value):
    path = sweep / file
    with edited(path) as written:
        *parents, last = key.split(".")
        functools.reduce(dict.__getitem__, parents, written)[last] = value
    with pytest.raises(RunError) as refused:
        write(sweep, tmp_path / "b")
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)
    assert key.split(".")[0] in str(refused.value)
    assert not (tmp_path / "b").exists()


def test_scores_that_are_no_object_are_refused(sweep, tmp_path):
    (sweep / SCORES).write_text("[]")
    with pytest.raises(RunError, match=r"best/scores\.json: must be a JSON object, got list\."):
        write(sweep, tmp_path / "b")


def test_the_evaluation_of_this_trial_and_the_report_go_along(sweep, tmp_path):
    for place, text, trial in ((sweep, "the winner's", "0001"), (sweep / "trials" / "0002", "the other's", "0002")):
        write_evaluation(place / "evaluation", adapter=hash_adapter(sweep / "trials" / trial / "adapter"))
        (place / "evaluation" / "evaluation.md").write_text(text)
    (sweep / "report.html").write_text("<html>")
    for trial, text in (("best", "the winner's"), ("2", "the other's")):
        folder = write(sweep, tmp_path / trial, trial=trial).folder
        assert (folder / "evaluation" / "evaluation.md").read_text() == text
        assert {"evaluation/evaluation.json", "evaluation/evaluation.md", "report.html"} <= files_of(folder)
        assert not (folder / "evaluation" / "settings.json").exists()
        assert "- `evaluation/evaluation.json`" in (folder / "RUN_RECORD.md").read_text()
        assert "| adapter | 3-shot |" in (folder / "README.md").read_text()


def test_a_trial_that_trained_again_since_its_evaluation_does_not_get_its_figures(sweep, tmp_path):
    adapter = sweep / "best" / "adapter"
    write_evaluation(sweep / "evaluation", adapter=hash_adapter(adapter))
    save_file({"x.lora_A.weight": np.full((4, 8), 2, np.float32)}, adapter / "adapter_model.safetensors")
    bundle = write(sweep, tmp_path / "b")
    assert files_of(bundle.folder) == ALONE and any("another adapter" in note for note in bundle.notes)


@pytest.mark.parametrize("merge", [None, MergeOptions()])
def test_figures_of_another_merged_model_are_not_on_the_card(sweep, tmp_path, monkeypatch, merge):
    monkeypatch.setattr(bundle_module, "_merge", fake_merge)
    adapter = hash_adapter(sweep / "best" / "adapter")
    write_evaluation(sweep / "evaluation", adapter=adapter, merged="sha256:other")
    card = (write(sweep, tmp_path / "b", merge=merge).folder / "README.md").read_text()
    assert "| merged |" not in card and "| adapter | 3-shot |" in card and "merged against" not in card


def test_the_evaluation_beside_the_bundle_goes_into_the_same_bundle_made_again(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "_merge", fake_merge)
    to = tmp_path / "b"
    write(sweep, to, merge=MergeOptions())
    adapter, merged = hash_adapter(to / "adapter"), hash_base(Model(name=str(to / "merged")))
    write_evaluation(tmp_path / "b-evaluation", adapter=adapter, merged=merged)
    again = write(sweep, to, merge=MergeOptions())
    assert "| merged | 3-shot |" in (to / "README.md").read_text()
    assert (to / "evaluation" / "evaluation.md").read_text() == "a table"
    assert not any("left out" in note for note in again.notes)


def test_paths_of_this_machine_in_the_configs_are_told(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    sweep = write_sweep(tmp_path / "s", data={"train": str(tmp_path / "rows.jsonl")})
    bundle = write(sweep, tmp_path / "b")
    assert "trial.yaml" in bundle.notes[-1] and str(tmp_path / "rows.jsonl") in bundle.notes[-1]
    assert str(tmp_path) not in (bundle.folder / "README.md").read_text()


def test_an_empty_folder_is_taken_and_an_earlier_bundle_is_replaced_whole(sweep, tmp_path):
    to = tmp_path / "b"
    to.mkdir()
    write(sweep, to, trial="2")
    assert (to / "adapter" / "tokenizer.json").exists()
    write(sweep, to)
    assert files_of(to) == ALONE


@pytest.mark.parametrize("is_earlier", [False, True])
def test_what_somebody_else_put_there_is_never_overwritten(sweep, tmp_path, is_earlier):
    to = tmp_path / "b"
    if is_earlier:
        write(sweep, to)
    else:
        to.mkdir()
    (to / "notes.txt").write_text("mine")
    before = snapshot(to)
    with pytest.raises(RunError, match=r"got one with notes\.txt"):
        write(sweep, to)
    assert snapshot(to) == before


@pytest.mark.parametrize("where", ["", "trials/0001", "trials/new", "best", "..", "logs/x"])
def test_the_sweeps_own_folders_are_no_target(sweep, where):
    before = snapshot(sweep)
    with pytest.raises(RunError, match="the sweep's own folder"):
        write(sweep, sweep / where)
    assert snapshot(sweep) == before


def test_a_folder_of_its_own_in_the_sweep_is_fine(sweep):
    assert files_of(write(sweep, sweep / "bundle").folder) == ALONE


def refuse(number):
    """A step that fails with this errno, as it does on a full disk or in another's folder."""

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(args[0]) if args else None)

    return fail


@pytest.mark.parametrize("is_earlier", [False, True])
def test_a_full_disk_leaves_what_was_there(sweep, tmp_path, monkeypatch, is_earlier):
    to = tmp_path / "deep" / "er" / "b"
    if is_earlier:
        write(sweep, to)
    before = snapshot(to) if is_earlier else None
    monkeypatch.setattr(bundle_module, "take_inventory", refuse(errno.ENOSPC))
    with pytest.raises(RunError, match=rf"--to {to}: cannot be written: No space"):
        write(sweep, to)
    if is_earlier:
        assert snapshot(to) == before and [path.name for path in to.parent.iterdir()] == ["b"]
    else:
        assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("where", ["copytree", "write_text", "tokenizer", "permission"])
def test_a_place_that_cannot_be_written_is_one_message_that_names_the_users_folder(sweep, tmp_path, monkeypatch, where):
    if where == "copytree":
        # What copytree raises is a list of tuples with temporary names.
        broken = functools.partial(shutil.copytree, copy_function=refuse(errno.ENOSPC))
        monkeypatch.setattr(bundle_module.shutil, "copytree", broken)
    elif where == "write_text":
        monkeypatch.setattr("os.fsync", refuse(errno.ENOSPC))
    elif where == "permission":
        # Whoever runs the tests may be allowed everything.
        monkeypatch.setattr("tempfile.mkdtemp", refuse(errno.EACCES))
    else:
        (sweep / "best" / "adapter" / "tokenizer_config.json").unlink()

        def of_rust(model):
            raise Exception("No space left on device (os error 28)")

        monkeypatch.setattr(bundle_module, "load_tokenizer", of_rust)
    cause = "Permission denied" if where == "permission" else "No space left on device"
    with pytest.raises(RunError, match=rf"^--to {tmp_path / 'b'}: cannot be written: {cause}\. ") as caught:
        write(sweep, tmp_path / "b")
    assert str(caught.value).count(str(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_a_merge_that_fails_leaves_nothing_and_names_the_users_folder(sweep, tmp_path, monkeypatch):
    def fail(adapter, *, to, **settings):
        (to / "half").mkdir(parents=True)
        raise RunError(f"{to}: the merged model must fit the disk, got a full one halfway.")

    monkeypatch.setattr(bundle_module, "merge_adapter", fail)
    with pytest.raises(RunError, match=rf"^{tmp_path / 'b'}/merged: "):
        write(sweep, tmp_path / "b", merge=MergeOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_a_merge_is_measured_on_rows_with_the_sweeps_labels_as_the_cache_has_them(tmp_path, monkeypatch):
    rows = [{"question": f"q {at}", "answer": "a", "kind": ("x", "y")[at % 2]} for at in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = str(tmp_path / "rows.jsonl")
    data = {"train": path, "validation": path}
    sweep = write_sweep(tmp_path / "s", data=data, heads={"kind": {"column": "kind"}})
    measured_on = []

    def stop(adapter, *, held_out, **settings):
        measured_on.append(held_out.heads)
        raise RunError("enough")

    monkeypatch.setattr(bundle_module, "merge_adapter", stop)
    with pytest.raises(RunError, match="enough"):
        write(sweep, tmp_path / "b", merge=MergeOptions())
    assert measured_on == [["kind"]]


def test_a_base_that_is_gone_leaves_nothing(sweep, tmp_path, monkeypatch):
    def gone(*args, **kwargs):
        raise ModelError("model.name: x is not a folder.")

    monkeypatch.setattr(bundle_module, "load_tokenizer", gone)
    with pytest.raises(ModelError, match="is not a folder"):
        write(sweep, tmp_path / "b", trial="2")
    assert not (tmp_path / "b").exists()


def test_on_a_base_that_is_stored_in_gptq_the_adapter_is_exported_alone_and_asked_for_more_refused(sweep, tmp_path):
    with edited(select_trial(sweep, trial="best").paths.trial("0001").record) as written:
        written["ran"]["quantization"] |= {
            "method": "gptq", "bits": 3, "backend": "gptqmodel", "block_size": 128, "double_quantization": False,
            "is_stored": True, "symmetric": True, "desc_act": True, "layout": "gptq",
        }  # fmt: skip
    bundle = write(sweep, tmp_path / "b", merge=MergeOptions())
    assert files_of(bundle.folder) == ALONE
    assert bundle.name.endswith("_GPTQ_w3_headfp32")
    assert any("stored in gptq with 3 bits in groups of 128, which takes no merge" in note for note in bundle.notes)
    record = (bundle.folder / "RUN_RECORD.md").read_text(encoding="utf-8")
    assert {f"- {line}" for line in ("desc_act=True", "block_size=128", 'layout="gptq"', "is_stored=True")} <= set(
        record.splitlines()
    )
    card = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert "gptq with 3 bits in groups of 128, as the base is stored, computed in fp32" in card
    with pytest.raises(ModelError, match=r"--merge: must be auto or none, .* stored in gptq"):
        write(sweep, tmp_path / "c", merge=MergeOptions(rule="dequant"))
