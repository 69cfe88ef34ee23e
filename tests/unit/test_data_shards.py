"""More data than is held in memory: the same tokens and report, shard by shard, kept where it was stopped."""

import json
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from qlora_ray.config.schema import Data
from qlora_ray.data import prepare_data, sharding, split_examples, tokenizing
from qlora_ray.errors import DataError
from tests.unit.data_tokenizer import build_byte_level


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_level()


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.jsonl"
    # Some share their prompt, and the answers of some are cut away.
    rows = [
        {"question": f"q {number % 190}" + " long" * (40 * (number % 9 == 0)), "answer": f"a {number}"}
        for number in range(200)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def is_large(monkeypatch):
    """Few rows are treated as many are: read again, in shards of 32 rows, by this process."""
    monkeypatch.setattr(split_examples, "MAX_KEPT_CHARACTERS", 1000)
    monkeypatch.setattr(sharding, "SHARD_ROWS", 32)
    monkeypatch.setattr(tokenizing, "BATCH_ROWS", 10)
    monkeypatch.setattr(sharding, "count_cpus", lambda: 1)


def prepare(train, tokenizer, cache="cache", **data):
    values = {"max_length": 100, **data}
    return prepare_data(
        Data(train=str(train), **values), tokenizer=tokenizer, data_seed=7, cache_dir=train.parent / cache
    )


SETTINGS = [
    {},
    {"row_choice": "first"},
    {"max_train_rows": 120},
    {"max_validation_rows": 7},
    {"system_prompt": "Be brief."},
]


@pytest.mark.parametrize("data", SETTINGS, ids=str)
def test_tokens_and_report_are_those_of_few_rows(data, train, tokenizer, request):
    few = prepare(train, tokenizer, **data)
    assert few.report.num_dropped["train"]
    request.getfixturevalue("is_large")
    many = prepare(train, tokenizer, cache="other", **data)
    assert many.train.table.equals(few.train.table) and many.validation.table.equals(few.validation.table)
    assert many.report == few.report and not many.report.from_cache
    assert many.folder == train.parent / "other" / few.folder.name


def test_what_is_left_is_what_the_cache_has_of_few_rows(train, tokenizer, is_large):
    prepared = prepare(train, tokenizer)
    assert [path.name for path in (train.parent / "cache").iterdir()] == [prepared.folder.name]
    files = sorted(str(path.relative_to(prepared.folder)) for path in prepared.folder.rglob("*") if path.is_file())
    shards = [f"train/data-{number:05d}.arrow" for number in range(6)]
    assert files == ["report.json", *shards, "validation/data-00000.arrow"]
    assert prepare(train, tokenizer).report.from_cache


class Killed(BaseException):
    """What no handler of ours catches."""


def stop_after(monkeypatch, num_shards):
    """Lets so many shards become whole; returns how many were begun."""
    write, begun = sharding.ShardWriter.write, []

    def write_some(self, folder, number, *arguments):
        begun.append((folder.name, number))
        if len(begun) > num_shards:
            raise Killed
        return write(self, folder, number, *arguments)

    monkeypatch.setattr(sharding.ShardWriter, "write", write_some)
    return begun


def test_shards_that_are_whole_are_not_made_again(train, tokenizer, is_large, monkeypatch):
    whole = prepare(train, tokenizer, cache="other")
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(Killed):
            prepare(train, tokenizer)
    begun = stop_after(monkeypatch, 99)
    assert prepare(train, tokenizer) == whole
    assert begun == [("train", 3), ("train", 4), ("train", 5), ("validation", 0)]


@pytest.mark.parametrize("damage", ["cut", "of-other-rows"])
def test_a_shard_that_is_damaged_is_made_again(damage, train, tokenizer, is_large, monkeypatch):
    whole = prepare(train, tokenizer, cache="other")
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(Killed):
            prepare(train, tokenizer)
    [folder] = (train.parent / "cache").glob(".*.partial")
    if damage == "cut":
        shard = folder / "train" / "data-00001.arrow"
        shard.write_bytes(shard.read_bytes()[:400])
    else:
        record = folder / "train" / "data-00001.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"num_examples": 31}))
    begun = stop_after(monkeypatch, 99)
    assert prepare(train, tokenizer) == whole
    assert begun[0] == ("train", 1) and ("train", 2) not in begun


def test_how_far_it_is_is_told(train, tokenizer, is_large):
    told = []
    data = Data(train=str(train), max_length=100)
    prepare_data(data, tokenizer=tokenizer, data_seed=7, cache_dir=train.parent / "cache", tell=told.append)
    assert told[0].startswith("tokenizing the data: 32 of 180 train rows, 18%, ")
    assert "180 of 180 train rows, 100%" in told[5] and "20 of 20 validation rows, 100%" in told[6]


def test_a_cache_that_cannot_be_written_is_a_warning(train, tokenizer, is_large):
    (train.parent / "cache").write_text("a file is in the way")
    prepared = prepare(train, tokenizer)
    assert any(warning.startswith("not cached: ") for warning in prepared.report.warnings)
    assert prepared.train == prepare(train, tokenizer, cache="other").train


def test_a_bad_row_at_the_end_is_found_before_a_row_is_tokenized(train, tokenizer, is_large, monkeypatch):
    train.write_text(train.read_text() + '{"question": "x"}\n')
    begun = stop_after(monkeypatch, 0)
    with pytest.raises(DataError, match=r"train\.jsonl:201: 'answer' must hold text, got nothing\. This is the only"):
        prepare(train, tokenizer)
    assert not begun and not (train.parent / "cache").exists()


def test_a_max_length_that_leaves_no_answer_is_refused(train, tokenizer, is_large):
    with pytest.raises(DataError, match=r"data\.max_length: train rows must keep a part of their answer"):
        prepare(train, tokenizer, max_length=3)


def test_a_file_that_changes_between_two_readings_is_refused(train, tokenizer, is_large, monkeypatch):
    read = split_examples.SourceExamples.__iter__

    def change_and_read(self):
        train.write_text(train.read_text() + "\n")
        return read(self)

    monkeypatch.setattr(split_examples.SourceExamples, "__iter__", change_and_read)
    with pytest.raises(DataError, match=r"train\.jsonl: must stay as it is while it is read"):
        prepare(train, tokenizer)


@pytest.mark.slow
def test_processes_make_the_same_shards_and_end_with_the_pool(train, tokenizer, is_large, monkeypatch):
    alone = prepare(train, tokenizer)
    monkeypatch.setattr(sharding, "count_cpus", lambda: 2)
    assert prepare(train, tokenizer, cache="other") == alone


PREPARE = """
import sys
from pathlib import Path
from qlora_ray.config.schema import Data
from qlora_ray.data import prepare_data, sharding, split_examples
from tests.unit.data_tokenizer import build_byte_level

split_examples.MAX_KEPT_CHARACTERS, sharding.SHARD_ROWS = 1000, 8
sharding.count_cpus = lambda: 2
train = Path(sys.argv[1])

prepare_data(
    Data(train=str(train), max_length=100), tokenizer=build_byte_level(), data_seed=7, cache_dir=train.parent / "cache",
    tell=lambda words: print(words, flush=True),
)
"""


@pytest.mark.slow
def test_workers_of_a_killed_process_end_and_the_next_one_goes_on(train, tokenizer, is_large, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", PREPARE, str(train)], stdout=subprocess.PIPE, text=True)
    told = process.stdout.readline()
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert told.startswith("tokenizing the data: 8 of 180") and len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    monkeypatch.setattr(sharding, "SHARD_ROWS", 8)
    whole = prepare(train, tokenizer, cache="other")
    begun = stop_after(monkeypatch, 99)
    assert prepare(train, tokenizer) == whole
    assert ("train", 0) not in begun and begun[-1] == ("validation", 2)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line_and_what_is_done_is_kept(train, tokenizer, is_large, monkeypatch):
    monkeypatch.setattr(sharding, "count_cpus", lambda: 2)
    monkeypatch.setattr(sharding, "SHARD_ROWS", 8)

    def kill_workers(words):
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # gone already
                if any("spawn_main" in word for word in child.cmdline()):
                    child.kill()

    data = Data(train=str(train), max_length=100)
    with pytest.raises(DataError, match="a process that tokenizes was killed"):
        prepare_data(data, tokenizer=tokenizer, data_seed=7, cache_dir=train.parent / "cache", tell=kill_workers)
    begun = stop_after(monkeypatch, 99)
    monkeypatch.setattr(sharding, "count_cpus", lambda: 1)
    prepare(train, tokenizer)
    assert ("train", 0) not in begun
