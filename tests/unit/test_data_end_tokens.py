"""What training ends answers with, and that answering and exports end with the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from qlora_ray.config.schema import Data
from qlora_ray.data import prepare_data
from qlora_ray.data.end_tokens import find_chat_end, find_end_ids, find_trained_end
from tests.unit.data_tokenizer import CHATML, build_byte_level
from tests.unit.test_data_as_found import PHI, QWEN

# Ends answers with plain text: nothing says where one ends.
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
REFUSES = "{{ raise_exception('only tools') }}"


def build(template: str | None) -> PreTrainedTokenizerBase:
    """A tokenizer whose own end token is not its chat template's, as those of Qwen's base models."""
    tokenizer = build_byte_level(chat_template=template)
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (PHI, "<|im_end|>"),
        (QWEN, "<|im_end|>"),
        (CHATML.replace("<|im_end|>", "<|endoftext|>"), "<|endoftext|>"),
        # Two tokens behind each answer, as Command R7B's; a second one behind the last answer alone, as Phi-4-mini's.
        (CHATML.replace("<|im_end|>'", "<|endoftext|><|im_end|>'"), "<|im_end|>"),
        (PHI.replace("<|im_end|>' + '\n'", "<|im_end|>'"), "<|im_end|>"),
        (NO_END, None),
        (REFUSES, None),
        (None, None),
    ],
)
def test_the_end_of_an_answer_is_found_in_the_template(template: str | None, end: str | None) -> None:
    tokenizer = build(template)
    found = find_chat_end(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == end
    ids = {tokenizer.eos_token_id} if found is None else {tokenizer.eos_token_id, found}
    assert set(find_end_ids(tokenizer)) == ids
    assert set(find_end_ids(tokenizer, [300, 301])) == {*ids, 300, 301} and set(find_end_ids(tokenizer, 300)) > ids


@pytest.mark.parametrize(("template", "end"), [("chat", "<|im_end|>"), ("raw", "<|endoftext|>")])
def test_what_rows_were_trained_to_end_with_is_read_from_them(tmp_path: Path, template: str, end: str) -> None:
    tokenizer = build(CHATML)
    rows = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(train=str(tmp_path / "a.jsonl"), validation=0.5, template=template)
    train = prepare_data(data, tokenizer=tokenizer, data_seed=7, cache_dir=tmp_path / "cache").train
    found = find_trained_end(train.input_ids, train.completion_mask, tokenizer)
    assert tokenizer.convert_ids_to_tokens(found) == end
    assert find_trained_end([[5, 6]], [[0, 1]], tokenizer) is None
