"""What was noticed in a source's rows and did not stop them: counted, and said before training."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from qlora_ray.formats import plural


class Note(NamedTuple):
    """What a count is of: `3 turns` (noun) `with a key 'name', which is not used` (words)."""

    noun: str
    words: str


Notes = Counter[Note]


def describe_notes(notes: Notes) -> list[str]:
    """A line for each, in the order in which they were first noticed."""
    return [f"{plural(number, note.noun)} {note.words}" for note, number in notes.items()]
