"""Renders an Example into pieces of text, each trained or not.

Templates:
    chat: the tokenizer's own chat template.
    instruction: `### Instruction:`, `### Input:` (left out where there is none), `### Response:`.
    raw: the prompt, a newline unless the prompt ends in whitespace, the answer.
    custom: the user's text with {prompt}, and {system} if it likes; the answer follows it.

Outside `chat`, the system text comes first, followed by a blank line, unless a custom template places it; the answer is
followed by the end token; in a conversation of several rounds, each round is rendered like that, a blank line between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qlora_ray.data.examples import Example, Turn
from qlora_ray.data.turns import REASONING_KEYS
from qlora_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION_PROMPT = "### Instruction:\n{prompt}\n\n### Response:\n"
INSTRUCTION_INPUT_PROMPT = "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n"
ROUND_SEPARATOR = "\n\n"
ANSWER_PLACEHOLDERS = ("{completion}", "{answer}", "{response}", "{output}")


class BeginningChanges(DataError):
    """A chat template renders a conversation's beginning otherwise once it goes on."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is tokenized by itself. `ends_answer` asks for the end token's id behind it."""

    text: str
    is_trained: bool
    ends_answer: bool = False


@dataclass(frozen=True)
class Template:
    """A template that was chosen, and why. `source` is the text of a custom one."""

    name: Literal["chat", "instruction", "raw", "custom"]
    reason: str
    source: str = ""


def choose_template(template: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Returns the template that the config names; `auto` takes the tokenizer's chat template where it has one.

    Raises:
        DataError: If `chat` is asked of a tokenizer without a chat template, or a custom one places the answer itself.
    """
    if template == "auto" and tokenizer.chat_template:
        return Template("chat", "auto: the tokenizer has a chat template")
    if template == "auto":
        return Template("instruction", "auto: the tokenizer has no chat template")
    if template == "chat":
        if not tokenizer.chat_template:
            raise DataError(
                "data.template: chat needs a tokenizer with a chat template, got one without. "
                "Set data.template to instruction, or train an instruct model."
            )
        return Template("chat", "data.template is chat")
    if template == "instruction":
        return Template("instruction", "data.template is instruction")
    if template == "raw":
        return Template("raw", "data.template is raw")
    for placeholder in ANSWER_PLACEHOLDERS:
        if placeholder in template:
            raise DataError(
                f"data.template: a custom template must end where the answer begins, got {placeholder} in it. "
                f"Remove {placeholder}: the answer and the end token follow by themselves."
            )
    return Template("custom", "data.template is a text of its own", template)


def render(
    example: Example, template: Template, tokenizer: PreTrainedTokenizerBase, *, last_only: bool = False
) -> list[Piece]:
    """Returns the pieces of one Example: for a conversation, alternating context and answer, from context on.

    Args:
        example: The row: its turns, or its plain text.
        template: As `choose_template` returned it: which renderer, and the text of a custom one.
        tokenizer: Renders the `chat` template; the others do not use it.
        last_only: Whether only the last answer of a chat need be marked, and all before it may be one context: some
            templates (Qwen3's) render an answer otherwise once the conversation goes on.

    Raises:
        DataError: If the chat template refuses the conversation, or renders its beginning otherwise once it goes on, so
            that where the answers stand cannot be known.
    """
    if example.is_text:
        return [Piece(example.turns[0].content, is_trained=True, ends_answer=True)]
    if template.name == "chat":
        return _render_chat(example, tokenizer, last_only=last_only)
    return _render_rounds(example.turns, _ROUND_RENDERERS[template.name], template)


