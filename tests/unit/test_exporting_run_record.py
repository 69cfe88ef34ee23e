"""RUN_RECORD.md against the template that it fills: every key is there, and every value is one."""

from __future__ import annotations

import re
import shlex

import pytest

from qlora_ray.exporting.run_record import NOT_RECORDED, render_run_record, resolved_command, value
from qlora_ray.exporting.selection import select_trial
from tests.exporting_fixtures import write_sweep
from tests.sweep_folder import edited

# The run-record template of the study that this record is for, its values left out.
TEMPLATE_KEYS = """
Date Commit Notebook Base model Train file Output dir
per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs warmup_ratio logging_steps
save_steps save_total_limit optim bf16 fp16 report_to
r lora_alpha lora_dropout bias target_modules
GPU CUDA available torch transformers peft trl bitsandbytes
seed data_seed
"""
TWO_WORDS = ("Base model", "Train file", "Output dir", "CUDA available")


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "s")


def render(sweep):
    return render_run_record(select_trial(sweep), name="X", evaluation_files=["evaluation/evaluation.json"])


def keys_of(text):
    return {re.split(r"[=:]", line[2:], maxsplit=1)[0] for line in text.splitlines() if line.startswith("- ")}


def test_each_key_of_the_template_is_there_once_and_has_a_value(sweep):
    text = render(sweep)
    for words in TWO_WORDS:
        assert words in TEMPLATE_KEYS
    wanted = set(re.sub("|".join(TWO_WORDS), "", TEMPLATE_KEYS).split()) | set(TWO_WORDS)
    assert wanted <= keys_of(text)
    assert text.startswith("### QLoRA Run Record: X\n")
    for title in ("TrainingArguments:", "LoRA:", "Environment:", "Evaluation outputs:"):
        assert f"\n{title}\n" in text
    assert "- `evaluation/evaluation.json`" in text


def test_no_value_is_a_placeholder_or_an_expression(sweep):
    text = render(sweep)
    assert re.findall(r"<[^>]*>", text) == []
    for line in text.splitlines():
        key, sign, found = line.removeprefix("- ").partition("=")
        if line.startswith("- ") and sign and re.fullmatch(r"\w+", key):
            assert re.match(r'(-?\d|"|True|False|None|\[|none)', found), line
    assert NOT_RECORDED not in text


def test_the_values_are_those_that_ran(sweep):
    text = render(sweep)
    for line in (
        "Date: 2023-11-14",
        "Commit: a5a89b5",
        "learning_rate=0.0098",
        "num_train_epochs=1.95122 (2400 samples of 1230 rows)",
        "warmup_ratio=0.05",
        "warmup_steps=15",
        "logging_steps=75 (4 reports)",
        'optim="adamw_torch"',
        "bf16=False",
        "r=4",
        "lora_alpha=8",
        'target_modules=["q_proj", "v_proj"]',
        "block_size=64",
        "GPU: none (CPU: A CPU)",
        "trl=1.16.0",
        "search_seed=7",
    ):
        assert f"- {line}\n" in text
    assert "- Train file: `embedded/train.jsonl` (n=1230, overlap check=pass, sha256=68d50b6a" in text


def test_the_command_can_be_typed_again(sweep):
    (command,) = re.findall("- Command: `(.+)`", render(sweep))
    assert shlex.split(command) == ["python", "-m", "qlora_ray.sweep", "--set", "results.name=it's a b"]
    assert resolved_command(None) is None


def test_on_a_gpu_the_precision_that_ran_is_told(sweep):
    with edited(sweep / "trials" / "0001" / "record.json") as record:
        record |= {"bf16": False, "fp16": True}
        record["executor"] |= {"device": "Tesla T4", "cuda_available": True, "cuda": "12.8", "compute_capability": 7.5}
    text = render(sweep)
    for line in ("bf16=False", "fp16=True", "GPU: Tesla T4", "CUDA available: True", "CUDA: 12.8"):
        assert f"- {line}\n" in text


def test_what_is_not_known_is_said_to_be(sweep):
    with edited(sweep / "trials" / "0001" / "record.json") as record:
        record["git"] = {"commit": None, "dirty": None}
        record["executor"] = {}
        record["memory"] = {"peak_bytes": None, "estimated_bytes": None}
        record["bf16"] = None
    text = render(sweep)
    for key in ("Commit: ", "GPU: ", "CUDA available: ", "bf16=", "peak_memory_bytes="):
        assert f"- {key}{NOT_RECORDED}\n" in text
    assert "None" not in text.replace("modules_to_save=None", "")


def test_uncommitted_changes_are_told(sweep):
    with edited(sweep / "trials" / "0001" / "record.json") as record:
        record["git"]["dirty"] = True
    assert "- Commit: a5a89b5 (with uncommitted changes)\n" in render(sweep)


def test_reports_that_are_not_evenly_apart_are_told_one_by_one(tmp_path):
    # 50 steps and 4 reports: the nearest steps to 12.5, 25, 37.5 and 50.
    sweep = write_sweep(tmp_path / "s", training={"max_samples": 400})
    assert "- logging_steps=[12, 25, 38, 50] (4 reports)\n" in render(sweep)


@pytest.mark.parametrize(
    ("found", "text"),
    [(2.0, "2"), (1e-4, "0.0001"), (0.009820427646968614, "0.009820427646968614"), ("a", '"a"'), (True, "True")],
)
def test_a_value_loses_no_digit(found, text):
    assert value(found) == text
