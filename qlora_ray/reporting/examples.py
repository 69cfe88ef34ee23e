"""Answers of winner and base to the same rows, as best/answers.jsonl has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_ray.runs import SweepPaths
from qlora_ray.runs.files import read_lines

# What best/answers.jsonl calls the base.
BASE = "base"
NUM_EXAMPLES = 8
# Behind an answer that the model itself did not end, by its `finish`.
NOT_ENDED = {
    "length": "... [cut: no tokens left]",
    "settled": "... [ended here: its score could not change any more]",
    "loop": "... [ended here: it repeats itself]",
}


@dataclass(frozen=True)
class Example:
    """One row's answers: what was expected, and what base and winner said."""

    row: int
    expected: str
    base: str
    winner: str


def read_examples(paths: SweepPaths, winner: str) -> tuple[Example, ...]:
    """The first rows that both answered; none where the file is missing."""
    answers: dict[str, dict[int, Mapping[str, Any]]] = {BASE: {}, winner: {}}
    for line in read_lines(paths.best / "answers.jsonl"):
        model, row = line.get("model"), line.get("row")
        if isinstance(model, str) and model in answers and isinstance(row, int):
            answers[model][row] = line
    both = sorted(answers[BASE].keys() & answers[winner].keys())[:NUM_EXAMPLES]
    return tuple(
        Example(
            row,
            str(answers[winner][row].get("reference") or ""),
            _read_answer(answers[BASE][row]),
            _read_answer(answers[winner][row]),
        )
        for row in both
    )


def _read_answer(line: Mapping[str, Any]) -> str:
    text = str(line.get("answer") or "")
    note = NOT_ENDED.get(str(line.get("finish")))
    return text if note is None else f"{text} {note}".strip()
