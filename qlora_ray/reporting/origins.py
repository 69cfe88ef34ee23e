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
from qlora_ray.reporting.trials import as_list, as_mapping, as_number

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
    if not record:
        return Section("What really ran", [Words("The winner's record.json could not be read.", "warn")])
    ran = as_mapping(record.get("ran"))
    rest = {key: value for key, value in ran.items() if key not in ("training", "lora", "quantization")}
    elsewhere = {"ran", *(names[0] for names in PARTS.values()), "base", "dataset", "seeds", "git"}
    top = {key: value for key, value in record.items() if key not in elsewhere}
    blocks: list[Block] = [
        Words(f"The resolved record of trial {story.outcome.winner}, from best/record.json: values as they ran."),
        Folded("Trial, parameters, times, memory", (table_of({**top, **rest}),)),
    ]
    for title, names in PARTS.items():
        values = _part(record, names)
        if values:
            blocks.append(Folded(title, (table_of(values),)))
    return Section("What really ran", blocks)


def tell_data(story: Story) -> Section:
    """Rows, cuts, overlap, and every warning."""
    data = as_mapping(story.manifest.get("data"))
    if not data:
        return Section("Data", [Words("manifest.json holds no data report.", "muted")])
    splits = list(as_mapping(data.get("num_rows")))
    rows = tuple(
        (
            split,
            format_value(as_mapping(data.get("sources")).get(split)),
            *(
                format_count(as_number(as_mapping(data.get(key)).get(split)))
                for key in ("num_rows", "num_tokens", "num_completion_tokens", "num_truncated")
            ),
            format_count(sum(map(float, as_mapping(as_mapping(data.get("num_dropped")).get(split)).values()))),
            format_count(as_number(as_mapping(as_mapping(data.get("lengths")).get(split)).get("max"))),
        )
        for split in splits
    )
    table = Table(("split", "source", *DATA_COLUMNS), rows, numeric=frozenset(range(2, 8)))
    warnings = tuple(str(text) for text in as_list(data.get("warnings")))
    blocks: list[Block] = [Bullets(warnings, "warn") if warnings else Words("No warnings."), table]
    overlap = ", ".join(f"{pair} {count}" for pair, count in as_mapping(data.get("overlap")).items())
    facts = [
        f"format {data.get('format')}: {data.get('format_reason')}",
        f"template {data.get('template')}: {data.get('template_reason')}",
        f"rows of one split that are in another: {overlap or 'not checked'} ({data.get('overlap_verdict')})",
        f"fingerprint {data.get('fingerprint')}",
    ]
    return Section("Data", [*blocks, Bullets(tuple(facts), "muted")])


def tell_origin(story: Story) -> Section:
    """The command, the commit, versions, and the config."""
    manifest = story.manifest
    git = as_mapping(manifest.get("git"))
    commit = f"Commit {git['commit']}" if git.get("commit") else "The commit is not known"
    changed = ", with uncommitted changes" if git.get("dirty") else ""
    blocks: list[Block] = []
    command = [str(part) for part in as_list(manifest.get("command"))]
    if command:
        blocks.append(Code(f"python -m qlora_ray.{Path(command[0]).stem} {shlex.join(command[1:])}".rstrip()))
    blocks.append(Words(f"{commit}{changed}. qlora_ray {format_value(manifest.get('qlora_ray'))}."))
    unused = tuple(str(text) for text in as_list(manifest.get("unused")))
    if unused:
        blocks.append(Bullets(unused, "warn"))
    for title, key in (("Versions", "versions"), ("Config, resolved", "config"), ("Search space", "space")):
        values = as_mapping(manifest.get(key))
        if values:
            blocks.append(Folded(title, (table_of(values),)))
    return Section("How to get this again", blocks)


def _part(record: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    """One part of a record: a path into it for `ran`, else several of its keys."""
    if names[0] == "ran":
        return as_mapping(as_mapping(record.get("ran")).get(names[1]))
    if len(names) == 1:
        return as_mapping(record.get(names[0]))
    return {name: record[name] for name in names if record.get(name) not in (None, {})}
