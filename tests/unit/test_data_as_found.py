"""Rows as people's files have them: read right, counted with a note, or refused by file and line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from qlora_ray.config.schema import Data
from qlora_ray.data import PreparedData, prepare_data
from qlora_ray.errors import DataError
from tests.unit.data_tokenizer import build_byte_level

ASK = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Ho"}
SECOND = {"role": "assistant", "content": "So"}

# As the template of Phi-3: a finished conversation ends with a token that an unfinished one has not.
PHI = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
# As Qwen3's: the last answer has a block of reasoning, earlier ones have none.
QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n' + (m.get('reasoning_content') or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Prepare = Callable[..., PreparedData]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_byte_level()


@pytest.fixture
def prepare(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Writes a file and prepares it, for train and validation both."""
    monkeypatch.chdir(tmp_path)

    def run(content: Any, *, name: str = "a.jsonl", by: PreTrainedTokenizerBase = tokenizer, **data: Any) -> Any:
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return prepare_data(
            Data(train=name, validation=name, **data), tokenizer=by, data_seed=7, cache_dir=tmp_path / "cache"
        )

    return run


def text_of(prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, row: int = 0, *, trained: bool = False) -> str:
    """A training row, or what of it is trained, as text."""
    pairs = zip(prepared.train.input_ids[row], prepared.train.completion_mask[row], strict=True)
    return str(tokenizer.decode([token for token, is_trained in pairs if is_trained or not trained]))


def warnings_of(prepared: PreparedData) -> list[str]:
    return [line.removeprefix("train: ") for line in prepared.report.warnings if line.startswith("train: ")]


@pytest.mark.parametrize(
    "value",
    [
        [ASK, ANSWER],
        json.dumps([ASK, ANSWER]),
        {"role": ["user", "assistant"], "content": ["Hi", "Ho"]},
        json.dumps({"role": ["user", "assistant"], "content": ["Hi", "Ho"]}),
        repr([ASK, ANSWER]),
    ],
    ids=["list", "text", "dict of lists", "text of a dict", "as pandas writes a list"],
)
def test_turns_are_read_however_a_file_holds_them(prepare: Prepare, tokenizer: Any, value: object) -> None:
    prepared = prepare([{"messages": value}])
    assert prepared.report.format == "messages"
    assert text_of(prepared, tokenizer, trained=True) == "Ho<|im_end|>"


def test_turns_in_a_csv_file_are_the_list_that_their_text_is(prepare: Prepare, tokenizer: Any) -> None:
    cell = json.dumps([ASK, ANSWER]).replace('"', '""')
    prepared = prepare(f'id,messages\n1,"{cell}"\n', name="a.csv")
    assert text_of(prepared, tokenizer, trained=True) == "Ho<|im_end|>"


def test_a_cell_that_is_nested_too_deeply_holds_no_turns(prepare: Prepare) -> None:
    with pytest.raises(DataError, match=r"a\.csv.*'messages' must hold a list of turns"):
        prepare(f"id,messages\n1,{'[' * 100_000}\n", name="a.csv", format="messages")


def test_alpacas_system_and_history_become_turns(prepare: Prepare, tokenizer: Any) -> None:
    row = {"instruction": "And now?", "input": "", "output": "So.", "system": "Be brief.", "history": [["Hi", "Ho"]]}
    prepared = prepare([row])
    assert text_of(prepared, tokenizer) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
        "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    )
    assert "not used" not in prepared.report.format_reason


@pytest.mark.parametrize("history", [["Hi", "Ho"], "Hi", [["Hi"]]])
def test_a_history_of_another_shape_is_a_bad_row(prepare: Prepare, history: object) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: 'history' must hold"):
        prepare([{"instruction": "And now?", "output": "So.", "history": history}])


def test_sharegpts_system_column_is_the_system_turn_unless_the_row_has_one(prepare: Prepare, tokenizer: Any) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    own = [{"from": "system", "value": "Mine."}, *turns]
    prepared = prepare([{"system": "Arr.", "conversations": turns}, {"system": "Arr.", "conversations": own}])
    assert text_of(prepared, tokenizer, 0).startswith("<|im_start|>system\nArr.<|im_end|>")
    assert text_of(prepared, tokenizer, 1).startswith("<|im_start|>system\nMine.<|im_end|>\n<|im_start|>user")


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss"])
@pytest.mark.parametrize("no", [0, False, "false"])
def test_a_turn_that_says_so_is_not_trained(prepare: Prepare, tokenizer: Any, key: str, no: object) -> None:
    prepared = prepare([{"messages": [ASK, {**ANSWER, key: no}, ASK, {**SECOND, key: 1}]}])
    assert text_of(prepared, tokenizer, trained=True) == "So<|im_end|>"
    assert "Ho<|im_end|>" in text_of(prepared, tokenizer)


