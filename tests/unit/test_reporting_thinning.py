"""What is drawn and listed of a sweep of very many trials."""

from __future__ import annotations

import itertools
from dataclasses import replace

from qlora_ray.pages.blocks import Table
from qlora_ray.reporting.searches import MAX_ROWS, tell_leaderboard, tell_search
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.thinning import MAX_BARS, MAX_DRAWN, NUM_BEST, describe_drawn, drawn_trials, merge_spans
from qlora_ray.reporting.timeline import Span
from qlora_ray.reporting.trials import rank_trials


def make_many(usual: Story, number: int) -> Story:
    first = usual.trials[0]
    more = [replace(first, id=f"{at:04d}", number=at, loss=1.0 + at / 1000) for at in range(10, 10 + number)]
    return replace(usual, trials=(*usual.trials, *more))


def test_all_trials_are_drawn_until_they_are_too_many(usual: Story) -> None:
    story = make_many(usual, MAX_DRAWN - len(usual.trials))
    assert drawn_trials(story) == list(story.trials) and describe_drawn(story) == ""


def test_of_very_many_trials_the_winner_the_best_and_an_even_choice_are_drawn(usual: Story) -> None:
    story = make_many(usual, 5000)
    story = replace(story, outcome=replace(story.outcome, winner="4999"))
    drawn = drawn_trials(story)
    ids = {trial.id for trial in drawn}
    assert MAX_DRAWN <= len(drawn) <= MAX_DRAWN + 1 and "4999" in ids
    ranked = rank_trials(story.trials)
    assert {trial.id for trial in ranked[:NUM_BEST]} <= ids
    # None of the rest is further from a drawn one than the choice is wide.
    places = [at for at, trial in enumerate(ranked) if trial.id in ids]
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert max(gaps) <= (5006 - NUM_BEST) // (MAX_DRAWN - NUM_BEST) + 1
    assert f"{len(drawn)} of 5,006 trials" in describe_drawn(story)
    search = tell_search(story)
    assert "Drawn are" in next(block.caption for block in search.blocks if getattr(block, "name", "") == "curves")


def test_the_table_has_the_first_rows_and_the_winners_and_says_what_it_leaves_out(usual: Story) -> None:
    story = make_many(usual, 1000)
    story = replace(story, outcome=replace(story.outcome, winner="1009"))
    words, table = tell_leaderboard(story).blocks
    assert isinstance(table, Table)
    assert len(table.rows) == MAX_ROWS + 1 and table.marked == MAX_ROWS and table.rows[-1][0] == "1009"
    assert f"{MAX_ROWS + 1} of 1,006 are shown; trials.csv has all of them." in words.text
    assert "are shown" not in tell_leaderboard(usual).blocks[0].text


def test_short_neighbours_of_a_slot_are_one_bar_and_lose_no_time() -> None:
    spans = [Span(f"{at:04d}", "node", at * 1.0, at + 1.0, lane=lane) for lane in range(2) for at in range(1000)]
    # A pause that can be seen stays one.
    spans = [span for span in spans if not 500 <= span.start_s < 520]
    merged = merge_spans(spans, width_s=1000.0)
    assert len(merged) < MAX_BARS and sum(number for _, number in merged) == len(spans)
    assert sum(span.end_s - span.start_s for span, _ in merged) == len(spans)
    assert not any(span.start_s < 510 < span.end_s for span, _ in merged)
    assert merge_spans(spans[:10], width_s=1000.0) == [(span, 1) for span in spans[:10]]
