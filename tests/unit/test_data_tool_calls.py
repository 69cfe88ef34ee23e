"""Tools, calls and results reach the chat template as transformers would hand them over, and calls are trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerBase

from qlora_ray.config.schema import Data
from qlora_ray.data.examples import Row
from qlora_ray.data.formats import Conversion
from qlora_ray.data.sources import find_sources
from qlora_ray.data.splits import RowChoice
from qlora_ray.data.templates import choose_template
from qlora_ray.data.tokenizing import SplitCounts, TokenizedSplit, tokenize_split
from qlora_ray.errors import DataError
from qlora_ray.evaluation.prompt_sets.sets import make_file_set
from tests.unit.data_tokenizer import CHATML, build_byte_level

SCHEMA = {
    "name": "get_weather",
    "description": "The weather of a city, today.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOL = {"type": "function", "function": SCHEMA}
ASK = {"role": "user", "content": "How is Oslo?"}
ARGUMENTS = {"city": "Oslo, \u00d8st", "days": 2, "exact": True}
CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
CALLS = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": '{"sky": "grey"}'}
ANSWER = {"role": "assistant", "content": "Grey."}
ROUNDS = [ASK, CALLS, RESULT, ANSWER]

# In the manner of Qwen2.5 and the Hermes models: calls between tags, results as a user's turn.
HERMES = (
    "{% if tools %}{{ '<|im_start|>system\nTools:' }}{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{% set call = call.function %}"
    "{{ '\n' if m.content or not loop.first }}"
    '{{ \'<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}{{ call.arguments | tojson }}'
    "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# In the manner of Llama 3.1: one call as JSON, which takes the place of the text, and a role of its own for results.
LLAMA = (
    "{% for m in messages %}"
    "{% if m.role == 'user' and loop.first and tools %}"
    "{{ '<|im_start|>user\nAnswer or call one of: ' }}{{ tools | map('tojson') | join(' ') }}"
    "{{ '\n\n' + m.content + '<|im_end|>' }}"
    "{% elif m.tool_calls is defined %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('only one call at once') }}{% endif %}"
    "{% set call = m.tool_calls[0].function %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    '{{ \'{"name": "\' + call.name + \'", "parameters": \' }}{{ call.arguments | tojson }}'
    "{{ '}<|im_end|>' }}{% endgeneration %}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + ('ipython' if m.role == 'tool' else m.role) + '\n' + m.content + '<|im_end|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# In the manner of Mistral: tools before the last question, all calls as one list, with ids of nine characters.
MISTRAL = (
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}"
    "{% if tools is not none and m == asked[-1] %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}"
    "{% endif %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls is defined %}{% generation %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}"
    "{% if call.id is not defined or call.id | length != 9 %}{{ raise_exception('an id must have 9 characters') }}"
    "{% endif %}"
    "{{ (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' + ('' if loop.last else ', ') }}{% endfor %}"
    "{{ ']<|im_end|>' }}{% endgeneration %}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{% generation %}{{ ' ' + m.content + '<|im_end|>' }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)
# In the manner of DeepSeek, whose arguments must be text.
TEXT_ARGUMENTS = HERMES.replace("{{ call.arguments | tojson }}", "{{ call.arguments + '' }}")
ALL = pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL], ids=["hermes", "llama", "mistral"])


def build(template: str) -> PreTrainedTokenizerBase:
    tokenizer = build_byte_level(chat_template=template)
    # Not special, as Qwen's.
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    return tokenizer


def convert(row: dict[str, Any], **data: Any) -> Any:
    [example] = Conversion("a.jsonl", Data(**data)).convert([Row("a.jsonl:1", row)])
    return example


def tokenize(
    tokenizer: PreTrainedTokenizerBase, *rows: dict[str, Any], template: str = "auto"
) -> tuple[TokenizedSplit, SplitCounts]:
    return tokenize_split(
        "train",
        [convert(row) for row in rows],
        template=choose_template(template, tokenizer),
        tokenizer=tokenizer,
        max_length=4096,
    )


def trained_text(split: TokenizedSplit, tokenizer: PreTrainedTokenizerBase, row: int = 0) -> str:
    pairs = zip(split.input_ids[row], split.completion_mask[row], strict=True)
    return str(tokenizer.decode([token for token, is_trained in pairs if is_trained]))


@ALL
def test_tokens_and_mask_are_those_of_transformers(template: str) -> None:
    tokenizer = build(template)
    split, counts = tokenize(tokenizer, {"messages": ROUNDS, "tools": [TOOL]})
    expected = tokenizer.apply_chat_template(ROUNDS, tools=[TOOL], return_dict=True, return_assistant_tokens_mask=True)
    assert split.input_ids[0] == expected["input_ids"]
    assert split.completion_mask[0] == expected["assistant_masks"]
    assert (counts.lost, counts.num_without_end) == ([], 0)
    assert '"city": "Oslo, \u00d8st"' in trained_text(split, tokenizer)


@ALL
def test_a_prompt_keeps_its_tools_and_a_reference_that_is_a_call_is_as_the_template_renders_it(template: str) -> None:
    tokenizer = build(template)
    split, _ = tokenize(tokenizer, {"messages": ROUNDS[:2], "tools": [TOOL]}, {"messages": ROUNDS, "tools": [TOOL]})
    for row, end in ((0, 1), (1, 3)):
        expected = tokenizer.apply_chat_template(
            ROUNDS[:end], tools=[TOOL], add_generation_prompt=True, return_dict=True
        )
        assert split.prompt_ids[row] == expected["input_ids"]
    rendered = tokenizer.apply_chat_template(ROUNDS[:2], tools=[TOOL], tokenize=False)
    asked = tokenizer.apply_chat_template(ROUNDS[:1], tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert split.references == [rendered.removeprefix(asked).replace("<|im_end|>", "").strip(), "Grey."]


FLAT = {"name": "get_weather", "arguments": json.dumps(ARGUMENTS, ensure_ascii=False)}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ROUNDS, "tools": json.dumps([TOOL])},
        {"messages": ROUNDS, "tools": [json.dumps(SCHEMA)]},
        {"messages": json.dumps(ROUNDS), "tools": [SCHEMA]},
        {"messages": [ASK, {**CALLS, "content": None}, RESULT, ANSWER], "tools": [TOOL]},
        {"messages": [ASK, {**CALLS, "tool_calls": [FLAT]}, RESULT, ANSWER], "tools": [TOOL]},
        {"messages": [ASK, {"role": "assistant", "function_call": FLAT}, RESULT, ANSWER], "tools": [TOOL]},
        {"messages": ROUNDS, "functions": [SCHEMA]},
        {"messages": [ASK, CALLS, {**RESULT, "role": "function", "content": {"sky": "grey"}}, ANSWER], "tools": [TOOL]},
        {"prompt": [ASK], "completion": ROUNDS[1:], "tools": [TOOL]},
        {
            "conversations": [
                {"from": "human", "value": ASK["content"]},
                {"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": ARGUMENTS})},
                {"from": "observation", "value": RESULT["content"]},
                {"from": "gpt", "value": "Grey."},
            ],
            "tools": json.dumps([SCHEMA]),
        },
    ],
    ids=["text", "texts", "bare", "null", "flat", "one", "functions", "function", "prompt", "sharegpt"],
)
def test_tools_and_calls_are_read_however_a_file_holds_them(row: dict[str, Any]) -> None:
    tokenizer = build(HERMES)
    split, _ = tokenize(tokenizer, row)
    assert split.input_ids[0] == tokenizer.apply_chat_template(ROUNDS, tools=[TOOL], return_dict=True)["input_ids"]


def test_calls_at_once_are_one_turn_also_where_each_is_a_turn_of_its_own() -> None:
    tokenizer = build(HERMES)
    second = {"name": "get_weather", "arguments": {"city": "Rome"}}
    calls = {"role": "assistant", "tool_calls": [CALL, {"type": "function", "function": second}]}
    apart = [
        {"role": "user", "content": "How is Oslo?"},
        {"role": "tool_call", "content": json.dumps(CALL)},
        {"role": "tool_call", "content": json.dumps(second)},
    ]
    split, _ = tokenize(tokenizer, {"messages": [ASK, calls]}, {"messages": apart})
    assert split.input_ids[0] == split.input_ids[1]
    assert trained_text(split, tokenizer).count("<tool_call>") == 2


def test_the_end_token_is_trained_behind_what_closes_a_call_also_where_that_is_special_and_a_line_of_its_own() -> None:
    tokenizer = build_byte_level(chat_template=HERMES.replace("{{ '<|im_end|>' }}", "{{ '\n<|im_end|>' }}"))
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"], special_tokens=True)
    split, counts = tokenize(tokenizer, {"messages": [ASK, CALLS]})
    assert trained_text(split, tokenizer).endswith("}\n</tool_call>\n<|im_end|>")
    assert counts.num_without_end == 0


def test_text_beside_a_call_is_trained_with_it() -> None:
    tokenizer = build(HERMES)
    split, _ = tokenize(tokenizer, {"messages": [ASK, {**CALLS, "content": "Let me look."}]})
    assert trained_text(split, tokenizer).startswith("Let me look.\n<tool_call>\n")
    assert trained_text(split, tokenizer).endswith("}\n</tool_call><|im_end|>")


def test_a_template_that_wants_arguments_as_text_gets_them_as_they_were_written() -> None:
    tokenizer = build(TEXT_ARGUMENTS)
    written = '{"city":"Oslo"}'
    call = {"function": {"name": "get_weather", "arguments": written}}
    split, counts = tokenize(tokenizer, {"messages": [ASK, {"role": "assistant", "tool_calls": [call]}]})
    assert written in trained_text(split, tokenizer)
    assert counts.lost == []


def test_a_template_that_writes_an_object_as_python_does_gets_text() -> None:
    tokenizer = build(HERMES.replace("{{ call.arguments | tojson }}", "{{ call.arguments }}"))
    split, _ = tokenize(tokenizer, {"messages": ROUNDS})
    assert json.dumps(ARGUMENTS, ensure_ascii=False) in trained_text(split, tokenizer)


@pytest.mark.parametrize(
    ("template", "row", "words"),
    [
        (CHATML, {"messages": ROUNDS}, "the tool calls of turn 2 must be in the rendered row"),
        (CHATML, {"messages": [ASK, ANSWER], "tools": [TOOL]}, "the tools must be in the rendered row"),
        # Names and keys are among the tools, the call is not.
        (HERMES.replace("m.tool_calls or []", "[]"), {"messages": ROUNDS, "tools": [TOOL]}, "the tool calls of turn 2"),
        (LLAMA, {"messages": [ASK, {**CALLS, "tool_calls": [CALL, CALL]}]}, "must accept .* only one call at once"),
        (MISTRAL, {"messages": [ASK, {**CALLS, "tool_calls": [FLAT]}]}, "an id must have 9 characters"),
    ],
    ids=["calls", "tools", "calls-beside-tools", "two-calls", "ids"],
)
def test_what_a_template_cannot_render_is_said(template: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl:1: .*{words}"):
        tokenize(build(template), row)


@pytest.mark.parametrize("template", ["instruction", "raw", "Q: {prompt}\n"])
def test_other_templates_have_no_place_for_tool_calls(template: str) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: tools must be rendered by a chat template, got a tool call as"):
        tokenize(build(HERMES), {"messages": ROUNDS}, template=template)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": ROUNDS, "tools": "get_weather"}, "'tools' must hold a list of tools as JSON, got 'get_weather'"),
        ({"messages": ROUNDS, "tools": [{"type": "function"}]}, "tool 1 must be a function with a name"),
        ({"messages": ROUNDS, "tools": 3}, "tools must be a list, got a int"),
        ({"messages": [ASK, {**CALLS, "tool_calls": [{"id": "1"}]}]}, "turn 2 must hold a tool call with a name"),
        ({"messages": [ASK, {**CALLS, "tool_calls": [{**FLAT, "arguments": "{'a': 1}"}]}]}, "arguments as a JSON obj"),
        ({"messages": [ASK, {**CALLS, "tool_calls": [{**FLAT, "arguments": [1]}]}]}, "arguments as a JSON object"),
        ({"messages": [ASK, {**CALLS, "tool_calls": [{**FLAT, "arguments": '{"a": "\\ud83d"}'}]}]}, "half a character"),
        ({"messages": [{**ASK, "tool_calls": [CALL]}, ANSWER]}, "turn 1 must be by the assistant to call tools"),
        ({"messages": [ASK, {"role": "function_call", "content": "go"}]}, "turn 2 must hold a tool call, .* got 'go'"),
        ({"messages": [ASK, RESULT, ANSWER]}, "a tool turn must come after an answer, got one as turn 2"),
    ],
)
def test_tools_and_calls_of_another_shape_are_bad_rows(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl:1: .*{words}"):
        convert(row)


def test_rows_that_differ_in_their_calls_only_are_different_rows() -> None:
    other = {"role": "assistant", "tool_calls": [{**FLAT, "arguments": {"city": "Rome"}}]}
    first, second = (convert({"messages": [ASK, calls]}) for calls in (CALLS, other))
    assert first.prompt_key == second.prompt_key
    assert first.answer_key != second.answer_key


def test_results_after_the_last_answer_are_left_out_and_counted() -> None:
    conversion = Conversion("a.jsonl", Data())
    [example] = conversion.convert([Row("a.jsonl:1", {"messages": ROUNDS[:3]})])
    assert len(example.turns) == 2
    assert [(note.noun, number) for note, number in conversion.notes.items()] == [("tool turn", 1)]


def test_a_call_that_says_so_is_not_trained() -> None:
    tokenizer = build(HERMES)
    split, _ = tokenize(tokenizer, {"messages": [ASK, {**CALLS, "weight": 0}, RESULT, ANSWER]})
    assert trained_text(split, tokenizer) == "Grey.<|im_end|>"


def hermes_row(write: Callable[[Any], str] = json.dumps, **changes: Any) -> dict[str, Any]:
    """As NousResearch's rows are: the tools in the system text too, call and results as text between tags."""
    call = json.dumps({"name": "get_weather", "arguments": ARGUMENTS})
    turns = [
        ("system", f"Call functions. <tools>\n{write([TOOL])}\n</tools>"),
        ("human", "How is Oslo?"),
        ("gpt", f"<tool_call>\n{call}\n</tool_call>"),
        ("tool", "<tool_response>\ngrey\n</tool_response>\n<tool_response>\nwet\n</tool_response>"),
        ("gpt", "Grey."),
    ]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns], "tools": json.dumps([TOOL])}
    return row | changes