@pytest.mark.parametrize("key", ["mask", "masked"])
def test_a_turn_that_is_masked_is_not_trained(prepare: Prepare, tokenizer: Any, key: str) -> None:
    prepared = prepare([{"messages": [ASK, {**ANSWER, key: True}, ASK, {**SECOND, key: 0}]}])
    assert text_of(prepared, tokenizer, trained=True) == "So<|im_end|>"


def test_what_comes_after_the_last_trained_answer_is_left_out_and_counted(prepare: Prepare, tokenizer: Any) -> None:
    prepared = prepare([{"messages": [ASK, ANSWER, ASK, {**SECOND, "weight": 0}]}, {"messages": [ASK, ANSWER, ASK]}])
    assert [text_of(prepared, tokenizer, row, trained=True) for row in range(2)] == ["Ho<|im_end|>"] * 2
    assert prepared.train.input_ids[0] == prepared.train.input_ids[1]
    assert warnings_of(prepared)[:2] == [
        "2 turns after the last answer that is trained, left out",
        "1 user turn after the last answer, left out",
    ]


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({**ANSWER, "weight": 0}, "an answer that is trained, got none"),
        ({**ANSWER, "weight": 0.5}, "turn 2 must have 'weight' as 0 or 1"),
        ({**ANSWER, "reasoning_content": {"a": 1}}, "turn 2 must have its reasoning as text"),
    ],
)
def test_turns_that_ask_for_what_is_not_done_are_bad_rows(prepare: Prepare, turn: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"a.jsonl:1: .*{words}"):
        prepare([{"messages": [ASK, turn]}])


def test_keys_of_turns_that_nobody_reads_are_counted_and_named(prepare: Prepare) -> None:
    prepared = prepare([{"messages": [{**ASK, "name": "Ann", "id": None}, {**ANSWER, "name": "Bot"}]}])
    assert "2 turns with a key 'name', which is not used" in warnings_of(prepared)
    assert not any("'id'" in line for line in warnings_of(prepared))


def test_a_question_that_asks_to_be_trained_is_counted(prepare: Prepare) -> None:
    prepared = prepare([{"messages": [{**ASK, "train": True}, ANSWER]}])
    assert "1 user turn with 'train' that asks for training: only answers are trained" in warnings_of(prepared)


def test_an_empty_system_turn_is_left_out(prepare: Prepare, tokenizer: Any) -> None:
    prepared = prepare([{"messages": [{"role": "system", "content": ""}, ASK, ANSWER]}])
    assert text_of(prepared, tokenizer).startswith("<|im_start|>user")
    assert "1 system turn without text, left out" in warnings_of(prepared)


def test_truth_values_are_trained_as_json_writes_them(prepare: Prepare) -> None:
    prepared = prepare([{"question": "Is it?", "answer": True}, {"question": "Is it not?", "answer": False}])
    assert prepared.train.references == ["true", "false"]


@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
def test_lines_may_end_as_on_any_machine(prepare: Prepare, end: bytes) -> None:
    lines = [json.dumps({"question": f"q{number}", "answer": f"a{number}"}).encode() for number in range(3)]
    assert prepare(end.join(lines)).train.references == ["a0", "a1", "a2"]
    csv = end.join([b"question,answer", b"q,a", b"r,b"])
    assert prepare(csv, name="a.csv").train.references == ["a", "b"]


def test_a_number_of_thousands_of_digits_is_the_text_that_it_is(prepare: Prepare) -> None:
    digits = "7" * 5000
    prepared = prepare(f'{{"question": "Which?", "answer": {digits}}}\n', max_length=8192)
    assert prepared.train.references == [digits]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_cannot_be_read_in_a_row_is_said_by_its_place(prepare: Prepare, name: str) -> None:
    deep = '{"question": "q", "answer": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(DataError, match=rf"{name}.* nested too deeply"):
        prepare(deep if name.endswith("l") else f"[{deep}]", name=name)
    half = r'{"question": "q", "answer": "\ud83d"}'
    with pytest.raises(DataError, match=r"answer must be Unicode text, got half a character, .ud83d"):
        prepare(half if name.endswith("l") else f"[{half}]", name=name)


