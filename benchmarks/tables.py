"""What the benchmark prints: a table of cases, the sweep, and how its speed-up splits."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.sweeps import OurSweep
from qlora_ray.formats import format_table
from qlora_ray.hardware import NodeProfile

GIB = 1024**3
ARM_WORDS = {"packed": "packed", "single": "single", "in_turn": "in turn"}


def describe_machine(node: NodeProfile, *, device: str, precision: str, num_threads: int) -> dict[str, Any]:
    """The machine's entry of the JSON."""
    return {
        "device": node.devices[0].name,
        "kind": device,
        "cpu": node.cpu_name,
        "num_cpus": node.num_cpus,
        "num_threads": num_threads,
        "load_average": round(os.getloadavg()[0], 2),
        "ram_gib": round(node.ram_bytes / GIB, 1),
        "precision": precision,
        "driver": node.driver_version,
        "cuda": node.cuda_version,
        "platform": node.platform,
        "versions": {**node.packages, "python": node.python_version},
    }


def format_cases(cases: list[dict[str, Any]]) -> str:
    """One line per case and arm, and what the arms are to each other."""
    header = ["case", "tokens/step", "arm", "makespan", "tokens/s", "padding", "peak", "set-up", "packed is"]
    rows = [header]
    for case in cases:
        for number, (arm, facts) in enumerate(case["arms"].items()):
            rows.append(
                [
                    case["name"] if number == 0 else "",
                    f"{case['trials']} x {case['measured_tokens_per_trial']:.0f}" if number == 0 else "",
                    ARM_WORDS[arm],
                    f"{facts['makespan_s']:.2f} s",
                    f"{facts['tokens_per_s']:.0f}",
                    f"{facts['padding_share']:.1%}",
                    format_bytes(facts["peak_bytes"]),
                    f"{facts['setup_s']:.2f} s",
                    _relation(case, arm),
                ]
            )
        if not case["arms"]:
            rows.append([case["name"], "", "skipped", "", "", "", "", "", ""])
    return format_table(rows, right=(3, 4, 5, 6, 7))


def format_bytes(value: int | None) -> str:
    """`1.25 GiB`, or `-`."""
    return "-" if value is None else f"{value / GIB:.2f} GiB"


def split_speedup(ours: OurSweep, naive: dict[str, Any]) -> dict[str, float]:
    """How the whole speed-up splits: fusion x start-up x early stopping.

    fusion: seconds of training and evaluating, naive's (all its processes', over as many as run at once) over ours.
    start_up: what each adds to that: processes, imports, bases, orchestration; ours also scores its best by generation.
    early_stopping: naive's seconds if no trial were stopped, by its own rate, over those that it took.
    The first two multiply to the measured ratio of walls; the third stands beside it, for both were stopped alike.
    """
    trials = naive["trials"]
    naive_training_s = sum(trial["train_s"] for trial in trials) / naive["concurrency"]
    took = sum(trial["setup_s"] + trial["train_s"] for trial in trials)
    unstopped = sum(trial["setup_s"] + trial["train_s"] * ours.num_steps / trial["step"] for trial in trials)
    fusion = naive_training_s / ours.training_s
    wall_ratio = naive["wall_s"] / ours.wall_s
    return {
        "fusion": round(fusion, 3),
        "start_up": round(wall_ratio / fusion, 3),
        "early_stopping": round(unstopped / took, 3),
        "all": round(wall_ratio * unstopped / took, 3),
    }


def describe_sweep(ours: OurSweep, naive: dict[str, Any]) -> dict[str, Any]:
    """The sweep's entry of the JSON."""
    trials = naive["trials"]
    peaks = sorted((trial["peak_bytes"] for trial in trials), reverse=True)[: naive["concurrency"]]
    return {
        "trials": len(ours.trials),
        "untrained_trials": ours.untrained,
        "steps_of_all_trials": sum(trial.num_steps for trial in ours.trials),
        "same_stopping": [trial["step"] for trial in trials] == [trial.num_steps for trial in ours.trials],
        "ours_wall_s": round(ours.wall_s, 2),
        "ours_startup_s": round(ours.startup_s, 2),
        "ours_search_s": round(ours.search_s, 2),
        "ours_training_s": round(ours.training_s, 2),
        "ours_scoring_s": round(ours.scoring_s, 2),
        "ours_peak_bytes": ours.peak_bytes,
        "naive_wall_s": round(naive["wall_s"], 2),
        "naive_training_s": round(sum(trial["train_s"] for trial in trials) / naive["concurrency"], 2),
        "naive_setup_s": round(sum(trial["setup_s"] for trial in trials) / naive["concurrency"], 2),
        "naive_peak_bytes": sum(peaks),
        "naive_over_ours": round(naive["wall_s"] / ours.wall_s, 3),
        "naive_over_ours_without_scoring": round(naive["wall_s"] / (ours.wall_s - ours.scoring_s), 3),
        "split": split_speedup(ours, naive),
        "device_wait_share": ours.device_wait_share,
        "winner": ours.winner,
        "naive_winner": naive["winner"],
    }


def format_sweep(sweep: dict[str, Any]) -> str:
    """The sweep in words."""
    split, wait = sweep["split"], sweep["device_wait_share"]
    naive_rest = sweep["naive_wall_s"] - sweep["naive_training_s"]
    lines = [
        f"ours   {sweep['ours_wall_s']:.1f} s from command to winner: start-up {sweep['ours_startup_s']:.1f}, "
        f"search {sweep['ours_search_s']:.1f}, scoring {sweep['ours_scoring_s']:.1f}; "
        f"peak {format_bytes(sweep['ours_peak_bytes'])}",
        f"naive  {sweep['naive_wall_s']:.1f} s: training {sweep['naive_training_s']:.1f}, the rest {naive_rest:.1f}; "
        f"peak {format_bytes(sweep['naive_peak_bytes'])}; it scores nothing by generation",
        f"{sweep['trials']} trials, {sweep['steps_of_all_trials']} steps in all, "
        + ("the same stopping" if sweep["same_stopping"] else "NOT the same stopping"),
        f"naive / ours {sweep['naive_over_ours']:.2f} = fusion {split['fusion']:.2f} x start-up {split['start_up']:.2f}"
        f"; with early stopping ({split['early_stopping']:.2f}) {split['all']:.2f}",
        f"naive / ours without our scoring {sweep['naive_over_ours_without_scoring']:.2f}",
        "devices waited for orchestration: " + ("not measured" if wait is None else f"{wait:.1%} of the search"),
    ]
    return "\n".join(lines)


def _relation(case: dict[str, Any], arm: str) -> str:
    if arm == "in_turn" and case["packed_over_in_turn"] is not None:
        low, high = case["packed_over_in_turn_range"]
        return f"{case['packed_over_in_turn']:.2f}x as fast ({low:.2f}-{high:.2f})"
    if arm == "single" and "packed_over_single" in case:
        return f"{case['packed_over_single']:.2f}x as fast"
    return ""
