"""Ollama's Modelfile of a merged model: prompts as in training, answers that end where training ended them.

Ollama has templates of Go and reads no chat template of Jinja. The one of a model is found by rendering conversations
of marks, and kept only if it renders all of them as training does.

Source: Ollama's docs/modelfile.mdx and docs/import.mdx. Newer ones make no GGUF of safetensors (docs/import.mdx), so
that FROM names a file that llama.cpp's converter makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlora_ray.data.examples import Example, Turn
from qlora_ray.data.templates import Template, render
from qlora_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODELFILE = "Modelfile"
GGUF = "merged.gguf"
# Texts that no template has of its own, and that none changes.
SYSTEM, FIRST, ANSWER, SECOND, LAST = "SYSTEMTEXT", "FIRSTQUESTION", "FIRSTANSWER", "SECONDQUESTION", "LASTANSWER"
# What Ollama's quotes and Go's templates would take for their own.
UNQUOTABLE = ('"""', "{{", "}}")


@dataclass(frozen=True)
class RoundTemplate:
    """How one round of a conversation is written, piece by piece, around its texts.

    Attributes:
        default_system: The system text where the conversation has none; empty: none.
        always_has_system: Whether the pieces around the system text are there without one too.
    """

    before_system: str
    after_system: str
    before_prompt: str
    after_prompt: str
    after_answer: str
    default_system: str = ""
    always_has_system: bool = False

    def write(self, rounds: Sequence[tuple[str, str]], *, system: str = "") -> str:
        """A conversation as Ollama writes it: the answer to the last question is still to come."""
        texts = []
        for number, (prompt, answer) in enumerate(rounds):
            own = (system or self.default_system) if number == 0 else ""
            if own or self.always_has_system:
                texts.append(f"{self.before_system}{own}{self.after_system}")
            texts.append(f"{self.before_prompt}{prompt}{self.after_prompt}")
            if number + 1 < len(rounds):
                texts.append(f"{answer}{self.after_answer}")
        return "".join(texts)

    def in_go(self) -> str:
        """The template in Ollama's language."""
        system = f"{self.before_system}{{{{ .System }}}}{self.after_system}"
        if not self.always_has_system:
            system = f"{{{{ if .System }}}}{system}{{{{ end }}}}"
        prompt = f"{self.before_prompt}{{{{ .Prompt }}}}{self.after_prompt}"
        return f"{system}{prompt}{{{{ .Response }}}}{self.after_answer}"


def make_modelfile(
    template: Template, tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[str]
) -> tuple[str, str | None]:
    """The Modelfile's text, and what is to be known of it; None: nothing.

    Args:
        template: What rows were rendered by in training.
        tokenizer: The base's.
        ends: The tokens that end an answer.
    """
    lines = [
        f"# Made by qlora_ray. {GGUF} is made of merged/ by llama.cpp:",
        f"#   python convert_hf_to_gguf.py merged --outfile {GGUF}",
        f"FROM ./{GGUF}",
    ]
    found = find_rounds(template, tokenizer)
    note = None
    if found is None:
        note = f"{MODELFILE} has no TEMPLATE: the model's cannot be told in Ollama's language, add one by hand"
        lines.append("# TEMPLATE: the model's cannot be told in Ollama's language. Add one by hand.")
    else:
        lines.append(f'TEMPLATE """{found.in_go()}"""')
        if found.default_system:
            lines.append(f'SYSTEM """{found.default_system}"""')
    lines += [f'PARAMETER stop "{end}"' for end in ends]
    # Answers were measured so.
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n", note


