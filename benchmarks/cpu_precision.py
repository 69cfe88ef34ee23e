"""Measures a pack's step in fp32 and in bf16 on this processor, beside what an executor's short measurement says.

    python -m benchmarks.cpu_precision --json cpu_precision.json
    python -m benchmarks.cpu_precision --model FOLDER --trials 4 --tokens 256 --steps 1 --threads 1

Both formats take turns. CPU seconds are counted, so that other processes disturb less; the packed engine, the base held
dequantized in both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.stopwatch import Stopwatch
from qlora_ray.errors import ConfigError, QloraRayError


class CpuWatch(Stopwatch):
    """Reads the CPU seconds of this process."""

    def now(self) -> float:
        """Seconds; only differences mean something."""
        return time.process_time()


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--model", default="embedded", help="embedded, or a folder (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=8, help="trials at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=512, help="per trial and step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a repetition (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="of both formats (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        results = measure(arguments)
    except QloraRayError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both formats' steps.

    Raises:
        ConfigError: The processor has no bf16 units: it would emulate them, for many minutes.
    """
    import torch

    from benchmarks.arms import run_engine
    from benchmarks.bases import choose_base, load_choice
    from benchmarks.cases import Case, make_workload
    from benchmarks.packing import quiet_libraries, rows_of
    from qlora_ray.config.schema import Precision
    from qlora_ray.hardware import probe_node
    from qlora_ray.hardware.cpu_bf16 import read_bf16_flags
    from qlora_ray.modeling.bf16_step import measure_bf16_speedup
    from qlora_ray.training.engine import TrainingData
    from qlora_ray.training.packed.engine import PackedEngine

    if not read_bf16_flags():
        raise ConfigError("benchmark: the processor must have avx512_bf16 or amx_bf16, got neither. Take another one.")
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    choice = choose_base(model=arguments.model, shape=None)
    case = Case(arguments.trials, arguments.tokens, arguments.steps)
    workload = make_workload(case, rows_of(choice, case))
    data = TrainingData(workload.rows, workload.validation)
    formats: tuple[Precision, ...] = ("fp32", "bf16")
    bases = {name: load_choice(choice, precision=name, device="cpu") for name in formats}
    seconds: dict[str, list[float]] = {name: [] for name in formats}
    losses: dict[str, dict[str, float]] = {}
    for _ in range(arguments.repetitions):
        for name, base in bases.items():

            def make_engine(base: Any = base) -> PackedEngine:
                return PackedEngine(
                    base, data, slots=arguments.trials, max_tokens_per_micro_batch=4096, hold_dequantized=True
                )

            run = run_engine(make_engine, workload, CpuWatch("cpu"))
            seconds[name].append(run.seconds / arguments.steps)
            losses[name] = run.losses
    gaps = [abs(losses["bf16"][trial] / loss - 1) for trial, loss in losses["fp32"].items()]
    ratios = [above / below for above, below in zip(seconds["fp32"], seconds["bf16"], strict=True)]
    return {
        "base": choice.name,
        "processor": probe_node().cpu_name,
        "flags": read_bf16_flags(),
        "threads": arguments.threads,
        "trials": arguments.trials,
        "tokens_per_trial": arguments.tokens,
        "load_average": round(os.getloadavg()[0], 2),
        "cpu_seconds_per_step": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "fp32_over_bf16": round(statistics.median(ratios), 3),
        "fp32_over_bf16_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "short_measurement": round(measure_bf16_speedup(choice.shape()), 3),
        "largest_loss_gap": round(max(gaps), 5),
    }


if __name__ == "__main__":
    sys.exit(main())
