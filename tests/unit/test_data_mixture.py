"""Several sources of training rows: how often each row comes, by weight, and that seeds decide alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from qlora_ray.config.data_names import list_names
from qlora_ray.config.documents import Document
from qlora_ray.config.loading import validate_document
from qlora_ray.config.reuse import anchor_paths, with_absolute_paths
from qlora_ray.config.schema import Data, SweepConfig
from qlora_ray.data import prepare_data
from qlora_ray.data.sources import find_sources
from qlora_ray.data.splits import RowChoice
from qlora_ray.errors import ConfigError, DataError
from qlora_ray.exporting.naming import shorten_datasets
from tests.unit.data_tokenizer import build_byte_level

ALL = RowChoice(None, data_seed=7)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, num_rows in (("a", 10), ("b", 6)):
        rows = [{"question": f"{name} {at}?", "answer": f"{name} {at}"} for at in range(num_rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def mix(**weights: float) -> Data:
    return Data(train=[{"source": f"{name}.jsonl", "weight": weight} for name, weight in weights.items()])


def answers(data: Data, choice: RowChoice = ALL) -> list[str]:
    return [str(row.values["answer"]) for row in find_sources(data).train.read(choice)]


def test_a_weight_is_how_often_rows_come() -> None:
    counts = Counter(answers(mix(a=2.5, b=0.5)))
    assert sorted(counts.values()) == [1] * 3 + [2] * 5 + [3] * 5
    assert {name for name, count in counts.items() if count == 1} < {f"b {at}" for at in range(6)}
    source = find_sources(mix(a=2.5, b=0.5)).train
    assert source.name == "a.jsonl (25 rows, weight 2.5) + b.jsonl (3 rows, weight 0.5)"


def test_sources_of_weight_one_are_those_rows_one_after_the_other() -> None:
    both = [f"a {at}" for at in range(10)] + [f"b {at}" for at in range(6)]
    assert answers(mix(a=1, b=1)) == both
    assert answers(Data(train=["a.jsonl", "b.jsonl[2:4]"])) == [*both[:10], "b 2", "b 3"]


def test_the_seed_decides_alone_which_rows_come() -> None:
    other = RowChoice(None, data_seed=8)
    assert answers(mix(a=0.5, b=0.5)) == answers(mix(a=0.5, b=0.5))
    assert answers(mix(a=0.5, b=0.5)) != answers(mix(a=0.5, b=0.5), other)
    assert set(answers(mix(a=0.5, b=0.5))) < set(answers(mix(a=1, b=1)))
    # `max_train_rows` draws of the mixture, and more of it draws the same and more.
    few, more = (answers(mix(a=2, b=0.5), RowChoice(number, data_seed=7)) for number in (5, 9))
    assert len(few) == 5 and len(more) == 9 and not Counter(few) - Counter(more)


def test_weights_and_sources_are_in_the_digest() -> None:
    mixtures = [mix(a=1, b=1), mix(a=2, b=1), mix(b=1, a=1), mix(a=1)]
    assert len({find_sources(data).train.digest for data in mixtures}) == len(mixtures)


def test_a_mixture_is_prepared_with_the_rows_of_each_in_the_report(folder: Path) -> None:
    data = mix(a=2, b=1).model_copy(update={"validation": "b.jsonl"})
    prepared = prepare_data(data, tokenizer=build_byte_level(), data_seed=7, cache_dir=folder / "cache")
    assert len(prepared.train) == 26 and Counter(prepared.train.references)["a 3"] == 2
    assert prepared.report.sources["train"] == "a.jsonl (20 rows, weight 2) + b.jsonl (6 rows, weight 1)"


def test_a_source_that_gives_no_row_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"data\.train: each source must give .* none of 6 rows of b\.jsonl at a weight of"
    ):
        find_sources(mix(a=1, b=0.01))


@pytest.mark.parametrize(
    "train", [[], [{"source": "a.jsonl", "weight": 0}], [{"weight": 1}], [{"source": "a", "times": 2}]]
)
def test_what_is_no_list_of_sources_is_refused_by_the_config(train: list[object]) -> None:
    with pytest.raises(ConfigError, match=r"data\.train"):
        validate_document(Document("a.yaml", {"data": {"train": train}}))


def test_paths_of_a_list_are_anchored_as_a_single_one_is(folder: Path) -> None:
    config = SweepConfig(data=Data(train=["a.jsonl[:5]", {"source": "owner/name", "weight": 2}]))  # type: ignore[list-item]
    absolute = with_absolute_paths(config, folder).data.train
    assert list_names(absolute) == [f"{folder}/a.jsonl[:5]", "owner/name"]
    written = config.model_dump()
    anchor_paths(written, folder)
    assert list_names(written["data"]["train"]) == list_names(absolute)
    assert with_absolute_paths(SweepConfig(), folder) == SweepConfig()


def test_a_bundle_of_a_mixture_is_named_by_all_of_them() -> None:
    assert shorten_datasets(["x/a.jsonl", {"source": "owner/name:config[train]", "weight": 2}]) == "a+name"
