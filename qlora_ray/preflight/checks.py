"""Everything that can be found wrong before anything is started: config, space, data, base, budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qlora_ray.config.choices import SAMPLERS
from qlora_ray.config.schema import Lora, SweepConfig
from qlora_ray.data import PreparedData, prepare_data
from qlora_ray.data.preparation import say_nothing
from qlora_ray.data.split_examples import Tell
from qlora_ray.errors import ConfigError
from qlora_ray.hardware import ModelShape, NodeProfile, Plan
from qlora_ray.modeling.loading import load_tokenizer, pin_revision, read_shape
from qlora_ray.modeling.packing import find_packing_problem
from qlora_ray.modeling.shape import count_shape
from qlora_ray.modeling.stored_base import check_adapters, specify_stored
from qlora_ray.modeling.targets import build_skeleton, check_targets
from qlora_ray.modeling.weight_files import check_headers, check_weights_fit
from qlora_ray.preflight.planning import PlanFacts, plan_facts
from qlora_ray.search.first_points import find_first_points
from qlora_ray.search.recommended import recommend
from qlora_ray.search.space import SearchSpace, apply_values
from qlora_ray.search.study import describe_unused
from qlora_ray.training.budget import make_budget
from qlora_ray.training.schedules import check_schedule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Preflight:
    """What a sweep knows before it starts anything.

    Attributes:
        space: A new sweep's has the recommended points, too.
        extremes: Trial configs at every corner of the space that decides memory.
        metrics_reason: What answers are scored with, and why.
        unused: What the config says that nothing will use.
        notes: What the rows of the verdict have no room for, a sentence each.
        single_reason: Why the trials cannot share one base in the packed engine; None if they can.
    """

    config: SweepConfig
    space: SearchSpace
    extremes: list[SweepConfig]
    shape: ModelShape
    data: PreparedData
    metrics_reason: str
    unused: list[str]
    single_reason: str | None = None
    notes: Sequence[str] = ()

    @property
    def plan_facts(self) -> PlanFacts:
        """What a plan is made of."""
        return PlanFacts(
            config=self.config,
            extremes=self.extremes,
            shape=self.shape,
            report=self.data.report,
            num_train_rows=len(self.data.train),
            single_reason=self.single_reason,
            notes=tuple(self.notes),
        )


def check_sweep(
    config: SweepConfig, space: SearchSpace, *, is_resume: bool = False, tell: Tell = say_nothing
) -> Preflight:
    """Reads base config, tokenizer and data, and holds the space against them.

    Args:
        config: The sweep's.
        space: The sweep's.
        is_resume: Whether the space has all the points that its sweep began with.
        tell: Is told how far the data is, where it takes long.

    Raises:
        QloraRayError: The first thing that is wrong, with what to do.
    """
    from qlora_ray.scoring.metrics.choice import check_references, resolve_data_metrics
    from qlora_ray.tracking.table import check_trackers

    check_trackers(config.results.report_to)
    # One commit for the whole sweep, on every node, and for its resumes: a branch of the hub may move meanwhile.
    config = config.model_copy(update={"model": pin_revision(config.model)})
    shape = read_shape(config.model)
    extremes = space.extremes(config)
    stored_notes = _find_stored(config, shape, [corner.lora for corner in extremes])
    # Before the rows, which may take minutes.
    check_headers(config.model, shape)
    skeleton = build_skeleton(config.model)
    check_weights_fit(config.model, shape)
    tokenizer = load_tokenizer(config.model)
    data = prepare_data(
        config.data, tokenizer=tokenizer, data_seed=config.training.data_seed, heads=config.heads, tell=tell
    )
    # The largest batch, of the fewest steps, is among them.
    for corner in space.schedules(config):
        budget = make_budget(corner.training, num_train_rows=len(data.train), num_reports=config.search.num_reports)
        check_schedule(corner.training, num_steps=budget.num_steps)
    shape = count_shape(skeleton, shape)
    choices = [corner.lora for corner in extremes]
    check_targets(skeleton, choices)
    single_reason = find_packing_problem(skeleton, choices)
    metrics, reason = resolve_data_metrics(config, data)
    for split in (data.validation, data.test):
        if split is not None:
            check_references(split, metrics, num_rows=config.evaluate.max_rows)
    unused = describe_unused(config.search, space)
    notes = _find_token_budget(config, shape, data, tokenizer) if metrics else []
    if not is_resume:
        space = add_recommended_points(space, config, shape, num_train_rows=len(data.train))
    return Preflight(config, space, extremes, shape, data, reason, unused, single_reason, [*stored_notes, *notes])


def add_recommended_points(
    space: SearchSpace, config: SweepConfig, shape: ModelShape, *, num_train_rows: int
) -> SearchSpace:
    """The space with the recommended setting of its base, and rates beside it, to be tried after its own points.

    Args:
        space: The sweep's.
        config: The sweep's.
        shape: Of the base.
        num_train_rows: Rows of an epoch.
    """
    if not config.search.recommended_first or SAMPLERS[config.search.sampler].visits_grid:
        return space
    sizes = {"num_parameters": shape.num_parameters, "hidden_size": shape.hidden_size}
    # The batch of the recommended trial decides on its steps, and these on its rate.
    (point, *_) = find_first_points(space, config, recommend(**sizes).settings)
    try:
        training = apply_values(config, point).training
    except ConfigError:
        # Values that do not go together: the sampler's own draws of them fail as trials, and no more begins with them.
        return space
    num_steps = make_budget(training, num_train_rows=num_train_rows, num_reports=config.search.num_reports).num_steps
    points = find_first_points(space, config, recommend(**sizes, num_steps=num_steps).settings)
    return replace(space, recommended_points=points)


def _find_stored(config: SweepConfig, shape: ModelShape, choices: list[Lora]) -> list[str]:
    """What to know of a base that is stored quantized; raises ModelError where it cannot be trained as it is."""
    if shape.stored is None:
        return []
    # Which precision is right is found on each node; whether the libraries are there is the same for all.
    specify_stored(shape.stored, compute_dtype="fp32", where=f"model.name: {config.model.name}")
    check_adapters(shape.stored, choices)
    words = f"model.name: the base is stored in {shape.stored.describe()}, and is trained so"
    return [f"{words}; model.quantization is not used"]


def _find_token_budget(
    config: SweepConfig, shape: ModelShape, data: PreparedData, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """What answers to the verdict's rows have no room for: found at the start, and not when training is paid for."""
    from qlora_ray.scoring.token_budget import (
        count_reference_tokens,
        find_limit,
        measure_token_budget,
        resolve_max_new_tokens,
    )

    split = data.validation if data.test is None else data.test
    evaluate = config.evaluate
    reference_tokens = count_reference_tokens(split, tokenizer=tokenizer)
    room = measure_token_budget(
        split.prompt_ids[: evaluate.max_rows],
        max_new_tokens=resolve_max_new_tokens(evaluate.max_new_tokens, reference_tokens),
        limit=find_limit(shape.max_position_embeddings, evaluate.max_length),
        reference_tokens=reference_tokens[: evaluate.max_rows],
    )
    return room.notes(split.name)


def plan_sweep(preflight: Preflight, nodes: list[NodeProfile]) -> Plan:
    """The placement of the largest trial the space can propose, on these nodes; see `planning.plan_facts`."""
    return plan_facts(preflight.plan_facts, nodes)
