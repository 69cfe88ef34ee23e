"""Values as text, the same on the console, in the report and on the card: sizes, counts, times, scores and tables."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

MIB = 1024**2
GIB = 1024**3
_BYTE_UNITS = (("TiB", 1024**4), ("GiB", GIB), ("MiB", MIB), ("KiB", 1024))

# What stands for a value that is not there.
MISSING = "-"
# Scores below it are shown by their digits: three decimals would leave one.
SMALL_SCORE = 0.01
# From here on scores are shown without decimals, and from the next as powers of ten.
LARGE_SCORE = 1000.0
HUGE_SCORE = 1e7
LOSS_DECIMALS = 4
# Names that a message lists; what is left out is counted.
MAX_LISTED = 5


def format_bytes(num_bytes: float | None) -> str:
    """Returns a size in the unit that fits, `1.42 GiB`; `-` for None."""
    if num_bytes is None:
        return MISSING
    for unit, size in _BYTE_UNITS:
        if abs(num_bytes) >= size:
            return f"{format_number(num_bytes / size)} {unit}"
    return f"{num_bytes:.0f} B"


def format_gib(num_bytes: float) -> str:
    """Returns a memory size in GiB whatever it is, so that sizes compare at a glance: `0.3 GiB`."""
    return f"{num_bytes / GIB:.1f} GiB"


def format_time(seconds: float | None) -> str:
    """Returns a time since 1970 in UTC, to the second; `-` for None."""
    return MISSING if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def format_duration(seconds: float) -> str:
    """Returns seconds as `1:02` or `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_count(number: float | None) -> str:
    """Returns a whole number with its thousands apart, `12,345`; `-` for None."""
    return MISSING if number is None else f"{number:,.0f}"


def plural(number: int, noun: str) -> str:
    """Returns a count with its noun: `1 trial`, `2,000 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_number(value: float | None, *, digits: int = 3) -> str:
    """Returns a number with so many significant digits, without an exponent where that is as short.

    `-` for None and what is not finite.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    # 1e+04 is read more easily as 10000, 1e-05 is not as 0.00001.
    return f"{value:.0f}" if 1 <= abs(value) < 1e7 else text.replace("e-0", "e-").replace("e+0", "e+")


def format_signed(value: float) -> str:
    """Returns a difference with its sign; `unknown` if it is not finite."""
    if not math.isfinite(value):
        return "unknown"
    sign = "+" if value > 0 else "−" if value < 0 else ""
    return f"{sign}{format_number(abs(value))}"


def format_share(share: float | None, *, digits: int = 1) -> str:
    """Returns a share from 0 to 1 as `97.5 %`; `-` for None."""
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def format_value(value: Any) -> str:
    """Returns a parameter's value to read: floats with three digits, lists with commas, booleans as yes and no."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    return str(value)


def format_setting(value: Any) -> str:
    """Returns a parameter's value as the terminal shows it, to be copied into `--set`: floats with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace(" ", "")


def format_score(value: float | None, *, sign: str = "", digits: int = 3) -> str:
    """Returns a score as every table and line shows it: `0.650`, `0.0004`, `4e-05`, `12346`, `2.7e+79`.

    With so many decimals where they say something. Smaller ones have so many digits instead, so that a value that is
    not 0 never reads as 0; larger ones have no decimals. `-` for None and NaN.

    Args:
        sign: `+` to show it where it is positive, too.
        digits: Decimals of values from 0.01 to 1,000; significant digits of smaller ones.
    """
    if value is None or math.isnan(value):
        return MISSING
    value = value or 0.0  # without the sign of -0.0
    size = abs(value)
    if math.isinf(value) or value == 0 or SMALL_SCORE <= size < LARGE_SCORE:
        return f"{value:{sign}.{digits}f}"
    return f"{value:{sign}.0f}" if LARGE_SCORE <= size < HUGE_SCORE else f"{value:{sign}.{digits}g}"


def format_loss(loss: float | None) -> str:
    """Returns a loss as `format_score` does, with four decimals."""
    return format_score(loss, digits=LOSS_DECIMALS)


def format_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Returns aligned columns, two spaces apart; the first row is the header.

    Args:
        rows: Cells, all rows of one length.
        right: Indices of columns set flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def list_first(names: Iterable[str], *, limit: int = MAX_LISTED) -> str:
    """Returns the first names with commas, and how many there are besides: `a, b and 3 more`."""
    listed = list(names)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")


def shorten(text: str, limit: int) -> str:
    """Returns the text, cut with an ellipsis where it has more than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def short_path(path: str) -> str:
    """What a searched key is called in tables: `r` for lora.r, `emotion.weight` for heads.emotion.weight."""
    section, *rest = path.split(".")
    return ".".join(rest) if section == "heads" else path.rsplit(".", 1)[-1]
