"""What a soak prints: what was done and how it ended, what was lost, and how memory grew."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from benchmarks.soak_books import Losses
from benchmarks.soak_faults import Fault, FaultKind
from qlora_ray.formats import format_table

LOSS_WORDS = {
    "lost": "finished trials lost",
    "changed": "values or records changed",
    "repeated": "finished trials run again",
    "winners": "winners that differ",
    "files": "files leaked or damaged",
    "processes": "processes leaked",
    "endings": "ends without the promised words or exit code",
}


@dataclass
class Strike:
    """A fault that was struck.

    Attributes:
        fault: What was done.
        sweep: To which sweep.
        time: When, by time.monotonic.
        exit_code: How the driver ended, where this was the last one that it met.
        ended_after_s: How long after it.
    """

    fault: Fault
    sweep: str
    time: float
    exit_code: int | None = None
    ended_after_s: float | None = None


def format_strikes(strikes: Sequence[Strike]) -> str:
    """One line per kind of fault, and one of all."""
    rows = [["fault", "times", "driver ended with", "after it, median and longest"]]
    for kind in FaultKind:
        of_kind = [strike for strike in strikes if strike.fault.kind is kind]
        if of_kind:
            rows.append([kind.value, str(len(of_kind)), _describe_codes(of_kind), _describe_times(of_kind)])
    rows.append(["all", str(len(strikes)), "", ""])
    return format_table(rows, right=(1,))


def format_losses(counts: Mapping[str, int], losses: Losses) -> str:
    """What there was, and what of it was lost."""
    rows = [["what", "count"], *([name, str(count)] for name, count in counts.items())]
    rows += [[LOSS_WORDS[one.name], str(len(getattr(losses, one.name)))] for one in fields(losses)]
    return format_table(rows, right=(1,))


def format_growth(growth: Mapping[str, Mapping[str, float]], num_trials: int) -> str:
    """Memory of each kind of process over a long sweep."""
    rows = [["process", f"RSS at the first and last of {num_trials} trials", "growth per 100 trials"]]
    rows += [
        [name, f"{row['first_mib']:.0f} and {row['last_mib']:.0f} MiB", f"{row['mib_per_100_trials']:+.1f} MiB"]
        for name, row in growth.items()
    ]
    return format_table(rows, right=(2,))


def _describe_codes(strikes: Sequence[Strike]) -> str:
    codes = Counter(strike.exit_code for strike in strikes if strike.ended_after_s is not None)
    words = [f"{'hung' if code is None else code}: {count}" for code, count in codes.most_common()]
    went_on = sum(strike.ended_after_s is None for strike in strikes)
    return ", ".join(words + ([f"went on: {went_on}"] if went_on else []))


def _describe_times(strikes: Sequence[Strike]) -> str:
    """Of the drivers that ended over it: with another code than that of a complete sweep."""
    times = [one.ended_after_s for one in strikes if one.ended_after_s is not None and one.exit_code]
    return f"{statistics.median(times):.1f} s, {max(times):.1f} s" if times else ""
