"""Renders a conversation by the tokenizer's own chat template, and finds its answers in the rendered text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from qlora_ray.data.examples import Example, Piece, Turn
from qlora_ray.data.lost_text import find_lost
from qlora_ray.data.reading import parse_json
from qlora_ray.data.template_habits import find_end_of_turn, wraps_results
from qlora_ray.data.template_trial import ADVICE, ROW_LIMIT_S
from qlora_ray.data.turns import REASONING_KEYS
from qlora_ray.errors import DataError
from qlora_ray.platforms import time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
# Around a tool's result in Hermes' rows.
RESULT_TAGS = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)


class BeginningChanges(DataError):
    """A chat template renders a conversation's beginning otherwise once it goes on."""


class _CallForm(NamedTuple):
    """How tool calls are handed to a template: arguments as an object or as text; with empty content or with none."""

    arguments_as_text: bool = False
    with_empty_content: bool = False


# transformers documents objects, and no content where there is none. DeepSeek's templates want text.
CALL_FORMS = (_CallForm(), _CallForm(arguments_as_text=True), _CallForm(with_empty_content=True), _CallForm(True, True))


def render_chat(example: Example, tokenizer: PreTrainedTokenizerBase, *, last_only: bool) -> list[Piece]:
    """Returns the pieces of one Example by the chat template; as `templates.render`, for that template.

    Tool calls are handed over in the first of `CALL_FORMS` that the template renders whole.

    Raises:
        BeginningChanges: If the answers cannot be marked.
        DataError: If the template refuses the conversation, or takes more than `ROW_LIMIT_S`.
    """
    has_calls = any(turn.tool_calls for turn in example.turns)
    example = _unwrap_results(example, tokenizer)
    refusal: DataError | None = None
    lossy: list[Piece] | None = None
    for form in CALL_FORMS if has_calls else CALL_FORMS[:1]:
        try:
            pieces = _mark_answers(example, tokenizer, form, last_only=last_only)
        except BeginningChanges:
            raise
        except DataError as error:
            refusal = refusal or error
            continue
        if not has_calls or find_lost(example, pieces, last_only=last_only) is None:
            return pieces
        lossy = lossy or pieces
    if lossy is None:
        assert refusal is not None
        raise refusal
    return lossy


def _unwrap_results(example: Example, tokenizer: PreTrainedTokenizerBase) -> Example:
    """The row without the tags that Hermes' rows have around a tool's result, where the template writes them too."""
    results = [_split_results(turn) for turn in example.turns]
    if not any(results) or not wraps_results(tokenizer, str(tokenizer.chat_template)):
        return example
    parts = zip(example.turns, results, strict=True)
    turns = [replace(turn, content=text) for turn, texts in parts for text in texts or [turn.content]]
    return replace(example, turns=tuple(turns))


def _split_results(turn: Turn) -> list[str]:
    """The results in a tool's turn that consists of tags with results and nothing else; several may stand in one."""
    if turn.role != "tool" or RESULT_TAGS.sub("", turn.content).strip():
        return []
    return [text.strip() for text in RESULT_TAGS.findall(turn.content)]


def _mark_answers(
    example: Example, tokenizer: PreTrainedTokenizerBase, form: _CallForm, *, last_only: bool
) -> list[Piece]:
    messages = [_as_message(turn, form) for turn in example.turns]
    answers = [index for index, turn in enumerate(example.turns) if turn.role == "assistant"]
    full = _apply(example, tokenizer, messages, add_generation_prompt=False)
    pieces: list[Piece] = []
    position = 0
    for index in answers[-1:] if last_only else answers:
        before = _apply(example, tokenizer, messages[:index], add_generation_prompt=True)
        after = (
            full
            if index + 1 == len(messages)
            else _apply(example, tokenizer, messages[: index + 1], add_generation_prompt=False)
        )
        if not (after.startswith(before) and full.startswith(after) and len(before) >= position):
            advice = "rows of one question and one answer" if len(pieces) or index + 1 < len(messages) else "raw"
            raise BeginningChanges(
                f"{example.where}: the chat template must render a conversation's beginning the same once it goes on, "
                f"got another text before or in turn {index + 1}, so its answers cannot be marked. "
                f"Use data.template instruction, or {advice}."
            )
        span = after[len(before) :]
        answer_length = _trained_length(span, example.turns[index], tokenizer)
        pieces.append(Piece(full[position : len(before)], is_trained=False))
        pieces.append(Piece(span[:answer_length], is_trained=example.turns[index].is_trained))
        position = len(before) + answer_length
    if position < len(full):
        pieces.append(Piece(full[position:], is_trained=False))
    return pieces


