"""Chooses rows, holds some out for validation, and looks for rows that two splits share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qlora_ray.data.examples import Example
from qlora_ray.errors import DataError
from qlora_ray.formats import plural

KEY_BYTES = 16  # two of a million prompts share such a part of a hash once in 10^26 data sets


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
        places = bytearray()
        for at in range(num_rows):
            places += hashlib.sha256(f"{self.data_seed}\x00{at}".encode()).digest()
        order: list[int] = np.argsort(np.frombuffer(places, dtype="S32"), kind="stable").tolist()
        return order


@dataclass
class RowKeys:
    """What tells a split's prompts and rows apart, 16 bytes of a hash for each row.

    Attributes:
        data_seed: Of the order in which prompts are held out.
    """

    data_seed: int
    _prompts: bytearray = field(default_factory=bytearray)
    _pairs: bytearray = field(default_factory=bytearray)

    def add(self, example: Example) -> None:
        """Takes the next row."""
        prompt = hashlib.sha256(f"{self.data_seed}\x00{example.prompt_key}".encode(errors="replace")).digest()
        self._prompts += prompt[:KEY_BYTES]
        self._pairs += hashlib.sha256(prompt + example.answer_key.encode(errors="replace")).digest()[:KEY_BYTES]

    def __len__(self) -> int:
        return len(self._prompts) // KEY_BYTES

    @property
    def prompts(self) -> NDArray[np.bytes_]:
        """Of each row; equal where the prompts are, case and whitespace apart. Their order is the seed's."""
        return np.frombuffer(self._prompts, dtype=f"S{KEY_BYTES}")

    @property
    def pairs(self) -> NDArray[np.bytes_]:
        """Of each row; equal where prompt and answer are."""
        return np.frombuffer(self._pairs, dtype=f"S{KEY_BYTES}")

    def take(self, rows: NDArray[np.int64]) -> RowKeys:
        """The keys of some rows."""
        return RowKeys(self.data_seed, bytearray(self.prompts[rows].tobytes()), bytearray(self.pairs[rows].tobytes()))


@dataclass(frozen=True)
class HeldOut:
    """Which rows are for validation; `num_grouped` rows share a prompt with another."""

    is_validation: NDArray[np.bool_]
    num_grouped: int


@dataclass(frozen=True)
class Overlap:
    """How many rows of the second split have their prompt, or prompt and answer, in the first."""

    num_prompts: int
    num_pairs: int


def hold_out(keys: RowKeys, fraction: float, *, source_name: str) -> HeldOut:
    """Splits rows by a seed; all rows of one prompt go to the same side, so that nothing leaks.

    Prompts are ordered by a hash of seed and prompt: a row's side depends neither on its place in the file nor on a
    library's random generator. Prompts are taken in that order as long as they fit into `fraction` of the rows.

    Args:
        keys: Of all rows of the source; another seed gives another split.
        fraction: Share of the rows for validation, in (0, 1); at least one row.
        source_name: The file or hub id, which error messages begin with.

    Raises:
        DataError: If there are fewer than two different prompts.
    """
    found, group_of_row, sizes = np.unique(keys.prompts, return_inverse=True, return_counts=True)
    if len(found) < 2:
        raise DataError(
            f"{source_name}: splitting off data.validation needs at least 2 rows with different prompts, got "
            f"{plural(len(keys), 'row')} with {len(found)}. Add rows, or give a file as data.validation."
        )
    num_left = min(max(1, round(fraction * len(keys))), len(keys) - 1)
    is_chosen = np.zeros(len(found), dtype=bool)
    for group, size in enumerate(sizes.tolist()):
        if size <= num_left:
            is_chosen[group] = True
            num_left -= size
    if not is_chosen.any():  # every prompt repeats more often than there are rows wanted
        is_chosen[sizes.argmin()] = True
    return HeldOut(is_chosen[group_of_row], num_grouped=int(sizes[sizes > 1].sum()))


def find_overlap(splits: Mapping[str, RowKeys]) -> dict[str, Overlap]:
    """Compares every two splits; keys are like `train/validation`."""
    names = list(splits)
    return {
        f"{first}/{second}": Overlap(
            num_prompts=int(np.isin(splits[second].prompts, splits[first].prompts).sum()),
            num_pairs=int(np.isin(splits[second].pairs, splits[first].pairs).sum()),
        )
        for number, first in enumerate(names)
        for second in names[number + 1 :]
    }
