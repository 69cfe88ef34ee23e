"""The search in sections: all trials, their curves, their parameters, and why some failed."""

from __future__ import annotations

from collections import Counter

from qlora_ray.formats import format_count, format_loss, format_number, format_value, plural, short_path
from qlora_ray.pages.blocks import Block, Drawing, Folded, Grid, Section, Table, Words
from qlora_ray.reporting.figures_losses import describe_losses, draw_losses, has_losses
from qlora_ray.reporting.figures_parameters import draw_front, draw_importance, draw_slice, front_of
from qlora_ray.reporting.figures_search import draw_learning_curves, draw_parallel_coordinates, parallel_width_px
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.style import MARK_WORDS
from qlora_ray.reporting.thinning import describe_drawn
from qlora_ray.reporting.trials import Trial, rank_trials
from qlora_ray.reporting.verdicts import best_so_far

# Small figures of single trials; a page of 500 would be slow.
MAX_SMALL = 24
# Rows of a table; trials.csv has all trials.
MAX_ROWS = 500
MAX_FAILURES = 100


def tell_leaderboard(story: Story) -> Section:
    """Every trial in a row, the winner marked."""
    trials = _cut_leaderboard(story, rank_trials(story.trials))
    if not trials:
        return Section("Trials", [Words("No trial was opened.")])
    names = [axis.path for axis in story.axes]
    header = ("trial", "state", "reports", "loss", "parameters", "tokens/s", *_short(names), "")
    rows = tuple(
        (
            trial.id,
            trial.state,
            str(len(trial.reports)),
            format_loss(trial.loss),
            format_count(trial.trainable_parameters),
            format_count(trial.tokens_per_s),
            *(format_value(trial.params[path]) if path in trial.params else "-" for path in names),
            "; ".join(filter(None, (_standing(story, trial), _origin_words(trial)))),
        )
        for trial in trials
    )
    marked = next((i for i, trial in enumerate(trials) if trial.id == story.outcome.winner), None)
    words = (
        "Complete trials first, by validation loss (nats per trained token); then those stopped early, the ones that "
        "got further first. Losses at different reports cannot be compared. Tokens per second are without padding."
    )
    words += _cut_words(len(trials), len(story.trials))
    numeric = frozenset(range(2, 6)) | {
        6 + index for index, axis in enumerate(story.axes) if axis.kind != "choice" or _is_numeric(axis.choices)
    }
    return Section("Trials", [Words(words), Table(header, rows, numeric=numeric, marked=marked, is_sortable=True)])


def _standing(story: Story, trial: Trial) -> str | None:
    return "winner" if trial.id == story.outcome.winner else trial.cause


def _origin_words(trial: Trial) -> str:
    if trial.cloned_from is not None:
        return f"clone of {trial.cloned_from} at report {trial.cloned_at}"
    return "" if trial.seed_of is None else f"a seed of {trial.seed_of}"


def _cut_leaderboard(story: Story, ranked: list[Trial]) -> list[Trial]:
    """The first rows, and the winner's wherever it stands."""
    return ranked[:MAX_ROWS] + [trial for trial in ranked[MAX_ROWS:] if trial.id == story.outcome.winner]


def _cut_words(num_shown: int, total: int) -> str:
    return f" {num_shown:,} of {total:,} are shown; trials.csv has all of them." if num_shown < total else ""


def tell_search(story: Story) -> Section:
    """Learning curves, and the search space as lines."""
    blocks: list[Block] = []
    curves = draw_learning_curves(story)
    if curves is None:
        blocks.append(Words("No trial has reported a loss, so there are no curves."))
    else:
        blocks.append(Drawing("curves", curves, _curves_caption(story) + describe_drawn(story)))
    blocks += _tell_losses(story)
    blocks += _tell_front(story)
    parallel = draw_parallel_coordinates(story)
    if parallel is not None:
        caption = (
            f"Each line is a trial through its {plural(len(story.axes), 'parameter')} to its last loss. "
            f"{_winner_words(story)} Grey: complete trials; light grey: stopped early, at fewer samples."
            f"{describe_drawn(story)}"
        )
        blocks.append(Drawing("parallel", parallel, caption, min_width_px=parallel_width_px(story)))
    return Section("How the search went", blocks)


def find_shown(story: Story) -> Trial | None:
    """The trial whose losses are drawn large: the winner, or the best one so far; None where no trial has any."""
    first = (story.winner, best_so_far(story), *rank_trials(story.trials))
    return next((trial for trial in first if trial is not None and has_losses(trial)), None)


def _tell_losses(story: Story) -> list[Block]:
    """Training beside validation loss: the winner's, or the best one's so far; the others' behind a line."""
    first = find_shown(story)
    if first is None:
        return []
    blocks: list[Block] = []
    figure = draw_losses(first)
    if figure is not None:
        what = "Training and validation loss. "
        blocks.append(Drawing("losses", figure, what + describe_losses(first) + f" {_points_words(story)}"))
    others = [trial for trial in rank_trials(story.trials) if has_losses(trial) and trial is not first]
    drawings = tuple(
        Drawing(f"losses{trial.id}", small, describe_losses(trial))
        for trial in others[:MAX_SMALL]
        if (small := draw_losses(trial, is_small=True)) is not None
    )
    if drawings:
        hidden = len(others) - len(drawings)
        more = f"; {hidden} more are in trials/<id>/metrics.jsonl" if hidden else ""
        caption = f"Grey: training loss; colour: validation loss at the reports. Best trials first{more}."
        blocks.append(
            Folded(
                f"Training and validation loss of {plural(len(drawings), 'other trial')}", (Grid(drawings, caption),)
            )
        )
    return blocks


