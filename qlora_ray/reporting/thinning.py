"""Which trials of a large sweep are drawn: a browser takes half a minute for the marks and lines of 5,000."""

from __future__ import annotations

from dataclasses import replace

from qlora_ray.reporting.story import Story
from qlora_ray.reporting.timeline import Span
from qlora_ray.reporting.trials import Trial, rank_trials

# Of a figure with a mark or a line per trial.
MAX_DRAWN = 400
# Of these the best, by the leaderboard's order; the others are an even choice of what is left.
NUM_BEST = 200
# Bars of a timeline; beyond that neighbours are drawn as one.
MAX_BARS = 800
# Parts of the timeline's width: a shorter bar, and a shorter gap, cannot be told from its neighbours.
SHORT_BAR, SHORT_GAP = 1 / 250, 1 / 2000


def drawn_trials(story: Story) -> list[Trial]:
    """The trials that figures draw, by number: all, or the winner, the best and an even choice of the others."""
    trials = list(story.trials)
    if len(trials) <= MAX_DRAWN:
        return trials
    ranked = rank_trials(trials)
    others = ranked[NUM_BEST:]
    num_others = MAX_DRAWN - NUM_BEST
    chosen = {trial.id for trial in ranked[:NUM_BEST]}
    chosen |= {others[at * len(others) // num_others].id for at in range(num_others)}
    return [trial for trial in trials if trial.id in chosen or trial.id == story.outcome.winner]


def describe_drawn(story: Story) -> str:
    """Which trials the figures show, as the end of a caption; empty where it is all of them."""
    total = len(story.trials)
    if total <= MAX_DRAWN:
        return ""
    return (
        f" Drawn are {len(drawn_trials(story)):,} of {total:,} trials: the best {NUM_BEST} and an even choice of the "
        "others. trials.csv has all of them."
    )


def merge_spans(spans: list[Span], *, width_s: float) -> list[tuple[Span, int]]:
    """Spans of one kind, short neighbours of a lane as one where there are too many to draw.

    Args:
        spans: In any order.
        width_s: Of the whole timeline.

    Returns:
        Spans and how many each stands for; several have the id of the first.
    """
    if len(spans) <= MAX_BARS:
        return [(span, 1) for span in spans]
    merged: list[tuple[Span, int]] = []
    for span in sorted(spans, key=lambda span: (span.lane, span.start_s)):
        last, number = merged[-1] if merged else (None, 0)
        is_near = last is not None and last.lane == span.lane and span.start_s - last.end_s < width_s * SHORT_GAP
        if last is not None and is_near and span.end_s - last.start_s < width_s * SHORT_BAR:
            merged[-1] = (replace(last, end_s=span.end_s, is_open=span.is_open), number + 1)
        else:
            merged.append((span, 1))
    return merged