@pytest.mark.parametrize("write", [json.dumps, repr, lambda tools: json.dumps(tools, indent=2)])
def test_tools_that_the_system_text_holds_are_not_shown_twice(write: Callable[[Any], str]) -> None:
    tokenizer = build(HERMES)
    split, counts = tokenize(tokenizer, hermes_row(write))
    assert str(tokenizer.decode(split.input_ids[0])).count(SCHEMA["description"]) == 1
    assert counts.lost == []
    conversion = Conversion("a.jsonl", Data())
    list(conversion.convert([Row("a.jsonl:1", hermes_row(write))]))
    assert [number for note, number in conversion.notes.items() if "holds its tools already" in note.words] == [1]


def test_a_system_text_that_only_mentions_a_tool_does_not_hold_it() -> None:
    system = {"role": "system", "content": 'Use "get_weather". The weather of a city, today.'}
    assert convert({"messages": [system, ASK, ANSWER], "tools": [TOOL]}).tools == (TOOL,)


@pytest.mark.parametrize("template", [HERMES, CHATML], ids=["wraps", "does not"])
def test_a_result_has_its_tags_once_whoever_writes_them(template: str) -> None:
    tokenizer = build(template)
    split, _ = tokenize(tokenizer, hermes_row())
    text = str(tokenizer.decode(split.input_ids[0]))
    assert [text.count(f"<tool_response>\n{seen}\n</tool_response>") for seen in ("grey", "wet")] == [1, 1]
    assert text.count("<tool_response>") == 2


