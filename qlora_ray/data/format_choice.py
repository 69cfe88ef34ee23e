"""Recognizes which format a source's rows have, by its columns."""

from __future__ import annotations

import difflib
import functools
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_ray.config.choices import FORMATS
from qlora_ray.config.schema import Columns, Data
from qlora_ray.data.conversations import looks_like_turns
from qlora_ray.data.examples import Row
from qlora_ray.data.row_formats import MEANINGFUL_COLUMNS, RowFormat
from qlora_ray.errors import DataError

NUM_ROWS_LOOKED_AT = 20  # json rows may leave keys out, so more than the first one is looked at
# Preference data, which has two answers to each question.
PREFERENCES = ("chosen", "rejected")
QUESTION_NAMES = ("prompt", "question", "instruction", "input", "query")


@dataclass(frozen=True)
class Format:
    """A format that fits a source.

    `columns` are those that it reads, `reason` the words for the user, and `unused` the columns that are not read,
    though rows mean something else without them.
    """

    name: str
    columns: tuple[str, ...]
    reason: str
    unused: tuple[str, ...] = ()


def choose_format(source_name: str, rows: Sequence[Row], data: Data, *, read_beside: Sequence[str] = ()) -> Format:
    """Returns the format that the config names, or the one that the columns of the first rows fit.

    Args:
        source_name: What messages call the source.
        rows: Its rows that could be read.
        data: The config section `data`: `format` and `columns` count.
        read_beside: Columns that are read whatever the format is.

    Raises:
        DataError: If a named column is missing, or if no format or more than one fits.
    """
    seen = list(dict.fromkeys(column for row in rows[:NUM_ROWS_LOOKED_AT] for column in row.values))
    if data.columns is not None:
        return _named_columns(source_name, seen, data.columns, read_beside)
    if data.format != "auto":
        row_format = find_row_format(data.format)
        required = row_format.columns
        for column in required:
            if column not in seen:
                raise DataError(_missing_column(source_name, column, seen, f"data.format {data.format} needs"))
        columns = next(iter(row_format.recognize(row_format, rows[:NUM_ROWS_LOOKED_AT], seen)), required)
        return _format(data.format, columns, seen, f"data.format is {data.format}", read_beside)
    candidates = _candidates(rows, seen)
    if len(candidates) == 1:
        name, columns = candidates[0]
        return _format(name, columns, seen, f"columns {' + '.join(columns)} are there", read_beside)
    if candidates:
        choices = "; ".join(f"{name} ({' + '.join(columns)})" for name, columns in candidates)
        pair = candidates[0][1][:2]
        raise DataError(
            f"{source_name}: columns must fit one format, got {', '.join(seen)}, which fit {choices}. "
            f"Set data.columns: {{prompt: {pair[0]}, completion: {pair[-1]}}}, or data.format."
        )
    turns = [
        column
        for column in seen
        if column not in (*PREFERENCES, *QUESTION_NAMES)
        and any(looks_like_turns(row.values.get(column)) for row in rows)
    ]
    if len(turns) == 1:
        return _format("messages", (turns[0],), seen, f"column {turns[0]} holds turns", read_beside)
    raise DataError(f"{source_name}: {_explain_unknown(seen)}")


def _explain_unknown(seen: Sequence[str]) -> str:
    """What is wrong with columns that fit no format, and what to do."""
    got = f"got {', '.join(seen) or 'none'}"
    if set(PREFERENCES) <= set(seen):
        asked = next((name for name in QUESTION_NAMES if name in seen), None)
        columns = f"data.columns: {{prompt: {asked}, completion: chosen}}"
        advice = "Save the column chosen as messages" if asked is None else f"Set {columns}"
        return f"rows must have one answer each, {got}: preferences are not trained. {advice} to train the chosen ones."
    for column in ("messages", "conversations"):
        if column in seen:
            return (
                f"columns must fit a known format, {got}, and {column!r} holds no list of turns with role and content "
                "(or from and value), nor JSON text of one. Write it so."
            )
    first, second = (seen[0], seen[1]) if len(seen) > 1 else ("PROMPT", "COMPLETION")
    advice = f"Say which are meant, e.g. data.columns: {{prompt: {first}, completion: {second}}}"
    return (
        f"columns must fit a known format, {got}. {advice if len(seen) > 1 else 'A question and an answer are needed'}."
    )


def _candidates(rows: Sequence[Row], seen: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Returns (format, columns) of all that the rows fit."""
    found: list[tuple[str, tuple[str, ...]]] = []
    fallbacks: list[tuple[str, tuple[str, ...]]] = []
    for name in FORMATS:
        row_format = find_row_format(name)
        fitting = [(name, columns) for columns in row_format.recognize(row_format, rows[:NUM_ROWS_LOOKED_AT], seen)]
        (fallbacks if row_format.is_fallback else found).extend(fitting)
    return found or fallbacks


def _named_columns(source_name: str, seen: list[str], columns: Columns, read_beside: Sequence[str]) -> Format:
    for key, column in (("prompt", columns.prompt), ("completion", columns.completion)):
        if column not in seen:
            raise DataError(_missing_column(source_name, column, seen, f"data.columns.{key} names"))
    pair = (columns.prompt, columns.completion)
    return _format("columns", pair, seen, f"data.columns names {columns.prompt} -> {columns.completion}", read_beside)


def _format(name: str, columns: tuple[str, ...], seen: list[str], why: str, read_beside: Sequence[str]) -> Format:
    row_format = find_row_format(name)
    used = {*columns, *row_format.optional_columns, *read_beside}
    unused = [column for column in seen if column not in used]
    suffix = f"; not used: {', '.join(unused)}" if unused else ""
    # A plain text is often the other columns, rendered.
    meant = () if row_format.is_fallback else tuple(column for column in unused if column in MEANINGFUL_COLUMNS)
    return Format(name, columns, f"{why}; columns seen: {', '.join(seen)}{suffix}", meant)


def _missing_column(source_name: str, column: str, seen: list[str], rule: str) -> str:
    nearest = difflib.get_close_matches(column, seen, n=1, cutoff=0.5)
    advice = f"Did you mean {nearest[0]!r}?" if nearest else "Name one of these."
    return f"{source_name}: {rule} a column {column!r}, got columns {', '.join(seen) or 'none'}. {advice}"


def find_row_format(name: str) -> RowFormat:
    """The format of a name of `config.choices.FORMATS`."""
    return _load(FORMATS[name])


@functools.cache  # it is asked for each row
def _load(target: str) -> RowFormat:
    row_format: RowFormat = pkgutil.resolve_name(target)
    return row_format
