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

from qlora_ray.data.chat import render_chat
from qlora_ray.data.examples import Example, Piece, Turn
from qlora_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION_PROMPT = "### Instruction:\n{prompt}\n\n### Response:\n"
INSTRUCTION_INPUT_PROMPT = "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n"
ROUND_SEPARATOR = "\n\n"
ANSWER_PLACEHOLDERS = ("{completion}", "{answer}", "{response}", "{output}")


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
            that where the answers stand cannot be known; if another template is to render tool calls.
    """
    if example.is_text:
        text = example.turns[0].content
        # Rows that were rendered elsewhere often end with it already.
        has_end = bool(tokenizer.eos_token) and text.rstrip().endswith(tokenizer.eos_token)
        return [Piece(text.rstrip() if has_end else text, is_trained=True, ends_answer=not has_end)]
    if template.name == "chat":
        return render_chat(example, tokenizer, last_only=last_only)
    _check_no_tools(example, template)
    return _render_rounds(example.turns, _ROUND_RENDERERS[template.name], template)


def _check_no_tools(example: Example, template: Template) -> None:
    for number, turn in enumerate(example.turns, start=1):
        if turn.role == "tool" or turn.tool_calls:
            what = "the turn of a tool" if turn.role == "tool" else "a tool call"
            raise DataError(
                f"{example.where}: tools must be rendered by a chat template, got {what} as turn {number} and the "
                f"template {template.name}. Set data.template to chat and train a model whose chat template has tools, "
                "or write calls and results into the text of turns."
            )


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


_ROUND_RENDERERS: dict[str, Callable[[str, str, str, Template], str]] = {
    "instruction": _render_instruction,
    "raw": _render_raw,
    "custom": _render_custom,
}
