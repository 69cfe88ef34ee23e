"""Files of tokenized rows: Arrow streams, as `datasets` writes its own, mapped into memory where they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.data.tokenized import TokenizedSplit, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

# In the order of the rows. Earlier versions had one file of each split, `data-00000-of-00001.arrow`.
SHARD_NAME = "data-{:05d}.arrow"
SHARD_PATTERN = "data-*.arrow"
ROWS_PER_BATCH = 1024  # of a file: what is read of one lies together


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table as `datasets` writes its own: an Arrow stream, which `Dataset.from_file` opens."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=ROWS_PER_BATCH)


def map_table(paths: Sequence[Path], *, heads: Sequence[str] = ()) -> pa.Table:
    """The rows of all files, one file after the other, mapped into memory; `heads` have labels in them.

    Raises:
        Exception: What arrow raises for a file that is missing or not whole; ValueError for other columns.
    """
    import pyarrow as pa

    schema = arrow_schema(heads)
    tables = [schema.empty_table()]
    for path in paths:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        if not table.schema.equals(schema):
            raise ValueError(f"{path}: columns must be {schema}, got {table.schema}")
        tables.append(table.replace_schema_metadata())
    return pa.concat_tables(tables)


def write_taken(path: Path, split: TokenizedSplit, rows: Sequence[int]) -> None:
    """Writes some rows of a split, in the order asked for, a few in memory at once."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow_schema(split.heads)) as writer:
        for start in range(0, len(rows), ROWS_PER_BATCH):
            writer.write_table(split.take(rows[start : start + ROWS_PER_BATCH]).table)
