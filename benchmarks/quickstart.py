"""The quickstart measured whole: our sweep, a naive one of the same trials, and the trials again in one process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import ArmName
from benchmarks.replays import replay
from benchmarks.sweeps import OurSweep, run_naive, run_ours
from benchmarks.tables import describe_sweep, format_sweep
from qlora_ray.console import Console
from qlora_ray.data import prepare_data
from qlora_ray.modeling.loading import LoadedBase, load_base
from qlora_ray.modeling.quantization import specify_quantization
from qlora_ray.training.engine import Engine, TrainingData
from qlora_ray.training.packed.engine import PackedEngine
from qlora_ray.training.single.engine import SingleEngine

# A sweep short enough for --quick. It is mostly start-up, so its ratio is not the whole quickstart's.
QUICK_SETTINGS = ["search.num_trials=4", "training.max_samples=320", "evaluate.max_rows=20"]
# The sweep whose share of waiting is asked for.
MANY_TRIALS_SETTINGS = ["search.num_trials=16"]


def measure_quickstart(*, is_quick: bool, with_replays: bool, console: Console) -> dict[str, Any]:
    """Runs all of it and returns the sweep's entry of the JSON."""
    settings = QUICK_SETTINGS if is_quick else []
    with tempfile.TemporaryDirectory(prefix="packing-") as scratch:
        folder = Path(scratch)
        ours = run_ours(folder, settings=settings)
        console.event(f"our sweep: {ours.wall_s:.1f} s")
        naive = run_naive(folder, ours, num_gpus=int(torch.cuda.is_available()))
        console.event(f"naive sweep of the same trials: {naive['wall_s']:.1f} s")
    sweep = {"is_whole_quickstart": not settings, "settings": settings, **describe_sweep(ours, naive)}
    if not is_quick:
        with tempfile.TemporaryDirectory(prefix="packing-") as scratch:
            sweep["many_trials"] = describe_waiting(run_ours(Path(scratch), settings=MANY_TRIALS_SETTINGS))
        console.event(f"our sweep of {sweep['many_trials']['trials']} trials: {sweep['many_trials']['wall_s']:.1f} s")
    if with_replays:
        sweep["replays"] = replay_in_process(ours)
        console.event("the same trials in one process: " + format_seconds(sweep["replays"]["seconds"]))
    console.line()
    console.line(format_sweep(sweep))
    return sweep


def describe_waiting(ours: OurSweep) -> dict[str, Any]:
    """How much of a sweep's search its device waited."""
    return {
        "trials": len(ours.trials) + ours.untrained,
        "wall_s": round(ours.wall_s, 2),
        "search_s": round(ours.search_s, 2),
        "device_wait_share": ours.device_wait_share,
    }


def replay_in_process(ours: OurSweep) -> dict[str, Any]:
    """The sweep's trials on a base loaded once, through each of the arms."""
    config, placement = ours.config, ours.placement
    quantization = specify_quantization(config.model.quantization, compute_dtype=placement["precision"]["name"])
    device = "cpu" if placement["device_kind"] == "cpu" else "cuda:0"
    base = load_base(config.model, quantization=quantization, device=device)
    data = prepare_data(config.data, tokenizer=base.tokenizer, data_seed=config.training.data_seed)
    engines = engines_of(placement, base, TrainingData(data.train, data.validation))
    return replay(ours, base, data, engines=engines)


def engines_of(
    placement: Mapping[str, Any], base: LoadedBase, rows: TrainingData
) -> dict[ArmName, Callable[[], Engine]]:
    """Makers of the engines that a placement of the manifest has settings for."""
    engines: dict[ArmName, Callable[[], Engine]] = {
        "single": lambda: SingleEngine(
            base,
            rows,
            max_micro_batch=placement["max_micro_batch"],
            gradient_checkpointing=placement["gradient_checkpointing"],
        )
    }
    if placement["engine"] == "packed":
        engines["packed"] = lambda: PackedEngine(
            base,
            rows,
            slots=placement["slots_per_device"],
            max_tokens_per_micro_batch=placement["max_tokens_per_micro_batch"],
            hold_dequantized=placement["hold_dequantized"],
            gradient_checkpointing=placement["gradient_checkpointing"],
        )
    return engines


def format_seconds(seconds: dict[str, float]) -> str:
    """`in turn 190.3 s, packed 61.2 s, single 210.0 s`: by name."""
    return ", ".join(f"{arm.replace('_', ' ')} {seconds[arm]:.1f} s" for arm in sorted(seconds))
