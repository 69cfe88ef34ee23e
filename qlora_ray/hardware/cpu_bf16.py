"""bf16 on a processor: what it has for it, what its node is held to, and how fast it was measured to be.

Flags alone decide nothing: a processor may have the instructions and gain nothing at a base's widths. So a node
measures a step in both formats (modeling/bf16_step.py), once per processor, threads, base shape and torch, and keeps
the answer in the user's cache.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from qlora_ray.errors import RunError
from qlora_ray.hardware.shape import ModelShape
from qlora_ray.runs.files import read_json, write_json
from qlora_ray.runs.locks import locked_file
from qlora_ray.runs.paths import default_cache_dir

# A node's environment may hold it to a format: read where the node is probed and where its executors start.
HELD_PRECISION_VARIABLE = "QLORA_RAY_PRECISION"
# The flags of /proc/cpuinfo that stand for products in bf16 (Intel SDM, volume 2: VDPBF16PS, TDPBF16PS). oneDNN, which
# torch multiplies with, uses both; without them it converts to fp32 and back, far slower than fp32.
BF16_FLAGS = ("avx512_bf16", "amx_bf16")
# bf16 is taken where a step is at least so much faster: below, it costs digits for next to nothing. A choice.
LEAST_SPEEDUP = 1.2
CACHE_NAME = "cpu_bf16.json"


def find_bf16_flags(cpuinfo: str) -> tuple[str, ...]:
    """Those of BF16_FLAGS that the text of /proc/cpuinfo has."""
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            flags = line.partition(":")[2].split()
            return tuple(flag for flag in BF16_FLAGS if flag in flags)
    return ()


def read_bf16_flags() -> tuple[str, ...]:
    """This processor's; none where there is no /proc."""
    with contextlib.suppress(OSError):
        return find_bf16_flags(Path("/proc/cpuinfo").read_text())
    return ()


def read_held_precision() -> str | None:
    """What the environment holds this node to, as it is written there; None where it says nothing."""
    return os.environ.get(HELD_PRECISION_VARIABLE) or None


def name_step(shape: ModelShape, *, num_threads: int) -> str:
    """What a measurement is of, on one processor: the base's shape and the threads of an executor."""
    widths = f"{shape.hidden_size}-{shape.intermediate_size}-{shape.head_dim}x{shape.num_heads}.{shape.num_kv_heads}"
    return f"{shape.model_type} {widths} x {shape.num_layers}, {shape.vocab_size} tokens, {num_threads} threads"


def name_processor(cpu_name: str, flags: tuple[str, ...]) -> str:
    """Whose measurements they are: virtual machines give their processors one name, so the flags are in it."""
    return f"{cpu_name} ({' '.join(flags)}), torch {metadata.version('torch')}"


def cache_path() -> Path:
    """The file of measurements, in the user's cache."""
    return default_cache_dir() / CACHE_NAME


def read_speedups(processor: str, *, path: Path | None = None) -> dict[str, float]:
    """Returns bf16 over fp32 by `name_step`, as measured on a processor; what cannot be read counts as not measured."""
    found = _read(path or cache_path()).get(processor)
    if not isinstance(found, dict):
        return {}
    return {
        step: float(speedup)
        for step, speedup in found.items()
        if isinstance(speedup, int | float) and math.isfinite(speedup) and speedup > 0
    }


def find_speedup(processor: str, step: str, *, measure: Callable[[], float], path: Path | None = None) -> float:
    """Returns the speed-up in the cache; measures it, and keeps it there, where there is none.

    Executors that start together wait for the first of them: they share one answer, and do not disturb its measurement.

    Args:
        processor: From `name_processor`.
        step: From `name_step`.
        measure: Measures it.
        path: The cache's file; None for the user's.
    """
    path = path or cache_path()
    with contextlib.ExitStack() as stack:
        # A cache that cannot be written costs a measurement at each start, and nothing else.
        with contextlib.suppress(OSError):
            stack.enter_context(locked_file(path.with_suffix(".lock"), waits=True))
        known = read_speedups(processor, path=path)
        if step not in known:
            known[step] = measure()
            with contextlib.suppress(RunError):
                write_json(path, {**_read(path), processor: known})
    return known[step]


def _read(path: Path) -> dict[str, object]:
    try:
        found = read_json(path)
    except RunError:
        return {}
    return found if isinstance(found, dict) else {}
