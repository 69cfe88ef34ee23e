"""The task's train, validation and test pairs, and the proof that they do not overlap.

A query's whole group of wordings goes to one split, so that no test query, in whatever words, has been
trained on.
"""

import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from tools.embedded_task.grammar import KINDS, Pair, write_pair
from tools.embedded_task.schemas import Schema

# Pairs per kind and split. Test comes first, so that a kind with few queries is short of training pairs, not
# of test ones.
NUM_PER_KIND = {"test": 8, "validation": 4, "train": 48}
MAX_WORDINGS = {"test": 1, "validation": 1, "train": 3}  # of one query
NUM_DRAWS_PER_KIND = 1500
MAX_RESULT_ROWS = 1200  # a longer answer would be a product of tables


def make_splits(schema: Schema, connection: sqlite3.Connection, *, seed: int) -> dict[str, list[Pair]]:
    """Returns the pairs of each split, shuffled. Every query finds at least one value that is not null."""
    rng = Random(f"splits-{seed}")
    splits: dict[str, list[Pair]] = {name: [] for name in NUM_PER_KIND}
    asked: set[str] = set()
    taken: set[str] = set()
    for kind in KINDS:
        groups = _draw_groups(rng, schema, connection, kind=kind, asked=asked, taken=taken)
        taken |= set(groups)
        queue = list(groups.values())
        rng.shuffle(queue)
        for name, num in NUM_PER_KIND.items():
            chosen: list[Pair] = []
            while queue and len(chosen) < num:
                chosen += queue.pop()[: MAX_WORDINGS[name]]
            splits[name] += chosen[:num]
    for pairs in splits.values():
        rng.shuffle(pairs)
    return splits


def normalize(text: str) -> str:
    """Returns the text in lower case, without punctuation, with single spaces: what overlap is judged on."""
    return " ".join(re.sub(r"[^\w<>=%*.-]+|[.](?!\d)", " ", text.lower()).split())


def count_overlaps(splits: Mapping[str, Sequence[Pair]]) -> dict[str, int]:
    """Returns how many normalized questions, queries and pairs each two splits share. All must be 0."""
    names = list(splits)
    overlaps = {}
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            for what, keys in (("questions", _questions), ("queries", _queries), ("pairs", _pairs)):
                shared = keys(splits[first]) & keys(splits[second])
                overlaps[f"{what} in {first} and {second}"] = len(shared)
    return overlaps


def write_split(path: Path, pairs: Sequence[Pair]) -> None:
    """Writes one JSON object per line."""
    path.write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs), encoding="utf-8")


def read_split(path: Path) -> list[Pair]:
    """Returns the pairs that `write_split` wrote."""
    return [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _draw_groups(
    rng: Random,
    schema: Schema,
    connection: sqlite3.Connection,
    *,
    kind: str,
    asked: set[str],
    taken: set[str],
) -> dict[str, list[Pair]]:
    """Returns pairs by query: no question twice, no query of an earlier kind, none that finds nothing."""
    groups: dict[str, list[Pair]] = {}
    useless: set[str] = set()
    for _ in range(NUM_DRAWS_PER_KIND):
        pair = write_pair(rng, schema, kind=kind)
        if pair is None or normalize(pair.question) in asked or normalize(pair.sql) in taken | useless:
            continue
        key = normalize(pair.sql)
        if key not in groups and not _finds_rows(connection, pair.sql):
            useless.add(key)
            continue
        asked.add(normalize(pair.question))
        groups.setdefault(key, []).append(pair)
    return groups


def _finds_rows(connection: sqlite3.Connection, sql: str) -> bool:
    rows = connection.execute(sql).fetchmany(MAX_RESULT_ROWS + 1)
    return 0 < len(rows) <= MAX_RESULT_ROWS and any(value is not None for row in rows for value in row)


def _questions(pairs: Sequence[Pair]) -> set[str]:
    return {normalize(pair.question) for pair in pairs}


def _queries(pairs: Sequence[Pair]) -> set[str]:
    return {normalize(pair.sql) for pair in pairs}


def _pairs(pairs: Sequence[Pair]) -> set[str]:
    return {f"{normalize(pair.question)}\n{normalize(pair.sql)}" for pair in pairs}
