"""The one who puts questions into words: every choice of wording goes through it."""

from dataclasses import dataclass
from random import Random
from typing import TypeVar

from tools.embedded_task.wordings import AGGREGATES, CONDITIONS, QUESTIONS

T = TypeVar("T")

SYNONYM_SHARE = 0.3  # of the names are drawn from all of a thing's phrases; the others are its first


@dataclass(frozen=True)
class Speaker:
    """Chooses words with a random generator."""

    rng: Random

    def pick(self, options: tuple[T, ...] | list[T]) -> T:
        return self.rng.choice(options)

    def name(self, phrases: tuple[T, ...]) -> T:
        """Returns one of the phrases for a thing, its first more often than the others."""
        return self.pick(phrases) if self.chance(SYNONYM_SHARE) else phrases[0]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def ask(self, form: str, **fields: object) -> str:
        """Returns a question in that form, its first letter a capital."""
        question = self.pick(QUESTIONS[form]).format(**fields)
        return question[0].upper() + question[1:]

    def condition(self, form: str, **fields: object) -> str:
        return self.pick(CONDITIONS[form]).format(**fields)

    def aggregate(self, function: str) -> str:
        return self.pick(AGGREGATES[function])
