"""What the user reads at the beginning and at the end of a sweep, and the summary it leaves."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.formats import (
    format_duration,
    format_loss,
    format_score,
    format_setting,
    format_share,
    format_table,
    plural,
    short_path,
)
from qlora_ray.hardware import ModelShape, Plan
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.orchestration.winner import Winner
from qlora_ray.preflight.checks import Preflight
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.derived import end_sweep
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.record_parts import PushesRecord
from qlora_ray.runs.records import Summary, SweepStatus, TrialStatus
from qlora_ray.scoring.details import HEAD_NUMBERS, tabulate_details, tabulate_heads
from qlora_ray.scoring.verdict import Verdict

# Rows of the final table; all trials are in trials.csv.
MAX_TABLE_ROWS = 20
NUM_EXAMPLES = 3
VERDICTS = {
    "better": "better than its base",
    "no different": "no different from its base, as far as these rows can tell",
    "worse": "WORSE than its base: do not ship it",
}
# Devices that wait more than this are worth a line.
NOTABLE_WAIT_SHARE = 0.1


def write_summary(
    ledger: Ledger,
    winner: Winner | None,
    *,
    paths: SweepPaths,
    interrupted: bool,
    device_wait_share: float | None = None,
    pushes: PushesRecord | None = None,
) -> Summary:
    """Ends the sweep: its last event, and then summary.json, which says the same.

    Args:
        ledger: All trials of the sweep.
        winner: None without a complete trial.
        paths: The sweep's folder.
        interrupted: Whether the sweep was stopped before its end.
        device_wait_share: Of the time from first step to last, how much devices waited; None if it was not measured.
        pushes: What went to the hub; None where nothing was to.
    """
    ended = SweepStatus.COMPLETE if winner else SweepStatus.NO_WINNER
    failure = ledger.first_failure
    summary = Summary(
        status=SweepStatus.INTERRUPTED if interrupted else ended,
        counts=ledger.counts(),
        winner=winner.entry.id if winner else None,
        verdict=winner.verdict.word if winner else None,
        verdict_note=winner.verdict.note if winner else None,
        heads={
            name: {"accuracy": head.accuracy, "macro_f1": head.macro_f1}
            for name, head in (winner.scores.heads if winner else {}).items()
        },
        objective=ledger.objective,
        first_failure=f"trial {failure[0]}: {failure[1]}" if failure else None,
        end_reason=ledger.end_reason,
        device_wait_share=None if device_wait_share is None else round(device_wait_share, 4),
        pushes=pushes,
    )
    end_sweep(paths, summary)
    return summary


def print_plan(console: Console, preflight: Preflight, plan: Plan, paths: SweepPaths) -> None:
    """Prints what will run, on which devices, and why.

    Args:
        console: The terminal.
        preflight: Config, data and what will not be used of the config.
        plan: The placements.
        paths: The sweep's folder.
    """
    config = preflight.config
    console.end_progress()
    console.line(f"sweep {paths.name}: {describe_search(config)}")
    console.line(f"base  {config.model.name}, {describe_quantization(config, preflight.shape)}")
    console.line("data  " + "\n      ".join(preflight.data.report.summary_lines()))
    console.line(f"score {preflight.metrics_reason}")
    for words in (*preflight.unused, *preflight.notes):
        console.line(f"note  {words}")
    console.line()
    console.line(plan.render())
    console.line()


def describe_ray_dashboard(link: str | None) -> str:
    """The line about Ray's dashboard, where the config asks for it."""
    if link is None:
        return "note  cluster.ray_dashboard is without effect: the dashboard of the joined cluster does not run"
    return f"ray   {link}, Ray's dashboard; it asks for the token that `ray get-auth-token` prints"


def describe_search(config: SweepConfig) -> str:
    """`12 trials by tpe, asha stops, 4 reports each`."""
    search = config.search
    stops = "none is stopped early" if search.scheduler == "none" else f"{search.scheduler} stops the weak"
    limits = [] if search.time_budget is None else [f"no new one after {format_duration(search.time_budget)}"]
    limits += [] if search.gpu_hours is None else [f"no new one after {search.gpu_hours:g} GPU-hours"]
    trials, reports = plural(search.num_trials, "trial"), plural(search.num_reports, "report")
    return ", ".join([f"{trials} by {search.sampler}", stops, f"{reports} each", *limits])


