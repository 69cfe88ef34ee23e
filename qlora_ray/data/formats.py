"""Turns the rows of a source into Examples, by the format that its columns fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from qlora_ray.config.schema import Data
from qlora_ray.data.examples import Example, Row, RowProblem
from qlora_ray.data.format_choice import NUM_ROWS_LOOKED_AT, Format, choose_format, find_row_format
from qlora_ray.data.labels import LabelReader
from qlora_ray.data.notes import Note, Notes
from qlora_ray.data.row_formats import TOOL_COLUMNS, find_tools, is_blank
from qlora_ray.data.tool_calls import read_tools, tells_tools
from qlora_ray.errors import DataError

# Where more rows are bad, it is the source that is not understood.
MAX_SKIPPED_SHARE = 0.1
TOLD = Note("row", "whose system text holds its tools already, so that the `tools` column is not shown beside it")


@dataclass
class Conversion:
    """Turns the rows of one source into Examples, and keeps the counts that go into the report.

    Attributes:
        source_name: What messages call the source.
        data: The config section `data`: `format`, `columns` and `bad_rows` count.
        format: What was found to fit; known once the first rows have been converted.
        notes: Counts what was not taken as it was, and the rows that `data.bad_rows: skip` left out.
        labels: Reads the labels of auxiliary heads; None where there are none.
    """

    source_name: str
    data: Data
    format: Format = field(init=False)
    notes: Notes = field(default_factory=Counter)
    labels: LabelReader | None = None

    def convert(self, rows: Iterable[Row]) -> Iterator[Example]:
        """Yields the Examples of the rows, which may be bad ones too.

        Raises:
            DataError: If the format cannot be told or a column is missing (columns and nearest name given), or, after
                the last row, if rows are bad: the first is named by file and line, and all are counted.
        """
        rows = iter(rows)
        first = _take_readable(rows, NUM_ROWS_LOOKED_AT)
        readable = [row for row in first if row.problem is None]
        labels = () if self.labels is None else self.labels.label_columns
        self.format = (
            choose_format(self.source_name, readable, self.data, read_beside=labels)
            if readable
            else Format(self.data.format, (), "")
        )
        num_rows = num_bad = 0
        first_bad = ("", "")
        for row in chain(first, rows):
            num_rows += 1
            try:
                if row.problem is not None:
                    raise RowProblem(row.problem)
                row_format = find_row_format(self.format.name)
                tools = read_tools(find_tools(row)) if set(TOOL_COLUMNS) <= set(row_format.optional_columns) else ()
                turns = row_format.convert(row, self.format.columns, self.notes)
                for column in self.format.unused:
                    if not is_blank(row.values.get(column)):
                        self.notes[Note("row", f"with a column {column!r}, which is not used")] += 1
                if turns[0].role == "system" and tells_tools(turns[0].content, tools):
                    self.notes[TOLD] += 1
                    tools = ()
                example = Example(turns, row.where, tools, row_format.find_alternatives(row))
                codes = () if self.labels is None else self.labels.read(row)
            except RowProblem as error:
                first_bad = first_bad if num_bad else (row.where, str(error))
                num_bad += 1
            else:
                if self.labels is not None:
                    self.labels.take(row, codes)
                yield example
        if num_bad:
            self._judge_bad_rows(num_bad, num_rows, *first_bad)

    def _judge_bad_rows(self, num_bad: int, num_rows: int, where: str, problem: str) -> None:
        skips = self.data.bad_rows == "skip"
        if skips and num_bad <= MAX_SKIPPED_SHARE * num_rows:
            note = Note("bad row", f"left out, as data.bad_rows says (the first is {where}: {problem})")
            self.notes[note] += num_bad
            return
        count = "This is the only bad row" if num_bad == 1 else f"{num_bad} rows are bad"
        advice = f"Correct or remove {_them(num_bad)}"
        if skips:
            advice += f": data.bad_rows skips at most {MAX_SKIPPED_SHARE:.0%} of a source"
        raise DataError(f"{where}: {problem}. {count} of {num_rows}. {advice}.")


def _take_readable(rows: Iterator[Row], num_wanted: int) -> list[Row]:
    """The first rows, up to so many that could be read."""
    taken: list[Row] = []
    num_readable = 0
    for row in rows:
        taken.append(row)
        num_readable += row.problem is None
        if num_readable == num_wanted:
            break
    return taken


def _them(count: int) -> str:
    return "it" if count == 1 else "them"
