"""Small sweeps through the command line, as a user runs them: a process, its lines, its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

SMALL = {
    "data": {"max_train_rows": 64, "max_validation_rows": 16, "max_length": 128},
    "training": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_samples": 48,
        "optim": "adamw_torch",
        # Runs are compared, and each may measure for itself whether this processor gains by bf16.
        "precision": "fp32",
    },
    "search": {
        "space": {
            "training.learning_rate": {"low": 1e-4, "high": 5e-3, "log": True},
            "points_to_evaluate": [{"training.learning_rate": 2e-3}],
        },
        # Settings that chance draws, and among them no rate at which rounding grows.
        "recommended_first": False,
        "num_trials": 3,
        "num_reports": 3,
        "scheduler": "none",
    },
    "evaluate": {"top_k": 2, "max_rows": 4, "max_new_tokens": 24},
}


def write_config(folder: Path, **sections: dict[str, object]) -> Path:
    """A small sweep's YAML, with sections merged in."""
    config = {name: {**values, **sections.get(name, {})} for name, values in SMALL.items()}
    config |= {name: values for name, values in sections.items() if name not in config}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def sweep_command(*arguments: object) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "qlora_ray.sweep", *map(str, arguments)]


def run_sweep(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a sweep to its end."""
    return subprocess.run(sweep_command(*arguments), cwd=cwd, capture_output=True, text=True, check=False)


@contextmanager
def started_sweep(*arguments: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A running sweep; its whole process group is ended with the block."""
    process = subprocess.Popen(
        sweep_command(*arguments),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The first line that holds the words; blocks on the process's output, and fails if it ends before."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return line
    raise AssertionError(f"no line with {words!r} in:\n{''.join(seen)}")