def _points_words(story: Story) -> str:
    steps = story.manifest.setting("training", "logging_steps")
    every = f"every {plural(steps, 'step')} and " if isinstance(steps, int) else ""
    return f"The training loss has a point {every}at each report: the mean of the steps since the one before."


def _tell_front(story: Story) -> list[Block]:
    """The Pareto front of two objectives; nothing for one."""
    if story.front is None:
        return []
    figure = draw_front(story)
    if figure is None or story.front.reason is not None:
        return [
            Words(f"The front of both objectives is not shown: {story.front.reason or 'no trial has both'}.", "muted")
        ]
    front = sorted(front_of(story), key=lambda trial: trial.loss or 0.0)
    ends = ", ".join(
        f"{trial.id} (loss {format_number(trial.loss)}, {format_count(trial.trainable_parameters)} parameters)"
        for trial in [front[0], *front[1:][-1:]]
    )
    caption = (
        f"Two objectives, {' and '.join(story.front.objectives)}. On the line: {plural(len(front), 'trial')} that no "
        f"other beats in both (Optuna's Pareto front). Its ends: {ends}. {_winner_words(story)}"
    )
    return [Drawing("front", figure, caption)]


def tell_parameters(story: Story) -> Section:
    """Importance and slices."""
    words = story.importance.describe()
    figure = draw_importance(story)
    blocks: list[Block] = [Words(words, "muted") if figure is None else Drawing("importance", figure, words)]
    drawings = tuple(
        Drawing(f"slice{index}", slice_figure, _slice_words(story, axis.path))
        for index, axis in enumerate(story.axes)
        if (slice_figure := draw_slice(story, axis)) is not None
    )
    if drawings:
        states = [state for state in story.counts if state in MARK_WORDS]
        marks = ", ".join(MARK_WORDS[state] for state in states)
        winner = ", the winner marked in colour" if story.winner is not None else ""
        caption = f"Last validation loss against each parameter{winner}. {marks}.{describe_drawn(story)}"
        blocks.append(Grid(drawings, caption))
    return Section("What the parameters did", blocks)


def tell_failures(story: Story) -> Section | None:
    """Failed trials and interrupted ones that can go on, with their causes; None without any."""
    failed = [trial for trial in story.trials if trial.state == "failed"]
    blocks = [*_tell_failed(story, failed), *_tell_resumable(story)]
    return Section("Failures", blocks) if blocks else None


def _tell_failed(story: Story, failed: list[Trial]) -> list[Block]:
    if not failed:
        return []
    causes = Counter(trial.cause or "unknown" for trial in failed)
    words = f"{plural(len(failed), 'trial')} of {len(story.trials)} failed: " + ", ".join(
        f"{count} {cause}" for cause, count in causes.most_common()
    )
    rows = tuple(
        (
            trial.id,
            trial.cause or "-",
            _first_line(trial.message),
            trial.error_line or "-",
            str(len(trial.reports)),
            str(trial.num_retries),
        )
        for trial in failed[:MAX_FAILURES]
    )
    header = ("trial", "cause", "message", "last line of error.txt", "reports", "retries")
    whole = tuple(
        Folded(f"Message of trial {trial.id}", (Words(trial.message),))
        for trial in failed[:MAX_FAILURES]
        if trial.message and len(trial.message.strip().splitlines()) > 1
    )
    words += "." + _cut_words(len(rows), len(failed))
    return [Words(words), Table(header, rows, numeric=frozenset({4, 5})), *whole]


def _tell_resumable(story: Story) -> list[Block]:
    """Why trials were interrupted; those that were only stopped with the sweep are left out."""
    trials = [trial for trial in story.resumable if trial.message is not None]
    if not trials:
        return []
    words = f"{plural(len(trials), 'trial')} of {len(story.trials)} interrupted: a resume goes on where it stood."
    rows = tuple(
        (trial.id, _first_line(trial.message), str(len(trial.reports)), str(trial.num_retries))
        for trial in trials[:MAX_FAILURES]
    )
    words += _cut_words(len(rows), len(trials))
    return [Words(words), Table(("trial", "message", "reports", "retries"), rows, numeric=frozenset({2, 3}))]


def _curves_caption(story: Story) -> str:
    counts = story.counts
    total = sum(counts.values())
    best = story.winner or best_so_far(story)
    words = f"Best: trial {best.id}, {format_number(best.loss)}" if best is not None else "No trial is complete"
    if best is not None and best.reports and best.reports[-1].num_samples:
        words += f" after {best.reports[-1].num_samples:,} samples"
    marks = [
        f"{counts[state]} of {total} {MARK_WORDS[state].split(' ', 1)[1]} ({MARK_WORDS[state].split(' ', 1)[0]})"
        for state in ("pruned", "failed", "interrupted", "running")
        if state in counts
    ]
    return "; ".join([words, *marks]) + "."


def _winner_words(story: Story) -> str:
    winner = story.winner
    if winner is None:
        return "There is no winner to point at."
    values = ", ".join(f"{path.rsplit('.', 1)[-1]} {format_value(value)}" for path, value in winner.params.items())
    return f"The winner, {winner.id}, has {values}."


def _slice_words(story: Story, path: str) -> str:
    winner = story.winner
    marked = f" The winner has {format_value(winner.params[path])}." if winner and path in winner.params else ""
    return f"Last validation loss against {path}.{marked}"


def _short(paths: list[str]) -> list[str]:
    """Keys without their sections, where that leaves them apart."""
    names = [short_path(path) for path in paths]
    return [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]


def _is_numeric(choices: tuple[object, ...]) -> bool:
    return all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)


def _first_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines()
    return lines[0] + (" …" if len(lines) > 1 else "") if lines else "-"
