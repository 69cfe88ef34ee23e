"""Chooses rows, holds some out for validation, and looks for rows that two splits share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlora_ray.data.examples import Example
from qlora_ray.errors import DataError


@dataclass(frozen=True)
class RowChoice:
    """How many rows of a split are taken, and which.

    A row is drawn by a hash of seed and place: by no library's random generator, and so that a larger number takes the
    same rows and more.

    Attributes:
        max_rows: At most so many; None: all.
        data_seed: Another seed draws other rows.
        takes_first: The first rows are taken, and none is drawn.
    """

    max_rows: int | None
    data_seed: int
    takes_first: bool = False

    def choose(self, num_rows: int) -> Sequence[int]:
        """Returns the places of the rows that are taken, of so many, in their order."""
        if self.max_rows is None or self.max_rows >= num_rows:
            return range(num_rows)
        return sorted(self.order(num_rows)[: self.max_rows])

    def order(self, num_rows: int) -> Sequence[int]:
        """Returns the places of so many rows in the order in which they are drawn, whatever `max_rows` is."""
        if self.takes_first:
            return range(num_rows)
        return sorted(range(num_rows), key=lambda at: hashlib.sha256(f"{self.data_seed}\x00{at}".encode()).digest())


@dataclass(frozen=True)
class HeldOut:
    """Train and validation rows, each in the order of the source; `num_grouped` rows share a prompt with another."""

    train: list[Example]
    validation: list[Example]
    num_grouped: int


@dataclass(frozen=True)
class Overlap:
    """How many rows of the second split have their prompt, or prompt and answer, in the first."""

    num_prompts: int
    num_pairs: int


def hold_out(examples: Sequence[Example], fraction: float, *, data_seed: int, source_name: str) -> HeldOut:
    """Splits rows by a seed; all rows of one prompt go to the same side, so that nothing leaks.

    Prompts are ordered by a hash of seed and prompt: a row's side depends neither on its place in the file nor on a
    library's random generator. Prompts are taken in that order as long as they fit into `fraction` of the rows.

    Args:
        examples: All rows of the source, in its order.
        fraction: Share of the rows for validation, in (0, 1); at least one row.
        data_seed: Another seed gives another split.
        source_name: The file or hub id, which error messages begin with.

    Raises:
        DataError: If there are fewer than two different prompts.
    """
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.prompt_key, []).append(index)
    if len(groups) < 2:
        raise DataError(
            f"{source_name}: splitting off data.validation needs at least 2 rows with different prompts, got "
            f"{len(examples)} {'row' if len(examples) == 1 else 'rows'} with {len(groups)}. "
            "Add rows, or give a file as data.validation."
        )
    ordered = sorted(groups, key=lambda key: hashlib.sha256(f"{data_seed}\x00{key}".encode(errors="replace")).digest())
    num_wanted = min(max(1, round(fraction * len(examples))), len(examples) - 1)
    chosen: set[int] = set()
    for key in ordered:
        if len(chosen) + len(groups[key]) <= num_wanted:
            chosen.update(groups[key])
    if not chosen:  # every prompt repeats more often than num_wanted
        chosen.update(groups[min(ordered, key=lambda key: len(groups[key]))])
    return HeldOut(
        train=[example for index, example in enumerate(examples) if index not in chosen],
        validation=[example for index, example in enumerate(examples) if index in chosen],
        num_grouped=sum(len(group) for group in groups.values() if len(group) > 1),
    )


def find_overlap(splits: Mapping[str, Sequence[Example]]) -> dict[str, Overlap]:
    """Compares every two splits; keys are like `train/validation`."""
    names = list(splits)
    prompts = {name: {example.prompt_key for example in splits[name]} for name in names}
    pairs = {name: {example.pair_key for example in splits[name]} for name in names}
    return {
        f"{first}/{second}": Overlap(
            num_prompts=sum(example.prompt_key in prompts[first] for example in splits[second]),
            num_pairs=sum(example.pair_key in pairs[first] for example in splits[second]),
        )
        for number, first in enumerate(names)
        for second in names[number + 1 :]
    }
