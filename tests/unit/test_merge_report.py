"""The merge's report survives JSON and reads as a table."""

from __future__ import annotations

import dataclasses
import json
import math

from qlora_ray.exporting.merge.report import MeasuredModel, MergeReport
from qlora_ray.runs import read_json, write_json

REPORT = MergeReport(
    rule="dequant",
    reason="Its KL from the trained model is lower: 0.001 against 0.02 nats per token for w16.",
    options={"rule": "auto"},
    dtype="bf16",
    head_dtype="bf16",
    tying="tied",
    adapter={"kind": "LoRA", "r": 4},
    base={"name": "embedded"},
    quantization={"method": "nf4"},
    rows={"split": "validation", "num_rows": 64, "num_positions": 2261, "num_answers": 16},
    models=[
        MeasuredModel("nf4 + adapter", 0.08, 0.0, 0.0, 1.0, 1.0, "nf4"),
        MeasuredModel("w16", 0.1, 0.02, 0.02, 0.99, 0.8125, "bf16", 0.991, 0.5, 100, 1),
        MeasuredModel("dequant", 0.0801, 0.0001, 0.001, 1.0, None, "bf16", 0.991, 0.5, 100, 1),
    ],
    notes=["A note."],
    nf4_copy=None,
    seconds=8.3,
    peak_memory_bytes=1000,
    versions={"torch": "2.13.0"},
)


def test_a_report_is_the_same_after_json_and_one_of_a_later_version_is_read_without_what_is_new():
    data = json.loads(json.dumps(REPORT.to_dict()))
    assert MergeReport.from_dict(data) == REPORT and REPORT.kept.name == "dequant"
    data |= {"later": 1}
    data["models"][0]["later"] = 2
    assert MergeReport.from_dict(data) == REPORT


def test_a_figure_that_was_nan_and_is_null_in_json_is_read_and_told(tmp_path):
    broken = MeasuredModel("w16", math.nan, math.nan, math.nan, math.nan, 0.5, "fp16", 0.9, 0.5, 100, 1)
    report = dataclasses.replace(REPORT, models=[REPORT.models[0], broken, REPORT.models[2]])
    write_json(tmp_path / "merge_report.json", report.to_dict())
    data = read_json(tmp_path / "merge_report.json")
    assert data["models"][1]["kl"] is None
    assert MergeReport.from_dict(data).lines() == report.lines()
    assert report.lines()[2].split()[:5] == ["w16", "fp16", "nan", "+nan", "nan"]


def test_the_table_marks_what_was_kept_and_leaves_blank_what_was_not_measured():
    lines = REPORT.lines()
    assert lines[0].split()[:3] == ["model", "weights", "loss"]
    assert lines[2].split() == ["w16", "bf16", "0.1000", "+0.0200", "2.00e-02", "99.0", "%", "81.2", "%", "99.1", "%"]
    assert lines[3].split() == ["dequant", "*", "bf16", "0.0801", "+0.0001", "1.00e-03", "100.0", "%", "99.1", "%"]
    assert lines[5] == f"Kept: dequant. {REPORT.reason}"
    assert all(fact in lines[6] for fact in ("64 rows of validation", "2261 answer tokens", "16 greedy answers"))
    assert lines[-1] == "A note."