@pytest.mark.parametrize("is_folder", [False, True])
def test_nulls_that_arrow_fills_in_are_in_no_schema_and_no_call(tmp_path: Path, is_folder: bool) -> None:
    other = {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    }
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    rows = [
        {"messages": [ASK, CALLS], "tools": [SCHEMA]},
        {"messages": [ASK, {"role": "assistant", "tool_calls": [call]}], "tools": [other]},
    ]
    table = pyarrow.Table.from_pylist(rows)
    if is_folder:
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = find_sources(Data(train=str(tmp_path / ("saved" if is_folder else "a.parquet")))).train
    first, second = Conversion("a", Data()).convert(source.read(RowChoice(None, 0)))
    assert json.loads(first.turns[1].tool_calls[0].arguments) == ARGUMENTS
    assert json.loads(second.turns[1].tool_calls[0].arguments) == {"a": 1}
    assert [example.tools[0]["function"] for example in (first, second)] == [SCHEMA, other]


def test_a_prompt_file_has_tools_and_calls_as_references(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"messages": ROUNDS[:2], "tools": [TOOL]}) + "\n")
    found = make_file_set(path, data=Data(), tokenizer=(tokenizer := build(HERMES)), max_positions=None)
    prompt = tokenizer.apply_chat_template([ASK], tools=[TOOL], add_generation_prompt=True, return_dict=True)
    assert found.rows.prompt_ids == [prompt["input_ids"]]
    assert found.has_references and found.rows.references[0].startswith("<tool_call>")
