"""What the planner and the forecast need of a sweep's checks, and the plan of a sweep on some nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_ray.config.schema import SweepConfig
from qlora_ray.data.report import DataReport
from qlora_ray.hardware import ModelShape, NodeProfile, Plan, TrialDemand, plan_placements
from qlora_ray.hardware.simulation import as_if


@dataclass(frozen=True)
class PlanFacts:
    """What a plan is made of.

    Attributes:
        extremes: Trial configs at every corner of the space that decides memory.
        single_reason: Why the trials cannot share one base in the packed engine; None if they can.
        notes: What is worth knowing before training, a sentence each.
    """

    config: SweepConfig
    extremes: Sequence[SweepConfig]
    shape: ModelShape
    report: DataReport
    num_train_rows: int
    single_reason: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_head_parameters(self) -> int:
        """Of a trial that trains all auxiliary heads."""
        return sum(map(len, self.report.classes.values())) * self.shape.hidden_size


def plan_facts(facts: PlanFacts, nodes: Sequence[NodeProfile]) -> Plan:
    """The placement of the largest trial the space can propose, on these nodes.

    With `cluster.simulate`, on the GPUs that nodes without any claim to have.
    """
    config = facts.config
    if config.cluster.simulate:
        nodes = [as_if(node, node.claims) for node in nodes]
    corners = facts.extremes
    lengths = facts.report.lengths
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
        gradient_checkpointing=_join_checkpointing([corner.training.gradient_checkpointing for corner in corners]),
        eval_batch=config.training.per_device_eval_batch_size,
        lora_dropout=max(corner.lora.lora_dropout for corner in corners),
        attn_implementation=config.model.attn_implementation,
        mean_seq_length=min(config.data.max_length, lengths["train"].mean),
        num_trials=config.search.num_trials,
        single_reason=facts.single_reason,
        num_head_parameters=facts.num_head_parameters,
        modules_to_save=tuple({name for corner in corners for name in corner.lora.modules_to_save or ()}),
    )
    return plan_placements(
        nodes,
        shape=facts.shape,
        demand=demand,
        cluster=config.cluster,
        quantization=config.model.quantization,
        precision_requested=config.training.precision,
    )


def _join_checkpointing(choices: Sequence[bool | Literal["auto"]]) -> bool | Literal["auto"]:
    """What the largest trial does: one that may not recompute activations needs the most memory."""
    if False in choices:
        return False
    return "auto" if "auto" in choices else True


def _width(targets: str | list[str]) -> int:
    order = {"attention-qv": 2, "attention": 4, "all-linear": 7}
    return order[targets] if isinstance(targets, str) else len(targets)
