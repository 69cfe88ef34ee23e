"""Several sources of training rows as one, each with a weight: how often its rows are in an epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from qlora_ray.data.examples import Row
from qlora_ray.data.splits import RowChoice
from qlora_ray.errors import DataError
from qlora_ray.formats import plural


class _Readable(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def read(self, choice: RowChoice) -> Iterator[Row]: ...


@dataclass(frozen=True)
class WeightedPart:
    """One source of a mixture.

    Attributes:
        num_rows: Rows that it has.
        weight: Passes over them: 2 reads all of them twice, 0.5 half of them, 1.5 all and half of them once more.
    """

    source: _Readable
    num_rows: int
    weight: float

    @property
    def num_passes(self) -> int:
        """Passes over all of its rows."""
        return int(self.weight)

    @property
    def num_drawn(self) -> int:
        """Rows of the last pass, which are drawn."""
        return round((self.weight - self.num_passes) * self.num_rows)

    @property
    def num_taken(self) -> int:
        """Rows of the mixture."""
        return self.num_passes * self.num_rows + self.num_drawn

    def read(self, choice: RowChoice) -> Iterator[Row]:
        """Yields its rows of the mixture; those of a part of a pass are drawn as the mixture's are."""
        for _ in range(self.num_passes):
            yield from self.source.read(RowChoice(None, choice.data_seed))
        if self.num_drawn:
            yield from self.source.read(RowChoice(self.num_drawn, choice.data_seed, takes_first=choice.takes_first))


class MixedSource:
    """Sources one after the other; the order of training is drawn over all of them by `training.data_seed`.

    Args:
        sources: Each with its weight.

    Attributes:
        name: With the rows of each.
        digest: Of all digests and weights.

    Raises:
        DataError: If a source gives no row.
    """

    def __init__(self, sources: Sequence[tuple[_Readable, float]]) -> None:
        self._parts = [
            WeightedPart(source, sum(1 for _ in source.read(RowChoice(None, data_seed=0))), weight)
            for source, weight in sources
        ]
        for part in self._parts:
            if part.num_taken == 0:
                raise DataError(
                    f"data.train: each source must give at least one row, got none of {plural(part.num_rows, 'row')} "
                    f"of {part.source.name} at a weight of {part.weight:g}. Raise the weight, or drop the source."
                )
        self.name = " + ".join(
            f"{part.source.name} ({plural(part.num_taken, 'row')}, weight {part.weight:g})" for part in self._parts
        )
        digests = json.dumps([[part.source.digest, part.weight] for part in self._parts])
        self.digest = hashlib.sha256(digests.encode()).hexdigest()

    def read(self, choice: RowChoice) -> Iterator[Row]:
        """Yields the rows that are chosen, in their order."""
        rows = (row for part in self._parts for row in part.read(choice))
        if choice.max_rows is None:
            yield from rows
            return
        chosen = set(choice.choose(sum(part.num_taken for part in self._parts)))
        yield from (row for at, row in enumerate(rows) if at in chosen)
