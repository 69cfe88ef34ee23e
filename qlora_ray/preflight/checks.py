"""Everything that can be found wrong before anything is started: config, space, data, base, budget."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray import __version__
from qlora_ray.config.schema import SweepConfig
from qlora_ray.data import PreparedData, prepare_data
from qlora_ray.errors import RunError
from qlora_ray.hardware import ModelShape, NodeProfile, Plan, TrialDemand, plan_placements
from qlora_ray.hardware.probe import find_versions
from qlora_ray.modeling.identity import compare_bases, shorten_hash
from qlora_ray.modeling.loading import hash_base, load_tokenizer, pin_revision, read_shape
from qlora_ray.modeling.packing import find_packing_problem
from qlora_ray.modeling.targets import build_skeleton, check_targets
from qlora_ray.search.space import SearchSpace
from qlora_ray.search.study import describe_unused
from qlora_ray.training.budget import make_budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What belongs to one run of a sweep: how it was called, and with what code.
RUN_KEYS = ("command", "folder", "qlora_ray", "versions", "git")


@dataclass(frozen=True)
class Preflight:
    """What a sweep knows before it starts anything.

    Attributes:
        extremes: Trial configs at every corner of the space that decides memory.
        metrics_reason: What answers are scored with, and why.
        unused: What the config says that nothing will use.
        notes: What the rows of the verdict have no room for, a sentence each.
        sft_reason: Why the trials cannot share one base in the fused engine; None if they can.
    """

    config: SweepConfig
    space: SearchSpace
    extremes: list[SweepConfig]
    shape: ModelShape
    data: PreparedData
    metrics_reason: str
    unused: list[str]
    sft_reason: str | None = None
    notes: Sequence[str] = ()


def check_sweep(config: SweepConfig, space: SearchSpace) -> Preflight:
    """Reads base config, tokenizer and data, and holds the space against them.

    Raises:
        QloraRayError: The first thing that is wrong, with what to do.
    """
    from qlora_ray.scoring.metrics.choice import check_references, resolve_data_metrics

    # One commit for the whole sweep, on every node, and for its resumes: a branch of the hub may move meanwhile.
    config = config.model_copy(update={"model": pin_revision(config.model)})
    shape = read_shape(config.model)
    extremes = space.extremes(config)
    tokenizer = load_tokenizer(config.model)
    data = prepare_data(config.data, tokenizer=tokenizer, data_seed=config.training.data_seed)
    for corner in extremes:
        make_budget(corner.training, num_train_rows=len(data.train), num_reports=config.search.num_reports)
    skeleton = build_skeleton(config.model)
    choices = [corner.lora for corner in extremes]
    check_targets(skeleton, choices)
    sft_reason = find_packing_problem(skeleton, choices)
    metrics, reason = resolve_data_metrics(config, data)
    for split in (data.validation, data.test):
        if split is not None:
            check_references(split, metrics, num_rows=config.evaluate.max_rows)
    unused = describe_unused(config.search, space)
    notes = _find_room(config, shape, data, tokenizer) if metrics else []
    return Preflight(config, space, extremes, shape, data, reason, unused, sft_reason, notes)


def _find_room(
    config: SweepConfig, shape: ModelShape, data: PreparedData, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """What answers to the verdict's rows have no room for: found at the start, and not when training is paid for."""
    from qlora_ray.scoring.token_budget import count_reference_tokens, find_limit, measure_room, resolve_max_new_tokens

    split = data.validation if data.test is None else data.test
    evaluate = config.evaluate
    reference_tokens = count_reference_tokens(split, tokenizer=tokenizer)
    room = measure_room(
        split.prompt_ids[: evaluate.max_rows],
        max_new_tokens=resolve_max_new_tokens(evaluate.max_new_tokens, reference_tokens),
        limit=find_limit(shape.max_position_embeddings, evaluate.max_length),
        reference_tokens=reference_tokens[: evaluate.max_rows],
    )
    return room.notes(split.name)


