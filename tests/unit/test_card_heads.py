"""A card's section on auxiliary heads: what it tells, and that its code finds what the heads find."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qlora_ray.data import TokenizedSplit
from qlora_ray.exporting.card.figures import CardFacts
from qlora_ray.exporting.card.heads import describe_heads
from qlora_ray.exporting.selection import select_trial
from qlora_ray.modeling.auxiliary_heads import HeadSpec, TrainedHead, load_heads, save_heads
from qlora_ray.modeling.heads import SplitModel
from qlora_ray.runs.score_records import BestScores, HeadRecord, ScoreRecord
from qlora_ray.scoring.heads import HeadScorer
from tests.exporting_fixtures import write_sweep
from tests.unit.data_tokenizer import build_byte_level
from tests.unit.model_fixtures import build_model

POOLINGS = ("prompt", "last", "mean")
CLASSES = tuple("abcdefgh")


def facts_of(tmp_path: Path, *, with_heads: bool = True) -> CardFacts:
    selection = select_trial(write_sweep(tmp_path / "s"))
    if with_heads:
        torch.manual_seed(1)
        specs = [HeadSpec(pooling, "mood", CLASSES, pooling, 0.3) for pooling in POOLINGS]
        save_heads([TrainedHead(spec, torch.randn(len(CLASSES), 64)) for spec in specs], selection.adapter.folder)
    return CardFacts("a name", selection, None, None)


def test_an_adapter_without_heads_has_no_section(tmp_path):
    assert describe_heads(facts_of(tmp_path, with_heads=False)) == ""


def test_each_head_has_its_row_and_its_scores(tmp_path):
    facts = facts_of(tmp_path)
    winner = ScoreRecord(loss=1.0, heads={"last": HeadRecord(0.75, 0.5, 1.0, 0.25, 40)})
    scored = BestScores(trial="0001", winner=winner, base=ScoreRecord(loss=2.0))
    section = describe_heads(replace(facts, selection=replace(facts.selection, scores=scored)))
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows if "0.3 |" in row] == list(POOLINGS)
    (row,) = [row for row in rows if row.startswith("| adapter")]
    assert [cell.strip() for cell in row.strip("|").split("|")][2:] == ["last", "0.750", "0.500", "0.250", "40"]


@pytest.mark.parametrize("prompt", ["how are you", "a"])
def test_the_code_on_the_card_finds_what_the_heads_find(prompt, tmp_path, monkeypatch):
    facts = facts_of(tmp_path)
    (code,) = re.findall(r"```python\n(.+?)\n```", describe_heads(facts), re.DOTALL)
    monkeypatch.chdir(facts.selection.adapter.folder.parent)
    model, tokenizer = build_model("llama", device="cpu").eval(), build_byte_level()
    model.resize_token_embeddings(len(tokenizer))
    names = {"model": model, "tokenizer": tokenizer}
    exec(code, names)
    found = names["ask_heads"](prompt, " fine")

    prompt_ids, answer_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, " fine"))
    ids = prompt_ids + answer_ids
    labels = {pooling: [0] for pooling in POOLINGS}
    split = TokenizedSplit.of("rows", [ids], [[1] * len(ids)], [prompt_ids], [" fine"], labels=labels)
    scorer = HeadScorer(load_heads(facts.selection.adapter.folder), split)
    with torch.no_grad():
        scorer.observe([0], SplitModel(model).hidden(torch.tensor([ids])))
    assert found == {head: CLASSES[answers[0][0]] for head, answers in scorer.found.items()}
