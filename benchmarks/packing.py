"""Measures packing side by side: our packed engine, our single engine, plain PEFT in turn, and Ray Tune around
SFTTrainer.

    python -m benchmarks.packing --quick --json packing.json
    python -m benchmarks.packing --device cuda --shape qwen2-0.5b --trials 1,4,8,16 --tokens 256,512,1024 --no-sweep

Cases run in this process, arms interleaved; the sweep runs as two commands, ours and a naive one of the same trials.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.console import Console
from qlora_ray.errors import ConfigError, PlacementError, QloraRayError

if TYPE_CHECKING:
    from benchmarks.bases import BaseChoice
    from benchmarks.cases import Case
    from qlora_ray.data import TokenizedSplit
    from qlora_ray.hardware import NodeProfile, Placement

# The table: K = 8 and K = 1 at three sizes of step.
DEFAULT_TRIALS, DEFAULT_TOKENS = (8, 1), (32, 128, 512)
EQUAL_CASE = (8, 128)
REPETITIONS, QUICK_SINGLE_REPETITIONS = 5, 1
# A load average of an idle machine is below this.
IDLE_LOAD = 0.7


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the CPU cases and a short sweep, in under 4 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--model", default="embedded", help="embedded, a folder, or a config.json (random weights)")
    parser.add_argument("--shape", help="random weights of qwen2-0.5b, qwen2-1.5b or llama-8b")
    parser.add_argument("--tokens", type=_numbers, default=DEFAULT_TOKENS, help="per trial and step, e.g. 256,512")
    parser.add_argument("--trials", type=_numbers, default=DEFAULT_TRIALS, help="trials at once, e.g. 1,4,8,16")
    parser.add_argument("--steps", type=int, help="timed steps of a trial (default: by the size of the case)")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of every arm (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cases", action="append", metavar="NAME", help="only these, e.g. k8-t32; may be repeated")
    parser.add_argument("--no-single", action="store_true", help="leave the single engine out of the cases")
    parser.add_argument("--no-cases", action="store_true", help="only the sweep")
    parser.add_argument("--no-sweep", action="store_true", help="only the cases")
    parser.add_argument("--no-replays", action="store_true", help="leave the sweep's trials in one process out")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    console = Console()
    try:
        results = _run(arguments, console)
    except QloraRayError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
        console.line(f"written: {arguments.json}")
    return 0


def list_cases(arguments: argparse.Namespace, *, on_cpu: bool) -> list[Case]:
    """The cases that the command line asks for.

    Raises:
        ConfigError: A number is not positive, or a name is of no case.
    """
    from benchmarks.cases import Case, choose_steps

    for name in ("trials", "tokens"):
        if min(getattr(arguments, name)) < 1:
            raise ConfigError(f"--{name}: numbers must be positive, got {min(getattr(arguments, name))}.")
    for name in ("steps", "repetitions"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    is_small = on_cpu and arguments.shape is None and arguments.model == "embedded"
    sizes = [(trials, tokens, False) for trials in arguments.trials for tokens in arguments.tokens]
    if EQUAL_CASE in [size[:2] for size in sizes] and not arguments.quick:
        sizes.append((*EQUAL_CASE, True))
    cases = [
        Case(trials, tokens, arguments.steps or choose_steps(trials=trials, tokens=tokens, on_cpu=is_small), equal)
        for trials, tokens, equal in sizes
    ]
    names = [case.name for case in cases]
    for name in arguments.cases or []:
        if name not in names:
            raise ConfigError(f"--cases must name one of {', '.join(names)}, got {name!r}.")
    return [case for case in cases if not arguments.cases or case.name in arguments.cases]


def _run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    from benchmarks.bases import choose_base
    from benchmarks.tables import describe_machine
    from qlora_ray.hardware import choose_precision, probe_node

    began = time.monotonic()
    quiet_libraries()
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise ConfigError(f"--json: its folder must be there, got {arguments.json}. Make it first.")
    if arguments.device == "cpu" or (arguments.quick and arguments.device == "auto"):
        # Before anything looks for a GPU, and for the sweeps' processes too.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    choice = choose_base(model=arguments.model, shape=arguments.shape)
    node = probe_node()
    if arguments.device == "cuda" and not node.has_gpu:
        raise ConfigError("--device cuda: this machine must have a GPU that torch can use, got none. Use --device cpu.")
    node = dataclasses.replace(node, devices=node.devices[:1])
    device = node.devices[0]
    precision = choose_precision(device).name
    cases = [] if arguments.no_cases else list_cases(arguments, on_cpu=device.kind == "cpu")
    import torch

    machine = describe_machine(node, device=device.kind, precision=precision, num_threads=torch.get_num_threads())
    console.line(f"base    {choice.name}, nf4 with double quantization, {precision}")
    console.line(f"device  {device.name}; {machine['num_threads']} threads; torch {torch.__version__}")
    if machine["load_average"] > IDLE_LOAD:
        console.line(f"note    other processes run here (load {machine['load_average']}): do not keep these times")
    results: dict[str, Any] = {"base": choice.name, "machine": machine, "cases": [], "sweep": None}
    if cases:
        results["cases"] = _measure_cases(arguments, cases, choice, node, precision, console)
    if choice.is_embedded and not arguments.no_sweep:
        from benchmarks.quickstart import measure_quickstart

        results["sweep"] = measure_quickstart(
            is_quick=arguments.quick, with_replays=not (arguments.quick or arguments.no_replays), console=console
        )
    results["elapsed_s"] = round(time.monotonic() - began, 1)
    console.line(f"took    {results['elapsed_s']:.0f} s")
    return results


def _measure_cases(
    arguments: argparse.Namespace,
    cases: list[Case],
    choice: BaseChoice,
    node: NodeProfile,
    precision: Any,
    console: Console,
) -> list[dict[str, Any]]:
    from benchmarks.bases import load_choice
    from benchmarks.cases import make_workload
    from benchmarks.measuring import measure_case, place_case
    from benchmarks.tables import format_cases

    # Placed before the base is loaded: the planner counts the memory that is free without it.
    workloads = [make_workload(case, rows_of(choice, case)) for case in cases]
    placements: list[Placement | None] = []
    for workload in workloads:
        try:
            placements.append(place_case(workload, choice, node))
        except PlacementError as error:
            placements.append(None)
            console.line(f"{workload.case.name}: skipped: {error}")
    base = load_choice(choice, precision=precision, device="cuda:0" if node.has_gpu else "cpu")
    single_repetitions = QUICK_SINGLE_REPETITIONS if arguments.quick else arguments.repetitions
    entries = []
    for workload, placement in zip(workloads, placements, strict=True):
        if placement is None:
            continue
        entry = measure_case(
            base,
            workload,
            placement,
            repetitions=arguments.repetitions,
            single_repetitions=0 if arguments.no_single else single_repetitions,
            say=console.line,
        )
        entries.append(entry)
        console.event(f"{entry['name']}: packed is {entry['packed_over_in_turn']}x as fast as in turn")
    console.line()
    console.line(format_cases(entries))
    return entries


def rows_of(choice: BaseChoice, case: Case) -> TokenizedSplit:
    """Rows of the embedded task for its base, random ids for any other."""
    from benchmarks.cases import make_random_rows

    if not choice.is_embedded:
        return make_random_rows(tokens=case.tokens, vocab_size=choice.shape().vocab_size)
    from qlora_ray.config.schema import Data
    from qlora_ray.data import prepare_data
    from qlora_ray.modeling.loading import load_tokenizer

    return prepare_data(Data(max_length=256), tokenizer=load_tokenizer(choice.model), data_seed=7).train


def quiet_libraries() -> None:
    """What libraries say about themselves is not part of the table."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
