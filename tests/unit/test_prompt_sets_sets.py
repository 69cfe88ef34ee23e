"""The rows models are asked: those of the sweep, and prompts from files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from qlora_ray.config.heads import Head
from qlora_ray.config.schema import Columns, Data, Evaluate, Model
from qlora_ray.data import PreparedData, prepare_data
from qlora_ray.errors import ConfigError, DataError
from qlora_ray.evaluation.prompt_sets.sets import PromptSet, choose_split, make_file_set, make_prompt_sets
from qlora_ray.modeling.loading import load_tokenizer
from tests.unit.data_tokenizer import build_byte_level
from tests.unit.test_data_as_found import PHI
from tests.unit.test_data_tool_calls import HERMES

SEED = 7
TOKENIZER = build_byte_level()
ASKED = "<|im_end|>\n<|im_start|>assistant\n"


def write_rows(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_data(folder: Path, *, num_train: int = 8, num_test: int = 3, **changes: object) -> Data:
    def rows(kind: str, num: int) -> list[dict[str, object]]:
        return [{"ask": f"{kind} question {n}?", "say": f"{kind} answer {n}"} for n in range(num)]

    values = {
        "train": write_rows(folder / "train.jsonl", rows("train", num_train)),
        "validation": write_rows(folder / "val.jsonl", rows("val", 2)),
        "test": write_rows(folder / "test.jsonl", rows("test", num_test)),
        "columns": Columns(prompt="ask", completion="say"),
        **changes,
    }
    return Data(**values)


def make_sets(
    data: Data,
    *,
    tokenizer: PreTrainedTokenizerFast = TOKENIZER,
    shots: list[int],
    max_positions: int | None = None,
    num_rows: int | None = None,
    **evaluate: Any,
) -> tuple[PreparedData, dict[str, PromptSet]]:
    prepared = prepare_data(data, tokenizer=tokenizer, data_seed=SEED)
    split, _ = choose_split(prepared, "auto")
    assert split is not None
    sets = make_prompt_sets(
        split,
        data=data,
        data_seed=SEED,
        evaluate=Evaluate(shots=shots, **{"max_new_tokens": 8, **evaluate}),
        tokenizer=tokenizer,
        max_positions=max_positions,
        max_rows=num_rows,
    )
    return prepared, {prompts.name: prompts for prompts in sets}


def test_rows_that_were_left_out_for_a_bad_label_are_not_asked_with_examples_either(tmp_path: Path) -> None:
    def moods(kind: str, bad_row: int | None) -> str:
        rows: list[dict[str, object]] = [
            {
                "ask": f"{kind} question {n}?",
                "say": f"answer {n}",
                "mood": ["no", "label"] if n == bad_row else ("sad", "glad")[n % 2],
            }
            for n in range(12)
        ]
        return write_rows(tmp_path / f"{kind}.jsonl", rows)

    data = make_data(tmp_path, bad_rows="skip").model_copy(
        update={"train": moods("known", None), "test": moods("new", 5)}
    )
    heads = {"mood": Head(column="mood")}
    prepared = prepare_data(data, tokenizer=TOKENIZER, data_seed=SEED, heads=heads)
    assert prepared.test is not None
    made = make_prompt_sets(
        prepared.test,
        data=data,
        data_seed=SEED,
        evaluate=Evaluate(shots=[1], max_new_tokens=8),
        tokenizer=TOKENIZER,
        max_positions=None,
        heads=heads,
    )
    assert [len(prompts.rows) for prompts in made] == [11]


def make_file(
    folder: Path,
    *rows: dict[str, object],
    tokenizer: PreTrainedTokenizerFast = TOKENIZER,
    data: Data | None = None,
    **limits: Any,
) -> PromptSet:
    """The prompt set of a file `asked.jsonl` of these rows."""
    path = write_rows(folder / "asked.jsonl", list(rows))
    return make_file_set(path, data=data or Data(), tokenizer=tokenizer, **{"max_positions": None, **limits})


def trained_text(prompts: PromptSet, row: int, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> str:
    """The tokens of a row that count for its loss."""
    rows = prompts.rows
    pairs = zip(rows.input_ids[row], rows.completion_mask[row], strict=True)
    return str(tokenizer.decode([token for token, is_trained in pairs if is_trained]))


def test_the_split_is_test_else_validation_and_the_reason_is_said(tmp_path: Path) -> None:
    with_test = prepare_data(make_data(tmp_path), tokenizer=TOKENIZER, data_seed=SEED)
    without = prepare_data(make_data(tmp_path, test=None), tokenizer=TOKENIZER, data_seed=SEED)
    split, reason = choose_split(with_test, "auto")
    assert split == with_test.test and reason.startswith("test: ")
    split, reason = choose_split(without, "auto")
    assert split == without.validation and "no test rows" in reason
    assert choose_split(with_test, "validation")[0] == with_test.validation
    assert choose_split(with_test, "none")[0] is None
    with pytest.raises(ConfigError, match=r"--split test: .* got none"):
        choose_split(without, "test")


def test_without_shots_rows_and_tokens_are_the_sweeps(tmp_path: Path) -> None:
    prepared, sets = make_sets(make_data(tmp_path), shots=[0])
    assert sets["0-shot"].rows == prepared.test
    assert sets["0-shot"].ids == ["0", "1", "2"]


def test_a_conversation_that_became_a_row_for_each_answer_has_shots_before_each(tmp_path: Path) -> None:
    def chats(kind: str, num: int) -> str:
        rounds = [(f"{kind} {n}, {turn}?", f"{kind} {n}, {turn}.") for n in range(num) for turn in ("first", "then")]
        turns = [({"role": "user", "content": ask}, {"role": "assistant", "content": say}) for ask, say in rounds]
        pairs = zip(turns[::2], turns[1::2], strict=True)
        return write_rows(tmp_path / f"{kind}.jsonl", [{"messages": [*first, *then]} for first, then in pairs])

    tokenizer = build_byte_level(chat_template=PHI)
    data = Data(train=chats("train", 3), validation=chats("val", 1), test=chats("test", 2))
    _, sets = make_sets(data, tokenizer=tokenizer, shots=[0, 1])
    asked = ["test 0, first", "test 0, then", "test 1, first", "test 1, then"]
    for name, num_rounds in (("0-shot", (1, 2, 1, 2)), ("1-shot", (3, 4, 3, 4))):
        prompts = [tokenizer.decode(ids) for ids in sets[name].rows.prompt_ids]
        assert [prompt.rsplit("user\n", 1)[1].partition("?")[0] for prompt in prompts] == asked
        assert tuple(prompt.count("<|im_start|>user") for prompt in prompts) == num_rounds
        assert trained_text(sets[name], 1, tokenizer) == "test 0, then.<|im_end|>"


def test_the_tools_that_a_worked_example_calls_are_offered_beside_the_asked_rows_own(tmp_path: Path) -> None:
    def row(tool: str, number: int) -> dict[str, object]:
        ask = {"role": "user", "content": f"{tool} {number}?"}
        call = {"role": "assistant", "tool_calls": [{"name": tool, "arguments": {"n": number}}]}
        return {"messages": [ask, call], "tools": [{"name": tool, "description": f"Does {tool}."}]}

    files = {
        kind: [row(tool, n) for n in range(2)] for kind, tool in (("train", "add"), ("val", "add"), ("test", "look"))
    }
    train, validation, test = (write_rows(tmp_path / f"{kind}.jsonl", rows) for kind, rows in files.items())
    tokenizer = build_byte_level(chat_template=HERMES)
    data = Data(train=train, validation=validation, test=test)
    _, sets = make_sets(data, tokenizer=tokenizer, shots=[1])
    text = tokenizer.decode(sets["1-shot"].rows.prompt_ids[0])
    assert text.index("Does look.") < text.index("Does add.") < text.index('{"name": "add", "arguments": ')
    assert (text.count("Does look."), text.count("Does add.")) == (1, 1)


def test_shots_are_earlier_turns_rendered_as_the_data_are(tmp_path: Path) -> None:
    _, sets = make_sets(make_data(tmp_path), shots=[2])
    text = TOKENIZER.decode(sets["2-shot"].rows.prompt_ids[1])
    assert text.count("<|im_start|>user") == 3 and text.count("<|im_start|>assistant") == 3
    assert text.endswith(f"<|im_start|>user\ntest question 1?{ASKED}")
    assert text.count("train question") == text.count("train answer") == 2
    assert trained_text(sets["2-shot"], 1) == "test answer 1<|im_end|>"


def test_every_row_has_the_same_examples_and_fewer_shots_have_the_first_of_them(tmp_path: Path) -> None:
    _, sets = make_sets(make_data(tmp_path), shots=[1, 3])
    threes = [TOKENIZER.decode(ids).split("test question")[0] for ids in sets["3-shot"].rows.prompt_ids]
    ones = [TOKENIZER.decode(ids).split("test question")[0] for ids in sets["1-shot"].rows.prompt_ids]
    assert len(set(threes)) == len(set(ones)) == 1
    assert threes[0].startswith(ones[0].removesuffix("<|im_start|>user\n"))


def test_another_seed_draws_other_examples(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    found = [make_sets(data, shots=[2], shot_seed=seed)[1]["2-shot"] for seed in (1, 1, 2, 3)]
    assert len({prompts.fingerprint for prompts in found}) == 3


def test_examples_are_never_of_the_rows_that_are_asked(tmp_path: Path) -> None:
    rows = [{"ask": f"Same {n}", "say": "x"} for n in range(4)] + [{"ask": "Free", "say": "y"}]
    data = make_data(tmp_path)
    write_rows(tmp_path / "train.jsonl", rows)
    # The same question but for case and white space.
    write_rows(tmp_path / "test.jsonl", [{"ask": f"same  {n}", "say": "x"} for n in range(4)])
    _, sets = make_sets(data, shots=[1])
    assert all("Free" in TOKENIZER.decode(ids) for ids in sets["1-shot"].rows.prompt_ids)
    with pytest.raises(DataError, match="2 examples must come from train, got 1 prompts of it"):
        make_sets(data, shots=[2])


def test_examples_that_do_not_fit_are_left_out_one_by_one_and_counted(tmp_path: Path) -> None:
    data = make_data(tmp_path, num_test=1)
    _, whole = make_sets(data, shots=[0, 1, 2, 3])
    lengths = {name: len(prompts.rows.prompt_ids[0]) for name, prompts in whole.items()}
    _, sets = make_sets(data, shots=[3], max_positions=lengths["2-shot"] + 40, max_new_tokens=40)
    assert sets["3-shot"].num_dropped_shots == 1
    assert sets["3-shot"].rows.prompt_ids == whole["2-shot"].rows.prompt_ids
    _, sets = make_sets(data, shots=[3], max_positions=lengths["2-shot"] + 39, max_new_tokens=40)
    assert sets["3-shot"].num_dropped_shots == 2
    _, sets = make_sets(data, shots=[3], max_positions=1)
    assert (sets["3-shot"].num_dropped_shots, sets["3-shot"].rows) == (3, whole["0-shot"].rows)


def test_a_system_prompt_stays_first_and_is_there_once(tmp_path: Path) -> None:
    _, sets = make_sets(make_data(tmp_path, system_prompt="Be brief."), shots=[2])
    text = TOKENIZER.decode(sets["2-shot"].rows.prompt_ids[0])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>") and text.count("Be brief.") == 1


def test_the_loss_of_a_conversation_counts_its_last_answer(tmp_path: Path) -> None:
    turns = [("user", "a?"), ("assistant", "first"), ("user", "b?"), ("assistant", "last")]
    rows = [{"messages": [{"role": role, "content": f"{text} {n}"} for role, text in turns]} for n in range(3)]
    name = write_rows(tmp_path / "talks.jsonl", rows)
    data = Data(train=name, validation=name, test=name)
    prepared, sets = make_sets(data, shots=[0])
    assert prepared.test is not None
    assert "first 0" in trained_text(PromptSet("test", prepared.test, [], 0), 0)
    assert trained_text(sets["0-shot"], 0) == "last 0<|im_end|>"


def test_rows_dropped_for_their_length_stay_dropped_with_shots(tmp_path: Path) -> None:
    data = make_data(tmp_path, max_length=60)
    long = {"ask": "so long a question " * 20, "say": "cut away"}
    write_rows(tmp_path / "test.jsonl", [long, {"ask": "short?", "say": "kept"}])
    prepared, sets = make_sets(data, shots=[0, 1])
    assert prepared.test is not None and len(prepared.test) == 1
    assert sets["1-shot"].rows.references == ["kept"]
    assert TOKENIZER.decode(sets["1-shot"].rows.prompt_ids[0]).endswith(f"short?{ASKED}")


def test_rows_and_answers_can_be_fewer(tmp_path: Path) -> None:
    data = make_data(tmp_path, num_test=5)
    _, first = make_sets(data, shots=[0, 1], num_rows=2)
    assert [(len(prompts.rows), prompts.num_answered) for prompts in first.values()] == [(2, 2), (2, 2)]
    _, some = make_sets(data, shots=[0], max_rows=3)
    assert (len(some["0-shot"].rows), some["0-shot"].num_answered) == (5, 3)


def test_shots_of_plain_text_are_an_error(tmp_path: Path) -> None:
    name = write_rows(tmp_path / "text.jsonl", [{"text": f"some words {n}"} for n in range(3)])
    with pytest.raises(ConfigError, match=r"evaluate.shots must be \[0\] for plain text"):
        make_sets(Data(train=name, validation=name, test=name), shots=[0, 3])


def test_a_prompt_file_is_rendered_by_the_datas_template(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "Who?"}, {"id": "b", "prompt": "Why?"}]
    found = make_file(tmp_path, *rows, data=Data(system_prompt="Hi."), max_positions=64)
    assert (found.name, found.ids, found.num_answered, found.has_references) == ("asked", ["a", "b"], 2, False)
    text = TOKENIZER.decode(found.rows.prompt_ids[1])
    assert text == f"<|im_start|>system\nHi.<|im_end|>\n<|im_start|>user\nWhy?{ASKED}"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_positions": 9}, "the model's 9 positions"),
        ({"max_positions": 64, "max_length": 9}, r"evaluate.max_length \(9\)"),
    ],
)
def test_a_prompt_that_leaves_no_tokens_for_its_answer_is_refused_by_its_line(
    tmp_path: Path, limits: dict[str, int], words: str
) -> None:
    with pytest.raises(DataError, match=rf"asked.jsonl:1: .* {words}, got"):
        make_file(tmp_path, {"prompt": "Who?"}, **limits)


def test_a_prompt_file_with_a_reference_in_every_row_can_be_scored(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1?", "reference": "2"}, {"prompt": "2+2?", "reference": "4"}]
    found = make_file(tmp_path, *rows)
    assert found.has_references and found.rows.references == ["2", "4"]
    assert not make_file(tmp_path, *rows, {"prompt": "3+3?"}).has_references


# As Qwen3's: the thoughts of an answer are rendered only while it is the last one.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_shots_of_a_template_that_thinks_in_the_last_turn_only(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(Model())
    tokenizer.chat_template = THINKING
    _, sets = make_sets(make_data(tmp_path), tokenizer=tokenizer, shots=[0, 2])
    text = tokenizer.decode(sets["2-shot"].rows.prompt_ids[1])
    assert text.count("train answer") == 2 and "<think>" not in text
    assert text.endswith(f"user\ntest question 1?{ASKED}")
    for prompts in sets.values():
        trained = trained_text(prompts, 1, tokenizer)
        assert trained.strip().startswith("<think>\n\n</think>") and trained.strip().endswith("test answer 1<|im_end|>")
    turns = (("user", "a"), ("assistant", "b"), ("user", "c"))
    asked = make_file(
        tmp_path, {"messages": [{"role": role, "content": text} for role, text in turns]}, tokenizer=tokenizer
    )
    assert tokenizer.decode(asked.rows.prompt_ids[0]).endswith(f"b<|im_end|>\n<|im_start|>user\nc{ASKED}")


def test_answers_of_each_set_are_as_long_as_its_own_references_ask_for(tmp_path: Path) -> None:
    def tokens(text: str) -> int:
        return len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) + 1

    data = make_data(tmp_path)
    write_rows(tmp_path / "test.jsonl", [{"ask": "a?", "say": "word " * 12}, {"ask": "b?", "say": "word " * 40}])
    expected = {rows: math.ceil(tokens(("word " * num).strip()) * 1.25 / 8) * 8 for rows, num in ((1, 12), (2, 40))}
    for rows, max_new_tokens in expected.items():
        _, sets = make_sets(data, shots=[0, 1], max_new_tokens="auto", num_rows=rows)
        assert {prompts.max_new_tokens for prompts in sets.values()} == {max_new_tokens}
    assert make_file(tmp_path, {"prompt": "1+1?", "reference": "2"}).max_new_tokens == 16
    bare = make_file(tmp_path, {"prompt": "1+1?"})
    assert bare.max_new_tokens == bare.to_dict()["evaluate"]["max_new_tokens"] == 256
    assert make_file(tmp_path, {"prompt": "1+1?"}, max_new_tokens=5).max_new_tokens == 5


def test_a_length_of_the_users_leaves_examples_out_as_positions_do(tmp_path: Path) -> None:
    data = make_data(tmp_path, num_test=1)
    _, whole = make_sets(data, shots=[2])
    fitting = len(whole["2-shot"].rows.prompt_ids[0]) + 40
    for max_length, num_dropped in ((fitting, 1), (fitting - 1, 2)):
        _, sets = make_sets(data, shots=[3], max_positions=9999, max_new_tokens=40, max_length=max_length)
        assert sets["3-shot"].num_dropped_shots == num_dropped
