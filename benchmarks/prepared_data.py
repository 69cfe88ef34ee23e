"""What prepared data costs: seconds and memory of its preparation, and the memory that an executor adds for it.

    python -m benchmarks.prepared_data --json prepared_data.json
    python -m benchmarks.prepared_data --rows 20000

Rows of random words are written to a jsonl file, prepared by a process of its own in an empty cache, and mapped by
another one, which then reads every row as an engine does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from qlora_ray.config.schema import Data, Model
from qlora_ray.console import Console
from qlora_ray.formats import MIB, format_table

# The most frequent words of English texts: tokens as common ones are, and answers without structure.
WORDS = (
    "the of and to in is was for that on as with by he it from at his an are were which this be had has first one "
    "their its new after but who not they have her she two been other when there all during into school time may"
)
QUESTION_SHARE = 0.3
SPREAD = 0.4  # lengths differ by so much of their mean, up and down
NUM_SAMPLE_ROWS = 50
LOOK_INTERVAL_S = 0.1
DATA_SEED = 7


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepared_data", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the file (default: 200,000)")
    parser.add_argument("--tokens", type=int, default=500, help="tokens of a row, about (default: 500)")
    parser.add_argument("--model", default="embedded", help="whose tokenizer (default: embedded)")
    parser.add_argument("--json", type=Path, help="where the figures go")
    # What the processes of its own are called with.
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--map", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.prepare is not None:
        sys.stdout.write(json.dumps(prepare(options.prepare, options.model, options.tokens)))
        return 0
    if options.map is not None:
        sys.stdout.write(json.dumps(map_and_read(options.map)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), options)
    sys.stdout.write(format_table([["measured", ""], *([name, str(value)] for name, value in figures.items())]) + "\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return 0


def measure(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    console = Console(sys.stdout)
    source, cache = scratch / "rows.jsonl", scratch / "cache"
    console.progress(f"writing {options.rows:,} rows")
    write_rows(source, num_rows=options.rows, tokens=options.tokens, model=options.model)
    console.progress("preparing them")
    arguments = ["--prepare", str(source), "--model", options.model, "--tokens", str(options.tokens)]
    prepared, peak_bytes = run_watched(arguments, cache)
    console.progress("mapping them")
    mapped, _ = run_watched(["--map", prepared["folder"]], cache)
    console.end_progress()
    return {
        "rows": options.rows,
        "tokens of a row": round(prepared["num_tokens"] / prepared["num_rows"]),
        "cores": len(os.sched_getaffinity(0)),
        "file, MB": round(source.stat().st_size / 1e6),
        "prepared, MB": round(sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / 1e6),
        "seconds": round(prepared["seconds"], 1),
        "CPU seconds of all processes": round(prepared["cpu_seconds"], 1),
        "rows a second": round(options.rows / prepared["seconds"]),
        "peak RSS of all processes, MiB": round(peak_bytes / MIB),
        "seconds from the cache": round(mapped["seconds"], 3),
        "added by an executor, its own memory, MiB": round(mapped["own_bytes"] / MIB, 1),
        "added by an executor, mapped pages, MiB": round(mapped["shared_bytes"] / MIB, 1),
    }


def write_rows(path: Path, *, num_rows: int, tokens: int, model: str) -> None:
    """Writes questions and answers of random words that together make about so many tokens."""
    from qlora_ray.modeling.loading import load_tokenizer

    generator, vocabulary = random.Random(DATA_SEED), WORDS.split()
    tokenizer = load_tokenizer(Model(name=model))
    sample = " ".join(generator.choices(vocabulary, k=NUM_SAMPLE_ROWS * tokens))
    num_words = tokens * NUM_SAMPLE_ROWS * tokens / len(tokenizer(sample, verbose=False)["input_ids"])
    with path.open("w", encoding="utf-8") as stream:
        for number in range(num_rows):
            length = round(num_words * generator.uniform(1 - SPREAD, 1 + SPREAD))
            words = generator.choices(vocabulary, k=length)
            cut = round(QUESTION_SHARE * length)
            row = {"question": f"{number}: {' '.join(words[:cut])}?", "answer": f"{' '.join(words[cut:])}."}
            stream.write(json.dumps(row) + "\n")


def run_watched(arguments: list[str], cache: Path) -> tuple[dict[str, Any], int]:
    """Runs this file as a process of its own; returns what it prints, and the most memory (RSS) of it and its children.

    Pages that several of them share are counted for each.
    """
    command = [sys.executable, "-m", "benchmarks.prepared_data", *arguments]
    process = subprocess.Popen(
        command, env={**os.environ, "QLORA_RAY_CACHE": str(cache)}, stdout=subprocess.PIPE, text=True
    )
    watched, peak_bytes = psutil.Process(process.pid), 0
    while process.poll() is None:
        total = 0
        for one in [watched, *_children(watched)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak_bytes = max(peak_bytes, total)
        time.sleep(LOOK_INTERVAL_S)
    assert process.stdout is not None
    answer = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(answer.splitlines()[-1]), peak_bytes


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def prepare(source: Path, model: str, tokens: int) -> dict[str, Any]:
    """Prepares a file, as a sweep does, and returns what that took."""
    from qlora_ray.data import prepare_data
    from qlora_ray.modeling.loading import load_tokenizer

    tokenizer = load_tokenizer(Model(name=model))
    console = Console(sys.stderr)
    started = time.perf_counter()
    data = prepare_data(
        Data(train=str(source), max_length=8 * tokens), tokenizer=tokenizer, data_seed=DATA_SEED, tell=console.progress
    )
    seconds = time.perf_counter() - started
    console.end_progress()
    times = os.times()
    return {
        "seconds": seconds,
        "cpu_seconds": times.user + times.system + times.children_user + times.children_system,
        "num_rows": sum(data.report.num_rows.values()),
        "num_tokens": sum(data.report.num_tokens.values()),
        "folder": str(data.folder),
    }


def map_and_read(folder: Path) -> dict[str, Any]:
    """Maps prepared data and reads every training row in the order of a trial; returns what that added."""
    import torch  # noqa: F401  an executor has it before its data

    from qlora_ray.data.cache import REPORT_NAME, map_prepared
    from qlora_ray.training.budget import sample_order

    fingerprint = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))["fingerprint"]
    map_prepared(folder, fingerprint)  # arrow is imported
    before = _memory()
    started = time.perf_counter()
    data = map_prepared(folder, fingerprint)
    seconds = time.perf_counter() - started
    rows = data.train
    lengths = rows.input_ids.lengths
    for row in sample_order(num_rows=len(rows), num_samples=len(rows), data_seed=DATA_SEED):
        assert len(rows.input_ids.array(row)) == lengths[row]
        rows.input_ids.array(row).sum(), rows.completion_mask.array(row).sum()
    after = _memory()
    return {"seconds": seconds, "own_bytes": after[0] - before[0], "shared_bytes": after[1] - before[1]}


def _memory() -> tuple[int, int]:
    """Bytes that are this process's alone, and bytes of files that it has mapped."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    own, shared = (int(values[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, shared


if __name__ == "__main__":
    sys.exit(main())
