"""What the user is told of a bundle: what was written, how large, how close the merge is, and what to do next."""

from __future__ import annotations

import shlex

from qlora_ray.exporting.inventory import Bundle


def describe_bundle(bundle: Bundle) -> list[str]:
    """The bundle's folders and files with their sizes, the merge's figures, and the notes, a line each."""
    sizes: dict[str, int] = {}
    for file in bundle.inventory["files"]:
        top, slash, _ = file["path"].partition("/")
        sizes[top + slash] = sizes.get(top + slash, 0) + file["bytes"]
    lines = [f"bundle  {bundle.folder} ({format_size(bundle.num_bytes)}): {bundle.name}"]
    lines += [f"  {name:<16} {format_size(size):>12}" for name, size in sizes.items()]
    if bundle.merge is not None:
        lines += ["", *bundle.merge.lines(), ""]
    return lines + [f"note: {note}" for note in bundle.notes]


def next_commands(bundle: Bundle, *, is_pushed: bool) -> list[str]:
    """Commands that make sense now, a line each."""
    folder = shlex.quote(str(bundle.folder))
    lines = []
    if not any(file["path"].startswith("evaluation/") for file in bundle.inventory["files"]):
        lines += [
            f"evaluate it:  python -m qlora_ray.evaluate {folder}",
            "              then export again: its figures go on the card",
        ]
    if not is_pushed:
        lines.append(f"push it:      python -m qlora_ray.export {folder} --push USER/{bundle.name}")
    return lines


def format_size(num_bytes: int) -> str:
    """Bytes as KiB below a MiB, as MiB below a GiB, else as GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"
