"""Draws the page of an evaluation's answers: how long they are, how many refuse, and the answers side by side."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.evaluation.answers.files import AnswerRow, answer_path, find_pairing_problems, read_answers
from qlora_ray.evaluation.answers.statistics import AnsweredSet, AnswerStats, Lengths, summarize
from qlora_ray.pages.html import figure_place, figure_text, render_page
from qlora_ray.runs.files import to_plain_json, write_json, write_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


STATS_FILE = "stats.json"
PAGE_FILE = "answers.html"

TITLE = "Answers side by side"
# In the order of models: what the others are held against is grey.
MODEL_COLOURS = ("var(--rest)", "var(--accent)", "var(--second)", "var(--good)")
# Prompts of each set whose answers are shown, and how much of a text; the files hold all of it.
MAX_PROMPTS_SHOWN = 24
MAX_PROMPT_CHARACTERS = 700
MAX_ANSWER_CHARACTERS = 2000
# Up to here every answer is a point on its box.
MAX_POINTS = 60
LANE_PX = 34
HEADING_PX = 30
_CSS = """
.prompt { margin: 20px 0; border-top: 1px solid var(--rule); padding-top: 12px; }
.prompt > p { white-space: pre-wrap; max-width: none; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: 8px; }
.answers > div { background: var(--panel); border-radius: 6px; padding: 8px 12px; min-width: 0; }
.answers h4 { margin: 0; font-size: .8rem; color: var(--muted); font-weight: 600; }
.answers p { margin: 4px 0 0; white-space: pre-wrap; }
"""


def render_answers_page(sets: Sequence[AnsweredSet], *, warnings: Sequence[str]) -> str:
    """Returns answers.html: warnings, figures, and for each prompt set its table and its answers."""
    figures: dict[str, Figure] = {}
    parts = [f"<h1>{TITLE}</h1>", _lead(sets), _warnings(warnings)]
    if any(rows for answered in sets for rows in answered.answers.values()):
        figures["lengths"] = draw_lengths(sets)
        parts.append(_figure("How long the answers are", "lengths", _tell_lengths(sets)))
        told = _tell_refusals(sets)
        if any(_num_refusals(answered) for answered in sets):
            figures["refusals"] = draw_refusals([answered for answered in sets if _num_refusals(answered)])
            parts.append(_figure("How many answers decline", "refusals", told))
        else:
            parts.append(f"<h2>How many answers decline</h2><p>{told}</p>")
    parts += [_section(answered) for answered in sets]
    return render_page(TITLE, body_html="\n".join(parts), figures=figures, extra_css=_CSS)


def draw_lengths(sets: Sequence[AnsweredSet]) -> Figure:
    """Returns a box of answer lengths per model, a panel per prompt set, in tokens if all files count them."""
    in_tokens = _counts_tokens(sets)
    figure = _draw_panels(sets)
    for panel, answered in enumerate(sets, start=1):
        for at, (model, rows) in enumerate(answered.answers.items()):
            figure.add_box(
                x=[_length(row, in_tokens=in_tokens) for row in rows],
                name=figure_text(model),
                orientation="h",
                boxpoints="all" if len(rows) <= MAX_POINTS else "outliers",
                pointpos=0,
                jitter=0.5,
                line={"color": _colour(at), "width": 1.5},
                marker={"size": 4, "opacity": 0.6},
                fillcolor="rgba(0,0,0,0)",
                row=panel,
                col=1,
            )
    figure.update_xaxes(rangemode="tozero")
    figure.update_xaxes(title_text="tokens" if in_tokens else "words", row=len(sets), col=1)
    return figure


def draw_refusals(sets: Sequence[AnsweredSet]) -> Figure:
    """Returns a bar per model, a panel per prompt set: the share of answers that begin by declining, in percent."""
    figure = _draw_panels(sets)
    for panel, answered in enumerate(sets, start=1):
        for at, (model, stats) in enumerate(answered.stats.items()):
            if not stats.num_answers:
                continue
            figure.add_bar(
                y=[figure_text(model)],
                x=[100 * stats.num_refusals / stats.num_answers],
                text=[f"{stats.num_refusals} of {stats.num_answers}"],
                name=figure_text(model),
                orientation="h",
                marker={"color": _colour(at)},
                textposition="outside",
                cliponaxis=False,
                textfont={"color": "var(--ink)"},
                row=panel,
                col=1,
            )
    # The text of a full bar stands right of it.
    figure.update_xaxes(range=[0, 140], tickvals=[0, 25, 50, 75, 100])
    figure.update_xaxes(title_text="answers that decline, %", row=len(sets), col=1)
    figure.update_layout(bargap=0.3)
    return figure


def _draw_panels(sets: Sequence[AnsweredSet]) -> Figure:
    """Returns an empty panel per prompt set, with its name above it, where a narrow window has room for it."""
    from plotly.subplots import make_subplots

    lanes = [max(1, len(answered.answers)) for answered in sets]
    figure = make_subplots(
        rows=len(sets),
        shared_xaxes=True,
        row_heights=lanes,
        vertical_spacing=HEADING_PX / (HEADING_PX * len(sets) + LANE_PX * sum(lanes)),
        subplot_titles=[figure_text(answered.name) for answered in sets],
    )
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(showlegend=False, height=HEADING_PX * (len(sets) + 1) + LANE_PX * (sum(lanes) + 1))
    return figure


def _figure(heading: str, name: str, told: str) -> str:
    return (
        f"<h2>{heading}</h2>\n<figure>{figure_place(name, label=html.unescape(told))}"
        f"<figcaption>{told}</figcaption></figure>"
    )


def _lead(sets: Sequence[AnsweredSet]) -> str:
    num_prompts = sum(max((len(rows) for rows in answered.answers.values()), default=0) for answered in sets)
    models = html.escape(", ".join(_models(sets)))
    names = html.escape(", ".join(answered.name for answered in sets))
    told = f"{models} on {num_prompts} prompts of {names}"
    return f"<p>{told}. The figures are in stats.json, all answers in the jsonl files.</p>"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return "<p>Checked: every prompt was answered by every model, with no empty answer and none cut.</p>"
    items = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    return f'<h2 class="warn">Look at these first</h2>\n<ul>{items}</ul>'


def _tell_lengths(sets: Sequence[AnsweredSet]) -> str:
    in_tokens = _counts_tokens(sets)
    told = []
    for answered in sets:
        medians = []
        for model, stats in answered.stats.items():
            lengths = _lengths(stats, in_tokens=in_tokens)
            if stats.num_answers:
                medians.append(f"{model} {_plain(lengths.median)}")
        told.append(f"{answered.name}: {', '.join(medians) or 'no answers'}")
    return html.escape(f"Median {'tokens' if in_tokens else 'words'} of an answer. {'; '.join(told)}.")


def _tell_refusals(sets: Sequence[AnsweredSet]) -> str:
    told = []
    for answered in sets:
        shares = [f"{model} {stats.num_refusals} of {stats.num_answers}" for model, stats in answered.stats.items()]
        told.append(f"{answered.name}: {', '.join(shares)}")
    rule = "Counted by the words an answer begins with, in English only"
    if not any(_num_refusals(answered) for answered in sets):
        return f"No answer begins by declining. {rule}."
    return html.escape(f"{'; '.join(told)}. {rule}.")


def _section(answered: AnsweredSet) -> str:
    header = ("model", "answers", "empty", "cut", "decline", "loop", "length: median", "95 %", "longest")
    in_tokens = _counts_tokens([answered])
    rows = []
    for model, stats in answered.stats.items():
        lengths = _lengths(stats, in_tokens=in_tokens)
        counts = (stats.num_answers, stats.num_empty, stats.num_cut, stats.num_refusals, stats.num_loops)
        sizes = (lengths.median, lengths.p95, lengths.max)
        cells = [str(value) for value in counts] + [_plain(size) for size in sizes]
        rows.append(f"<tr><th>{html.escape(model)}</th>{_cells(cells)}</tr>")
    heads = "".join(f"<th{'' if at == 0 else _NUMBER}>{name}</th>" for at, name in enumerate(header))
    same = [
        f"{pair.base} and {pair.tuned} answer the same in {pair.num_identical} of {pair.num_pairs}"
        for pair in answered.likeness
        if pair.num_pairs
    ]
    unit = "tokens" if in_tokens else "words"
    return (
        f'<h2>{html.escape(answered.name)}</h2>\n<div class="scroll"><table><caption>Lengths in {unit}.</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n"
        f"<p>{html.escape('; '.join(same))}{'.' if same else ''}</p>\n{_side_by_side(answered)}"
    )


def _plain(length: float) -> str:
    """Returns a length with one decimal at most; nothing where there is no answer."""
    return "" if math.isnan(length) else f"{round(length, 1):g}"


def _cells(values: Sequence[str]) -> str:
    return "".join(f"<td{_NUMBER}>{value}</td>" for value in values)


def _side_by_side(answered: AnsweredSet) -> str:
    """Returns the first prompts with every model's answer, those that models answer differently before the others."""
    by_id: dict[str, dict[str, AnswerRow]] = {}
    for model, rows in answered.answers.items():
        for row in rows:
            by_id.setdefault(row.id, {})[model] = row
    if not by_id:
        return ""
    differing = [key for key, rows in by_id.items() if len({row.answer.strip() for row in rows.values()}) > 1]
    chosen = [*differing, *(key for key in by_id if key not in set(differing))][:MAX_PROMPTS_SHOWN]
    shown = f"all {len(by_id)}" if len(chosen) == len(by_id) else f"{len(chosen)} of {len(by_id)}"
    told = f"Answers: {shown}, those that differ first"
    texts = "".join(_prompt(key, by_id[key]) for key in chosen)
    # Without references there is no score: these answers are there to be read.
    is_scored = any(row.reference is not None for rows in by_id.values() for row in rows.values())
    return f"<details{'' if is_scored else ' open'}><summary>{told}</summary>{texts}</details>"


