from __future__ import annotations

from pathlib import Path

from qlora_ray.reporting.examples import NOT_ENDED, Example, read_examples
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.files import append_line


def test_an_answer_that_the_model_did_not_end_says_why_it_ends_there(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)
    paths.best.mkdir()
    ends = {0: ("stop", "settled"), 1: ("length", "loop"), 2: (None, "stop")}
    for row, finishes in ends.items():
        for model, finish in zip(("0003", "base"), finishes, strict=True):
            line = {"model": model, "row": row, "answer": f"{model} says", "reference": "7", "finish": finish}
            append_line(paths.best / "answers.jsonl", line)
    settled, loop, cut = (NOT_ENDED[finish] for finish in ("settled", "loop", "length"))
    assert read_examples(paths, "0003") == (
        Example(0, "7", f"base says {settled}", "0003 says"),
        Example(1, "7", f"base says {loop}", f"0003 says {cut}"),
        Example(2, "7", "base says", "0003 says"),
    )


def test_lines_of_other_types_are_passed_over(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)
    paths.best.mkdir()
    for line in ({"model": [], "row": 0}, {"model": "base", "row": [0]}, {"model": {}, "row": None}, {"model": "base"}):
        append_line(paths.best / "answers.jsonl", line)
    assert read_examples(paths, "0003") == ()
