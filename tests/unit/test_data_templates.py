"""Templates render rows into context and answers, and say when they cannot."""

import pytest

from qlora_ray.data.examples import Example, Turn
from qlora_ray.data.templates import choose_template, render
from qlora_ray.errors import DataError
from tests.unit.data_tokenizer import CHATML, build_byte_level

ASK = (Turn("user", "Hi"), Turn("assistant", "Ho"))
TWO_ROUNDS = (*ASK, Turn("user", "And"), Turn("assistant", "So"))
SYSTEM = Turn("system", "Be brief.")


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_level()


def pieces(template, tokenizer, *turns):
    rendered = render(Example(turns, "a.jsonl:1"), choose_template(template, tokenizer), tokenizer)
    return [(piece.text, piece.is_trained) for piece in rendered]


@pytest.mark.parametrize(("chat_template", "name"), [(CHATML, "chat"), (None, "instruction")])
def test_auto_takes_the_chat_template_where_there_is_one(chat_template, name):
    chosen = choose_template("auto", build_byte_level(chat_template=chat_template))
    assert chosen.name == name
    assert "chat template" in chosen.reason


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("chat", r"data\.template: chat needs a tokenizer with a chat template"),
        ("Q: {prompt} A: {completion}", r"must end where the answer begins, got \{completion\}"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, words):
    with pytest.raises(DataError, match=words):
        choose_template(template, build_byte_level(chat_template=None))


def test_the_instruction_template_is_the_one_of_the_seeds(tokenizer):
    turns = (Turn("user", "Add", "1 2"), Turn("assistant", "3"))
    assert pieces("instruction", tokenizer, *turns) == [
        ("### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n", False),
        ("3", True),
    ]


def test_the_input_section_is_left_out_where_there_is_no_input(tokenizer):
    assert pieces("instruction", tokenizer, *ASK)[0][0] == "### Instruction:\nHi\n\n### Response:\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("instruction", "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n"),
        ("raw", "Be brief.\n\nHi\n"),
        ("Q: {prompt}\nA: ", "Be brief.\n\nQ: Hi\nA: "),
        ("[{system}] Q: {prompt}\nA: ", "[Be brief.] Q: Hi\nA: "),
    ],
)
def test_a_system_text_comes_first_or_where_the_template_wants_it(template, text, tokenizer):
    assert pieces(template, tokenizer, SYSTEM, *ASK) == [(text, False), ("Ho", True)]


def test_raw_adds_a_newline_unless_the_prompt_ends_in_whitespace(tokenizer):
    assert pieces("raw", tokenizer, *ASK)[0][0] == "Hi\n"
    assert pieces("raw", tokenizer, Turn("user", "Hi: "), ASK[1])[0][0] == "Hi: "


def test_braces_in_a_custom_template_and_in_prompts_are_text(tokenizer):
    turns = (Turn("user", "{system} {prompt}"), Turn("assistant", "Ho"))
    assert pieces('{"q": "{prompt}", {x}} {system}', tokenizer, *turns)[0][0] == '{"q": "{system} {prompt}", {x}} '


def test_each_round_of_a_conversation_is_rendered_and_every_answer_is_trained(tokenizer):
    assert pieces("raw", tokenizer, SYSTEM, *TWO_ROUNDS) == [
        ("Be brief.\n\nHi\n", False),
        ("Ho", True),
        ("\n\nAnd\n", False),
        ("So", True),
    ]


def test_chat_marks_answers_and_their_end_token_but_not_the_newline_behind_it(tokenizer):
    assert pieces("chat", tokenizer, *TWO_ROUNDS) == [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Ho<|im_end|>", True),
        ("\n<|im_start|>user\nAnd<|im_end|>\n<|im_start|>assistant\n", False),
        ("So<|im_end|>", True),
        ("\n", False),
    ]


@pytest.mark.parametrize("answer", ["end", "im", "|>", "the end, im_end|>"])
def test_an_answer_that_is_a_part_of_its_end_token_is_marked_like_any_other(answer, tokenizer):
    found = pieces("chat", tokenizer, ASK[0], Turn("assistant", answer))
    assert found[1:] == [(f"{answer}<|im_end|>", True), ("\n", False)]


def test_chat_pieces_joined_are_the_template_of_the_whole_conversation(tokenizer):
    turns = (SYSTEM, *TWO_ROUNDS)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    joined = "".join(text for text, _ in pieces("chat", tokenizer, *turns))
    assert joined == tokenizer.apply_chat_template(messages, tokenize=False)


def test_alpaca_input_follows_the_instruction_in_a_chat(tokenizer):
    text = pieces("chat", tokenizer, Turn("user", "Add", "1 2"), Turn("assistant", "3"))[0][0]
    assert "<|im_start|>user\nAdd\n\n1 2<|im_end|>" in text


REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.mark.parametrize(
    ("chat_template", "turns", "words"),
    [
        # As templates that drop the reasoning of earlier answers do.
        (
            CHATML.replace("message['content']", "(message['content'] if loop.last else 'cut')"),
            TWO_ROUNDS,
            r"a\.jsonl:1: the chat template must render a conversation's beginning the same",
        ),
        # As those of reasoning models do, whose generation prompt opens a thought that training rows do not have.
        (
            CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif"),
            ASK,
            r"in turn 2, .* Use data\.template instruction, or raw\.",
        ),
        (REFUSES_SYSTEM + CHATML, (SYSTEM, *ASK), "turns system, user, assistant, got: System role not supported"),
    ],
    ids=["past-changes", "opens-a-thought", "refuses-a-role"],
)
def test_a_chat_template_that_rows_cannot_be_rendered_by_is_refused(chat_template, turns, words):
    with pytest.raises(DataError, match=words):
        pieces("chat", build_byte_level(chat_template=chat_template), *turns)


def test_plain_text_is_one_trained_piece(tokenizer):
    assert pieces("auto", tokenizer, Turn("text", "Once upon")) == [("Once upon", True)]


def test_where_only_the_last_answer_counts_the_past_may_be_rendered_otherwise():
    content = "(message['content'] if loop.last or message['role'] == 'user' else 'cut')"
    unstable = build_byte_level(chat_template=CHATML.replace("message['content']", content))
    example = Example(TWO_ROUNDS, "a.jsonl:1")
    found = render(example, choose_template("chat", unstable), unstable, last_only=True)
    assert [(piece.text.count("cut"), piece.is_trained) for piece in found[:2]] == [(1, False), (0, True)]
    assert found[1].text == f"{TWO_ROUNDS[-1].content}<|im_end|>"