def _as_message(turn: Turn, form: _CallForm) -> Message:
    message: Message = {"role": turn.role, "content": turn.full_content}
    if turn.reasoning:
        # Templates read one key or the other.
        message |= dict.fromkeys(REASONING_KEYS, turn.reasoning)
    if turn.tool_calls:
        message["tool_calls"] = [
            ({"id": call.call_id} if call.call_id else {})
            | {
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if form.arguments_as_text else parse_json(call.arguments),
                },
            }
            for call in turn.tool_calls
        ]
        if not turn.content and not form.with_empty_content:
            del message["content"]
    return message | {key: value for key, value in (("tool_call_id", turn.call_id), ("name", turn.name)) if value}


def _trained_length(span: str, turn: Turn, tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters of an answer's rendering that are trained: up to the first end token behind it.

    Not what some templates put behind that: a newline, or the end token of the whole text (Phi-3's). What closes a tool
    call (Qwen's `</tool_call>`) is often an added token too, and does not end the answer.
    """
    special = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    # Some tokenizers have runs of blanks among their added tokens.
    tokens = sorted((token for token in {*special, tokenizer.eos_token} if token and token.strip()), key=len)
    if not tokens:
        return len(span)
    one_token = "|".join(map(re.escape, reversed(tokens)))
    tail = rf"(?:\s|{one_token})*\Z"
    if turn.tool_calls:
        closing = re.search(tail, span)
        behind = len(span) if closing is None else closing.start()
    else:
        behind = _end_of_answer(span, turn.content.strip(), re.compile(tail))
    end = find_end_of_turn(tokenizer, str(tokenizer.chat_template))
    place = span.find(end, behind) if end else -1
    if place >= 0:
        return place + len(end)
    found = list(re.compile(one_token).finditer(span, behind))
    if turn.tool_calls:
        ends = [match for match in found if special.get(match[0], True) or match[0] == tokenizer.eos_token]
        # Special tokens that follow at once belong together: the end of the calls and that of the answer.
        found = (ends or found)[: _run_length(ends or found)][-1:]
    return found[0].end() if found else len(span)


def _end_of_answer(span: str, answer: str, tail: re.Pattern[str]) -> int:
    """Where the answer's text ends, and blanks and added tokens follow up to the end.

    The text may also be a part of an end token (`end` of `<|im_end|>`): its last place need not be the one.
    """
    start = span.find(answer)
    while start >= 0 and not tail.match(span, start + len(answer)):
        start = span.find(answer, start + 1)
    place = start if start >= 0 else span.rfind(answer)
    return place + len(answer) if place >= 0 else 0


def _run_length(matches: Sequence[re.Match[str]]) -> int:
    length = min(1, len(matches))
    while length < len(matches) and matches[length].start() == matches[length - 1].end():
        length += 1
    return length


def _apply(
    example: Example, tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, add_generation_prompt: bool
) -> str:
    try:
        with time_limit(ROW_LIMIT_S):
            text = tokenizer.apply_chat_template(
                messages,
                tools=list(example.tools) or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
    except TimeoutError as error:
        raise DataError(f"{example.where}: the base's chat template must render it, but {error}. {ADVICE}") from None
    # A template is a stranger's program, which may raise anything.
    except Exception as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{example.where}: the chat template must accept the turns {roles}"
            f"{' with tools' if example.tools else ''}, got: {error}. "
            "Change the turns (drop the system prompt, for one), or set data.template to instruction."
        ) from None
    return str(text)
