"""The formats of a dataset's rows that a config can name: one `RowFormat` per entry of `config.choices.FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from qlora_ray.data.conversations import as_turns, looks_like_turns, read_text, read_turns
from qlora_ray.data.examples import Row, RowProblem, Turn
from qlora_ray.data.notes import Note, Notes
from qlora_ray.data.turns import REASONING_KEYS

# The functions that a row's assistant may call: today's name, and OpenAI's earlier one.
TOOL_COLUMNS = ("tools", "functions")
# What a row of SQuAD 2 without an answer is trained to say, as in UnifiedQA's and FLAN's tasks.
NO_ANSWER = "unanswerable"
UNANSWERABLE = Note("row", f"without an answer, trained to say `{NO_ANSWER}`")
# Two columns that are known by name, in addition to prompt + completion.
KNOWN_PAIRS = (
    ("question", "answer"),
    ("question", "sql"),
    ("input", "output"),
    ("query", "response"),
    ("instruction", "response"),
    ("problem", "generated_solution"),
    ("question", "response"),
)
# What a question is about, beside it: of dolly, of sql-create-context, and alpaca's name.
GIVEN_COLUMNS = ("context", "input")
SYSTEM_COLUMNS = ("system", "system_prompt")
# Without these columns a row means something else.
MEANINGFUL_COLUMNS = (*SYSTEM_COLUMNS, *GIVEN_COLUMNS, *TOOL_COLUMNS, "history", *REASONING_KEYS)


def has_columns(row_format: RowFormat, rows: Sequence[Row], seen: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Yields the format's columns where all of them are there.

    Args:
        row_format: The format that is tried.
        rows: The first rows of the source, which this rule does not need.
        seen: The names of their columns.
    """
    if set(row_format.columns) <= set(seen):
        yield row_format.columns


@dataclass(frozen=True)
class RowFormat:
    """How rows of one format are told from others, and turned into turns.

    Attributes:
        columns: What a row must have; empty where data.columns names them.
        convert: A function (row, columns, notes) that returns the row's turns and counts what it did not take
            as it was. It raises RowProblem for a bad row; the caller adds file and line.
        recognize: A function (row_format, first rows, names of their columns) that yields, for each way in which the
            rows fit, the columns to read.
        optional_columns: What a row may have besides; read too, those of TOOL_COLUMNS by `find_tools`.
        is_fallback: Whether `auto` takes it only where no other format fits.
        find_alternatives: A function (row) that returns the answers that are as right as the one that is trained.
    """

    columns: tuple[str, ...]
    convert: Callable[[Row, tuple[str, ...], Notes], tuple[Turn, ...]]
    recognize: Callable[[RowFormat, Sequence[Row], Sequence[str]], Iterable[tuple[str, ...]]] = has_columns
    optional_columns: tuple[str, ...] = ()
    is_fallback: bool = False
    find_alternatives: Callable[[Row], tuple[str, ...]] = lambda row: ()


def _has_turns(row_format: RowFormat, rows: Sequence[Row], seen: Sequence[str]) -> Iterable[tuple[str, ...]]:
    if any(looks_like_turns(row.values.get(row_format.columns[0])) for row in rows):
        yield row_format.columns


def _known_pairs(row_format: RowFormat, rows: Sequence[Row], seen: Sequence[str]) -> Iterable[tuple[str, ...]]:
    for pair in KNOWN_PAIRS:
        is_part_of_alpaca = pair == ("input", "output") and "instruction" in seen
        if set(pair) <= set(seen) and not is_part_of_alpaca:
            yield *pair, *_companions(pair, rows, seen)


def _prompt_and_completion(
    row_format: RowFormat, rows: Sequence[Row], seen: Sequence[str]
) -> Iterable[tuple[str, ...]]:
    if set(row_format.columns) <= set(seen):
        yield *row_format.columns, *_companions(row_format.columns, rows, seen)


def _companions(pair: Sequence[str], rows: Sequence[Row], seen: Sequence[str]) -> Iterable[str]:
    """The columns of texts that belong to a pair of columns: a system prompt, and what the question is about."""
    for names in (SYSTEM_COLUMNS, GIVEN_COLUMNS):
        fitting = (
            name
            for name in names
            if name in seen
            and name not in pair
            and all(isinstance(row.values.get(name), str | None) for row in rows)
            and not all(is_blank(row.values.get(name)) for row in rows)
        )
        yield from islice(fitting, 1)


