"""Makes everything under assets/ again: `python -m tools.embedded_task.build [--to DIR] [--only data|base]`.

The data (database, train, validation and test pairs) take seconds and come out the same byte for byte. The
base takes about ten minutes on two cores; torch does not promise the same bits on another machine, so its
figures are recorded.
"""

import argparse
import hashlib
import json
import logging
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_ray.embedded import assets_path
from tools.embedded_task import splits
from tools.embedded_task.classicmodels import describe_schema
from tools.embedded_task.rows import write_database

DEFAULT_SEED = 7
DATABASE_NAME = "classicmodels.sqlite"
BASE_NAME = "base"
MANIFEST_NAME = "manifest.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Builds what is asked for. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded_task.build", description=__doc__)
    parser.add_argument(
        "--to", type=Path, default=assets_path(), help="folder to write (default: the package's assets)"
    )
    parser.add_argument("--only", choices=("data", "base"), help="build one half and leave the other as it is")
    parser.add_argument("--steps", type=int, help="pretraining steps (default: those of the shipped base)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps: must be at least 1, got {args.steps}. Leave it out for the shipped base's.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.to.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the renames stay on one file system.
    with tempfile.TemporaryDirectory(prefix=".build-", dir=args.to.parent) as scratch:
        folder = Path(scratch)
        made: dict[str, Any] = {}
        if args.only != "base":
            made["data"] = build_data(folder, seed=args.seed)
        if args.only != "data":
            made["base"] = _build_base(folder / BASE_NAME, seed=args.seed, num_steps=args.steps)
        _move_into(args.to, folder)
    _write_manifest(args.to, {**_read_manifest(args.to), **made, "sha256": hash_files(args.to)})
    return 0


def build_data(folder: Path, *, seed: int) -> dict[str, Any]:
    """Writes database and pairs into a folder that has none, and returns their section of the manifest."""
    write_database(folder / DATABASE_NAME, seed=seed)
    connection = sqlite3.connect(folder / DATABASE_NAME)
    try:
        pairs = splits.make_splits(describe_schema(connection), connection, seed=seed)
        rows_sha256 = hash_rows(connection)
    finally:
        connection.close()
    overlaps = splits.count_overlaps(pairs)
    assert not any(overlaps.values()), f"splits overlap: {overlaps}"
    for name, listed in pairs.items():
        splits.write_split(folder / f"{name}.jsonl", listed)
    return {
        "seed": seed,
        "pairs": {name: len(listed) for name, listed in pairs.items()},
        "kinds": {name: dict(sorted(Counter(pair.kind for pair in listed).items())) for name, listed in pairs.items()},
        "overlaps": overlaps,
        "rows_sha256": rows_sha256,
    }


def hash_rows(connection: sqlite3.Connection) -> str:
    """Returns the SHA-256 of the database's contents. The file's bytes depend on the version of SQLite."""
    return hashlib.sha256("\n".join(connection.iterdump()).encode()).hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below the folder but the manifest, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _build_base(folder: Path, *, seed: int, num_steps: int | None) -> dict[str, Any]:
    from tools.embedded_task.pretrain import PretrainSettings, pretrain_base

    settings = PretrainSettings(seed=seed) if num_steps is None else PretrainSettings(seed=seed, num_steps=num_steps)
    return {"seed": seed, **pretrain_base(folder, settings)}


def _move_into(target: Path, folder: Path) -> None:
    """Renames everything in `folder` into place, so that a reader never sees half a file."""
    for source in sorted(folder.iterdir()):
        destination = target / source.name
        if source.is_file():
            source.replace(destination)
            continue
        outgoing = folder / f"{source.name}.old"
        if destination.exists():
            destination.rename(outgoing)
        source.rename(destination)
        shutil.rmtree(outgoing, ignore_errors=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    scratch = folder / f"{MANIFEST_NAME}.new"
    scratch.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    scratch.replace(folder / MANIFEST_NAME)


if __name__ == "__main__":
    sys.exit(main())
