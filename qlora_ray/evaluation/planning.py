"""Everything about an evaluation that is decided, and can be found wrong, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Model, SweepConfig
from qlora_ray.data import PreparedData, TokenizedSplit, prepare_data
from qlora_ray.errors import ConfigError, ModelError, PlacementError
from qlora_ray.evaluation.custom import load_metric
from qlora_ray.evaluation.generation import count_limited, max_positions
from qlora_ray.evaluation.intent import TRUST, is_overridden
from qlora_ray.evaluation.lineup import Lineup, hash_adapter, make_lineup
from qlora_ray.evaluation.lm_eval import check_installed
from qlora_ray.evaluation.measurement import Metric
from qlora_ray.evaluation.metrics import check_references, resolve_data_metrics, resolve_metrics
from qlora_ray.evaluation.notes import note_weaknesses
from qlora_ray.evaluation.prompting import PromptSet, choose_split, make_file_set, make_prompt_sets
from qlora_ray.evaluation.subjects import MODEL_NAMES, ModelName, Request, Subject, find_subject
from qlora_ray.hardware import DeviceProfile, probe_node
from qlora_ray.hardware.probe import find_versions
from qlora_ray.modeling.identity import check_weights
from qlora_ray.modeling.loading import cannot_load, load_tokenizer, resolve_model_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Packages whose release can change a number.
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        models: Which of base, adapter and merged; None: all there are.
        num_rows: The first so many rows of the split, all of them answered; None: all, answered as far as
            `evaluate.max_rows`.
        prompt_files: Prompts to be answered besides.
        metrics: `file.py:Class` of metrics of the user's own.
        tasks: Tasks of the lm-evaluation-harness.
        to: The folder; None: beside the target.
        fresh: Whether to forget what an earlier run left there.
    """

    target: str
    request: Request = field(default_factory=Request)
    models: Sequence[str] | None = None
    split: str = "auto"
    num_rows: int | None = None
    prompt_files: Sequence[str] = ()
    metrics: Sequence[str] = ()
    tasks: Sequence[str] = ()
    to: Path | None = None
    fresh: bool = False
    needs_verdict: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before a model is loaded.

    Attributes:
        names: The models, in the order they are run.
        rows: The split, as evaluation.json has it.
        metrics: By prompt set, the deciding one first.
        limited: By prompt set: how many prompts are cut, and how many answers are short of tokens.
        notes: What the user should know, in words.
    """

    subject: Subject
    names: list[ModelName]
    lineup: Lineup
    rows: dict[str, Any]
    sets: list[PromptSet]
    metrics: dict[str, list[Metric]]
    metrics_reason: str
    limited: dict[str, tuple[int, int]]
    notes: list[str]

    @property
    def config(self) -> SweepConfig:
        """The config the evaluation goes by."""
        return self.subject.config


def make_plan(options: Options) -> Plan:
    """Finds the target, its rows, prompts and metrics.

    Raises:
        QloraRayError: The first thing that is wrong, with what to do.
    """
    if options.tasks:
        check_installed()
    subject = find_subject(options.target, options.request)
    names = _choose_models(options, subject)
    config = subject.config
    try:
        lineup = make_lineup(subject, names, device=_choose_device())
        main = subject.base if subject.base is not None else lineup.merged_model
        tokenizer = load_tokenizer(main)
        _check_merged(lineup, names, tokenizer)
        positions = _read_max_positions(main)
    except ModelError as error:
        # That its code may not run can be why it cannot be loaded.
        distrusted = [note for note in subject.notes if note.startswith(TRUST)]
        raise ModelError(" ".join([str(error), *(f"Note: {note}." for note in distrusted)])) from None
    prepared = prepare_data(config.data, tokenizer=tokenizer, data_seed=config.training.data_seed)
    split, reason = choose_split(prepared, options.split)
    asked = _Asked(options, config, tokenizer, positions, [load_metric(one) for one in options.metrics])
    sets, metrics, words = asked.rows(split, prepared)
    for name in options.prompt_files:
        one, scored_by = asked.file(name)
        if one.name in metrics:
            raise ConfigError(f"--prompts {name}: there is a set called {one.name} already. Rename the file.")
        sets.append(one)
        metrics[one.name] = scored_by
    if not sets and not options.tasks:
        raise ConfigError("--split none: leaves nothing to evaluate. Name --prompts or --lm-eval tasks.")
    for one in sets:
        check_references(one.rows, metrics[one.name], num_rows=one.num_answered)
    limited = {one.name: asked.count_limited(one) for one in sets}
    num_rows = len(sets[0].rows) if split is not None else 0
    rows = {
        "split": split.name if split is not None else None,
        "reason": reason,
        "num_rows": num_rows,
        "fingerprint": prepared.report.fingerprint,
    }
    notes = [*subject.notes, *note_weaknesses(subject, prepared, split, sets, limited)]
    return Plan(subject, names, lineup, rows, sets, metrics, words, limited, notes)


@dataclass(frozen=True)
class _Asked:
    """Makes prompt sets, and says what each is scored by."""

    options: Options
    config: SweepConfig
    tokenizer: PreTrainedTokenizerBase
    max_positions: int | None
    custom: list[Metric]

    def rows(
        self, split: TokenizedSplit | None, prepared: PreparedData
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
            evaluate=config.evaluate,
            tokenizer=self.tokenizer,
            max_positions=self.max_positions,
            max_rows=self.options.num_rows,
        )
        if not metrics:
            made = [replace(one, num_answered=0) for one in made]
        return made, {one.name: metrics for one in made}, reason

    def file(self, name: str) -> tuple[PromptSet, list[Metric]]:
        """A prompt file, and its metrics: none without references, unless this command asked for some."""
        prompts = make_file_set(name, data=self.config.data, tokenizer=self.tokenizer, max_positions=self.max_positions)
        overrides = self.options.request.overrides
        evaluate = self.config.evaluate
        if prompts.has_references:
            references = prompts.rows.references
            is_asked = any(is_overridden(overrides, key) for key in ("evaluate.metrics", "evaluate.database"))
            if evaluate.metrics == "auto" and not is_asked:
                # The database is of the data's questions: those of a file need not be about it.
                evaluate = evaluate.model_copy(update={"database": None})
            metrics, _ = resolve_metrics(
                evaluate,
                trains_on_embedded=False,
                has_references=True,
                references=references,
                custom=self.custom,
            )
            return prompts, metrics
        if self.custom or is_overridden(overrides, "evaluate.metrics"):
            raise ConfigError(
                f"--prompts {name}: metrics need a reference in every row, and the file lacks some. "
                "Add a reference to each, or ask for no metric."
            )
        return prompts, []

    def count_limited(self, prompts: PromptSet) -> tuple[int, int]:
        """How many prompts are cut, and how many answers are short of tokens."""
        asked = prompts.rows.prompt_ids[: prompts.num_answered]
        return count_limited(asked, limit=self.max_positions, max_new_tokens=self.config.evaluate.max_new_tokens)


def _choose_models(options: Options, subject: Subject) -> list[ModelName]:
    asked = list(options.models) if options.models is not None else list(subject.available)
    for name in asked:
        if name not in MODEL_NAMES:
            raise ConfigError(f"--models: must be of {', '.join(MODEL_NAMES)}, got {name}. Correct the name.")
        if name not in subject.available:
            advice = "Name one with --merged DIR" if name == "merged" else "Give a sweep or an adapter folder"
            raise ConfigError(
                f"--models {name}: {subject.path} must have such a model, got {', '.join(subject.available)} only. "
                f"{advice}, or leave {name} out."
            )
    if not asked:
        raise ConfigError(f"--models: must name one of {', '.join(subject.available)}, got none. Name one.")
    names: list[ModelName] = [name for name in MODEL_NAMES if name in asked]
    if options.needs_verdict and ("base" not in names or len(names) == 1 or options.split == "none"):
        raise ConfigError(
            f"--require-improvement: needs the base and an adapter or merged model on rows, got {', '.join(names)} on "
            f"split {options.split}. Name more --models, or leave it out."
        )
    return names


def _choose_device() -> DeviceProfile:
    """The first device that can run models; this machine's CPU where it has no GPU."""
    devices = probe_node().devices
    fit = [device for device in devices if device.problem is None]
    if not fit:
        raise PlacementError(f"evaluation: {devices[0].name} cannot be used: {devices[0].problem}.")
    return fit[0]


