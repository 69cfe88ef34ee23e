"""Names of sources, with a part of their rows behind them: `a.jsonl[:1000]`, `owner/name:config[train[10%:20%]]`.

Words and rounding are those of the split slices of `datasets` (`train[10%:20%]`): percents are rounded to the closest
row, numbers below 0 count from the end, and what is beyond the end is cut.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_SLICE = re.compile(r"(?P<start>-?\d+(?P<start_percent>%)?)?:(?P<stop>-?\d+(?P<stop_percent>%)?)?")
_BRACKETS = re.compile(r"(?P<place>[^\[\]]+)(?P<brackets>\[(?P<inside>[^\[\]]*(?:\[[^\[\]]*\])?)\])")
_INSIDE = re.compile(r"(?P<split>[A-Za-z_][\w.-]*)?(?:\[(?P<nested>[^\[\]]*)\]|(?P<plain>[^\[\]]*:[^\[\]]*))?")


@dataclass(frozen=True)
class RowPart:
    """Some rows of a source, in their order.

    Attributes:
        start: The first one; None: that of the source.
        stop: The one after the last; None: the end.
        is_percent: Both are percents of the rows.
    """

    start: int | None
    stop: int | None
    is_percent: bool = False

    def of(self, num_rows: int) -> range:
        """Returns the places of the rows, of so many."""
        return range(self._place(self.start, num_rows, 0), self._place(self.stop, num_rows, num_rows))

    def _place(self, end: int | None, num_rows: int, default: int) -> int:
        if end is None:
            return default
        at = round(num_rows * end / 100) if self.is_percent else end
        return min(max(num_rows + at, 0) if at < 0 else at, num_rows)

    def __str__(self) -> str:
        unit = "%" if self.is_percent else ""
        start, stop = ("" if end is None else f"{end}{unit}" for end in (self.start, self.stop))
        return f"[{start}:{stop}]"


@dataclass(frozen=True)
class SourceName:
    """A name as a config has it.

    Attributes:
        place: The file, folder, hub id or split.
        brackets: What stands behind it, as it was written; empty without.
        split: Of the data set; None: which it would be without brackets.
        part: Of that split's rows; None: all.
    """

    place: str
    brackets: str = ""
    split: str | None = None
    part: RowPart | None = None


def parse_source_name(name: str) -> SourceName:
    """Returns the parts of a name; a file or folder that is really called so has none.

    Raises:
        ValueError: what stands in the brackets is neither a split nor a part.
    """
    if "[" not in name or Path(name).expanduser().exists():
        return SourceName(name)
    found = _BRACKETS.fullmatch(name)
    inside = _INSIDE.fullmatch(found["inside"]) if found else None
    if found is None or inside is None or not found["inside"]:
        raise _wrong(name)
    words = inside["nested"] if inside["nested"] is not None else inside["plain"]
    part = None if words is None else _parse_part(words, name)
    return SourceName(found["place"], found["brackets"], inside["split"], part)


def split_brackets(name: str, folder: Path = Path()) -> tuple[str, str]:
    """Returns the file or folder of a name and what stands behind it, which is empty where that is wrong.

    Args:
        name: As a config has it.
        folder: Where a file may really be called so.
    """
    try:
        named = SourceName(name) if (folder / name).exists() else parse_source_name(name)
    except ValueError:
        # It is refused where the data is read.
        return name, ""
    return named.place, named.brackets


def list_names(value: object) -> list[str]:
    """Returns the names that `data.train` or its likes have, be it one or a list of sources, in a config or as JSON."""
    if isinstance(value, list):
        named = [one.get("source") if isinstance(one, dict) else getattr(one, "source", one) for one in value]
        return [name for name in named if isinstance(name, str)]
    return [value] if isinstance(value, str) else []


def _parse_part(words: str, name: str) -> RowPart:
    found = _SLICE.fullmatch(words)
    ends = [] if found is None else [end for end in ("start", "stop") if found[end] is not None]
    are_percents = {bool(found and found[f"{end}_percent"]) for end in ends}
    if found is None or len(are_percents) != 1:
        raise _wrong(name)
    start, stop = (None if found[end] is None else int(found[end].rstrip("%")) for end in ("start", "stop"))
    is_percent = are_percents.pop()
    if is_percent and any(abs(end) > 100 for end in (start, stop) if end is not None):
        raise _wrong(name)
    return RowPart(start, stop, is_percent)


def _wrong(name: str) -> ValueError:
    return ValueError(
        f"brackets must hold a split, rows or both, as [test], [:1000], [10%:20%] or [train[:10%]], got {name}. "
        "Correct them."
    )
