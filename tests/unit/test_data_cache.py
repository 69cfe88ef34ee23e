"""Prepared data is kept by fingerprint: whole, never stale, and rebuilt when damaged."""

import json
import shutil

import pytest

from qlora_ray.config.schema import Data
from qlora_ray.data import preparation, prepare_data
from qlora_ray.data.cache import _deciding_values, compute_fingerprint, load_prepared
from qlora_ray.errors import DataError
from qlora_ray.runs.paths import default_cache_dir
from tests.unit.data_tokenizer import CHATML, build_byte_level


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_level()


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"question": f"question {number}", "answer": f"answer {number}"} for number in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepare(train, tokenizer, *, data_seed=7, **data):
    return prepare_data(
        Data(train=str(train), **data), tokenizer=tokenizer, data_seed=data_seed, cache_dir=train.parent / "cache"
    )


def test_the_second_time_comes_from_the_cache_and_is_the_same(train, tokenizer):
    first, second = prepare(train, tokenizer), prepare(train, tokenizer)
    assert (first.report.from_cache, second.report.from_cache) == (False, True)
    assert first == second


def test_the_cache_holds_arrow_files_and_a_report_and_nothing_half_written(train, tokenizer):
    report = prepare(train, tokenizer).report
    (folder,) = (train.parent / "cache").iterdir()
    assert report.fingerprint.startswith(folder.name)
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "train", "validation"]
    assert json.loads((folder / "report.json").read_text()) == report.to_dict()


def change_end_token():
    tokenizer = build_byte_level()
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


@pytest.mark.parametrize(
    ("changes", "make_tokenizer"),
    [
        ({"max_length": 64}, build_byte_level),
        ({"data_seed": 8}, build_byte_level),
        ({}, lambda: build_byte_level(chat_template="{# changed #}" + CHATML)),
        ({}, change_end_token),
    ],
    ids=["config", "seed", "chat-template", "end-token"],
)
def test_anything_that_decides_the_tokens_gives_another_fingerprint(changes, make_tokenizer, train, tokenizer):
    first = prepare(train, tokenizer).report.fingerprint
    other = prepare(train, make_tokenizer(), **changes).report
    assert other.fingerprint != first
    assert not other.from_cache
    train.write_text(train.read_text().replace("question 3", "question three"))
    assert prepare(train, tokenizer).report.fingerprint not in (first, other.fingerprint)


def test_rows_in_another_order_are_other_data_and_those_of_sweeps_without_the_key_are_the_first(tokenizer):
    def compute(**data):
        return compute_fingerprint(Data(**data), digests={}, tokenizer=tokenizer, data_seed=7)

    others = [{}, {"row_choice": "first"}, {"max_test_rows": 9}, {"loss": "all"}]
    for limits in ({}, {"max_train_rows": 9}):
        assert len({compute(**limits, **other) for other in others}) == len(others)


def test_keys_that_came_later_are_in_no_fingerprint_of_a_sweep_that_does_not_use_them():
    # Those of the first version of the fingerprint.
    first = {"train", "validation", "test", "format", "columns", "template", "system_prompt", "max_length"}
    assert set(_deciding_values(Data(row_choice="first"))) == first | {"max_train_rows", "max_validation_rows"}


def test_earlier_calls_of_the_tokenizer_do_not_change_the_fingerprint(train):
    tokenizer = build_byte_level()
    before = compute_fingerprint(Data(), digests={}, tokenizer=tokenizer, data_seed=7)
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=2)
    assert compute_fingerprint(Data(), digests={}, tokenizer=tokenizer, data_seed=7) == before


def replace_report(folder):
    written = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(written | {"fingerprint": "0" * 64}))


def replace_split(folder):
    shutil.rmtree(folder / "train")
    shutil.copytree(folder / "validation", folder / "train")


def cut_file(folder):
    (arrow,) = (folder / "train").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:200])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "report.json").unlink(),
        lambda folder: (folder / "report.json").write_text("{"),
        replace_report,
        lambda folder: shutil.rmtree(folder / "train"),
        cut_file,
        replace_split,
    ],
    ids=["no-report", "broken-report", "other-report", "no-split", "cut-file", "fewer-rows"],
)
def test_a_damaged_cache_is_rebuilt(damage, train, tokenizer):
    first = prepare(train, tokenizer)
    (folder,) = (train.parent / "cache").iterdir()
    damage(folder)
    again = prepare(train, tokenizer)
    assert not again.report.from_cache
    assert again == first
    assert prepare(train, tokenizer).report.from_cache


def test_a_cache_that_cannot_be_written_is_a_warning(train, tokenizer):
    (train.parent / "cache").write_text("a file is in the way")
    prepared = prepare(train, tokenizer)
    assert any(warning.startswith("not cached: ") for warning in prepared.report.warnings)


def test_a_process_that_was_faster_wins_and_nothing_is_left_over(train, tokenizer, monkeypatch):
    first = prepare(train, tokenizer)
    monkeypatch.setattr(preparation, "load_prepared", lambda cache_dir, fingerprint: None)
    assert prepare(train, tokenizer) == first
    assert len(list((train.parent / "cache").iterdir())) == 1
    assert load_prepared(train.parent / "cache", first.report.fingerprint) == first


def test_bad_rows_leave_nothing_in_the_cache(train, tokenizer):
    train.write_text(train.read_text() + '{"question": "x"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:21: 'answer' must hold text"):
        prepare(train, tokenizer)
    assert not (train.parent / "cache").exists()


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("QLORA_RAY_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("QLORA_RAY_CACHE")
    assert default_cache_dir().parts[-2:] == (".cache", "qlora_ray")
