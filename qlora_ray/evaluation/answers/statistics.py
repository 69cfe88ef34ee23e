"""What the answers of base, adapter and merged look like side by side, without any reference: counted, checked, shown.

Nothing here says which model is better. It says what a mean score hides: a model that answers nothing, that refuses,
that loops, that never comes to an end, or that answers as its base does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qlora_ray.evaluation.answers.files import AnswerRow
from qlora_ray.evaluation.answers.refusals import find_refusal

# Ours: an answer loops if its last 20 words are one phrase of up to 5 words, said four times or more.
LOOP_WORDS = 20
LOOP_PHRASE_WORDS = 5
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Lengths:
    """How long answers are; NaN where there is none. `p95` is interpolated as numpy does."""

    mean: float
    median: float
    p95: float
    max: float


@dataclass(frozen=True)
class AnswerStats:
    """One model's answers to one prompt set.

    Attributes:
        num_cut: Answers that used up all the tokens they may have.
        num_refusals: Answers that begin by declining (`refusals.find_refusal`).
        num_loops: Answers that end in one phrase over and over.
        words: Words between white space.
        tokens: As the model's tokenizer counts; None if the file does not say for every row.
        refusals: The first few: id, and the words that decline.
    """

    num_answers: int
    num_empty: int
    num_cut: int
    num_refusals: int
    num_loops: int
    characters: Lengths
    words: Lengths
    tokens: Lengths | None
    refusals: list[dict[str, str]]


@dataclass(frozen=True)
class Likeness:
    """How many prompts two models answer with the same text, outer white space apart."""

    base: str
    tuned: str
    num_pairs: int
    num_identical: int


@dataclass(frozen=True)
class AnsweredSet:
    """The answers of all models to one prompt set, and their figures."""

    name: str
    answers: Mapping[str, Sequence[AnswerRow]]
    stats: Mapping[str, AnswerStats]
    likeness: Sequence[Likeness]


def summarize(name: str, answers: Mapping[str, Sequence[AnswerRow]]) -> AnsweredSet:
    """Returns a prompt set's figures: each model's, and how alike each two models answer."""
    stats = {model: count_answers(rows) for model, rows in answers.items()}
    pairs = [_compare(base, tuned, answers) for base, tuned in itertools.combinations(answers, 2)]
    return AnsweredSet(name, answers, stats, pairs)


def count_answers(rows: Sequence[AnswerRow]) -> AnswerStats:
    """Returns the figures of one model's answers."""
    declined = [(row.id, found) for row in rows if (found := find_refusal(row.answer)) is not None]
    tokens = [row.num_tokens for row in rows if row.num_tokens is not None]
    return AnswerStats(
        num_answers=len(rows),
        num_empty=sum(row.is_empty for row in rows),
        num_cut=sum(row.is_cut for row in rows),
        num_refusals=len(declined),
        num_loops=sum(is_loop(row.answer) for row in rows),
        characters=_measure([len(row.answer) for row in rows]),
        words=_measure([len(row.answer.split()) for row in rows]),
        tokens=_measure(tokens) if len(tokens) == len(rows) else None,
        refusals=[{"id": key, "phrase": phrase} for key, phrase in declined[:MAX_EXAMPLES]],
    )


def is_loop(answer: str) -> bool:
    """Returns whether the answer ends in one phrase over and over."""
    words = answer.split()[-LOOP_WORDS:]
    if len(words) < LOOP_WORDS:
        return False
    return any(words[period:] == words[:-period] for period in range(1, LOOP_PHRASE_WORDS + 1))


def _measure(lengths: Sequence[int]) -> Lengths:
    if not lengths:
        return Lengths(math.nan, math.nan, math.nan, math.nan)
    median, p95 = np.percentile(lengths, [50, 95])
    return Lengths(float(np.mean(lengths)), float(median), float(p95), float(max(lengths)))


def _compare(base: str, tuned: str, answers: Mapping[str, Sequence[AnswerRow]]) -> Likeness:
    of_base = {row.id: row.answer.strip() for row in answers[base]}
    both = [row for row in answers[tuned] if row.id in of_base]
    return Likeness(base, tuned, len(both), sum(row.answer.strip() == of_base[row.id] for row in both))
