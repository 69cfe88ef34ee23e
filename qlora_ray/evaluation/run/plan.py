"""Everything about an evaluation that is decided, and can be found wrong, before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.heads import Head
from qlora_ray.config.reuse import explain_distrust, is_overridden
from qlora_ray.config.schema import Model, SweepConfig
from qlora_ray.data import PreparedData, TokenizedSplit
from qlora_ray.errors import ConfigError, ModelError, PlacementError
from qlora_ray.evaluation.lm_eval.tasks import TaskRequest, find_tasks
from qlora_ray.evaluation.models.load_plan import LoadPlan, hash_adapter, make_load_plan
from qlora_ray.evaluation.models.tokenizers import choose_tokenizer
from qlora_ray.evaluation.prompt_sets.sets import PromptSet, choose_split, make_file_set, make_prompt_sets
from qlora_ray.evaluation.run.labels import prepare_labelled
from qlora_ray.evaluation.run.notes import note_weaknesses
from qlora_ray.evaluation.run.options import Options, check_options, choose_models
from qlora_ray.evaluation.target.finding import find_target
from qlora_ray.evaluation.target.target import ModelName, Target
from qlora_ray.hardware import DeviceProfile, probe_node
from qlora_ray.hardware.probe import find_versions
from qlora_ray.modeling.auxiliary_heads import TrainedHead, load_heads
from qlora_ray.modeling.identity import check_weights
from qlora_ray.modeling.loading import cannot_load, load_tokenizer, resolve_model_name
from qlora_ray.scoring.metrics.choice import check_references, resolve_data_metrics, resolve_metrics
from qlora_ray.scoring.metrics.custom import load_metric
from qlora_ray.scoring.metrics.eq_bench import holds_ratings
from qlora_ray.scoring.metrics.metric import Metric, needs_references
from qlora_ray.scoring.sampling import choose_sampling
from qlora_ray.scoring.token_budget import (
    TokenBudget,
    count_reference_tokens,
    find_limit,
    measure_token_budget,
    read_positions,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Packages whose release can change a number.
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before a model is loaded.

    Attributes:
        names: The models, in the order they are run.
        rows: The split, as evaluation.json has it.
        metrics: By prompt set, the deciding one first.
        limited: The token budget of each prompt set.
        notes: Sentences for the user, of the target, the loading and the rows.
    """

    target: Target
    names: list[ModelName]
    load_plan: LoadPlan
    rows: dict[str, Any]
    sets: list[PromptSet]
    metrics: dict[str, list[Metric]]
    metrics_reason: str
    limited: dict[str, TokenBudget]
    notes: list[str]
    tasks: TaskRequest
    heads: Sequence[TrainedHead] = ()

    @property
    def config(self) -> SweepConfig:
        """The config the evaluation goes by."""
        return self.target.config


