"""Where a result comes from, in sections: what really ran, the data and its warnings, versions, commit, command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_ray.formats import format_count, format_value
from qlora_ray.pages.blocks import Block, Bullets, Code, Folded, Section, Table, Words
from qlora_ray.reporting.facts import table_of
from qlora_ray.reporting.story import Story
from qlora_ray.runs.records import to_dict

# The parts of a record and what they are called; what is in none of them goes into the first.
PARTS = {
    "Metrics at the last report": ("metrics",),
    "Training arguments": ("ran", "training"),
    "Adapter": ("ran", "lora"),
    "Quantization": ("ran", "quantization"),
    "Executor and device": ("executor",),
    "Base, data and seeds": ("base", "dataset", "seeds"),
    "Versions and commit": ("versions", "git"),
}
DATA_COLUMNS = ("rows", "tokens", "trained tokens", "cut", "dropped", "longest")


def tell_record(story: Story) -> Section | None:
    """The winner's record, every resolved value in a table; None without a winner."""
    record = story.winner_record
    if story.outcome.winner is None:
        return None
    if record is None:
        return Section("What really ran", [Words("The winner's record.json could not be read.", "warn")])
    written = to_dict(record)
    del written["schema"]  # of the file, not of the trial
    ran = written.pop("ran")
    parts = {title: _take_part(written, ran, names) for title, names in PARTS.items()}
    blocks: list[Block] = [
        Words(f"The resolved record of trial {story.outcome.winner}, from best/record.json: values as they ran."),
        Folded("Trial, parameters, times, memory", (table_of({**written, **ran}),)),
    ]
    for title, values in parts.items():
        if values:
            blocks.append(Folded(title, (table_of(values),)))
    return Section("What really ran", blocks)


def tell_data(story: Story) -> Section:
    """Rows, cuts, overlap, and every warning."""
    data = story.manifest.data
    if data is None:
        return Section("Data", [Words("manifest.json holds no data report.", "muted")])
    rows = tuple(
        (
            split,
            format_value(data.sources.get(split)),
            format_count(data.num_rows.get(split)),
            format_count(data.num_tokens.get(split)),
            format_count(data.num_completion_tokens.get(split)),
            format_count(data.num_truncated.get(split)),
            format_count(sum(data.num_dropped.get(split, {}).values())),
            format_count(data.lengths.get(split, {}).get("max")),
        )
        for split in data.num_rows
    )
    table = Table(("split", "source", *DATA_COLUMNS), rows, numeric=frozenset(range(2, 8)))
    blocks: list[Block] = [Bullets(data.warnings, "warn") if data.warnings else Words("No warnings."), table]
    overlap = ", ".join(f"{pair} {count}" for pair, count in data.overlap.items())
    facts = [
        f"format {data.format}: {data.format_reason}",
        f"template {data.template}: {data.template_reason}",
        f"rows of one split that are in another: {overlap or 'not checked'} ({data.overlap_verdict})",
        f"fingerprint {data.fingerprint}",
    ]
    return Section("Data", [*blocks, Bullets(tuple(facts), "muted")])


def tell_origin(story: Story) -> Section:
    """The command, the commit, versions, and the config."""
    manifest = story.manifest
    commit = f"Commit {manifest.git.commit}" if manifest.git.commit else "The commit is not known"
    changed = ", with uncommitted changes" if manifest.git.dirty else ""
    blocks: list[Block] = []
    command = manifest.command
    if command:
        blocks.append(Code(f"python -m qlora_ray.{Path(command[0]).stem} {shlex.join(command[1:])}".rstrip()))
    blocks.append(Words(f"{commit}{changed}. qlora_ray {format_value(manifest.qlora_ray)}."))
    if manifest.unused:
        blocks.append(Bullets(manifest.unused, "warn"))
    for title, values in (
        ("Versions", manifest.versions),
        ("Config, resolved", manifest.config),
        ("Search space", manifest.space),
    ):
        if values:
            blocks.append(Folded(title, (table_of(values),)))
    return Section("How to get this again", blocks)


def _take_part(record: dict[str, Any], ran: dict[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    """Takes one part out of a record: a path into it for `ran`, else one of its keys, or several."""
    if names[0] == "ran":
        return ran.pop(names[1]) or {}
    taken = {name: record.pop(name) for name in names}
    return taken if len(names) > 1 else taken[names[0]]