def test_half_a_character_in_turns_that_are_a_text_is_said(prepare: Prepare) -> None:
    cell = r'[{""role"": ""user"", ""content"": ""\ud83d""}, {""role"": ""assistant"", ""content"": ""Ho""}]'
    with pytest.raises(DataError, match=r"a\.csv:2: 'messages': turn 1\.content must be Unicode text, got half a char"):
        prepare(f'id,messages\n1,"{cell}"\n', name="a.csv")


def test_a_whole_surrogate_pair_is_a_character(prepare: Prepare) -> None:
    assert prepare(r'{"question": "q", "answer": "\ud83d\ude00"}' + "\n").train.references == ["\N{GRINNING FACE}"]


def test_columns_that_excel_leaves_behind_are_dropped(prepare: Prepare) -> None:
    assert prepare("question,answer,,\nq,a,,\nr,b, ,\n", name="a.csv").train.references == ["a", "b"]
    # The index that pandas' to_csv writes has no name either.
    assert prepare(",question,answer\n0,q,a\n7,r,b\n", name="a.csv").train.references == ["a", "b"]
    with pytest.raises(DataError, match=r"a\.csv:2: .* column 1, .*1 column of 3 without a name"):
        prepare(",question,answer\nlost,q,a\n", name="a.csv")
    with pytest.raises(DataError, match=r"a\.csv:3: .* column 4, .*2 columns of 4 without a name"):
        prepare("question,answer,,\nq,a,,\nr,b,,lost\n", name="a.csv")


@pytest.mark.parametrize("is_dict", [False, True])
def test_a_folder_of_save_to_disk_is_opened(tmp_path: Path, tokenizer: Any, is_dict: bool) -> None:
    rows = datasets.Dataset.from_dict({"question": ["q", "r", "s"], "answer": ["a", "b", "c"]})
    saved = datasets.DatasetDict(train=rows, validation=rows.select([0])) if is_dict else rows
    saved.save_to_disk(str(tmp_path / "saved"))
    data = Data(train=str(tmp_path / "saved"), **({} if is_dict else {"validation": 0.4}))
    prepared = prepare_data(data, tokenizer=tokenizer, data_seed=7, cache_dir=tmp_path / "cache")
    if is_dict:
        assert (prepared.train.references, prepared.validation.references) == (["a", "b", "c"], ["a"])
    else:
        assert sorted([*prepared.train.references, *prepared.validation.references]) == ["a", "b", "c"]


def test_a_pipe_is_no_data_file(tmp_path: Path, tokenizer: Any) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"data\.train: must be a regular file, got .*rows\.jsonl"):
        prepare_data(
            Data(train=str(tmp_path / "rows.jsonl")), tokenizer=tokenizer, data_seed=7, cache_dir=tmp_path / "cache"
        )


def test_bad_rows_are_skipped_where_the_config_says_so_and_never_most_of_them(prepare: Prepare) -> None:
    rows = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(20)]
    bad = [*rows, {"question": "q", "answer": ""}]
    with pytest.raises(DataError, match=r"a\.jsonl:21: 'answer' must hold text"):
        prepare(bad)
    prepared = prepare(bad, bad_rows="skip")
    assert prepared.report.num_rows["train"] == 20
    (line,) = [line for line in warnings_of(prepared) if "bad row" in line]
    assert line.startswith("1 bad row left out") and "a.jsonl:21" in line
    with pytest.raises(DataError, match=r"3 rows are bad of 20\..*skips at most 10%"):
        prepare([*rows[:17], *[{"question": "q", "answer": ""}] * 3], bad_rows="skip")


THOUGHT = "First this."
PARTS = [{"type": "text", "text": "Ho"}]


@pytest.mark.parametrize(
    "turn",
    [
        {**ANSWER, "reasoning_content": THOUGHT},
        {**ANSWER, "thinking": THOUGHT},
        {**ANSWER, "reasoning": THOUGHT},
        {**ANSWER, "content": [{"type": "thinking", "thinking": THOUGHT}, *PARTS]},
        {**ANSWER, "content": [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, *PARTS]},
        {**ANSWER, "content": [{"type": "reasoning", "text": THOUGHT}, *PARTS]},
    ],
)
def test_reasoning_reaches_the_template(prepare: Prepare, turn: dict[str, Any]) -> None:
    qwen = build_byte_level(chat_template=QWEN)
    prepared = prepare([{"messages": [ASK, turn]}], by=qwen)
    assert text_of(prepared, qwen, trained=True) == "<think>\nFirst this.\n</think>\n\nHo<|im_end|>"


