"""The first thing one reads: which trial won, whether it is better than its base, and how that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_ray.formats import (
    format_count,
    format_duration,
    format_loss,
    format_score,
    format_share,
    format_signed,
    format_time,
    format_value,
    plural,
)
from qlora_ray.pages.blocks import Block, Bullets, Code, Drawing, Folded, Section, Table, Tone, Words
from qlora_ray.reporting.figures_scores import draw_differences
from qlora_ray.reporting.figures_search import base_validation_loss
from qlora_ray.reporting.outcome import Outcome
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.trials import Trial
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.records import SweepStatus, TrialStatus
from qlora_ray.runs.score_records import HeadRecord, ScoreRecord
from qlora_ray.scoring.comparison import LOSS, Comparison
from qlora_ray.scoring.details import (
    Details,
    count_answers,
    describe_details,
    describe_sampling,
    tabulate_details,
    tabulate_heads,
)

# How a trial of the search may end that is not queued again.
ENDED = (TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.FAILED)
TONES: dict[str, Tone] = {"better": "good", "no different": "warn", "worse": "bad"}


def headline_of(outcome: Outcome) -> tuple[str, Tone]:
    """The verdict in one line, and its tone."""
    if outcome.failure is not None:
        return "This sweep broke before it had a winner", "bad"
    if outcome.status is SweepStatus.UNFINISHED:
        if outcome.is_held:
            return "This sweep is running", ""
        return "This sweep was killed: it has not ended, and no process holds it", "warn"
    if outcome.status is SweepStatus.INTERRUPTED:
        if outcome.earlier_winner is not None:
            return "This sweep was interrupted; best/ holds the winner of the run before", "warn"
        return "This sweep was interrupted before a winner was chosen", "warn"
    if outcome.winner is None:
        return "No winner: no trial was completed", "bad"
    if outcome.verdict is None and outcome.scores.base is None:
        return f"Trial {outcome.winner} won; its verdict cannot be read", "bad"
    if outcome.verdict is None:
        return f"Trial {outcome.winner} won; whether it is better than its base was not tested", "warn"
    word = outcome.verdict.word
    than = "from" if word == "no different" else "than"
    return f"Trial {outcome.winner} is {word} {than} its base", TONES[word]


def lead_of(story: Story) -> tuple[str, ...]:
    """The sentences under the headline: the deciding figures, or the cause, or how far the sweep is."""
    outcome = story.outcome
    lead = list(verdict_sentences(outcome))
    if outcome.verdict is None and outcome.winner is not None:
        lead.append(f"Its validation loss is {format_loss(_loss_of(story.winner))}.")
    if outcome.end_reason is not None:
        lead.append(f"The search ended before all its trials: {outcome.end_reason}.")
    if outcome.status is SweepStatus.NO_WINNER:
        lead.append(f"First cause: {outcome.first_failure or 'all trials were stopped early'}.")
    if outcome.status in (SweepStatus.UNFINISHED, SweepStatus.INTERRUPTED):
        best = best_so_far(story)
        if best is not None:
            lead.append(f"Best complete trial so far: {best.id}, loss {format_loss(best.loss)}.")
        if outcome.earlier_winner is not None:
            lead.append(f"best/ holds a winner chosen before: trial {outcome.earlier_winner}.")
        if outcome.last_event_at is not None:
            lead.append(f"Last event: {format_time(outcome.last_event_at)}.")
    return tuple(lead)


def verdict_sentences(outcome: Outcome) -> tuple[str, ...]:
    """The deciding figures of the verdict, and what weakens it; nothing without a verdict."""
    if outcome.verdict is None:
        return ()
    deciding = f"On the {outcome.verdict.split} rows: {outcome.verdict.deciding.sentence()}."
    return (deciding, f"Note: {outcome.verdict.note}.") if outcome.verdict.note else (deciding,)


def facts_of(story: Story) -> tuple[tuple[str, str], ...]:
    """Figures for a glance."""
    facts = []
    winner = story.winner or best_so_far(story)
    if winner is not None and winner.loss is not None:
        label = "winner's validation loss" if story.winner else "best validation loss so far"
        facts.append((label, format_loss(winner.loss)))
    base_loss = base_validation_loss(story)
    if base_loss is not None:
        facts.append(("base's validation loss", format_loss(base_loss)))
    # Those of the search: not interrupted ones, which are queued again, nor repetitions with a new seed, nor clones.
    searched = [trial for trial in story.trials if trial.seed_of is None and trial.cloned_from is None]
    num_ended = sum(trial.state in ENDED for trial in searched)
    planned = story.manifest.setting("search", "num_trials")
    facts.append(("trials ended", f"{num_ended}" + (f" of {planned}" if isinstance(planned, int) else "")))
    if story.timeline is not None:
        end = "last event" if any(span.is_open for span in story.timeline.spans) else "last release"
        facts.append((f"first lease to {end}", format_duration(story.timeline.end_s - story.timeline.start_s)))
        if story.timeline.idle_share is not None:
            facts.append(("of slot time idle", format_share(story.timeline.idle_share, digits=0)))
    return tuple(facts)


def tell_verdict(story: Story) -> Section:
    """The winner against its base in all measures, and what to do next."""
    blocks: list[Block] = []
    outcome = story.outcome
    if outcome.verdict is not None:
        comparisons = [outcome.verdict.deciding, *outcome.verdict.others]
        blocks += show_comparisons(comparisons, name="verdict", base="base", tuned=f"winner {outcome.winner}")
        base, winner = outcome.scores.base or ScoreRecord(), outcome.scores.winner or ScoreRecord()
        blocks += show_details([(("base",), base.details), (("winner",), winner.details)])
        blocks += show_heads([((f"winner {outcome.winner}",), winner.heads)])
        blocks += show_sampling(winner.sampling)
    elif outcome.winner is not None and outcome.scores.base is not None:
        blocks += _older_scores(story)
    if outcome.winner is not None:
        blocks += _rescored(story)
    if story.examples:
        rows = tuple((str(example.row), example.expected, example.base, example.winner) for example in story.examples)
        table = Table(("row", "expected", "base", f"winner {outcome.winner}"), rows, numeric=frozenset({0}))
        blocks.append(Folded(f"The first {plural(len(rows), 'answer')}, side by side", (table,)))
    if outcome.failure is not None:
        blocks.append(Words(outcome.failure, "bad"))
    blocks += _how_to_go_on(story)
    if story.problems:
        blocks += [Words("Not everything could be read:", "warn"), Bullets(story.problems)]
    return Section("Winner and base", blocks)


def _how_to_go_on(story: Story) -> list[Block]:
    """The command that goes on with what has not ended; nothing where there is no such thing, or a sweep runs."""
    outcome = story.outcome
    # The sweep itself writes its page, holding its lock: that it is held says nothing once it was interrupted.
    if outcome.status is SweepStatus.INTERRUPTED or (outcome.status is SweepStatus.UNFINISHED and not outcome.is_held):
        words = "Go on with:"
    elif outcome.status is not SweepStatus.UNFINISHED and story.resumable:
        words = f"{plural(len(story.resumable), 'trial')} can go on:"
    else:
        return []
    return [Words(words), Code(SweepPaths(story.root).resume_command)]


def show_comparisons(comparisons: Sequence[Comparison], *, name: str, base: str, tuned: str) -> list[Block]:
    """Paired comparisons as a figure and a table.

    Args:
        name: Of the figure on the page.
        base, tuned: What the two models are called.
    """
    blocks: list[Block] = []
    figure = draw_differences(comparisons)
    if figure is not None:
        worded = "; ".join(f"{comparison.measure} {comparison.verdict}" for comparison in comparisons)
        caption = (
            f"{tuned} against {base}: {worded}. Dot: difference of the means; bar: its 95 % bootstrap interval; "
            "to the right of the base's line is better. Each row is scaled to its own farthest end."
        )
        blocks.append(Drawing(name, figure, caption))
    rows = tuple(
        (
            _label(comparison),
            (format_loss if comparison.measure == LOSS else format_score)(comparison.base),
            (format_loss if comparison.measure == LOSS else format_score)(comparison.tuned),
            format_signed(comparison.difference),
            " to ".join(format_signed(end) for end in comparison.interval),
            "< 0.001" if comparison.p_value < 0.001 else f"{comparison.p_value:.3f}",
            comparison.verdict,
            comparison.test,
            format_count(comparison.num_rows)
            + (f" ({comparison.num_dropped} without a score)" if comparison.num_dropped else ""),
        )
        for comparison in comparisons
    )
    header = ("measure", base, tuned, "difference", "95 % interval", "p", "verdict", "test", "rows")
    blocks.append(Table(header, rows, numeric=frozenset({1, 2, 3, 4, 5, 8})))
    return blocks


def show_details(rows: Sequence[tuple[Sequence[str], Details]], *, labels: Sequence[str] = ()) -> list[Block]:
    """A table for each metric that has further figures, and what these are over; see `tabulate_details`."""
    tables = tabulate_details(rows, labels=labels)
    first = 1 + len(labels)
    blocks: list[Block] = [
        Table(tuple(header), tuple(map(tuple, body)), numeric=frozenset(range(first, len(header))))
        for header, *body in tables
    ]
    return [*blocks, *(Words(note.replace("`", ""), "muted") for note in describe_details(tables))]


def show_heads(
    rows: Sequence[tuple[Sequence[str], Mapping[str, HeadRecord]]], *, labels: Sequence[str] = ()
) -> list[Block]:
    """A table of what auxiliary heads are worth; nothing where there are none."""
    table = tabulate_heads(rows, labels=labels)
    if not table:
        return []
    header, *body = table
    first = 2 + len(labels)
    return [
        Table(tuple(header), tuple(map(tuple, body)), numeric=frozenset(range(first, len(header)))),
        Words(
            "Auxiliary heads, on the rows that have a label. Commonest class: the accuracy of always saying that one.",
            "muted",
        ),
    ]


def show_sampling(sampling: Mapping[str, object]) -> list[Block]:
    """How answers were drawn; nothing where they are greedy."""
    return [Words(f"Answers: one per prompt, {describe_sampling(sampling)}.", "muted")] if sampling else []


def _label(one: Comparison) -> str:
    """The measure, which way it counts, and of which rows the means are where they are not all."""
    remarks = [] if one.higher_is_better else ["lower is better"]
    if one.num_dropped:
        remarks.append(f"means over the {plural(one.num_rows, 'row')} both have a score for")
    return one.measure + (f" ({'; '.join(remarks)})" if remarks else "")


def best_so_far(story: Story) -> Trial | None:
    """The complete trial with the lowest loss."""
    complete = [trial for trial in story.trials if trial.state is TrialStatus.COMPLETE and trial.loss is not None]
    return min(complete, key=lambda trial: trial.loss or 0.0, default=None)


def _loss_of(trial: Trial | None) -> float | None:
    return None if trial is None else trial.loss


def _older_scores(story: Story) -> list[Block]:
    """Sweeps from before verdicts wrote scores without a test."""
    base, winner = story.outcome.scores.base or ScoreRecord(), story.outcome.scores.winner or ScoreRecord()
    table = _scores_table([("base", base), (f"winner {story.outcome.winner}", winner)], marked=1)
    return [table, Words("This sweep's files hold no test of the difference, so no verdict is shown.", "muted")]


def _rescored(story: Story) -> list[Block]:
    rescored = story.outcome.scores.rescored
    if len(rescored) < 2:
        return []
    rows = list(rescored.items())
    marked = next((i for i, (trial, _) in enumerate(rows) if trial == story.outcome.winner), None)
    words = "The best trials, scored again side by side on the validation rows. The lowest loss wins."
    return [Words(words), _scores_table(rows, marked=marked)]


def _scores_table(rows: Sequence[tuple[str, ScoreRecord]], *, marked: int | None) -> Table:
    metrics = list(dict.fromkeys(name for _, scores in rows for name in scores.metrics))
    is_answered = any(scores.num_answers for _, scores in rows)
    cells = tuple(
        (
            name,
            format_loss(scores.loss),
            *(format_score(scores.metrics.get(metric)) for metric in metrics),
            format_value(scores.num_rows),
            *([_count(scores)] if is_answered else []),
        )
        for name, scores in rows
    )
    header = ("", "loss", *metrics, "rows", *(["answered"] if is_answered else []))
    return Table(header, cells, numeric=frozenset(range(1, len(header))), marked=marked)


def _count(scores: ScoreRecord) -> str:
    return count_answers(
        scores.num_answers, scores.num_cut_answers, scores.num_settled_answers, scores.num_looping_answers
    )


def summary_line(story: Story) -> str:
    """The verdict for a terminal."""
    headline, _ = headline_of(story.outcome)
    lead = lead_of(story)
    counts = ", ".join(f"{count} {state}" for state, count in story.counts.items()) or plural(0, "trial")
    return f"{headline}. {lead[0] + ' ' if lead else ''}({counts})"