def _convert_pair(row: Row, columns: tuple[str, ...], notes: Notes) -> tuple[Turn, ...]:
    prompt, completion, *companions = columns
    system = next(((name,) for name in companions if name in SYSTEM_COLUMNS), ())
    before = _read_system(row, notes, system)
    asked = as_turns(row.values.get(prompt))
    answered = None if asked is None else as_turns(row.values.get(completion))
    if asked is not None and answered is not None:
        return read_turns([*asked, *answered], f"{prompt} + {completion}", notes, before=before)
    given = next((name for name in companions if name in GIVEN_COLUMNS), None)
    return (
        *before,
        Turn("user", read_text(row.values.get(prompt), prompt, notes), _read_given(row, given, notes)),
        Turn("assistant", read_text(row.values.get(completion), completion, notes)),
    )


def _convert_alpaca(row: Row, columns: tuple[str, ...], notes: Notes) -> tuple[Turn, ...]:
    return (
        *_read_system(row, notes),
        *_read_history(row, notes),
        Turn(
            "user",
            read_text(row.values.get("instruction"), "instruction", notes),
            _read_given(row, "input", notes),
        ),
        Turn("assistant", read_text(row.values.get("output"), "output", notes)),
    )


def _read_system(row: Row, notes: Notes, columns: Sequence[str] = SYSTEM_COLUMNS) -> tuple[Turn, ...]:
    column = next((name for name in columns if not is_blank(row.values.get(name))), None)
    return () if column is None else (Turn("system", read_text(row.values.get(column), column, notes)),)


def _read_given(row: Row, column: str | None, notes: Notes) -> str:
    value = None if column is None else row.values.get(column)
    return "" if column is None or is_blank(value) else read_text(value, column, notes)


def _read_history(row: Row, notes: Notes) -> list[Turn]:
    """The rounds before the question, a pair of texts each; as in LLaMA-Factory, whose key it is, they are trained."""
    rounds = row.values.get("history")
    turns: list[Turn] = []
    for number, pair in enumerate(rounds if isinstance(rounds, list | tuple) else (), start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowProblem(f"'history' must hold pairs of question and answer, got another thing as round {number}")
        asked, answered = (read_text(text, "history", notes) for text in pair)
        turns += [Turn("user", asked), Turn("assistant", answered)]
    if rounds and not isinstance(rounds, list | tuple):
        raise RowProblem(f"'history' must hold a list of pairs, got a {type(rounds).__name__}")
    return turns


def find_tools(row: Row) -> object:
    """What a row has in its column of tools, by either name; None if it has none."""
    return next((row.values[name] for name in TOOL_COLUMNS if not is_blank(row.values.get(name))), None)


def is_blank(value: object) -> bool:
    """Whether a column's value holds nothing."""
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def _convert_conversation(row: Row, columns: tuple[str, ...], notes: Notes) -> tuple[Turn, ...]:
    return read_turns(row.values.get(columns[0]), columns[0], notes, before=_read_system(row, notes))


def _convert_text(row: Row, columns: tuple[str, ...], notes: Notes) -> tuple[Turn, ...]:
    return (Turn("text", read_text(row.values.get("text"), "text", notes)),)


def _convert_squad(row: Row, columns: tuple[str, ...], notes: Notes) -> tuple[Turn, ...]:
    answers = _read_squad_answers(row)
    if not answers:
        notes[UNANSWERABLE] += 1
    return (
        Turn(
            "user",
            read_text(row.values.get("question"), "question", notes),
            read_text(row.values.get("context"), "context", notes),
        ),
        Turn("assistant", answers[0] if answers else NO_ANSWER),
    )


def _read_squad_answers(row: Row) -> tuple[str, ...]:
    """The different answers of a row, in their order: `{"text": [...], "answer_start": [...]}`, or a list of either."""
    answers = row.values.get("answers")
    if isinstance(answers, Mapping):
        found = answers.get("text")
    elif isinstance(answers, list | tuple):
        found = [answer.get("text") if isinstance(answer, Mapping) else answer for answer in answers]
    else:
        found = None
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise RowProblem("'answers' must hold a list of texts, or an object with one under 'text'")
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


ALPACA = RowFormat(("instruction", "output"), _convert_alpaca, optional_columns=("input", *SYSTEM_COLUMNS, "history"))
COLUMNS = RowFormat((), _convert_pair, _known_pairs)
MESSAGES = RowFormat(
    ("messages",), _convert_conversation, _has_turns, optional_columns=(*SYSTEM_COLUMNS, *TOOL_COLUMNS)
)
PROMPT_COMPLETION = RowFormat(
    ("prompt", "completion"), _convert_pair, _prompt_and_completion, optional_columns=TOOL_COLUMNS
)
SHAREGPT = RowFormat(
    ("conversations",), _convert_conversation, _has_turns, optional_columns=(*SYSTEM_COLUMNS, *TOOL_COLUMNS)
)
SQUAD = RowFormat(
    ("context", "question", "answers"), _convert_squad, find_alternatives=lambda row: _read_squad_answers(row)[1:]
)
# `text` is often the same row rendered once more, as in the original alpaca.
TEXT = RowFormat(("text",), _convert_text, is_fallback=True)
