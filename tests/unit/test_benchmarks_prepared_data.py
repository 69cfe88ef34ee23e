"""Rows of the benchmark of prepared data are as long as it says."""

import json

from benchmarks.prepared_data import SPREAD, write_rows
from qlora_ray.config.schema import Model
from qlora_ray.modeling.loading import load_tokenizer


def test_rows_have_about_the_tokens_that_are_asked_for(tmp_path):
    write_rows(tmp_path / "rows.jsonl", num_rows=60, tokens=80, model="embedded")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    texts = [f"{row['question']} {row['answer']}" for row in rows]
    lengths = [len(ids) for ids in load_tokenizer(Model(name="embedded"))(texts)["input_ids"]]
    assert 0.95 * 80 < sum(lengths) / 60 < 1.15 * 80
    assert max(lengths) < 1.2 * (1 + SPREAD) * 80 and len(set(texts)) == 60