def describe_quantization(config: SweepConfig, shape: ModelShape) -> str:
    """`nf4 with double quantization`; `gptq with 4 bits in groups of 128, as it is stored`."""
    if shape.stored is not None:
        return f"{shape.stored.describe()}, as it is stored"
    quantization = config.model.quantization
    if quantization.method == "none":
        return "not quantized"
    double = quantization.double_quantization and quantization.method in ("nf4", "fp4")
    return quantization.method + (" with double quantization" if double else "")


def print_outcome(
    console: Console,
    summary: Summary,
    *,
    ledger: Ledger,
    winner: Winner | None,
    paths: SweepPaths,
    report: Path | None,
) -> None:
    """Prints the table of trials, the winner beside its base, and where everything lies.

    Args:
        console: The terminal.
        summary: How the sweep ended.
        ledger: All trials.
        winner: None without a complete trial.
        paths: The sweep's folder.
        report: The report's page; None if it could not be written.
    """
    console.line()
    console.line(_trials_table(ledger, winner))
    console.line()
    counts = ", ".join(f"{count} {state}" for state, count in summary.counts.items())
    console.line(f"{counts} in {format_duration(console.elapsed_s)}")
    if (summary.device_wait_share or 0.0) > NOTABLE_WAIT_SHARE:
        console.line(
            f"devices waited for their next trial in {format_share(summary.device_wait_share, digits=0)} of the search"
        )
    if winner is not None:
        _print_winner(console, winner, paths)
    elif summary.status is SweepStatus.NO_WINNER:
        console.line(f"no winner: no trial was completed. First cause: {summary.first_failure or 'all were stopped'}")
    console.line(f"results   {paths.root}/  (trials.csv, events.jsonl, trials/<id>/record.json, logs/)")
    if report is not None:
        console.line(f"report    {report}")
    else:
        console.line(f"report    could not be made; why is in {paths.logs / 'driver.log'}")
    if summary.pushes is not None:
        _print_pushes(console, summary.pushes)


def print_next_steps(
    console: Console,
    summary: Summary,
    *,
    ledger: Ledger,
    winner: Winner | None,
    paths: SweepPaths,
    is_exported: bool = False,
) -> None:
    """The commands that go on from here.

    Args:
        is_exported: Whether the winner is exported next in any case, so that nobody need be told how.
    """
    from qlora_ray.exporting.delivery import export_command

    root = shlex.quote(str(paths.root))
    if winner is not None:
        shots = " --shots 0,3" if winner.scores.answers else ""
        console.line(f"evaluate  python -m qlora_ray.evaluate {root}{shots}")
        if not is_exported:
            console.line(f"export    {export_command(paths, to=Path(f'{paths.name}-winner'))}")
    if summary.status is SweepStatus.INTERRUPTED:
        console.line(f"stopped. Go on with: {paths.resume_command}")
        return
    entries = ledger.resumable()
    if summary.end_reason is not None:
        console.line(f"{summary.end_reason}. Go on with another such budget: {paths.resume_command}")
    elif entries:
        console.line(f"{plural(len(entries), 'trial')} can go on: {paths.resume_command}")
    if entries:
        by_cause: dict[str, list[str]] = {}
        for entry in entries:
            by_cause.setdefault(entry.cause or entry.state, []).append(entry.id)
        for cause, ids in by_cause.items():
            console.line(f"          {', '.join(ids)}: {_one_line(cause)}")


def _print_pushes(console: Console, pushes: PushesRecord) -> None:
    if pushes.num_pushed and pushes.repository is not None:
        console.line(f"pushed    {plural(pushes.num_pushed, 'adapter')} to {pushes.repository}, private")
    if pushes.waiting:
        console.line(f"not pushed: {', '.join(pushes.waiting)}: {printable(pushes.reason or '')}")
        console.line(f"          push them later: {pushes.command}")


