"""What is found wrong before anything starts, and what a resumed sweep's manifest keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_ray.config import load_config
from qlora_ray.errors import ConfigError, DataError, RunError
from qlora_ray.hardware import Plan
from qlora_ray.plan import main
from qlora_ray.preflight.checks import check_sweep
from qlora_ray.preflight.manifest import add_resume, check_same_inputs, common_facts
from qlora_ray.runs.record_parts import BaseRecord, DataRecord, GitState, PlanRecord
from qlora_ray.runs.records import Manifest
from qlora_ray.runs.typed_json import parse_record
from qlora_ray.search.parsing import load_space
from tests.unit.hub_fixtures import FIRST, SECOND, use_download_hub
from tests.unit.model_fixtures import copy_base


def write_rows(path, answers):
    rows = [{"question": f"What is {number} and {number}?", "answer": one} for number, one in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_test_row_that_could_not_be_scored_at_the_end_is_found_at_the_start(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", [f"It is {number}.\n#### {number}" for number in range(12)])
    test = write_rows(tmp_path / "test.jsonl", ["#### 7", "There is no way to tell."])
    config = load_config(
        None,
        overrides=[
            f"data.train={train}",
            f"data.test={test}",
            "data.validation=0.25",
            "evaluate.metrics=[numeric]",
            "training.max_samples=64",
        ],
    )
    with pytest.raises(DataError, match=r"^test: numeric: the reference of row 1 must hold a number"):
        check_sweep(config, load_space(config))


@pytest.mark.parametrize(
    ("space", "options", "words"),
    [
        ("{training.lr_scheduler_type: {choices: [linear, cosine_with_min_lr]}}", "{}", "cosine_with_min_lr needs"),
        (
            "{training.learning_rate: {low: 1.0e-5, high: 1.0}, training.lr_scheduler_type: {choices: [polynomial]}}",
            "{lr_end: 1.0e-4}",
            "learning_rate 1e-05 and",
        ),
        ("{training.warmup_steps: {choices: [0, 500]}}", "{}", "training.warmup_steps: must be fewer"),
    ],
)
def test_a_schedule_that_only_some_trials_would_have_is_checked_too(space, options, words):
    config = load_config(
        None,
        overrides=[f"search.space={space}", f"training.lr_scheduler_kwargs={options}", "training.max_samples=64"],
    )
    with pytest.raises(ConfigError, match=words):
        check_sweep(config, load_space(config))


def test_a_new_sweep_begins_with_the_recommended_rates_and_a_resumed_one_with_those_that_it_had():
    steps = ["training.max_samples=2400", "training.gradient_accumulation_steps=1"]
    config = load_config(None, overrides=[*steps, "training.per_device_train_batch_size=8"])
    space = load_space(config)
    new = check_sweep(config, space).space.recommended_points
    # 5e-4 x (2000 / 192)^0.781, the embedded base's width, three times it, and a third.
    rates = [point["training.learning_rate"] for point in new]
    assert rates == pytest.approx([3.1e-3, 9.3e-3, 3.1e-3 / 3])
    assert check_sweep(config, space, is_resume=True).space == space


def test_a_resumed_sweep_keeps_how_it_began_and_adds_how_it_goes_on():
    def manifest(command, commit, num_slots):
        return Manifest(
            command=(command,),
            folder="/home/ann",
            qlora_ray="0.1.0",
            git=GitState(commit=commit),
            plan=PlanRecord(total_slots=num_slots),
        )

    first = manifest("sweep --config a.yaml", "aaa", 1)
    once = add_resume(first, manifest("sweep --resume r", "bbb", 2))
    more = replace(once, config={"search": {"num_trials": 9}}, space={"lora.r": {"low": 1, "high": 9}})
    few = replace(first, config={"search": {"num_trials": 4}}, space={"lora.r": {"low": 1, "high": 8}})
    assert add_resume(few, more).resumes[0].changes == (
        "search.num_trials: was 4, now 9",
        "search space lora.r: was {'low': 1, 'high': 8}, now {'low': 1, 'high': 9}",
    )
    assert once.resumes[0].changes == ()
    twice = add_resume(once, manifest("sweep --resume r", "ccc", 3))
    assert (twice.command, twice.git.commit, twice.plan.total_slots) == (first.command, "aaa", 3)
    assert [run.git.commit for run in twice.resumes] == ["bbb", "ccc"]


def test_a_resumed_sweep_keeps_the_base_it_began_with_and_tells_of_the_commit_it_goes_on_with():
    began = BaseRecord(name="org/tiny", hash="hub:org/tiny@main")
    pinned = BaseRecord(name="org/tiny", revision=FIRST, hash=f"hub:org/tiny@{FIRST}")
    manifest = add_resume(Manifest(base=began), Manifest(base=pinned))
    assert manifest.base == began
    assert [run.base for run in manifest.resumes] == [pinned]
    assert add_resume(Manifest(base=pinned), Manifest(base=pinned)).resumes[0].base is None


def test_references_longer_than_an_answer_may_be_are_told_before_training(tmp_path, capsys):
    answers = [f"{'so ' * 30}it is {number}.\n#### {number}" for number in range(12)]
    train = write_rows(tmp_path / "train.jsonl", answers)
    test = write_rows(tmp_path / "test.jsonl", ["#### 7", *answers[:3]])
    overrides = [
        f"data.train={train}",
        f"data.test={test}",
        "data.columns={prompt: question, completion: answer}",
        "data.validation=0.25",
        "training.max_samples=64",
    ]

    def notes_of(*more):
        config = load_config(None, overrides=[*overrides, *more])
        return check_sweep(config, load_space(config)).notes

    told = "test: 3 of 4 references are longer than evaluate.max_new_tokens (24): such answers are cut. Raise it."
    assert notes_of("evaluate.max_new_tokens=24") == [told]
    assert notes_of("evaluate.max_new_tokens=24", "evaluate.max_rows=1", "data.row_choice=first") == []
    assert notes_of("evaluate.max_new_tokens=24", "evaluate.metrics=[]") == []
    assert notes_of() == []
    short = notes_of("evaluate.max_length=30")
    assert len(short) == 1 and "fewer than" in short[0] and "evaluate.max_length" in short[0]
    # The first row's reference is the shortest, and all of them say how long answers may be.
    first = notes_of("evaluate.max_length=30", "evaluate.max_rows=1")
    assert len(first) == 1 and first[0].split(" tokens")[0] == short[0].split(" tokens")[0].replace("4 ans", "1 ans")
    values = [part for one in (*overrides, "evaluate.max_new_tokens=24") for part in ("--set", one)]
    assert main(["--config", "configs/quickstart.yaml", *values]) == 0
    assert capsys.readouterr().out.startswith(f"note  {told}\n")


def test_a_sweep_on_a_base_of_the_hub_is_one_commit_from_its_start_to_its_last_resume(tmp_path, monkeypatch):
    config = load_config(Path("configs/quickstart.yaml"), overrides=["model.name=org/tiny"])
    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        first = copy_base(tmp_path / "first")
        hub.publish("org/tiny", FIRST, first)
        preflight = check_sweep(config, load_space(config))
        common = common_facts(preflight)
        assert common.base == BaseRecord(name="org/tiny", revision=FIRST, hash=f"hub:org/tiny@{FIRST}")
        # What the executors and the manifest are given; main has moved since.
        hub.publish("org/tiny", SECOND, first)
        assert preflight.config.model.revision == FIRST
        assert common_facts(preflight).base == common.base
    manifest = Manifest(data=DataRecord(fingerprint=preflight.data.report.fingerprint), base=common.base)
    assert check_same_inputs(preflight, manifest, common=common) == []
    # A sweep of before commits were recorded can be resumed.
    manifest = replace(manifest, base=replace(common.base, hash="hub:org/tiny@main"))
    [note] = check_same_inputs(preflight, manifest, common=common)
    assert "could not be verified" in note and "@main" in note and note.endswith(f"goes on with hub:org/tiny@{FIRST}")
    for other in (f"hub:org/tiny@{SECOND}", "hub:org/other@main", "sha256:0"):
        manifest = replace(manifest, base=replace(common.base, hash=other))
        with pytest.raises(RunError, match="--resume: the base must be what the sweep began with"):
            check_same_inputs(preflight, manifest, common=common)


def test_rows_are_known_by_their_content_wherever_their_files_lie(tmp_path):
    answers = [f"{number}" for number in range(12)]
    (tmp_path / "moved").mkdir()

    def check(folder):
        values = [f"data.train={folder / 'train.jsonl'}", f"data.validation={folder / 'held.jsonl'}"]
        config = load_config(None, overrides=[*values, "training.max_samples=64", "data.max_length=64"])
        return check_sweep(config, load_space(config))

    for folder in (tmp_path, tmp_path / "moved"):
        write_rows(folder / "train.jsonl", answers)
        write_rows(folder / "held.jsonl", answers[:3])
    first = check(tmp_path)
    common = common_facts(first)
    manifest = Manifest(
        config=first.config.model_dump(),
        data=parse_record(DataRecord, first.data.report.to_dict()),
        base=common.base,
    )
    assert check_same_inputs(check(tmp_path / "moved"), manifest, common=common) == []
    write_rows(tmp_path / "moved" / "train.jsonl", ["0", *answers[2:], "1"])
    write_rows(tmp_path / "moved" / "held.jsonl", answers[:2])
    with pytest.raises(RunError, match="--resume: the data must be what the sweep began with") as caught:
        check_same_inputs(check(tmp_path / "moved"), manifest, common=common)
    lines = str(caught.value).splitlines()[1:]
    assert lines[0] == f"  train: {tmp_path / 'moved' / 'train.jsonl'} has other content than when the sweep began"
    assert lines[1] == "  validation: was 3 rows, now 2" and len(lines) == 2


def test_a_plan_for_named_gpus_needs_none_of_them_and_says_all_there_is_to_know(capsys):
    assert main(["--gpus", "T4:2,A100-40:1,GTX1650:1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["result"]
    assert [(item["gpu_class"], item["num_devices"], item["precision"]["name"]) for item in plan["placements"]] == [
        ("A100-40", 1, "bf16"),
        ("T4", 2, "fp16"),
        ("GTX1650", 1, "fp16"),
    ]
    forecast = plan["forecast"]
    assert (forecast["num_trials"], forecast["num_samples"], forecast["most_steps"]) == (12, 2400, 300)
    assert forecast["least_tokens"] < forecast["most_tokens"]
    assert 0 < forecast["least_gpu_hours"] < forecast["most_gpu_hours"]
    assert {item["device_name"] for item in forecast["classes"]} == {i["device_name"] for i in plan["placements"]}
    assert json.loads(json.dumps(Plan.from_dict(plan).to_dict())) == {
        key: value for key, value in plan.items() if key not in ("forecast", "config_notes")
    }


def test_a_plan_counts_the_trials_that_final_seeds_add(capsys):
    found = []
    for seeds in (0, 2):
        assert main(["--gpus", "T4", "--json", "--set", f"search.final_seeds={seeds}"]) == 0
        found.append(json.loads(capsys.readouterr().out)["result"]["forecast"])
    without, with_seeds = found
    # Two new seeds for each of the best three of twelve.
    assert (without["num_seed_trials"], with_seeds["num_seed_trials"]) == (0, 6)
    assert with_seeds["most_tokens"] == without["most_tokens"] * 18 // 12
    # At least the winner of the search gets new seeds, and no scheduler stops them.
    assert with_seeds["least_tokens"] == without["least_tokens"] + 2 * without["most_tokens"] // 12


def test_a_gpu_that_the_catalogue_lacks_is_said_before_anything_is_read(capsys):
    assert main(["--gpus", "T44", "--set", "model.name=/nowhere"]) == 2
    assert "got 'T44'. Did you mean T4?" in capsys.readouterr().err


def test_a_plan_speaks_of_the_cluster_that_the_environment_names(monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main([]) == 2
    assert "127.0.0.1:1" in capsys.readouterr().err