def make_plan(options: Options) -> Plan:
    """Finds the target, its rows, prompts and metrics.

    Raises:
        QloraRayError: The first thing that is wrong, with what to do.
    """
    check_options(options)
    target = find_target(options.target, options.request)
    names = choose_models(options, target)
    config = target.config
    try:
        load_plan = make_load_plan(target, names, device=_choose_device())
        main = target.base if target.base is not None else load_plan.merged_model
        tokenizer, remarks = choose_tokenizer(target, load_tokenizer(main))
        load_plan = replace(load_plan, tokenizer=tokenizer, notes=[*load_plan.notes, *remarks])
        _check_merged(load_plan, names, tokenizer)
        main_config = _read_config(main)
        positions = read_positions(main_config)
    except ModelError as error:
        raise ModelError(explain_distrust(error, target.notes)) from None
    tasks = TaskRequest(
        tasks=options.tasks,
        num_fewshot=options.task_shots,
        limit=options.num_rows,
        batch_size=config.evaluate.batch_size,
        seed=config.evaluate.shot_seed,
    )
    if options.tasks:
        find_tasks(tasks)
    width = getattr(main_config.get_text_config(), "hidden_size", None)
    heads = load_heads(target.adapter, hidden_size=width) if target.adapter is not None else []
    prepared, labels, head_notes = prepare_labelled(config, heads, tokenizer)
    split, reason = choose_split(prepared, options.split)
    asked = _Asked(options, config, tokenizer, positions, [load_metric(place) for place in options.metrics])
    sets, metrics, words = asked.rows(split, prepared, labels)
    notes = [*target.notes, *load_plan.notes, *head_notes]
    if options.tasks and options.task_shots is None and is_overridden(options.request.overrides, "evaluate.shots"):
        notes.append("--shots is of the data's rows: lm-eval tasks keep their own number, which --lm-eval-shots sets")
    for name in options.prompt_files:
        prompts, scored_by, remarks = asked.file(name)
        notes += remarks
        if prompts.name in metrics:
            raise ConfigError(f"--prompts {name}: there is a set called {prompts.name} already. Rename the file.")
        sets.append(prompts)
        metrics[prompts.name] = scored_by
    if not sets and not options.tasks:
        raise ConfigError("--split none: leaves nothing to evaluate. Name --prompts or --lm-eval tasks.")
    for prompts in sets:
        check_references(prompts.rows, metrics[prompts.name], num_rows=prompts.num_answered)
    limited = {prompts.name: asked.measure_token_budget(prompts) for prompts in sets}
    num_rows = len(sets[0].rows) if split is not None else 0
    rows = {
        "split": split.name if split is not None else None,
        "reason": reason,
        "num_rows": num_rows,
        "fingerprint": prepared.report.fingerprint,
    }
    notes += note_weaknesses(target, prepared, split, sets, limited)
    return Plan(target, names, load_plan, rows, sets, metrics, words, limited, notes, tasks, heads)


@dataclass(frozen=True)
class _Asked:
    """Makes prompt sets, and says what each is scored by."""

    options: Options
    config: SweepConfig
    tokenizer: PreTrainedTokenizerBase
    max_positions: int | None
    custom: list[Metric]

    def rows(
        self, split: TokenizedSplit | None, prepared: PreparedData, labels: Mapping[str, Head]
    ) -> tuple[list[PromptSet], dict[str, list[Metric]], str]:
        """The split's rows for each number of shots, the metrics of each, and why these."""
        if split is None:
            return [], {}, "no metrics: no rows"
        config = self.config
        metrics, reason = resolve_data_metrics(config, prepared, custom=self.custom)
        made = make_prompt_sets(
            split,
            data=config.data,
            data_seed=config.training.data_seed,
            heads=labels,
            evaluate=config.evaluate,
            tokenizer=self.tokenizer,
            max_positions=self.max_positions,
            max_rows=self.options.num_rows,
        )
        if not metrics:
            made = [replace(prompts, num_answered=0) for prompts in made]
        return made, {prompts.name: metrics for prompts in made}, reason

    def file(self, name: str) -> tuple[PromptSet, list[Metric], list[str]]:
        """A prompt file, its metrics, and what to know of it; without references, metrics that need none."""
        overrides = self.options.request.overrides
        evaluate = self.config.evaluate
        prompts = make_file_set(
            name,
            data=self.config.data,
            tokenizer=self.tokenizer,
            max_positions=self.max_positions,
            max_new_tokens=evaluate.max_new_tokens,
            max_length=evaluate.max_length,
        )
        # Of the whole file, so that the rest of it is scored alike.
        references, num_prompts = prompts.rows.references, len(prompts.rows)
        remarks = []
        if self.options.max_prompts is not None and self.options.max_prompts < num_prompts:
            prompts = prompts.first(self.options.max_prompts)
            remarks.append(f"{prompts.name}: the first {len(prompts.rows)} of {num_prompts} prompts, by --max-prompts")
        if prompts.has_references:
            is_asked = any(is_overridden(overrides, key) for key in ("evaluate.metrics", "evaluate.database"))
            is_rated = all(holds_ratings(reference) for reference in references)
            if (evaluate.metrics == "auto" or is_rated) and not is_asked:
                # Metrics and database are of the data's questions: those of a file need not be about it.
                evaluate = evaluate.model_copy(update={"metrics": "auto", "database": None})
            metrics, _ = resolve_metrics(
                evaluate,
                trains_on_embedded=False,
                has_references=True,
                references=references,
                custom=self.custom,
            )
            return prompts, metrics, remarks
        if is_overridden(overrides, "evaluate.metrics") and evaluate.metrics not in ("auto", []):
            raise ConfigError(
                f"--prompts {name}: metrics need a reference in every row, and the file lacks some. "
                "Add a reference to each, or ask for no metric."
            )
        left_out = [metric.name for metric in self.custom if needs_references(metric)]
        remarks += [
            f"{prompts.name}: not scored by {metric}, which needs a reference in every row" for metric in left_out
        ]
        return prompts, [metric for metric in self.custom if not needs_references(metric)], remarks

    def measure_token_budget(self, prompts: PromptSet) -> TokenBudget:
        """Returns the token budget of a set's prompts, answers and references."""
        num_rows = prompts.num_answered if prompts.has_references else 0
        return measure_token_budget(
            prompts.rows.prompt_ids[: prompts.num_answered],
            max_new_tokens=prompts.max_new_tokens,
            limit=find_limit(self.max_positions, self.config.evaluate.max_length),
            reference_tokens=count_reference_tokens(prompts.rows, tokenizer=self.tokenizer, num_rows=num_rows),
        )


