"""The formats of a dataset's rows that a config can name: one `RowFormat` per entry of `config.choices.FORMATS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qlora_ray.data.conversations import looks_like_turns, read_text, read_turns
from qlora_ray.data.examples import Row, Turn

# Two columns that are known by name, in addition to prompt + completion.
KNOWN_PAIRS = (
    ("question", "answer"),
    ("question", "sql"),
    ("input", "output"),
    ("query", "response"),
    ("instruction", "response"),
)


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
        convert: A function (row, columns, num_converted) that returns the row's turns and counts, by column, the values
            that were numbers. It raises RowProblem for a bad row; the caller adds file and line.
        recognize: A function (row_format, first rows, names of their columns) that yields, for each way in which the
            rows fit, the columns to read.
        optional_columns: What a row may have besides; read too.
        is_fallback: Whether `auto` takes it only where no other format fits.
    """

    columns: tuple[str, ...]
    convert: Callable[[Row, tuple[str, ...], Counter[str]], tuple[Turn, ...]]
    recognize: Callable[[RowFormat, Sequence[Row], Sequence[str]], Iterable[tuple[str, ...]]] = has_columns
    optional_columns: tuple[str, ...] = ()
    is_fallback: bool = False


def _has_turns(row_format: RowFormat, rows: Sequence[Row], seen: Sequence[str]) -> Iterable[tuple[str, ...]]:
    if any(looks_like_turns(row.values.get(row_format.columns[0])) for row in rows):
        yield row_format.columns


def _known_pairs(row_format: RowFormat, rows: Sequence[Row], seen: Sequence[str]) -> Iterable[tuple[str, ...]]:
    for pair in KNOWN_PAIRS:
        is_part_of_alpaca = pair == ("input", "output") and "instruction" in seen
        if set(pair) <= set(seen) and not is_part_of_alpaca:
            yield pair


def _convert_pair(row: Row, columns: tuple[str, ...], num_converted: Counter[str]) -> tuple[Turn, ...]:
    prompt, completion = columns
    if looks_like_turns(row.values.get(prompt)) and looks_like_turns(row.values.get(completion)):
        return read_turns([*_as_list(row, prompt), *_as_list(row, completion)], f"{prompt} + {completion}")
    return (
        Turn("user", read_text(row.values.get(prompt), prompt, num_converted)),
        Turn("assistant", read_text(row.values.get(completion), completion, num_converted)),
    )


def _convert_alpaca(row: Row, columns: tuple[str, ...], num_converted: Counter[str]) -> tuple[Turn, ...]:
    given = row.values.get("input")
    has_input = given is not None and not (isinstance(given, str) and not given.strip())
    return (
        Turn(
            "user",
            read_text(row.values.get("instruction"), "instruction", num_converted),
            read_text(given, "input", num_converted) if has_input else "",
        ),
        Turn("assistant", read_text(row.values.get("output"), "output", num_converted)),
    )


def _convert_conversation(row: Row, columns: tuple[str, ...], num_converted: Counter[str]) -> tuple[Turn, ...]:
    return read_turns(row.values.get(columns[0]), columns[0])


def _convert_text(row: Row, columns: tuple[str, ...], num_converted: Counter[str]) -> tuple[Turn, ...]:
    return (Turn("text", read_text(row.values.get("text"), "text", num_converted)),)


def _as_list(row: Row, column: str) -> list[object]:
    value = row.values[column]
    return list(value) if isinstance(value, list | tuple) else []


ALPACA = RowFormat(("instruction", "output"), _convert_alpaca, optional_columns=("input",))
COLUMNS = RowFormat((), _convert_pair, _known_pairs)
MESSAGES = RowFormat(("messages",), _convert_conversation, _has_turns)
PROMPT_COMPLETION = RowFormat(("prompt", "completion"), _convert_pair)
SHAREGPT = RowFormat(("conversations",), _convert_conversation, _has_turns)
# `text` is often the same row rendered once more, as in the original alpaca.
TEXT = RowFormat(("text",), _convert_text, is_fallback=True)
