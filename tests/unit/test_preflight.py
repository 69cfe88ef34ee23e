"""What is found wrong before anything starts, and what a resumed sweep's manifest keeps."""

from __future__ import annotations

import json

import pytest

from qlora_ray.config import load_config
from qlora_ray.errors import DataError
from qlora_ray.orchestration.preflight import add_resume, check_sweep
from qlora_ray.search.parsing import load_space


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


def test_a_resumed_sweep_keeps_how_it_began_and_adds_how_it_goes_on():
    def manifest(command, commit, plan):
        return {
            "command": [command],
            "folder": "/home/ann",
            "qlora_ray": "0.1.0",
            "versions": {"torch": "2.13.0"},
            "git": {"commit": commit},
            "plan": plan,
        }

    first = manifest("sweep --config a.yaml", "aaa", "one GPU")
    once = add_resume(first, manifest("sweep --resume r", "bbb", "two GPUs"))
    twice = add_resume(once, manifest("sweep --resume r", "ccc", "no GPU"))
    assert (twice["command"], twice["git"], twice["plan"]) == (["sweep --config a.yaml"], {"commit": "aaa"}, "no GPU")
    assert [one["git"]["commit"] for one in twice["resumes"]] == ["bbb", "ccc"]
