"""Rows in Arrow columns read as the lists they were made of, however the columns are cut into chunks."""

import pickle

import pyarrow as pa
import pytest

from qlora_ray.data.arrow_files import map_table, write_table
from qlora_ray.data.columns import TextRows
from qlora_ray.data.tokenized import TokenizedSplit, arrow_schema

IDS = [[1, 2, 3], [4], [], [7, 8], [300, 9]]
MASKS = [[0, 1, 1], [1], [], [0, 1], [1, 1]]
PROMPTS = [[1], [], [], [7], [300]]
TEXTS = ["x", "ä", "", "z", "w"]
SPLIT = TokenizedSplit.of("train", IDS, MASKS, PROMPTS, TEXTS)


def in_chunks(*lengths):
    starts = [sum(lengths[:at]) for at in range(len(lengths))]
    parts = [SPLIT.table.slice(start, length) for start, length in zip(starts, lengths, strict=True)]
    return TokenizedSplit("train", pa.concat_tables(parts))


@pytest.fixture(params=[(5,), (2, 3), (1, 0, 1, 1, 2)], ids=str)
def split(request):
    return in_chunks(*request.param)


def test_rows_are_the_lists_that_they_were(split):
    assert [*split.input_ids] == IDS == [split.input_ids[row] for row in range(5)]
    assert [*split.completion_mask] == MASKS and [*split.prompt_ids] == PROMPTS
    assert [*split.references] == TEXTS == [split.references[row] for row in range(5)]
    assert all(type(token) is int for row in split.input_ids for token in row)


@pytest.mark.parametrize("rows", [slice(1, 4), slice(None, None), slice(3), slice(-2, None), slice(None, None, 2)])
def test_a_slice_is_what_a_list_gives(split, rows):
    assert split.input_ids[rows] == IDS[rows] and split.references[rows] == TEXTS[rows]
    assert split.input_ids[rows].lengths.tolist() == [len(row) for row in IDS[rows]]


def test_places_from_the_end_count_as_in_a_list_and_none_is_beyond_it(split):
    assert split.input_ids[-1] == IDS[-1] and split.references[-5] == TEXTS[-5]
    for rows in (split.input_ids, split.references):
        with pytest.raises(IndexError, match="out of range"):
            rows[5]


def test_counts_are_those_of_the_lists(split):
    assert (len(split), split.num_tokens, split.num_completion_tokens) == (5, 8, 6)
    assert split.first(3).num_tokens == 4 and split.first(4).num_completion_tokens == 4


def test_rows_are_taken_in_the_order_asked_for(split):
    taken = split.take([3, 0, 3])
    assert taken.input_ids == [IDS[3], IDS[0], IDS[3]] and taken.references == ["z", "x", "z"]


def test_equal_rows_are_equal_whatever_their_chunks_and_other_rows_are_not(split):
    assert split == SPLIT and split.input_ids == SPLIT.input_ids
    assert split != SPLIT.first(4)
    assert split.input_ids != [*IDS[:4], [300, 8]] and split.input_ids != IDS[:4]


def test_an_array_is_a_view_of_the_column(split):
    assert split.input_ids.array(4).tolist() == IDS[4]
    assert not split.input_ids.array(0).flags.owndata


def test_a_split_that_was_read_is_pickled_by_its_table():
    SPLIT.input_ids[0]
    assert pickle.loads(pickle.dumps(SPLIT)) == SPLIT


def test_joined_texts_are_one_after_the_other(split):
    assert [*TextRows.joined([split.references, split.references[:1]])] == [*TEXTS, "x"]


def test_no_rows_are_no_tokens():
    empty = TokenizedSplit.of("train", [], [], [], [])
    assert (len(empty), empty.num_tokens, [*empty.input_ids], empty.input_ids.lengths.tolist()) == (0, 0, [], [])


def test_files_are_mapped_one_after_the_other_and_cost_no_memory_of_arrow(tmp_path):
    paths = [tmp_path / f"data-{number:05d}.arrow" for number in range(2)]
    whole = SPLIT.take([row % 5 for row in range(9000)]).table
    write_table(paths[0], whole.slice(0, 2000))
    write_table(paths[1], whole.slice(2000))
    before = pa.total_allocated_bytes()
    table = map_table(paths)
    assert pa.total_allocated_bytes() - before < 0.01 * table.nbytes
    assert table.equals(whole)


def test_a_file_of_other_columns_is_none_of_a_split(tmp_path):
    write_table(tmp_path / "data-00000.arrow", pa.table({"text": ["a"]}))
    with pytest.raises(ValueError, match="columns must be"):
        map_table([tmp_path / "data-00000.arrow"])


def test_files_of_the_versions_before_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {name: SPLIT.table[name].to_pylist() for name in arrow_schema().names}
    features = datasets.Features.from_arrow_schema(arrow_schema())
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path))
    assert TokenizedSplit("train", map_table(sorted(tmp_path.glob("data-*.arrow")))) == SPLIT
