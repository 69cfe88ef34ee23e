"""Figures beside a metric's value (R^2, the share of answers with a number) as text, the same wherever scores are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from qlora_ray.formats import format_count, format_score

# `NumericMatch.details`: R^2 and the errors' means leave out answers without a number, so that the share of the others
# has to be read with them.
ANSWERED = "answered"
ANSWERED_NOTE = (
    "`answered` is the share of answers with a number. `r_squared` and the mean errors are over these answers only."
)

Details = Mapping[str, Mapping[str, float | None]]


def tabulate_details(
    rows: Sequence[tuple[Sequence[str], Details]], *, labels: Sequence[str] = ()
) -> list[list[list[str]]]:
    """Returns a table for each metric that has further figures: its header, then a row for each row that has some.

    Args:
        rows: The cells that name a row, and its figures by metric and name (`Scores.details`).
        labels: The headers of the naming cells behind the first one, which has the metric's name.
    """
    tables = []
    for metric in dict.fromkeys(name for _, details in rows for name in details):
        found = [(cells, details[metric]) for cells, details in rows if details.get(metric)]
        names = list(dict.fromkeys(name for _, figures in found for name in figures))
        header = [metric, *labels, *names]
        tables.append(
            [header, *([*cells, *(format_score(figures.get(name)) for name in names)] for cells, figures in found)]
        )
    return tables


def bracket_details(figures: Mapping[str, float | None]) -> str:
    """Returns one metric's further figures as ` (answered 0.980, r_squared -0.412)`; nothing if there are none."""
    told = ", ".join(f"{name} {format_score(value)}" for name, value in figures.items())
    return f" ({told})" if told else ""


def describe_details(tables: Iterable[Sequence[Sequence[str]]]) -> list[str]:
    """Returns a sentence on what the tables' figures are over; none if their names say it all."""
    return [ANSWERED_NOTE] if any(ANSWERED in table[0] for table in tables) else []


def count_answers(
    num_answers: float | None,
    num_cut: float | None,
    num_settled: float | None = None,
    num_looping: float | None = None,
) -> str:
    """Returns the answers of a model as `100`, or `100 (5 cut, 52 ended early)`.

    Args:
        num_answers: All answers.
        num_cut: Those that had no tokens left.
        num_settled: Those that were ended since their scores were settled.
        num_looping: Those that were ended since they repeated themselves.
    """
    num_early = (num_settled or 0) + (num_looping or 0)
    parts = [(num_cut, "cut"), (num_early, "ended early")]
    told = ", ".join(f"{format_count(number)} {how}" for number, how in parts if number)
    return f"{format_count(num_answers)} ({told})" if told else format_count(num_answers)


def describe_sampling(sampling: Mapping[str, object]) -> str:
    """Returns how answers were drawn as a phrase, from the values that a `Sampling` is written with."""
    told = (f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in sampling.items())
    return f"sampled at {', '.join(told)}"


class HeadFigures(Protocol):
    """What an auxiliary head is worth, as it is measured or as a file has it."""

    @property
    def accuracy(self) -> float | None:
        """Share of rows whose class is found."""

    @property
    def macro_f1(self) -> float | None:
        """Mean of the classes' F1."""

    @property
    def majority(self) -> float | None:
        """Share of rows of the commonest class."""

    @property
    def num_rows(self) -> int | None:
        """Rows with a label."""


# Columns of `tabulate_heads` with one name before them.
HEAD_NUMBERS = (2, 3, 4, 5)


def tabulate_heads(
    rows: Sequence[tuple[Sequence[str], Mapping[str, HeadFigures]]], *, labels: Sequence[str] = ()
) -> list[list[str]]:
    """A table of what auxiliary heads are worth, its header first; empty where there are none.

    Args:
        rows: Of each model its name, what else tells it apart, and its heads.
        labels: What tells models apart besides their names, for the header.
    """
    body = [
        [
            *names,
            name,
            format_score(head.accuracy),
            format_score(head.macro_f1),
            format_score(head.majority),
            format_count(head.num_rows),
        ]
        for names, heads in rows
        for name, head in heads.items()
    ]
    return [["", *labels, "head", "accuracy", "macro F1", "commonest class", "rows"], *body] if body else []
