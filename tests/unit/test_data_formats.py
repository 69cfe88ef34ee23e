"""Formats are told by their columns, and rows become turns or a problem with a place."""

from types import SimpleNamespace

import pytest

from qlora_ray.config.schema import Data
from qlora_ray.data.examples import Row, Turn
from qlora_ray.data.formats import Conversion
from qlora_ray.errors import DataError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
PART = {"type": "text"}
CONVERSATION = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "hi"},
    {"from": "gpt", "value": "ho"},
]


def convert(*values, **data):
    return convert_rows([Row(f"a.jsonl:{number}", row) for number, row in enumerate(values, start=1)], **data)


def convert_rows(rows, **data):
    conversion = Conversion("a.jsonl", Data(**data))
    examples = list(conversion.convert(rows))
    return SimpleNamespace(examples=examples, format=conversion.format, notes=conversion.notes)


@pytest.mark.parametrize(
    ("row", "name", "words"),
    [
        ({"messages": MESSAGES}, "messages", "messages"),
        ({"conversations": CONVERSATION}, "sharegpt", "conversations"),
        ({"instruction": "hi", "output": "ho"}, "alpaca", "instruction + output"),
        ({"instruction": "hi", "input": "", "output": "ho", "text": "hi ho"}, "alpaca", "not used: text"),
        ({"prompt": "hi", "completion": "ho"}, "prompt-completion", "prompt + completion"),
        ({"question": "hi", "answer": "ho"}, "columns", "question + answer"),
        ({"question": "hi", "sql": "ho", "kind": "x"}, "columns", "columns seen: question, sql, kind; not used: kind"),
        ({"input": "hi", "output": "ho"}, "columns", "input + output"),
        ({"query": "hi", "response": "ho"}, "columns", "query + response"),
        ({"instruction": "hi", "response": "ho"}, "columns", "instruction + response"),
        ({"text": "hi ho", "id": 3}, "text", "text"),
    ],
)
def test_auto_knows_the_format_by_its_columns_and_says_which_it_saw(row, name, words):
    conversion = convert(row)
    assert conversion.format.name == name
    assert words in conversion.format.reason
    expected = [("text", "hi ho")] if name == "text" else [("user", "hi"), ("assistant", "ho")]
    turns = [(turn.role, turn.content) for turn in conversion.examples[0].turns]
    assert [turn for turn in turns if turn[0] != "system"] == expected


@pytest.mark.parametrize(
    ("row", "data", "words"),
    [
        ({"nlq": "hi", "sql": "ho"}, {}, r"got nlq, sql\. .*\{prompt: nlq, completion: sql\}"),
        ({"question": "hi", "answer": "ho", "sql": "x"}, {}, "must fit one format, got question, answer, sql"),
        (
            {"nlq": "hi", "sql": "ho"},
            {"columns": {"prompt": "nlq", "completion": "sqls"}},
            r"completion names a column 'sqls', .* mean 'sql'\?",
        ),
        ({"question": "hi", "output": "ho"}, {"format": "alpaca"}, "alpaca needs a column 'instruction'"),
    ],
)
def test_columns_that_fit_no_format_or_two_are_refused_by_their_names(row, data, words):
    with pytest.raises(DataError, match=words):
        convert(row, **data)


def test_alpaca_input_stays_apart_from_the_instruction_and_may_be_absent():
    conversion = convert(
        {"instruction": "add", "input": "1 2", "output": "3"},
        {"instruction": "sing", "input": None, "output": "la"},
        {"instruction": "sing", "output": "la"},
    )
    assert [example.turns[0] for example in conversion.examples] == [
        Turn("user", "add", "1 2"),
        Turn("user", "sing"),
        Turn("user", "sing"),
    ]
    assert conversion.examples[0].turns[0].full_content == "add\n\n1 2"


@pytest.mark.parametrize(
    ("row", "data"),
    [
        ({"nlq": "hi", "sql": "ho"}, {"columns": {"prompt": "nlq", "completion": "sql"}}),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, {}),
        ({"messages": [{"role": "user", "content": [PART | {"text": "h"}, PART | {"text": "i"}]}, MESSAGES[1]]}, {}),
    ],
    ids=["two-named-columns", "lists-of-turns", "content-in-parts"],
)
def test_a_row_of_another_shape_is_the_same_turns(row, data):
    turns = convert(row, **data).examples[0].turns
    assert [(turn.role, turn.content) for turn in turns] == [("user", "hi"), ("assistant", "ho")]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "got nothing"),
        (float("nan"), "got nothing"),
        ("", "got an empty text"),
        (" \n", "got blanks only"),
        ({"a": 1}, "got a dict"),
    ],
)
def test_a_row_without_an_answer_is_named_by_file_and_line_and_all_are_counted(answer, words):
    good = {"question": "hi", "answer": "ho"}
    bad = {"question": "hi", "answer": answer}
    with pytest.raises(DataError, match=rf"a\.jsonl:2: 'answer' must hold text, {words}\. 2 rows are bad of 4"):
        convert(good, bad, good, bad)


def test_a_key_that_one_row_lacks_is_that_rows_problem():
    with pytest.raises(DataError, match=r"a\.jsonl:2: 'answer' must hold text, .* only bad row of 2"):
        convert({"question": "hi", "answer": "ho"}, {"question": "hi"})


def test_rows_that_could_not_be_read_are_counted_with_the_others():
    rows = [Row("a.jsonl:1", problem="broken"), Row("a.jsonl:2", {"question": "hi", "answer": None})]
    with pytest.raises(DataError, match=r"a\.jsonl:1: broken\. 2 rows are bad of 2"):
        convert_rows(rows)


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([MESSAGES[0]], "must hold an answer, got no assistant turn"),
        ([MESSAGES[1], MESSAGES[1]], "a user turn must come before the first answer"),
        (
            [*MESSAGES, {"role": "system", "content": "x"}, MESSAGES[1]],
            "a system turn must come first, got one as turn 3",
        ),
        (
            [{"role": "narrator", "content": "x"}],
            "turn 1 must be by system, user, assistant or tool, got role 'narrator'",
        ),
        ([MESSAGES[0], {"role": "assistant", "content": ""}], r"turn 2 \(assistant\) must hold text, got nothing"),
        ([{"role": "user", "content": [{"type": "image"}]}], "turn 1 must hold text only, got a part of type 'image'"),
        ("hi", "must hold a list of turns"),
        ([], "must hold a list of turns .*got nothing"),
    ],
)
def test_a_conversation_that_cannot_be_trained_on_says_why(turns, problem):
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{problem}"):
        convert({"messages": turns}, format="messages")


def test_prompts_are_the_same_apart_from_case_and_whitespace():
    first, second = convert(
        {"question": "Hi  there", "answer": "A"}, {"question": "hi\nTHERE ", "answer": "B"}
    ).examples
    assert first.prompt_key == second.prompt_key
    assert first.answer_key != second.answer_key