def find_rounds(template: Template, tokenizer: PreTrainedTokenizerBase) -> RoundTemplate | None:
    """How a round is written; None where rounds are not all written alike, or cannot be told in a Modelfile."""

    def ask(*turns: str, system: str = "") -> str:
        return _render_prompt(template, tokenizer, turns, system=system)

    try:
        plain = ask(FIRST)
        talk = ask(FIRST, ANSWER, SECOND)
        told = _try(lambda: ask(FIRST, system=SYSTEM))
    except DataError:
        return None
    found = _cut(plain, talk, told, str(tokenizer.eos_token))
    if found is None or any(
        word in piece for piece in vars(found).values() if isinstance(piece, str) for word in UNQUOTABLE
    ):
        return None
    cases = [(plain, found.write([(FIRST, "")])), (talk, found.write([(FIRST, ANSWER), (SECOND, "")]))]
    if told is not None:
        long = _try(lambda: ask(FIRST, ANSWER, SECOND, system=SYSTEM))
        cases.append((told, found.write([(FIRST, "")], system=SYSTEM)))
        cases.append((long or "", found.write([(FIRST, ANSWER), (SECOND, "")], system=SYSTEM)))
    return found if all(rendered == written for rendered, written in cases) else None


def _try(ask: Callable[[], str]) -> str | None:
    """A rendering; None where the template refuses the conversation: some know no system."""
    try:
        return ask()
    except DataError:
        return None


def _render_prompt(template: Template, tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], *, system: str) -> str:
    """A conversation up to where its next answer begins, without the token that begins a text: servers add that."""
    roles = [Turn("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate((*turns, LAST))]
    lead = [Turn("system", system)] if system else []
    pieces = render(Example((*lead, *roles), "the Modelfile"), template, tokenizer)
    end = str(tokenizer.eos_token)
    text = "".join(piece.text + (end if piece.ends_answer else "") for piece in pieces)
    text = text[: text.index(LAST)]
    begin = tokenizer.bos_token
    # Some begin each turn with that token, and no text with one more.
    adds_begin = begin is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return text.removeprefix(str(begin)) if adds_begin else text


def _cut(plain: str, talk: str, told: str | None, end: str) -> RoundTemplate | None:
    """The pieces of renderings of: a question; a round and a question; a question with a system text."""
    try:
        lead, after_prompt = _around(plain, FIRST)
        between = talk[talk.index(ANSWER) + len(ANSWER) : talk.index(SECOND)]
        if told is None:
            return _without_system(lead, between, after_prompt)
        before_system, rest = _around(told, SYSTEM)
        middle, _ = _around(rest, FIRST)
    except ValueError:
        return None
    if lead == before_system + middle and before_system:
        return RoundTemplate(before_system, "", middle, after_prompt, between.removesuffix(lead), "", True)
    if lead.startswith(before_system) and lead.endswith(middle) and len(lead) > len(before_system) + len(middle):
        # The template has a system text of its own.
        default = lead[len(before_system) : len(lead) - len(middle)]
        common = _common_end(middle, between)
        # A turn begins behind the end of the one before.
        tail = common[common.rindex(end) + len(end) :] if end in common else common
        before_prompt = tail.lstrip("\n") if end in common else tail
        if not before_prompt:
            return None
        return RoundTemplate(
            before_system,
            middle.removesuffix(before_prompt),
            before_prompt,
            after_prompt,
            between.removesuffix(before_prompt),
            default,
        )
    if not (middle.endswith(lead) and between.endswith(lead)):
        return None
    after_system = middle.removesuffix(lead)
    return RoundTemplate(before_system, after_system, lead, after_prompt, between.removesuffix(lead))


def _without_system(lead: str, between: str, after_prompt: str) -> RoundTemplate | None:
    if not between.endswith(lead):
        return None
    return RoundTemplate("", "", lead, after_prompt, between.removesuffix(lead))


def _around(text: str, mark: str) -> tuple[str, str]:
    """What stands before and behind the mark; ValueError where it is not there."""
    at = text.index(mark)
    return text[:at], text[at + len(mark) :]


def _common_end(one: str, other: str) -> str:
    """The longest text that both end with."""
    return next(one[at:] for at in range(len(one) + 1) if other.endswith(one[at:]))
