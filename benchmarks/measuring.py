"""One case measured: placed as a sweep would place it, arms interleaved, medians of the repetitions."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.arms import ARMS, ArmName, run_arm
from benchmarks.bases import BaseChoice
from benchmarks.cases import Workload, make_workload
from benchmarks.stopwatch import Run, median_ratio
from qlora_ray.config.schema import Cluster, Model
from qlora_ray.errors import PlacementError
from qlora_ray.hardware import NodeProfile, Placement, TrialDemand, plan_placements
from qlora_ray.modeling.loading import LoadedBase

Say = Callable[[str], None]


def place_case(workload: Workload, choice: BaseChoice, node: NodeProfile) -> Placement:
    """Slots, tokens per micro-batch and dequantized base as the planner sets them for these trials on this node.

    Raises:
        PlacementError: They do not fit at once.
    """
    case = workload.case
    effective_batch = workload.specs[0].budget.effective_batch
    demand = TrialDemand(
        max_r=max(spec.lora.r for spec in workload.specs),
        effective_batch=effective_batch,
        per_device_train_batch_size=effective_batch,
        max_seq_length=workload.longest_row,
        optim="adamw_torch",
        lora_dropout=max(spec.lora.lora_dropout for spec in workload.specs),
        mean_seq_length=workload.tokens_per_trial / effective_batch,
        num_trials=case.trials,
    )
    plan = plan_placements(
        [node],
        shape=choice.shape(),
        demand=demand,
        cluster=Cluster(packing="packed", slots_per_device=case.trials),
        quantization=Model().quantization,
    )
    placement = plan.placements[0]
    if placement.slots_per_device < case.trials:
        raise PlacementError(
            f"placement: {case.trials} trials must fit at once, got room for {placement.slots_per_device}. "
            "Take fewer trials."
        )
    return placement


def measure_case(
    base: LoadedBase,
    workload: Workload,
    placement: Placement,
    *,
    repetitions: int,
    single_repetitions: int,
    say: Say,
) -> dict[str, Any]:
    """Runs every arm of a case and returns its entry of the JSON."""
    short = make_workload(replace(workload.case, steps=1), workload.rows)
    runs: dict[ArmName, list[Run]] = {arm: [] for arm in ARMS}
    skipped: dict[str, str] = {}
    for arm in ("packed", "in_turn"):
        _try_arm(arm, base, short, placement, skipped)
    for repetition in range(repetitions):
        for arm in order_arms(repetition, with_single=repetition < single_repetitions):
            if arm not in skipped:
                run = _try_arm(arm, base, workload, placement, skipped)
                runs[arm].extend([run] if run else [])
    for arm, why in skipped.items():
        say(f"{workload.case.name}: {arm} skipped: {why}")
    return describe_case(workload, placement, runs, skipped)


def order_arms(repetition: int, *, with_single: bool) -> tuple[ArmName, ...]:
    """Which arm comes when: the two that are compared are neighbours, and take turns at being first."""
    pair: tuple[ArmName, ...] = ("packed", "in_turn") if repetition % 2 == 0 else ("in_turn", "packed")
    return (*pair, "single") if with_single else pair


def describe_case(
    workload: Workload, placement: Placement, runs: dict[ArmName, list[Run]], skipped: dict[str, str]
) -> dict[str, Any]:
    """A case's entry of the JSON."""
    case = workload.case
    entry: dict[str, Any] = {
        "name": case.name,
        "trials": case.trials,
        "tokens_per_trial": case.tokens,
        "measured_tokens_per_trial": round(workload.tokens_per_trial, 1),
        "effective_batch": workload.specs[0].budget.effective_batch,
        "equal_trials": case.equal,
        "steps": case.steps,
        "repetitions": len(runs["packed"]),
        "max_tokens_per_micro_batch": placement.max_tokens_per_micro_batch,
        "hold_dequantized": placement.hold_dequantized,
        "padding_share": None,
        "packed_over_in_turn": None,
        "skipped": skipped,
        "arms": {arm: describe_arm(of_arm, workload.num_tokens) for arm, of_arm in runs.items() if of_arm},
    }
    packed, in_turn = runs["packed"], runs["in_turn"]
    if packed:
        entry["padding_share"] = round(packed[0].padding_share, 4)
    if packed and len(packed) == len(in_turn):
        seconds = [run.seconds for run in in_turn], [run.seconds for run in packed]
        ratios = [above / below for above, below in zip(*seconds, strict=True)]
        entry["packed_over_in_turn"] = round(median_ratio(*seconds), 3)
        entry["packed_over_in_turn_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        entry["loss_gap"] = find_loss_gap(workload, packed[0], in_turn[0])
    if packed and runs["single"]:
        entry["packed_over_single"] = round(
            statistics.median(run.seconds for run in runs["single"]) / statistics.median(run.seconds for run in packed),
            3,
        )
    return entry


def describe_arm(runs: list[Run], num_tokens: int) -> dict[str, Any]:
    """An arm's numbers: medians of its repetitions."""
    seconds = statistics.median(run.seconds for run in runs)
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return {
        "makespan_s": round(seconds, 4),
        "tokens_per_s": round(num_tokens / seconds, 1),
        "padding_share": round(runs[0].padding_share, 4),
        "peak_bytes": max(peaks) if peaks else None,
        "setup_s": round(statistics.median(run.setup_s for run in runs), 4),
        "seconds": [round(run.seconds, 4) for run in runs],
    }


def find_loss_gap(workload: Workload, one: Run, other: Run) -> float | None:
    """The largest relative difference of the arms' training losses, over trials without dropout: equal work shows."""
    plain = [spec.trial_id for spec in workload.specs if spec.lora.lora_dropout == 0]
    gaps = [abs(one.losses[name] - other.losses[name]) / abs(other.losses[name]) for name in plain]
    return max(gaps) if gaps else None


def _try_arm(
    arm: ArmName, base: LoadedBase, workload: Workload, placement: Placement, skipped: dict[str, str]
) -> Run | None:
    """A run, or None and why the arm is skipped."""
    try:
        return run_arm(arm, base, workload, placement)
    except torch.OutOfMemoryError as error:
        skipped[arm] = f"out of memory: {str(error).splitlines()[0]}"
    # Outside the handler: there the traceback would still hold what did not fit.
    torch.cuda.empty_cache()
    return None
