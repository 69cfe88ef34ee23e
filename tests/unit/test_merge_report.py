"""The merge's report survives JSON and reads as a table."""

from __future__ import annotations

import dataclasses
import json
import math

from qlora_ray.exporting.merge.report import MeasuredModel, MergeReport
from qlora_ray.runs import read_json, write_json
from tests.sweep_records import MERGE_REPORT


def test_a_report_is_the_same_after_json_and_one_of_a_later_version_is_read_without_what_is_new():
    data = json.loads(json.dumps(MERGE_REPORT.to_dict()))
    assert MergeReport.from_dict(data) == MERGE_REPORT and MERGE_REPORT.kept.name == "dequant"
    data |= {"later": 1}
    data["models"][0]["later"] = 2
    assert MergeReport.from_dict(data) == MERGE_REPORT


def test_a_figure_that_was_nan_and_is_null_in_json_is_read_and_told(tmp_path):
    broken = MeasuredModel("w16", math.nan, math.nan, math.nan, math.nan, 0.5, "fp16", 0.9, 0.5, 100, 1)
    report = dataclasses.replace(MERGE_REPORT, models=[MERGE_REPORT.models[0], broken, MERGE_REPORT.models[2]])
    write_json(tmp_path / "merge_report.json", report.to_dict())
    data = read_json(tmp_path / "merge_report.json")
    assert data["models"][1]["kl"] is None
    assert MergeReport.from_dict(data).lines() == report.lines()
    assert report.lines()[2].split()[:5] == ["w16", "fp16", "nan", "+nan", "nan"]


def test_the_table_marks_what_was_kept_and_leaves_blank_what_was_not_measured():
    lines = MERGE_REPORT.lines()
    assert lines[0].split()[:3] == ["model", "weights", "loss"]
    assert lines[2].split() == ["w16", "bf16", "0.1000", "+0.0200", "2.00e-02", "99.0", "%", "81.2", "%", "99.1", "%"]
    assert lines[3].split() == ["dequant", "*", "bf16", "0.0801", "+0.0001", "1.00e-03", "100.0", "%", "99.1", "%"]
    assert lines[5] == f"Kept: dequant. {MERGE_REPORT.reason}"
    assert all(fact in lines[6] for fact in ("64 rows of validation", "2261 answer tokens", "16 greedy answers"))
    assert lines[-1] == "A note."
