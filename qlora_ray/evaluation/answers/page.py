"""The page of an evaluation's answers: how long they are, how many refuse, and the answers side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qlora_ray.evaluation.answers.figures import counts_tokens, draw_lengths, draw_refusals
from qlora_ray.evaluation.answers.files import AnswerRow, answer_path, find_pairing_problems, read_answers
from qlora_ray.evaluation.answers.plots import plot_lengths, plot_refusals
from qlora_ray.evaluation.answers.statistics import AnsweredSet, AnswerStats, Lengths, summarize
from qlora_ray.pages.blocks import Block, Bullets, Document, Drawing, Folded, Section, SideBySide, Table, Words
from qlora_ray.pages.page import write_page
from qlora_ray.pages.plots import render_png
from qlora_ray.runs.files import to_plain_json, write_bytes, write_json, write_text

STATS_FILE = "stats.json"
PAGE_FILE = "answers.html"
LENGTHS_FILE = "lengths.png"
REFUSALS_FILE = "refusals.png"

TITLE = "Answers side by side"
CHECKED = "Checked: every prompt was answered by every model, with no empty answer and none cut."
# Prompts of each set whose answers are shown, and how much of a text; the files hold all of it.
MAX_PROMPTS_SHOWN = 24
MAX_PROMPT_CHARACTERS = 700
MAX_ANSWER_CHARACTERS = 2000


def export_answers(folder: Path, *, prompt_sets: Sequence[str], models: Sequence[str]) -> dict[str, Any]:
    """Checks and counts the answers in an evaluation's folder; writes stats.json, answers.html and two plots there.

    Args:
        folder: Holds `<model>/<prompt set>.jsonl`.
        prompt_sets: Names, as `0-shot` or `red_team`.
        models: The one to compare with first: `base`, `adapter`, `merged`.

    Returns:
        What stats.json holds: `prompt_sets` with each model's figures and the share of identical answers, and
        `warnings`, a line for each problem of the files; `files`, what was written.

    Raises:
        RunError: If the folder cannot be written.
    """
    warnings: list[str] = []
    sets = []
    for name in prompt_sets:
        answers = {}
        for model in models:
            answers[model], problems = read_answers(answer_path(folder, model=model, prompt_set=name))
            warnings += problems
        warnings += find_pairing_problems(name, answers)
        sets.append(summarize(name, answers))
    stats: dict[str, Any] = to_plain_json(
        {
            "prompt_sets": {
                answered.name: {
                    "models": {model: asdict(figures) for model, figures in answered.stats.items()},
                    "identical": [asdict(pair) for pair in answered.likeness],
                }
                for answered in sets
            },
            "warnings": warnings,
            "files": [STATS_FILE, PAGE_FILE, LENGTHS_FILE, REFUSALS_FILE],
        }
    )
    write_json(folder / STATS_FILE, stats)
    write_text(folder / PAGE_FILE, write_page(compose_answers(sets, warnings=warnings)))
    write_bytes(folder / LENGTHS_FILE, render_png(plot_lengths(sets)))
    write_bytes(folder / REFUSALS_FILE, render_png(plot_refusals(sets)))
    return stats


def compose_answers(sets: Sequence[AnsweredSet], *, warnings: Sequence[str]) -> Document:
    """Returns the document of answers.html: warnings, figures, and for each prompt set its table and its answers."""
    num_prompts = sum(max((len(rows) for rows in answered.answers.values()), default=0) for answered in sets)
    models = dict.fromkeys(model for answered in sets for model in answered.answers)
    lead = ["The figures are in stats.json, all answers in the jsonl files."]
    sections = [_section_of(answered) for answered in sets]
    if any(rows for answered in sets for rows in answered.answers.values()):
        sections = [_lengths_section(sets), _refusals_section(sets), *sections]
    if warnings:
        sections.insert(0, Section("Look at these first", [Bullets(tuple(warnings), "warn")]))
    else:
        lead.append(CHECKED)
    return Document(
        title=TITLE,
        headline=f"{', '.join(models)} on {num_prompts} prompts of {', '.join(answered.name for answered in sets)}",
        tone="",
        lead=tuple(lead),
        facts=(),
        sections=tuple(sections),
    )


def _lengths_section(sets: Sequence[AnsweredSet]) -> Section:
    in_tokens = counts_tokens(sets)
    told = []
    for answered in sets:
        medians = [
            f"{model} {_plain(_lengths(stats, in_tokens=in_tokens).median)}"
            for model, stats in answered.stats.items()
            if stats.num_answers
        ]
        told.append(f"{answered.name}: {', '.join(medians) or 'no answers'}")
    caption = f"Median {'tokens' if in_tokens else 'words'} of an answer. {'; '.join(told)}."
    return Section("How long the answers are", [Drawing("lengths", draw_lengths(sets), caption)])


def _refusals_section(sets: Sequence[AnsweredSet]) -> Section:
    title, rule = "How many answers decline", "Counted by the words an answer begins with, in English only."
    refusing = [answered for answered in sets if any(stats.num_refusals for stats in answered.stats.values())]
    if not refusing:
        return Section(title, [Words(f"No answer begins by declining. {rule}")])
    told = []
    for answered in sets:
        shares = [f"{model} {stats.num_refusals} of {stats.num_answers}" for model, stats in answered.stats.items()]
        told.append(f"{answered.name}: {', '.join(shares)}")
    return Section(title, [Drawing("refusals", draw_refusals(refusing), f"{'; '.join(told)}. {rule}")])


def _section_of(answered: AnsweredSet) -> Section:
    header = ("model", "answers", "empty", "cut", "decline", "loop", "length: median", "95 %", "longest")
    in_tokens = counts_tokens([answered])
    rows = []
    for model, stats in answered.stats.items():
        lengths = _lengths(stats, in_tokens=in_tokens)
        counts = (stats.num_answers, stats.num_empty, stats.num_cut, stats.num_refusals, stats.num_loops)
        rows.append((model, *map(str, counts), *map(_plain, (lengths.median, lengths.p95, lengths.max))))
    same = [
        f"{pair.base} and {pair.tuned} answer the same in {pair.num_identical} of {pair.num_pairs}"
        for pair in answered.likeness
        if pair.num_pairs
    ]
    words = ". ".join([f"Lengths in {'tokens' if in_tokens else 'words'}", *(["; ".join(same)] if same else [])])
    table = Table(header, tuple(rows), numeric=frozenset(range(1, len(header))))
    return Section(answered.name, [table, Words(f"{words}."), *_side_by_side(answered)])


def _plain(length: float) -> str:
    """Returns a length with one decimal at most; nothing where there is no answer."""
    return "" if math.isnan(length) else f"{round(length, 1):g}"


def _side_by_side(answered: AnsweredSet) -> list[Block]:
    """Returns the first prompts with every model's answer, those that models answer differently before the others."""
    by_id: dict[str, dict[str, AnswerRow]] = {}
    for model, rows in answered.answers.items():
        for row in rows:
            by_id.setdefault(row.id, {})[model] = row
    if not by_id:
        return []
    differing = [key for key, rows in by_id.items() if len({row.answer.strip() for row in rows.values()}) > 1]
    chosen = [*differing, *(key for key in by_id if key not in set(differing))][:MAX_PROMPTS_SHOWN]
    shown = f"all {len(by_id)}" if len(chosen) == len(by_id) else f"{len(chosen)} of {len(by_id)}"
    # Without references there is no score: these answers are there to be read.
    is_scored = any(row.reference is not None for rows in by_id.values() for row in rows.values())
    texts = tuple(_texts_of(key, by_id[key]) for key in chosen)
    return [Folded(f"Answers: {shown}, those that differ first", texts, is_open=not is_scored)]


def _texts_of(key: str, rows: dict[str, AnswerRow]) -> SideBySide:
    first = next(iter(rows.values()))
    texts = {model: row.answer if row.answer.strip() else "(empty)" for model, row in rows.items()}
    if first.reference is not None:
        texts["reference"] = first.reference
    return SideBySide(
        key,
        _cut(first.prompt, MAX_PROMPT_CHARACTERS),
        tuple((name, _cut(text, MAX_ANSWER_CHARACTERS)) for name, text in texts.items()),
    )


def _cut(text: str, max_characters: int) -> str:
    rest = len(text) - max_characters
    return text[:max_characters] + (f" … ({rest} more characters)" if rest > 0 else "")


def _lengths(stats: AnswerStats, *, in_tokens: bool) -> Lengths:
    return stats.tokens if in_tokens and stats.tokens is not None else stats.words