def _read_max_positions(model: Model) -> int | None:
    from transformers import AutoConfig

    name = resolve_model_name(model.name)
    try:
        config = AutoConfig.from_pretrained(name, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise cannot_load("model.name", name, error) from None
    return max_positions(config)


def _check_merged(lineup: Lineup, names: Sequence[ModelName], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError if the merged model is broken, or reads tokens otherwise than the base: rows are tokenized
    once."""
    if "merged" not in names or lineup.subject.base is None:
        return
    for weights in sorted(Path(lineup.merged_model.name).glob("*.safetensors")):
        # Found now, not after the base and the adapter have answered.
        check_weights(weights)
    own = load_tokenizer(lineup.merged_model)
    if own.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"{lineup.subject.merged}: must have the tokenizer of its base, got {len(own.get_vocab())} tokens for "
            f"{len(tokenizer.get_vocab())}. Merge it again, or evaluate it by itself."
        )


def describe_settings(plan: Plan) -> dict[str, Any]:
    """Returns all that changes answers or losses, for settings.json."""
    evaluate, subject = plan.config.evaluate, plan.subject
    facts = plan.lineup.to_dict(plan.names)
    versions = find_versions()
    return {
        "path": subject.path,
        "target": {
            "kind": subject.kind,
            "trial": subject.trial,
            "adapter": hash_adapter(subject.adapter) if subject.adapter is not None else None,
        },
        "evaluate": {
            "max_new_tokens": evaluate.max_new_tokens,
            "batch_size": evaluate.batch_size,
            "per_device_eval_batch_size": plan.config.training.per_device_eval_batch_size,
            "shot_seed": evaluate.shot_seed,
        },
        "device": {"name": plan.lineup.device.name, "precision": plan.lineup.precision.name},
        "versions": {name: versions.get(name) for name in VERSIONS},
        "models": facts,
        "prompts": {one.name: one.to_dict() for one in plan.sets},
    }