def _choose_device() -> DeviceProfile:
    """The first device that can run models; this machine's CPU where it has no GPU."""
    devices = probe_node().devices
    fit = [device for device in devices if device.problem is None]
    if not fit:
        raise PlacementError(f"evaluation: {devices[0].name} cannot be used: {devices[0].problem}.")
    return fit[0]


def _read_config(model: Model) -> PretrainedConfig:
    from transformers import AutoConfig

    name = resolve_model_name(model.name)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            name, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:
        raise cannot_load("model.name", name, error) from None
    return config


def _check_merged(load_plan: LoadPlan, names: Sequence[ModelName], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError if the merged model is broken, or reads tokens otherwise than the base: rows are tokenized
    once."""
    if "merged" not in names or load_plan.target.base is None:
        return
    for weights in sorted(Path(load_plan.merged_model.name).glob("*.safetensors")):
        # Found now, not after the base and the adapter have answered.
        check_weights(weights)
    own = load_tokenizer(load_plan.merged_model)
    if own.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"{load_plan.target.merged}: must have the tokenizer of its base, got {len(own.get_vocab())} tokens for "
            f"{len(tokenizer.get_vocab())}. Merge it again, or evaluate it by itself."
        )


def describe_settings(plan: Plan) -> dict[str, Any]:
    """Returns all that changes answers or losses, for settings.json."""
    evaluate, target = plan.config.evaluate, plan.target
    facts = plan.load_plan.to_dict(plan.names)
    versions = find_versions()
    sampling = choose_sampling(evaluate)
    return {
        "path": target.path,
        "target": {
            "kind": target.kind,
            "trial": target.trial,
            "adapter": hash_adapter(target.adapter) if target.adapter is not None else None,
        },
        "evaluate": {
            "max_length": evaluate.max_length,
            "batch_size": evaluate.batch_size,
            "per_device_eval_batch_size": plan.config.training.per_device_eval_batch_size,
            "shot_seed": evaluate.shot_seed,
            "sampling": sampling.to_dict() if sampling is not None else None,
        },
        "device": {"name": plan.load_plan.device.name, "precision": plan.load_plan.precision.name},
        "versions": {name: versions.get(name) for name in VERSIONS},
        "models": facts,
        "prompts": {prompts.name: prompts.to_dict() for prompts in plan.sets},
    }