def _prompt(key: str, rows: dict[str, AnswerRow]) -> str:
    first = next(iter(rows.values()))
    cards = {model: row.answer if row.answer.strip() else "(empty)" for model, row in rows.items()}
    if first.reference is not None:
        cards["reference"] = first.reference
    texts = "".join(
        f"<div><h4>{html.escape(name)}</h4><p>{_shorten(text, MAX_ANSWER_CHARACTERS)}</p></div>"
        for name, text in cards.items()
    )
    asked = _shorten(first.prompt, MAX_PROMPT_CHARACTERS)
    return f'<div class="prompt"><p><code>{html.escape(key)}</code> {asked}</p><div class="answers">{texts}</div></div>'


def _shorten(text: str, max_characters: int) -> str:
    rest = len(text) - max_characters
    return html.escape(text[:max_characters]) + (f" … ({rest} more characters)" if rest > 0 else "")


def _counts_tokens(sets: Sequence[AnsweredSet]) -> bool:
    return all(stats.tokens is not None for answered in sets for stats in answered.stats.values())


def _lengths(stats: AnswerStats, *, in_tokens: bool) -> Lengths:
    return stats.tokens if in_tokens and stats.tokens is not None else stats.words


def _length(row: AnswerRow, *, in_tokens: bool) -> int:
    return row.num_tokens if in_tokens and row.num_tokens is not None else len(row.answer.split())


def _num_refusals(answered: AnsweredSet) -> int:
    return sum(stats.num_refusals for stats in answered.stats.values())


def _models(sets: Sequence[AnsweredSet]) -> list[str]:
    return list(dict.fromkeys(model for answered in sets for model in answered.answers))


def _colour(at: int) -> str:
    return MODEL_COLOURS[min(at, len(MODEL_COLOURS) - 1)]


_NUMBER = ' class="number"'


def export_answers(folder: Path, *, prompt_sets: Sequence[str], models: Sequence[str]) -> dict[str, Any]:
    """Checks and counts the answers in an evaluation's folder; writes stats.json and answers.html there.

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
    from qlora_ray.evaluation.answers.page import render_answers_page

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
            "files": [STATS_FILE, PAGE_FILE],
        }
    )
    write_json(folder / STATS_FILE, stats)
    write_text(folder / PAGE_FILE, render_answers_page(sets, warnings=warnings))
    return stats