def test_a_template_that_loses_text_is_refused_where_most_rows_do_and_else_counted(
    prepare: Prepare, tokenizer: Any
) -> None:
    loses = {"messages": [ASK, {**ANSWER, "reasoning_content": "First this."}]}
    keeps = {"messages": [ASK, ANSWER]}
    with pytest.raises(DataError, match=r"a\.jsonl:1: the reasoning of turn 2 must be in the rendered row.*2 of 3"):
        prepare([loses, loses, keeps])
    prepared = prepare([loses, keeps, keeps])
    assert any("1 row of 3 lost text" in line and "a.jsonl:1" in line for line in warnings_of(prepared))


def test_a_template_that_strips_a_part_of_an_answer_is_noticed(prepare: Prepare) -> None:
    strips = build_byte_level(
        chat_template=QWEN.replace("{{ m['content'] +", "{{ m['content'].split('</think>')[-1] +")
    )
    with pytest.raises(DataError, match="the text of turn 2 must be in the rendered row"):
        prepare([{"messages": [ASK, {"role": "assistant", "content": "<think>x</think>Ho"}]}], by=strips)


@pytest.mark.parametrize("template", [PHI, QWEN], ids=["phi", "qwen"])
def test_chats_of_several_rounds_train_though_the_template_changes_earlier_turns(
    prepare: Prepare, template: str
) -> None:
    by = build_byte_level(chat_template=template)
    rounds = [ASK, ANSWER, {"role": "user", "content": "And?"}, SECOND]
    prepared = prepare([{"messages": rounds}, {"messages": rounds[:2]}], by=by)
    # Each answer as it is where it is the last one, which is how it is asked for.
    whole = [by.apply_chat_template(rounds[:end], tokenize=False) for end in (2, 4, 2)]
    assert [text_of(prepared, by, row) for row in range(3)] == whole
    trained = [text_of(prepared, by, row, trained=True) for row in range(3)]
    assert [text.rsplit("\n", 1)[-1][:2] for text in trained] == ["Ho", "So", "Ho"]
    assert any("1 conversation became a row for each answer" in line for line in warnings_of(prepared))


def test_a_chat_whose_last_answer_alone_is_trained_stays_a_row_where_the_template_changes_earlier_turns(
    prepare: Prepare,
) -> None:
    by = build_byte_level(chat_template=QWEN)
    prepared = prepare([{"messages": [ASK, {**ANSWER, "weight": 0}, ASK, SECOND]}], by=by)
    assert text_of(prepared, by, trained=True).endswith("</think>\n\nSo<|im_end|>")
    assert "Ho<|im_end|>" in text_of(prepared, by)
    assert not any("became a row for each answer" in line for line in warnings_of(prepared))


@pytest.mark.parametrize("written", ["<think>\nFirst this.\n</think>\n\nHo", "<think>First this.</think>Ho"])
def test_reasoning_that_the_template_writes_anew_is_not_lost(prepare: Prepare, written: str) -> None:
    # As Qwen3's takes it out of the content.
    template = QWEN.replace(
        "(m.get('reasoning_content') or '')", "m['content'].split('</think>')[0].split('<think>')[-1].strip()"
    ).replace("{{ m['content'] +", "{{ m['content'].split('</think>')[-1].strip() +")
    by = build_byte_level(chat_template=template)
    prepared = prepare([{"messages": [ASK, {"role": "assistant", "content": written}]}], by=by)
    assert text_of(prepared, by, trained=True) == "<think>\nFirst this.\n</think>\n\nHo<|im_end|>"


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", ""])
@pytest.mark.parametrize("begin", ["<|begin|>", ""])
def test_a_text_that_has_begin_and_end_token_gets_no_second_ones(prepare: Prepare, begin: str, end: str) -> None:
    by = build_byte_level(bos=True)
    prepared = prepare([{"text": f"{begin}Hi Ho{end}"}], by=by)
    assert text_of(prepared, by) == "<|begin|>Hi Ho<|im_end|>"
    assert warnings_of(prepared) == []
