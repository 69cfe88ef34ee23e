"""How far scoring is, and how long it takes: rows by what is done with them, which takes very different times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_ray.runs.live import LiveScoring

LOSS, ANSWERS = "loss", "answers"
# An answered row takes so many times as long as one whose loss is measured, until both were measured: a forward pass
# for each token, but of all rows of a batch at once. Measured on the quickstart: see docs/measured.md.
ANSWER_FACTOR = 8.0


@dataclass(frozen=True)
class ScoringWork:
    """Rows that are scored altogether, by kind.

    Attributes:
        rows: By `loss` and `answers`; each model counts.
    """

    rows: Mapping[str, int]

    @classmethod
    def count(cls, *, num_finalists: int, num_validation: int, num_verdict: int, num_answered: int) -> ScoringWork:
        """The losses of the finalists on the validation rows, then winner and base on the rows of the verdict."""
        return cls({LOSS: num_finalists * num_validation + 2 * num_verdict, ANSWERS: 2 * num_answered})


@dataclass
class _Kind:
    done: int = 0
    busy_s: float = 0.0

    def rows_per_s(self) -> float | None:
        return self.done / self.busy_s if self.done and self.busy_s else None


@dataclass
class _Part:
    what: str
    kind: str
    done: int = 0
    total: int = 0


@dataclass
class ScoringMeter:
    """Adds up the rows that executors score, look by look."""

    _kinds: dict[str, _Kind] = field(default_factory=lambda: {LOSS: _Kind(), ANSWERS: _Kind()})
    _parts: dict[int, _Part] = field(default_factory=dict)
    _looked_at: float | None = None

    def look(self, parts: Mapping[int, Mapping[str, Any]], *, now: float) -> None:
        """Takes note of the part that each executor is at.

        Args:
            parts: By executor, `what` is done, of how many rows (`total`), and how many are `done`.
            now: Monotonic seconds.
        """
        elapsed_s = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        for executor, told in parts.items():
            part = self._parts.get(executor)
            if part is None or part.what != told["what"]:
                if part is not None:
                    # Nobody looked at its end.
                    self._kinds[part.kind].done += part.total - part.done
                kind = ANSWERS if str(told["what"]).startswith(ANSWERS) else LOSS
                part = self._parts[executor] = _Part(told["what"], kind)
            kind_here = self._kinds[part.kind]
            kind_here.done += max(0, told["done"] - part.done)
            kind_here.busy_s += elapsed_s
            part.done, part.total = told["done"], told["total"]
        for executor in self._parts.keys() - parts.keys():
            ended = self._parts.pop(executor)
            self._kinds[ended.kind].done += ended.total - ended.done

    def estimate_s(self, work: ScoringWork, *, loss_rows_per_s: float | None, num_executors: int) -> float | None:
        """Seconds that scoring still takes; None where no speed is known.

        Args:
            work: All of it.
            loss_rows_per_s: Rows per second of one executor, measured in the evaluations at reports.
            num_executors: Executors that score at once.
        """
        loss = self._kinds[LOSS].rows_per_s() or loss_rows_per_s
        if loss is None:
            return None
        speeds = {LOSS: loss, ANSWERS: self._kinds[ANSWERS].rows_per_s() or loss / ANSWER_FACTOR}
        left_s = sum(max(0, rows - self._kinds[kind].done) / speeds[kind] for kind, rows in work.rows.items())
        return left_s / max(1, num_executors)

    def describe(self, work: ScoringWork, *, eta_s: float | None) -> LiveScoring | None:
        """What is scored right now; None while nothing is."""
        if not self._parts:
            return None
        done = sum(kind.done for kind in self._kinds.values())
        what = ", ".join(dict.fromkeys(part.what for part in self._parts.values()))
        return LiveScoring(what=what, done=done, total=max(done, sum(work.rows.values())), eta_s=eta_s)