def plan_sweep(preflight: Preflight, nodes: list[NodeProfile]) -> Plan:
    """The placement of the largest trial the space can propose, on these nodes."""
    config = preflight.config
    corners = preflight.extremes
    lengths = preflight.data.report.lengths
    # No batch is longer than the longest row there is, whatever max_length allows.
    longest = max(int(stats.max) for stats in lengths.values())
    widest = max((corner.lora.target_modules for corner in corners), key=_width)
    demand = TrialDemand(
        max_r=max(corner.lora.r for corner in corners),
        targets=widest if isinstance(widest, str) else tuple(widest),
        effective_batch=max(corner.training.effective_batch for corner in corners),
        per_device_train_batch_size=max(corner.training.per_device_train_batch_size for corner in corners),
        max_seq_length=min(config.data.max_length, longest),
        optim="adamw_torch"
        if any(corner.training.optim == "adamw_torch" for corner in corners)
        else config.training.optim,
        gradient_checkpointing=all(corner.training.gradient_checkpointing for corner in corners),
        eval_batch=config.training.per_device_eval_batch_size,
        lora_dropout=max(corner.lora.lora_dropout for corner in corners),
        attn_implementation=config.model.attn_implementation,
        mean_seq_length=min(config.data.max_length, lengths["train"].mean),
        num_trials=config.search.num_trials,
        sft_reason=preflight.sft_reason,
        modules_to_save=tuple({name for corner in corners for name in corner.lora.modules_to_save or ()}),
    )
    return plan_placements(
        nodes,
        shape=preflight.shape,
        demand=demand,
        cluster=config.cluster,
        quantization=config.model.quantization,
        precision_requested=config.training.precision,
    )


def check_same_inputs(preflight: Preflight, manifest: dict[str, Any], *, common: dict[str, Any]) -> list[str]:
    """Holds rows and base against those that the sweep began with.

    Returns:
        A note if the base could not be verified, else nothing.

    Raises:
        RunError: If they are others.
    """
    before, now = manifest["data"]["fingerprint"], preflight.data.report.fingerprint
    if before != now:
        raise RunError(
            f"--resume: the data must be what the sweep began with (fingerprint {before[:12]}), got {now[:12]}. "
            "Restore the files, or start a new sweep."
        )
    base, first = common["base"]["hash"], manifest["base"]["hash"]
    verdict = compare_bases(first, base)
    if verdict == "other" or first.split(":")[0] != base.split(":")[0]:
        raise RunError(
            f"--resume: the base must be what the sweep began with ({shorten_hash(first)}), got {shorten_hash(base)}. "
            "Restore it, or start a new sweep."
        )
    if verdict == "same":
        return []
    # A sweep of an older release knows a hub's branch and no commit, which cannot be told from today's.
    return [
        f"the base could not be verified: the sweep began with {first}, whatever that was then, and goes on with {base}"
    ]


def describe_sweep(
    preflight: Preflight, plan: Plan, nodes: list[NodeProfile], *, common: dict[str, Any]
) -> dict[str, Any]:
    """The manifest: resolved config, space, plan, versions, commit, data fingerprints, command."""
    return {
        "qlora_ray": __version__,
        "folder": str(Path.cwd()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "config": preflight.config.model_dump(),
        "space": preflight.space.to_dict(),
        "plan": plan.to_dict(),
        "nodes": [node.to_dict() for node in nodes],
        "data": preflight.data.report.to_dict(),
        "metrics": preflight.metrics_reason,
        "unused": preflight.unused,
        "notes": list(preflight.notes),
        **common,
    }


def add_resume(first: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a sweep that goes on: how it began stays, its base too, and what runs now is what it plans.

    Args:
        first: The manifest as it is.
        now: `describe_sweep` of this run.
    """
    began = {key: first[key] for key in (*RUN_KEYS, "base") if key in first}
    # Of a base of the hub that was not pinned, today's commit may be another.
    base = {} if now.get("base") == first.get("base") else {"base": now["base"]}
    resumes = [*first.get("resumes", []), {key: now[key] for key in RUN_KEYS} | base]
    return {**now, **began, "resumes": resumes}


def common_facts(preflight: Preflight) -> dict[str, Any]:
    """What every record of a sweep holds: versions, commit, data, base, seeds."""
    report = preflight.data.report
    config = preflight.config
    return {
        "base": {"name": config.model.name, "revision": config.model.revision, "hash": hash_base(config.model)},
        "dataset": {
            "fingerprint": report.fingerprint,
            "sources": report.sources,
            "num_rows": report.num_rows,
            "num_truncated": report.num_truncated,
            "overlap": report.overlap,
            "overlap_check": report.overlap_verdict,
        },
        "seeds": {
            "seed": config.training.seed,
            "data_seed": config.training.data_seed,
            "search_seed": config.search.seed,
        },
        "versions": find_versions() | {"python": platform.python_version()},
        "git": _git_state(),
    }


def _width(targets: str | list[str]) -> int:
    order = {"attention-qv": 2, "attention": 4, "all-linear": 7}
    return order[targets] if isinstance(targets, str) else len(targets)


def _git_state() -> dict[str, Any]:
    """Commit and dirty flag of the folder the user works in; nulls outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
