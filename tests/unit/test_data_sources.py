"""Each split's rows come from the shipped data, a file, a folder or the hub; what cannot be opened says why."""

import json

import datasets
import pytest

from qlora_ray.config.schema import Data
from qlora_ray.data.sources import find_sources
from qlora_ray.data.splits import RowChoice
from qlora_ray.errors import DataError

ROW = {"question": "hi", "answer": "ho"}
ALL = RowChoice(None, data_seed=7)


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield tmp_path
    datasets.enable_progress_bars()


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fake_hub(monkeypatch, **splits):
    """Puts a stand-in for the hub behind load_dataset, and returns the arguments it is called with."""
    calls = []

    def load_dataset(*arguments):
        calls.append(arguments)
        return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("name", ["no.jsonl", "./no", "../no", "a/b/c", "no.txt", "~/no.csv"])
def test_a_missing_file_is_named_and_never_looked_for_on_the_hub(name, in_tmp, monkeypatch):
    calls = fake_hub(monkeypatch, train=[ROW])
    with pytest.raises(DataError, match=rf"data\.train: must be a file that exists, got {name} \(looked in "):
        find_sources(Data(train=name))
    assert calls == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"validation": "b.jsonl"}, r"data\.validation: must be a file that exists, got b\.jsonl"),
        ({"test": "b.jsonl"}, r"data\.test: must be a file that exists, got b\.jsonl"),
        ({"test": " "}, r"data\.test: must name a file, folder or hub id"),
        ({"train": "a.tsv"}, r"must end in \.csv, \.json, \.jsonl, \.parquet, got a\.tsv"),
        ({"train": "empty"}, r"data\.train: must be a folder that can be loaded, got empty \(EmptyDatasetError"),
    ],
)
def test_a_source_that_cannot_be_opened_is_named_with_its_key(data, words, in_tmp):
    write_rows(in_tmp / "a.jsonl", ROW)
    write_rows(in_tmp / "a.tsv", ROW)
    (in_tmp / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        find_sources(Data(**{"train": "a.jsonl", **data}))


@pytest.mark.parametrize("value", ["0.1", "10%"])
def test_a_fraction_in_quotes_is_refused_before_the_hub_is_asked(value, monkeypatch):
    calls = fake_hub(monkeypatch, train=[ROW])
    with pytest.raises(DataError, match=rf"data\.validation: a fraction must be a number .* text '{value}'"):
        find_sources(Data(train="owner/name", validation=value))
    assert calls == []


def test_a_file_without_validation_holds_out_the_default_fraction_and_says_so(in_tmp):
    write_rows(in_tmp / "a.jsonl", ROW)
    sources = find_sources(Data(train="a.jsonl"))
    assert (sources.validation, sources.test, sources.fraction) == (None, None, 0.1)
    assert "default" in sources.fraction_reason


def test_the_digest_follows_the_bytes_and_not_the_name(in_tmp):
    write_rows(in_tmp / "a.jsonl", ROW)
    write_rows(in_tmp / "b.jsonl", ROW)
    write_rows(in_tmp / "c.jsonl", ROW, ROW)
    digests = [find_sources(Data(train=name)).train.digest for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_is_opened_by_load_dataset_with_its_own_splits(in_tmp):
    write_rows(in_tmp / "set" / "train.jsonl", ROW, ROW)
    write_rows(in_tmp / "set" / "validation.jsonl", ROW)
    write_rows(in_tmp / "set" / "test.jsonl", ROW)
    sources = find_sources(Data(train="set", test="test"))
    assert sources.fraction is None
    assert [row.where for row in list(sources.train.read(ALL))] == ["set train row 1", "set train row 2"]
    assert next(iter(sources.validation.read(ALL))).values == ROW
    assert sources.test.name == "set test"


def test_a_hub_dataset_gives_its_own_validation_split(monkeypatch):
    calls = fake_hub(monkeypatch, train=[ROW, ROW], validation=[ROW])
    sources = find_sources(Data(train="owner/name"))
    assert calls == [("owner/name", None)]
    assert sources.validation.name == "owner/name validation"
    assert len(list(sources.train.read(RowChoice(1, data_seed=7)))) == 1
    # A config follows a colon.
    find_sources(Data(train="openai/gsm8k:main"))
    assert calls[1] == ("openai/gsm8k", "main")


def test_validation_may_name_a_split_of_the_train_dataset(monkeypatch):
    fake_hub(monkeypatch, train=[ROW], heldout=[ROW, ROW])
    sources = find_sources(Data(train="owner/name", validation="heldout"))
    assert len(list(sources.validation.read(ALL))) == 2


@pytest.mark.parametrize(
    ("splits", "validation", "words"),
    [
        ({"train": [ROW], "heldout": [ROW]}, "tests", r"data\.validation: .* no split 'tests', only train, heldout"),
        ({"a": [ROW], "b": [ROW]}, None, r"data\.train: owner/name must have a split train, got a, b"),
        ({"train": []}, None, "owner/name train: a dataset must hold at least one row"),
    ],
)
def test_a_hub_split_that_is_missing_or_empty_is_named_with_the_ones_there(splits, validation, words, monkeypatch):
    fake_hub(monkeypatch, **splits)
    with pytest.raises(DataError, match=words):
        list(find_sources(Data(train="owner/name", validation=validation)).train.read(ALL))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Couldn't reach 'owner/name'\nmore"), r"ConnectionError: Couldn't reach.*Check the network"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist"), "Check the spelling"),
        (ValueError("Config name is missing."), "Name one of its configs after a colon"),
        (datasets.exceptions.DatasetNotFoundError("is a gated dataset on the Hub."), "set HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_becomes_one_line_with_the_cause_and_what_to_do(error, words, monkeypatch):
    def load_dataset(*arguments):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=words) as caught:
        find_sources(Data(train="owner/name"))
    assert "\n" not in str(caught.value)


