"""Labels of auxiliary heads: read beside the rows, numbered by the training rows' classes, kept in the cache."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from qlora_ray.config.heads import Head
from qlora_ray.config.schema import Data
from qlora_ray.data import labels as labels_module
from qlora_ray.data import prepare_data, sharding, split_examples, tokenizing
from qlora_ray.data.cache import compute_fingerprint
from qlora_ray.errors import DataError
from tests.unit.data_tokenizer import build_byte_level

MOODS = ["sad", "glad", None, " sad ", "", "angry"]
HEADS = {"mood": Head(column="mood"), "turn": Head(column="number", classes=["1", "0"])}


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_level()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(path, moods, **more):
    rows = [
        {"question": f"{path.stem} {at}", "answer": "a", "mood": mood, "number": at % 3, **more}
        for at, mood in enumerate(moods)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(tokenizer, heads=None, **data):
    values = {"train": "train.jsonl", "validation": "validation.jsonl", **data}
    chosen = HEADS if heads is None else heads
    return prepare_data(Data(**values), tokenizer=tokenizer, data_seed=7, heads=chosen, cache_dir=Path("cache"))


def warnings_with(report, *words):
    return [line for line in report.warnings if all(word in line for word in words)]


def test_classes_are_the_sorted_labels_of_the_training_rows_and_a_row_without_one_has_minus_1(folder, tokenizer):
    write_rows(folder / "train.jsonl", MOODS)
    write_rows(folder / "validation.jsonl", ["glad", "bored", None])
    prepared = prepare(tokenizer)
    report = prepared.report
    assert report.classes == {"mood": ["angry", "glad", "sad"], "turn": ["1", "0"]}
    assert prepared.train.labels("mood").tolist() == [2, 1, -1, 2, -1, 0]
    # The classes that the config names have its order; 2 is none of them.
    assert prepared.train.labels("turn").tolist() == [1, 0, -1, 1, 0, -1]
    assert prepared.train.labels("mood").dtype == "int32"
    assert report.num_labelled["train"] == {"mood": 4, "turn": 4}
    # The first validation rows are a sample of all: their order is drawn.
    found = {
        tokenizer.decode(ids).split("validation ")[1][0]: label
        for ids, label in zip(prepared.validation.input_ids, prepared.validation.labels("mood").tolist(), strict=True)
    }
    assert found == {"0": 1, "1": -1, "2": -1}
    assert "not used" not in report.format_reason
    assert len(warnings_with(report, "validation: 1 row", "no class of head mood")) == 1


def test_labels_come_again_from_the_cache_and_other_columns_or_classes_are_other_data(folder, tokenizer):
    write_rows(folder / "train.jsonl", MOODS, tone="x")
    write_rows(folder / "validation.jsonl", MOODS)
    first, again = prepare(tokenizer), prepare(tokenizer)
    assert (first.report.from_cache, again.report.from_cache) == (False, True)
    assert again.report == first.report
    for split in ("train", "validation"):
        for head in HEADS:
            assert again.splits[split].labels(head).tolist() == first.splits[split].labels(head).tolist()
    # Weight and pooling leave the labels as they are.
    lighter = {**HEADS, "mood": Head(column="mood", weight=0.0, pooling="last")}
    assert prepare(tokenizer, lighter).report.fingerprint == first.report.fingerprint
    for other in ({"mood": HEADS["mood"]}, {**HEADS, "mood": Head(column="mood", classes=["sad", "glad"])}, {}):
        assert prepare(tokenizer, other).report.fingerprint != first.report.fingerprint


def test_without_heads_the_fingerprint_is_that_of_a_version_without_them(tokenizer):
    values = {"digests": {"train": "0"}, "tokenizer": tokenizer, "data_seed": 7}
    assert compute_fingerprint(Data(), heads={}, **values) == compute_fingerprint(Data(), **values)


def test_shards_have_the_labels_of_few_rows(folder, tokenizer, monkeypatch):
    write_rows(folder / "train.jsonl", MOODS * 20)
    few = prepare(tokenizer, validation=None)
    monkeypatch.setattr(split_examples, "MAX_KEPT_CHARACTERS", 100)
    monkeypatch.setattr(sharding, "SHARD_ROWS", 32)
    monkeypatch.setattr(tokenizing, "BATCH_ROWS", 10)
    monkeypatch.setattr(sharding, "count_cpus", lambda: 1)
    monkeypatch.setattr("qlora_ray.data.preparation.load_prepared", lambda *_: None)
    monkeypatch.setattr("qlora_ray.data.shard_preparation.load_prepared", lambda *_: None)
    (folder / "cache").rename(folder / "before")
    many = prepare(tokenizer, validation=None)
    assert len(list(many.folder.glob("train/*.arrow"))) > 1
    for split in ("train", "validation"):
        for head in HEADS:
            assert many.splits[split].labels(head).tolist() == few.splits[split].labels(head).tolist()
    assert many.train.take([5, 3]).labels("mood").tolist() == many.train.labels("mood")[[5, 3]].tolist()


def test_whole_shards_with_labels_are_not_made_again(folder, tokenizer, monkeypatch):
    write_rows(folder / "train.jsonl", MOODS * 20)
    monkeypatch.setattr(split_examples, "MAX_KEPT_CHARACTERS", 100)
    monkeypatch.setattr(sharding, "SHARD_ROWS", 32)
    monkeypatch.setattr(sharding, "count_cpus", lambda: 1)
    write, written = sharding.ShardWriter.write, []
    monkeypatch.setattr(
        sharding.ShardWriter, "write", lambda writer, *shard: (written.append(shard[:2]), write(writer, *shard))[1]
    )
    with monkeypatch.context() as full:
        full.setattr("qlora_ray.data.preparation.make_report", Mock(side_effect=OSError("full")))
        with pytest.raises(DataError, match="start again: what is done is kept"):
            prepare(tokenizer, validation=None)
    assert len(written) > 2
    written.clear()
    assert prepare(tokenizer, validation=None).train.heads == list(HEADS)
    assert written == []


@pytest.mark.parametrize("max_characters", [split_examples.MAX_KEPT_CHARACTERS, 100], ids=["kept", "read again"])
def test_rows_that_are_left_out_take_their_labels_with_them(folder, tokenizer, monkeypatch, max_characters):
    monkeypatch.setattr(split_examples, "MAX_KEPT_CHARACTERS", max_characters)
    monkeypatch.setattr(sharding, "count_cpus", lambda: 1)
    write_rows(folder / "train.jsonl", ["sad", "glad"] * 10)
    lines = (folder / "train.jsonl").read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "mood": ["a", "list"]})
    (folder / "train.jsonl").write_text("\n".join(lines))
    write_rows(folder / "validation.jsonl", MOODS)
    prepared = prepare(tokenizer, bad_rows="skip")
    assert prepared.train.labels("mood").tolist() == [1, *[1, 0] * 9]
    with pytest.raises(DataError, match=r"train.jsonl:2: 'mood' must hold a label.*got \['a', 'list'\]"):
        prepare(tokenizer)


@pytest.mark.parametrize(
    ("value", "label"), [("a", "a"), (" a ", "a"), (3, "3"), (3.0, "3"), (True, "true"), (None, None), (" ", None)]
)
def test_a_label_is_a_text_or_a_whole_number(value, label):
    assert labels_module._read_label(value, "c") == label


@pytest.mark.parametrize(
    ("heads", "match"),
    [
        (
            {"mood": Head(column="moood")},
            r"heads.mood.column: .* in 'moood', got none in 6 rows .*question, answer, mood",
        ),
        ({"mood": Head(column="answer")}, "at least 2 different labels in 'answer', got 'a' alone"),
        ({"mood": Head(column="mood", classes=["x", "y"])}, r"got none \(labels: x, y\)"),
        ({"mood": Head(column="question")}, "heads.mood.column: must have at most 4 different labels"),
    ],
    ids=["missing", "one", "others", "many"],
)
def test_a_head_that_has_nothing_to_learn_is_refused(heads, match, folder, tokenizer, monkeypatch):
    monkeypatch.setattr(labels_module, "MAX_CLASSES", 4)
    write_rows(folder / "train.jsonl", MOODS)
    write_rows(folder / "validation.jsonl", MOODS)
    with pytest.raises(DataError, match=match):
        prepare(tokenizer, heads)


def test_a_class_without_a_row_and_a_split_without_labels_are_named(folder, tokenizer):
    write_rows(folder / "train.jsonl", MOODS)
    write_rows(folder / "validation.jsonl", [None, None])
    report = prepare(tokenizer, {"mood": Head(column="mood", classes=["sad", "glad", "calm"])}).report
    assert len(warnings_with(report, "train: no row has 'calm'")) == 1
    assert len(warnings_with(report, "validation: no row has a label in 'mood'")) == 1
    assert len(warnings_with(report, "train: 1 row", "no class of head mood")) == 1


def test_plain_text_has_no_prompt_to_read(folder, tokenizer):
    rows = [{"text": f"text {at}", "mood": mood} for at, mood in enumerate(MOODS * 3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"heads.mood.pooling: prompt needs rows with a question"):
        prepare(tokenizer, {"mood": Head(column="mood")}, validation=None)
    prepared = prepare(tokenizer, {"mood": Head(column="mood", pooling="last")}, validation=None)
    assert prepared.report.classes == {"mood": ["angry", "glad", "sad"]}
