"""The one who puts questions into words: every choice of wording goes through it."""

from dataclasses import dataclass
from random import Random
from typing import TypeVar

from qlora_ray.embedded.wordings import AGGREGATES, CONDITIONS, QUESTIONS

T = TypeVar("T")

# With `rich`: how often a wording is drawn from the rich ones, and a name from all of its synonyms.
RICH_SHARE = 0.35
SYNONYM_SHARE = 0.5


@dataclass(frozen=True)
class Speaker:
    """Chooses words: a random generator, and whether the rich wordings may be used."""

    rng: Random
    rich: bool = False

    def pick(self, options: tuple[T, ...] | list[T]) -> T:
        return self.rng.choice(options)

    def name(self, phrases: tuple[T, ...]) -> T:
        """Returns one of the phrases for a thing, its first more often than the others."""
        if self.rich and not self.chance(SYNONYM_SHARE):
            return phrases[0]
        return self.pick(phrases)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def ask(self, form: str, **fields: object) -> str:
        """Returns a question in that form, its first letter a capital."""
        question = self._choose(QUESTIONS[form]).format(**fields)
        return question[0].upper() + question[1:]

    def condition(self, form: str, **fields: object) -> str:
        return self._choose(CONDITIONS[form]).format(**fields)

    def aggregate(self, function: str) -> str:
        return self._choose(AGGREGATES[function])

    def _choose(self, wordings: tuple[tuple[str, ...], tuple[str, ...]]) -> str:
        plain, rich = wordings
        return self.pick(rich if self.rich and self.chance(RICH_SHARE) else plain)
