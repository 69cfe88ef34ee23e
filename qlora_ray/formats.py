"""Numbers and lists as text, the same everywhere: sizes, counts, times, tables."""

from __future__ import annotations


def format_size(num_bytes: int) -> str:
    """Bytes as KiB below a MiB, as MiB below a GiB, else as GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"