def _print_winner(console: Console, winner: Winner, paths: SweepPaths) -> None:
    split = winner.verdict.split
    rows = [["", f"{split} loss", *winner.scores.metrics]]
    models = (("base", winner.base), (f"winner {winner.entry.id}", winner.scores))
    for name, scores in models:
        rows.append([name, format_loss(scores.loss), *map(format_score, scores.metrics.values())])
    for table in (rows, *tabulate_details([((name,), scores.to_dict()["details"]) for name, scores in models])):
        console.line()
        console.line(format_table(table, right=tuple(range(1, len(table[0])))))
    if winner.scores.heads:
        console.line()
        console.line(
            format_table(tabulate_heads([((f"winner {winner.entry.id}",), winner.scores.heads)]), right=HEAD_NUMBERS)
        )
    answered = f", {len(winner.scores.answers)} of them answered" if winner.scores.answers else ""
    drawn = f" ({winner.scores.sampling})" if answered and winner.scores.sampling is not None else ""
    console.line(f"on the same {winner.scores.num_rows} {split} rows{answered}{drawn}")
    _print_verdict(console, winner.verdict)
    for group in winner.seeds:
        spread = "" if group.spread is None else f", spread {format_loss(group.spread)}"
        seeds = plural(len(group.losses), "new seed")
        console.line(f"trial {group.trial}: mean validation loss {format_loss(group.mean)} over {seeds}{spread}")
    for answer, before in list(zip(winner.scores.answers, winner.base.answers, strict=True))[:NUM_EXAMPLES]:
        console.line()
        console.line(f"  expected  {_one_line(answer.reference)}")
        console.line(f"  base      {_one_line(before.answer)}")
        console.line(f"  winner    {_one_line(answer.answer)}")
    console.line()
    console.line(f"adapter   {paths.best / 'adapter'}  (PEFT's format, with the tokenizer)")


def _print_verdict(console: Console, verdict: Verdict) -> None:
    console.line()
    console.line(f"verdict   the winner is {VERDICTS[verdict.word]}")
    for comparison in (verdict.deciding, *verdict.others):
        console.line(f"          {comparison.sentence()}")
    if verdict.note:
        console.line(f"          note: {verdict.note}")


def _trials_table(ledger: Ledger, winner: Winner | None) -> str:
    order = list(TrialStatus)
    sign = 1 if ledger.mode == "min" else -1

    def rank(entry: TrialEntry) -> tuple[Any, ...]:
        value = ledger.value_of(entry)
        reports = -len(entry.intermediate) if entry.state is TrialStatus.PRUNED else 0
        return (order.index(entry.state), reports, sign * value if value is not None else float("inf"), entry.number)

    entries = sorted(ledger.entries.values(), key=rank)
    paths = sorted({path for entry in entries for path in entry.params})
    rows = [["trial", "state", "reports", ledger.objective, "tokens/s", *map(short_path, paths), ""]]
    for entry in entries[:MAX_TABLE_ROWS]:
        value = ledger.value_of(entry)
        rows.append(
            [
                entry.id,
                entry.state,
                str(len(entry.intermediate)),
                format_loss(value),
                f"{entry.tokens / entry.train_s:.0f}" if entry.train_s else "-",
                *(format_setting(entry.params[path]) if path in entry.params else "-" for path in paths),
                "<- winner" if winner and winner.entry is entry else _origin_words(entry),
            ]
        )
    table = format_table(rows, right=tuple(range(2, len(rows[0]) - 1)))
    hidden = len(entries) - MAX_TABLE_ROWS
    return table + (f"\n... and {hidden} more in trials.csv" if hidden > 0 else "")


def _origin_words(entry: TrialEntry) -> str:
    if entry.clone_of is not None:
        return entry.clone_of.describe()
    return "" if entry.seed_of is None else f"a seed of {trial_id_of(entry.seed_of)}"


def printable(text: str) -> str:
    """Text whose control characters cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _one_line(text: str, limit: int = 110) -> str:
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
