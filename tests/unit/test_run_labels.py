"""The rows of an evaluation with labels by the numbers that the adapter's heads know."""

from __future__ import annotations

import json

import pytest
import torch

from qlora_ray.config.schema import SweepConfig
from qlora_ray.data import prepare_data
from qlora_ray.evaluation.run.labels import prepare_labelled
from qlora_ray.modeling.auxiliary_heads import HeadSpec, TrainedHead
from tests.unit.data_tokenizer import build_byte_level

HEADS = {"mood": {"column": "mood"}}


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_level()


def make_config(folder, *, column: str = "mood", heads: dict | None = None) -> SweepConfig:
    rows = [{"question": f"q {at}", "answer": "a", column: ("sad", "glad", None)[at % 3]} for at in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = str(folder / "rows.jsonl")
    values = {"data": {"train": path, "validation": path}, "heads": HEADS if heads is None else heads}
    return SweepConfig.model_validate(values)


def trained(*classes: str) -> list[TrainedHead]:
    return [TrainedHead(HeadSpec("mood", "mood", classes, "prompt"), torch.zeros(len(classes), 2))]


def test_a_sweeps_rows_are_those_of_its_config(tokenizer, tmp_path):
    config = make_config(tmp_path)
    prepared, used, notes = prepare_labelled(config, trained("glad", "sad"), tokenizer)
    own = prepare_data(config.data, tokenizer=tokenizer, data_seed=config.training.data_seed, heads=config.heads)
    assert notes == []
    assert prepared.report.fingerprint == own.report.fingerprint
    assert used == config.heads
    assert prepared.train.labels("mood").tolist() == [1, 0, -1] * 3


@pytest.mark.parametrize("heads", [HEADS, {}], ids=["a config of other classes", "an adapter alone"])
def test_the_numbers_are_those_of_the_heads_classes(heads, tokenizer, tmp_path):
    prepared, used, notes = prepare_labelled(
        make_config(tmp_path, heads=heads), trained("sad", "calm", "glad"), tokenizer
    )
    assert notes == []
    assert prepared.train.labels("mood").tolist() == [0, 2, -1] * 3
    assert list(used["mood"].classes) == ["sad", "calm", "glad"]


@pytest.mark.parametrize("heads", [HEADS, {}])
def test_rows_without_labels_are_evaluated_without_heads_and_that_is_said(heads, tokenizer, tmp_path):
    config = make_config(tmp_path, column="tone", heads=heads)
    prepared, used, notes = prepare_labelled(config, trained("glad", "sad"), tokenizer)
    assert (prepared.train.heads, used) == ([], {})
    (note,) = notes
    assert note.startswith("heads are not scored: heads.mood.column")


def test_an_adapter_without_heads_is_evaluated_as_ever(tokenizer, tmp_path):
    prepared, used, notes = prepare_labelled(make_config(tmp_path, heads={}), [], tokenizer)
    assert (prepared.train.heads, used, notes) == ([], {}, [])
