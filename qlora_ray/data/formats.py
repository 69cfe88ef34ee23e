"""Recognizes a dataset's format by its columns, and turns rows into Examples."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qlora_ray.config.schema import Columns, Data
from qlora_ray.data.conversations import RowProblem, looks_like_turns, read_text, read_turns
from qlora_ray.data.examples import Example, Row, Turn
from qlora_ray.errors import DataError

# Two columns that are known by name, in addition to prompt + completion.
KNOWN_PAIRS = (
    ("question", "answer"),
    ("question", "sql"),
    ("input", "output"),
    ("query", "response"),
    ("instruction", "response"),
)
NUM_ROWS_LOOKED_AT = 20  # json rows may leave keys out, so more than the first one is looked at
REQUIRED_COLUMNS = {
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}


@dataclass(frozen=True)
class Format:
    """A format that fits a source: its name, the columns it reads, and the words for the user."""

    name: str
    columns: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Conversion:
    """A source's rows as Examples, with the counts that go into the report.

    `num_converted` counts the values per column that were numbers and became text.
    """

    examples: list[Example]
    format: Format
    num_converted: Counter[str] = field(default_factory=Counter)


def convert_rows(source_name: str, rows: Sequence[Row], data: Data) -> Conversion:
    """Turns the rows of one source into Examples.

    Raises:
        DataError: If the format cannot be told or a column is missing (columns and nearest name given), or if rows are
            bad: the first is named by file and line, and all are counted.
    """
    readable = [row for row in rows if row.problem is None]
    chosen = choose_format(source_name, readable, data) if readable else Format(data.format, (), "")
    num_converted: Counter[str] = Counter()
    examples: list[Example] = []
    problems: list[tuple[str, str]] = []
    for row in rows:
        try:
            if row.problem is not None:
                raise RowProblem(row.problem)
            examples.append(Example(_CONVERTERS[chosen.name](row, chosen.columns, num_converted), row.where))
        except RowProblem as error:
            problems.append((row.where, str(error)))
    if problems:
        where, problem = problems[0]
        count = "This is the only bad row" if len(problems) == 1 else f"{len(problems)} rows are bad"
        raise DataError(f"{where}: {problem}. {count} of {len(rows)}. Correct or remove {_them(len(problems))}.")
    return Conversion(examples, chosen, num_converted)


def choose_format(source_name: str, rows: Sequence[Row], data: Data) -> Format:
    """Returns the format that the config names, or the one that the columns of the first rows fit.

    Raises:
        DataError: If a named column is missing, or if no format or more than one fits.
    """
    seen = list(dict.fromkeys(column for row in rows[:NUM_ROWS_LOOKED_AT] for column in row.values))
    if data.columns is not None:
        return _named_columns(source_name, seen, data.columns)
    if data.format != "auto":
        for column in REQUIRED_COLUMNS[data.format]:
            if column not in seen:
                raise DataError(_missing_column(source_name, column, seen, f"data.format {data.format} needs"))
        return _format(data.format, REQUIRED_COLUMNS[data.format], seen, f"data.format is {data.format}")
    candidates = _candidates(rows, seen)
    if len(candidates) == 1:
        name, columns = candidates[0]
        return _format(name, columns, seen, f"columns {' + '.join(columns)} are there")
    if candidates:
        choices = "; ".join(f"{name} ({' + '.join(columns)})" for name, columns in candidates)
        raise DataError(
            f"{source_name}: columns must fit one format, got {', '.join(seen)}, which fit {choices}. "
            f"Set data.columns: {{prompt: {candidates[0][1][0]}, completion: {candidates[0][1][-1]}}}, or data.format."
        )
    first, second = (seen[0], seen[1]) if len(seen) > 1 else ("question", "answer")
    raise DataError(
        f"{source_name}: columns must fit a known format, got {', '.join(seen) or 'none'}. "
        f"Say which are meant, e.g. data.columns: {{prompt: {first}, completion: {second}}}."
    )


def _candidates(rows: Sequence[Row], seen: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    found: list[tuple[str, tuple[str, ...]]] = []
    for name, column in (("messages", "messages"), ("sharegpt", "conversations")):
        values = [row.values.get(column) for row in rows[:NUM_ROWS_LOOKED_AT]]
        if any(looks_like_turns(value) for value in values):
            found.append((name, (column,)))
    if {"instruction", "output"} <= set(seen):
        found.append(("alpaca", REQUIRED_COLUMNS["alpaca"]))
    if {"prompt", "completion"} <= set(seen):
        found.append(("prompt-completion", REQUIRED_COLUMNS["prompt-completion"]))
    for pair in KNOWN_PAIRS:
        is_part_of_alpaca = pair == ("input", "output") and "instruction" in seen
        if set(pair) <= set(seen) and not is_part_of_alpaca:
            found.append(("columns", pair))
    # `text` is often the same row rendered once more (as in the original alpaca), so it counts only by itself.
    if not found and "text" in seen:
        found.append(("text", ("text",)))
    return found


def _named_columns(source_name: str, seen: list[str], columns: Columns) -> Format:
    for key, column in (("prompt", columns.prompt), ("completion", columns.completion)):
        if column not in seen:
            raise DataError(_missing_column(source_name, column, seen, f"data.columns.{key} names"))
    pair = (columns.prompt, columns.completion)
    return _format("columns", pair, seen, f"data.columns names {columns.prompt} -> {columns.completion}")


def _format(name: str, columns: tuple[str, ...], seen: list[str], why: str) -> Format:
    used = {*columns, "input"} if name == "alpaca" else set(columns)
    unused = [column for column in seen if column not in used]
    suffix = f"; not used: {', '.join(unused)}" if unused else ""
    return Format(name, columns, f"{why}; columns seen: {', '.join(seen)}{suffix}")


def _missing_column(source_name: str, column: str, seen: list[str], rule: str) -> str:
    nearest = difflib.get_close_matches(column, seen, n=1, cutoff=0.5)
    advice = f"Did you mean {nearest[0]!r}?" if nearest else "Name one of these."
    return f"{source_name}: {rule} a column {column!r}, got columns {', '.join(seen) or 'none'}. {advice}"


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


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


_CONVERTERS: dict[str, Callable[[Row, tuple[str, ...], Counter[str]], tuple[Turn, ...]]] = {
    "alpaca": _convert_alpaca,
    "columns": _convert_pair,
    "messages": _convert_conversation,
    "prompt-completion": _convert_pair,
    "sharegpt": _convert_conversation,
    "text": _convert_text,
}