def numbers(source, choice=ALL):
    return [row.values["question"] for row in source.read(choice)]


def test_a_part_of_a_file_is_read_with_the_places_that_its_rows_have_there(in_tmp):
    write_rows(in_tmp / "a.jsonl", *({"question": str(at), "answer": "a"} for at in range(20)))
    whole = find_sources(Data(train="a.jsonl")).train
    part = find_sources(Data(train="a.jsonl[25%:50%]")).train
    assert numbers(part) == ["5", "6", "7", "8", "9"]
    assert [row.where for row in part.read(ALL)] == [row.where for row in whole.read(ALL)][5:10]
    # What is drawn is drawn of the part, and first rows are the part's.
    assert set(numbers(part, RowChoice(2, data_seed=7))) < {"5", "6", "7", "8", "9"}
    assert numbers(part, RowChoice(2, data_seed=7, takes_first=True)) == ["5", "6"]
    assert part.digest == f"{whole.digest}[25%:50%]"


def test_one_split_of_a_dataset_serves_as_two(monkeypatch):
    rows = [{"question": str(at), "answer": "a"} for at in range(10)]
    fake_hub(monkeypatch, train=rows, validation=rows[:1], other=rows[5:])
    sources = find_sources(Data(train="o/n[train[:80%]]", validation="o/n[train[80%:]]", test="other[-2:]"))
    assert numbers(sources.train) == [str(at) for at in range(8)] and numbers(sources.validation) == ["8", "9"]
    assert numbers(sources.test) == ["8", "9"]
    assert (sources.train.name, sources.test.name) == ("o/n train[:80%]", "o/n other[-2:]")
    assert next(row.where for row in sources.validation.read(ALL)) == "o/n train[80%:] row 9"
    assert len({sources.train.digest, sources.validation.digest}) == 2
    assert numbers(find_sources(Data(train="o/n[other]")).train) == ["5", "6", "7", "8", "9"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": "a.jsonl[train]"}, r"data\.train: only data sets have splits, .* got a\.jsonl\[train\]"),
        ({"train": "embedded[:5]"}, r"data\.train: .* the embedded rows are taken whole, got embedded\[:5\]"),
        ({"train": "a.jsonl[:5%:]"}, r"data\.train: brackets must hold a split, rows or both"),
        ({"train": "o/n[dev]"}, r"data\.train: o/n must have a split dev, got train"),
    ],
)
def test_brackets_that_cannot_be_followed_are_one_line(data, words, in_tmp, monkeypatch):
    write_rows(in_tmp / "a.jsonl", ROW)
    fake_hub(monkeypatch, train=[ROW])
    with pytest.raises(DataError, match=words):
        find_sources(Data(**data))


def test_a_part_without_rows_is_refused(in_tmp):
    write_rows(in_tmp / "a.jsonl", ROW, ROW)
    with pytest.raises(DataError, match=r"a\.jsonl\[5:\]: a part must hold at least one row, got none of 2"):
        list(find_sources(Data(train="a.jsonl[5:]")).train.read(ALL))
