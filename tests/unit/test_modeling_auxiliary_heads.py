"""The file of auxiliary heads: safetensors that say what they are, and nothing that runs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qlora_ray.errors import ModelError
from qlora_ray.modeling.auxiliary_heads import HeadSpec, TrainedHead, load_heads, save_heads

SPECS = [
    HeadSpec("mood", "mood", ("sad", "glad"), "prompt", 0.3),
    # A name that torch's modules have themselves.
    HeadSpec("type", "kind", ("1", "2", "3"), "mean", 1.0),
]


def make_heads() -> list[TrainedHead]:
    return [TrainedHead(spec, torch.randn(len(spec.classes), 4)) for spec in SPECS]


def test_heads_come_back_as_they_were_saved(tmp_path):
    heads = make_heads()
    save_heads(heads, tmp_path)
    again = load_heads(tmp_path)
    assert [head.spec for head in again] == SPECS
    assert all(torch.equal(one.weight_CD, other.weight_CD) for one, other in zip(heads, again, strict=True))


def test_the_file_can_be_read_by_safetensors_alone(tmp_path):
    save_heads(make_heads(), tmp_path)
    with safe_open(tmp_path / "heads.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"mood.weight", "type.weight"}
        assert json.loads(file.metadata()["heads"])["mood"]["classes"] == ["sad", "glad"]


def test_without_heads_there_is_no_file(tmp_path):
    save_heads([], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert load_heads(tmp_path) == []


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"heads": "no json"},
        {"heads": "[1]"},
        {"heads": "[" * 100_000},
        {"heads": json.dumps({"mood": {"column": "mood"}})},
        {"heads": json.dumps({"mood": {"column": "m", "classes": ["a", "b", "c"], "pooling": "last", "weight": 1}})},
        {"heads": json.dumps({"act": {"column": "m", "classes": ["a", "b"], "pooling": "last", "weight": 1}})},
        {"heads": json.dumps({"mood": {"column": "m", "classes": ["a", "b"], "pooling": "first", "weight": 1}})},
    ],
)
def test_a_file_that_does_not_say_what_its_matrices_are_is_refused(tmp_path, metadata):
    save_file({"mood.weight": torch.zeros(2, 4)}, tmp_path / "heads.safetensors", metadata=metadata)
    with pytest.raises(ModelError, match=r"heads.safetensors: must hold auxiliary heads .* take it away"):
        load_heads(tmp_path)


def test_a_file_that_is_not_whole_is_refused(tmp_path):
    (tmp_path / "heads.safetensors").write_bytes(b"\x00\x01")
    with pytest.raises(ModelError, match=r"heads.safetensors"):
        load_heads(tmp_path)


def test_heads_of_another_width_than_the_base_are_refused(tmp_path):
    facts = {"mood": {"column": "m", "classes": ["a", "b"], "pooling": "last", "weight": 1}}
    save_file({"mood.weight": torch.zeros(2, 4)}, tmp_path / "heads.safetensors", {"heads": json.dumps(facts)})
    assert len(load_heads(tmp_path, hidden_size=4)) == 1
    with pytest.raises(ModelError, match=r"wide as the base's 8, got 4 in head mood\. Name the base"):
        load_heads(tmp_path, hidden_size=8)