def _render_rounds(
    turns: Sequence[Turn], render_round: Callable[[str, str, str, Template], str], template: Template
) -> list[Piece]:
    pieces: list[Piece] = []
    system = ""
    questions: list[Turn] = []
    for turn in turns:
        if turn.role == "system":
            system = turn.content
        elif turn.role == "user":
            questions.append(turn)
        else:
            asked = "\n\n".join(question.full_content for question in questions[:-1])
            content = "\n\n".join(filter(None, (asked, questions[-1].content))) if questions else ""
            given = questions[-1].input if questions else ""
            # Two answers in a row: the second one goes on without a prompt of its own.
            prompt = render_round(content, given, system, template) if questions else ""
            pieces.append(Piece((ROUND_SEPARATOR if pieces else "") + prompt, is_trained=False))
            pieces.append(Piece(turn.content, is_trained=turn.is_trained, ends_answer=True))
            questions, system = [], ""
    return pieces


def _render_instruction(prompt: str, given: str, system: str, template: Template) -> str:
    text = INSTRUCTION_INPUT_PROMPT if given else INSTRUCTION_PROMPT
    return _lead(system) + _fill(text, prompt=prompt, input=given)


def _render_raw(prompt: str, given: str, system: str, template: Template) -> str:
    text = _lead(system) + "\n\n".join(filter(None, (prompt, given)))
    return text if text[-1:].isspace() else f"{text}\n"


def _render_custom(prompt: str, given: str, system: str, template: Template) -> str:
    lead = "" if "{system}" in template.source else _lead(system)
    return lead + _fill(template.source, prompt="\n\n".join(filter(None, (prompt, given))), system=system)


def _lead(system: str) -> str:
    return f"{system}\n\n" if system else ""


def _fill(text: str, **values: str) -> str:
    # Not str.format: braces in a template (JSON, LaTeX) are text. One pass: braces in the values are text too.
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)


def _render_chat(example: Example, tokenizer: PreTrainedTokenizerBase, *, last_only: bool) -> list[Piece]:
    messages = [_as_message(turn) for turn in example.turns]
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
        answer_length = _trained_length(span, example.turns[index].content.strip(), tokenizer)
        pieces.append(Piece(full[position : len(before)], is_trained=False))
        pieces.append(Piece(span[:answer_length], is_trained=example.turns[index].is_trained))
        position = len(before) + answer_length
    if position < len(full):
        pieces.append(Piece(full[position:], is_trained=False))
    return pieces


def _as_message(turn: Turn) -> dict[str, str]:
    message = {"role": turn.role, "content": turn.full_content}
    # Templates read one key or the other.
    return message | dict.fromkeys(REASONING_KEYS, turn.reasoning) if turn.reasoning else message


def find_lost(example: Example, pieces: Sequence[Piece], *, last_only: bool = False) -> str | None:
    """What of a row's trained answers is not in its rendering, in words; None where all is there.

    Templates trim blanks around a text, which is no loss.

    Args:
        example: The row.
        pieces: Its rendering.
        last_only: As in `render`: earlier answers are context, which a template may shorten.
    """
    text = "".join(piece.text for piece in pieces)
    for number, turn in enumerate(example.turns, start=1):
        if not turn.is_trained or (last_only and number < len(example.turns)):
            continue
        if turn.content.strip() not in text:
            return f"the text of turn {number}"
        if turn.reasoning.strip() not in text:
            return f"the reasoning of turn {number}"
    return None


def _trained_length(span: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters of an answer's rendering that are trained: up to the first end token behind it.

    Not what some templates put behind that: a newline, or the end token of the whole text (Phi-3's).
    """
    start = span.rfind(answer)
    behind = 0 if start < 0 else start + len(answer)
    ends = [
        place + len(token)
        for token in (tokenizer.eos_token, *(str(token) for token in tokenizer.get_added_vocab()))
        # Some tokenizers have runs of blanks among their added tokens.
        if token and token.strip() and (place := span.find(token, behind)) >= 0
    ]
    return min(ends, default=len(span))


def _apply(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    *,
    add_generation_prompt: bool,
) -> str:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{example.where}: the chat template must accept the turns {roles}, got: {error}. "
            "Change the turns (drop the system prompt, for one), or set data.template to instruction."
        ) from None
    return str(text)


_ROUND_RENDERERS: dict[str, Callable[[str, str, str, Template], str]] = {
    "instruction": _render_instruction,
    "raw": _render_raw,
    "custom": _render_custom,
}
