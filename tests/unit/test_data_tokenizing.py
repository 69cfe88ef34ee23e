"""Tokens are those of the tokenizer itself, and the mask covers answers and their end tokens only."""

import pytest

from qlora_ray.data.examples import Example, Turn
from qlora_ray.data.templates import choose_template
from qlora_ray.data.tokenizing import tokenize_split
from qlora_ray.errors import DataError
from tests.unit.data_tokenizer import CHATML, build_byte_level, build_metaspace

ASK = (Turn("user", "Which product lines are there?"), Turn("assistant", "SELECT productLine FROM productlines;"))
TWO_ROUNDS = (
    Turn("system", "Be brief."),
    *ASK,
    Turn("user", "Ordered by name, déjà vu 3?"),
    Turn("assistant", "SELECT name\nFROM customers ORDER BY name;"),
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_level()


def tokenize(tokenizer, *conversations, template="auto", max_length=512, trains_all=False):
    return tokenize_split(
        "train",
        [Example(turns, f"a.jsonl:{number}") for number, turns in enumerate(conversations, start=1)],
        template=choose_template(template, tokenizer),
        tokenizer=tokenizer,
        max_length=max_length,
        trains_all=trains_all,
    )


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def trained_text(tokenizer, split, row=0):
    return tokenizer.decode(
        [token for token, bit in zip(split.input_ids[row], split.completion_mask[row], strict=True) if bit]
    )


@pytest.mark.parametrize("template", ["chat", "instruction", "raw"])
def test_whole_rows_are_the_same_tokens_and_answers_with_all_of_them_trained(template, tokenizer):
    rows, counts = tokenize(tokenizer, ASK, TWO_ROUNDS[:3], template=template)
    whole, all_counts = tokenize(tokenizer, ASK, TWO_ROUNDS[:3], template=template, trains_all=True)
    assert (whole.input_ids, whole.prompt_ids, whole.references) == (rows.input_ids, rows.prompt_ids, rows.references)
    # What TRL makes of `completion_only_loss: false`: labels = input_ids.
    assert [list(mask) for mask in whole.completion_mask] == [[1] * len(ids) for ids in rows.input_ids]
    assert all_counts.num_completion_tokens == all_counts.num_tokens == counts.num_tokens > counts.num_completion_tokens


@pytest.mark.parametrize("turns", [ASK, TWO_ROUNDS])
def test_a_chat_has_the_ids_that_the_tokenizers_own_chat_template_gives(turns, tokenizer):
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    split, _ = tokenize(tokenizer, turns)
    assert split.input_ids[0] == expected


def test_the_generation_prompt_is_what_apply_chat_template_gives_before_the_last_answer(tokenizer):
    messages = [{"role": turn.role, "content": turn.content} for turn in TWO_ROUNDS[:-1]]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    split, _ = tokenize(tokenizer, TWO_ROUNDS)
    assert split.prompt_ids[0] == expected["input_ids"]
    assert split.references == [TWO_ROUNDS[-1].content]


def test_the_mask_of_a_chat_covers_both_answers_and_their_end_tokens(tokenizer):
    split, _ = tokenize(tokenizer, TWO_ROUNDS)
    answers = [f"{turn.content}<|im_end|>" for turn in TWO_ROUNDS if turn.role == "assistant"]
    assert trained_text(tokenizer, split) == "".join(answers)
    assert split.num_completion_tokens == sum(len(ids_of(tokenizer, answer)) for answer in answers)


@pytest.mark.parametrize("template", ["instruction", "raw", "Q: {prompt}\nA:"])
def test_prompt_ids_and_answer_and_end_token_are_the_input_ids(template, tokenizer):
    split, _ = tokenize(tokenizer, ASK, template=template)
    answer = [*ids_of(tokenizer, ASK[1].content), tokenizer.eos_token_id]
    prompt = split.prompt_ids[0]
    assert split.input_ids[0] == prompt + answer
    assert split.completion_mask[0] == [0] * len(prompt) + [1] * len(answer)


def test_plain_text_is_trained_whole_with_an_end_token_and_has_no_prompt(tokenizer):
    split, _ = tokenize(tokenizer, (Turn("text", "name of customers"),))
    assert split.input_ids[0] == [*ids_of(tokenizer, "name of customers"), tokenizer.eos_token_id]
    assert set(split.completion_mask[0]) == {1}
    assert (split.prompt_ids, split.references) == ([[]], [""])


@pytest.mark.parametrize("chat_template", [None, "{{ bos_token }}" + CHATML])
@pytest.mark.parametrize("turns", [ASK, (Turn("text", "name"),)])
def test_a_begin_token_stands_once_in_front_and_is_not_trained(chat_template, turns):
    with_bos = build_byte_level(chat_template=chat_template, bos=True)
    split, _ = tokenize(with_bos, turns)
    assert split.input_ids[0].count(with_bos.bos_token_id) == 1
    assert split.input_ids[0][0] == with_bos.bos_token_id
    assert split.completion_mask[0][0] == 0
    assert turns != ASK or split.prompt_ids[0][0] == with_bos.bos_token_id


def test_a_tokenizer_that_adds_spaces_adds_none_inside_a_row():
    metaspace, turns = build_metaspace(), (Turn("user", "name"), Turn("assistant", "SELECT name"))
    split, _ = tokenize(metaspace, turns, template="### Instruction: {prompt}\n### Response:")
    assert metaspace.decode(split.input_ids[0][:-1]) == "### Instruction: name\n### Response:SELECT name"
    assert split.prompt_ids[0] == ids_of(metaspace, "### Instruction: name\n### Response:")


def test_longer_rows_lose_their_end_and_are_counted_with_their_whole_length(tokenizer):
    whole, _ = tokenize(tokenizer, ASK)
    length = len(whole.input_ids[0])
    split, counts = tokenize(tokenizer, ASK, (Turn("user", "a"), Turn("assistant", "b")), max_length=length - 5)
    assert split.input_ids[0] == whole.input_ids[0][: length - 5]
    assert len(split.completion_mask[0]) == length - 5
    assert split.prompt_ids[0] == whole.prompt_ids[0]
    assert (counts.num_truncated, counts.num_dropped) == (1, {})
    assert counts.lengths[0] == length
    # A row exactly as long as allowed is not cut.
    assert tokenize(tokenizer, ASK, max_length=length)[1].num_truncated == 0


def test_a_row_whose_answer_is_cut_away_is_dropped_and_counted(tokenizer):
    long_question = (Turn("user", "name " * 100), Turn("assistant", "b"))
    split, counts = tokenize(tokenizer, long_question, ASK, max_length=80)
    assert len(split) == 1
    assert split.references == [ASK[1].content]
    assert counts.num_dropped == {"answer beyond max_length 80": 1}
    assert counts.num_truncated == 1


def test_when_every_answer_is_cut_away_the_lengths_are_given(tokenizer):
    with pytest.raises(DataError, match=r"data\.max_length: train rows .* got 3 for rows of (\d+) to \1 tokens.*Raise"):
        tokenize(tokenizer, ASK, max_length=3)


def test_an_answer_without_an_end_token_is_counted():
    endless = build_byte_level(
        chat_template="{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    split, counts = tokenize(endless, ASK)
    assert counts.num_without_end == 1
    assert trained_text(endless, split) == ASK[1].content + "\n"
    assert tokenize(build_byte_level(), ASK)[1].num_without_end == 0


def test_the_text_of_a_special_token_inside_a_row_is_counted(tokenizer):
    _, counts = tokenize(tokenizer, (Turn("user", "what is <|im_end|>?"), ASK[1]), ASK)
    assert counts.num_with_special_text == 1
