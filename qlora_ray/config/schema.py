"""The typed config of a sweep.

Names follow Hugging Face `TrainingArguments` and PEFT's `LoraConfig` where these have one, so that a value
read in a paper or a model card can be typed here as it stands. Unknown keys are errors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from qlora_ray.config.choices import FORMATS, METRICS, SAMPLERS, SCHEDULERS, OneOf
from qlora_ray.config.durations import Duration
from qlora_ray.config.field_types import (
    MAX_SECONDS,
    ClassName,
    Fraction,
    ModuleName,
    Place,
    PositiveFloat,
    PositiveInt,
    ResourceName,
    ScheduleOption,
    Seconds,
    Seed,
)
from qlora_ray.config.heads import Head, HeadName
from qlora_ray.config.outputs import Export, Results
from qlora_ray.config.section import Section

# Passes over a source in one epoch: each row of each is listed.
MAX_WEIGHT = 1_000
# Ten years of ten thousand GPUs.
MAX_GPU_HOURS = 10_000 * MAX_SECONDS / 3600
# Each is an evaluation; rungs are counted one by one, and one that lets nearly all go on makes millions of them.
MAX_REPORTS, MIN_REDUCTION = 100_000, 1.01
# No layer is so wide: a higher rank than the width adds nothing.
MAX_RANK = 65_536
TARGET_PRESETS = ("attention-qv", "attention", "all-linear")
# What products are computed in.
Precision = Literal["bf16", "fp16", "fp32"]
# Ray's own names of resources; any other is one that nodes were started with.
RAY_RESOURCES = ("CPU", "GPU", "TPU", "memory", "object_store_memory")
_RAY_RESOURCES_BY_WORD = {name.lower(): name for name in RAY_RESOURCES}
ObjectiveName = Literal["eval_loss", "trainable_parameters"]


class Quantization(Section):
    """How the frozen base is stored (QLoRA: NF4 with double quantization, arXiv 2305.14314)."""

    method: Literal["nf4", "fp4", "int8", "none"] = "nf4"
    double_quantization: bool = True


class Model(Section):
    """The base every trial shares."""

    name: Place = Field("embedded", description="`embedded`, a folder, or a Hugging Face hub id.")
    revision: Place | None = Field(None, description="Branch, tag or commit on the hub.")
    trust_remote_code: bool = False
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    quantization: Quantization = Quantization()


class Columns(Section):
    """Two named columns of a dataset: what is asked, and what is to be answered."""

    prompt: str
    completion: str

    @model_validator(mode="after")
    def _columns_differ(self) -> Columns:
        if self.prompt == self.completion:
            raise ValueError(f"prompt and completion must be two columns, got {self.prompt!r} for both")
        return self


class WeightedSource(Section):
    """One of several sources of training rows."""

    source: Place
    weight: Annotated[float, Field(gt=0, le=MAX_WEIGHT)] = Field(
        1.0, description="Passes over its rows in one epoch: 2 twice, 0.5 half of them."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_name_weighs_one(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value


class Data(Section):
    """Where rows come from and how they become tokens."""

    train: Place | Annotated[list[WeightedSource], Field(min_length=1)] = Field(
        "embedded", description="`embedded`, a json/jsonl/csv/parquet file, or a hub id; or a list of such, weighted."
    )
    validation: Place | Fraction | None = Field(
        None,
        description="A file or hub split, or the fraction of train held out. Null: the dataset's own, else 0.1.",
    )
    test: Place | None = None
    format: Annotated[str, OneOf(FORMATS, also=("auto",))] = "auto"
    columns: Columns | None = None
    template: str = Field(
        "auto", description="`auto`, `chat`, `instruction`, `raw`, or text of your own with {prompt} in it."
    )
    system_prompt: str | None = None
    bad_rows: Literal["fail", "skip"] = Field(
        "fail", description="skip: leave bad rows out and count them, up to a tenth of a source."
    )
    max_length: PositiveInt = Field(512, description="Tokens per sample; longer ones are cut and counted.")
    max_train_rows: PositiveInt | None = None
    max_validation_rows: PositiveInt | None = None
    max_test_rows: PositiveInt | None = None
    loss: Literal["completion", "all"] = Field("completion", description="Tokens trained: answers, or whole rows.")
    row_choice: Literal["sample", "first"] = Field(
        "sample", description="Rows a `max_..._rows` or evaluate.max_rows takes: by training.data_seed, or the first."
    )

    @field_validator("validation")
    @classmethod
    def _fraction_is_positive(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, float) and value == 0:
            raise ValueError("must be a file or a fraction above 0: trials are compared on validation rows")
        return value

    @field_validator("template")
    @classmethod
    def _template_has_prompt(cls, value: str) -> str:
        if value not in ("auto", "chat", "instruction", "raw") and "{prompt}" not in value:
            raise ValueError("must be auto, chat, instruction, raw, or a text with {prompt} in it")
        return value

    @model_validator(mode="after")
    def _columns_match_format(self) -> Data:
        if self.format == "columns" and self.columns is None:
            raise ValueError(
                "columns must be given when format is columns, e.g. {prompt: question, completion: answer}"
            )
        if self.columns is not None and self.format not in ("auto", "columns"):
            raise ValueError(f"columns and format {self.format!r} exclude each other; drop one")
        return self


class Lora(Section):
    """The adapter, in PEFT's names. `alpha_ratio` is lora_alpha / r, which searches better than alpha itself."""

    r: Annotated[int, Field(gt=0, le=MAX_RANK)] = 16
    lora_alpha: PositiveFloat | None = None
    alpha_ratio: PositiveFloat | None = None
    lora_dropout: Fraction = 0.05
    target_modules: str | list[ModuleName] = "all-linear"
    bias: Literal["none"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: list[ModuleName] | None = None

    @field_validator("target_modules")
    @classmethod
    def _targets_are_known(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str) and value not in TARGET_PRESETS:
            raise ValueError(f"must be one of {', '.join(TARGET_PRESETS)}, or a list of module names")
        if not value:
            raise ValueError("must name at least one module")
        return value

    @model_validator(mode="after")
    def _one_alpha(self) -> Lora:
        if self.lora_alpha is not None and self.alpha_ratio is not None:
            raise ValueError("lora_alpha and alpha_ratio exclude each other; drop one")
        return self

    @property
    def resolved_alpha(self) -> float:
        """The lora_alpha that trains: as given, else alpha_ratio * r, else 2 * r."""
        if self.lora_alpha is not None:
            return self.lora_alpha
        return (2.0 if self.alpha_ratio is None else self.alpha_ratio) * self.r


class Training(Section):
    """One trial's training, in TrainingArguments' names.

    The effective batch, per_device_train_batch_size * gradient_accumulation_steps, is the trial's; how many
    rows go through the device at once is the placement's.
    """

    learning_rate: PositiveFloat = 2e-4
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "linear"
    lr_scheduler_kwargs: dict[ScheduleOption, float | str] = Field(
        {}, description="Options of the schedule, in transformers' names; each schedule takes those that it knows."
    )
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.05
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(None, description="Overrides warmup_ratio.")
    per_device_train_batch_size: PositiveInt = 1
    gradient_accumulation_steps: PositiveInt = 8
    per_device_eval_batch_size: PositiveInt = 8
    num_train_epochs: PositiveFloat = 3.0
    max_samples: PositiveInt | None = Field(
        None, description="Samples a trial sees in all; overrides num_train_epochs."
    )
    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "paged_adamw_8bit"
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="0 turns clipping off.")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="Recompute activations; auto: where a device class has too little memory without."
    )
    logging_steps: PositiveInt = Field(10, description="Steps between two points of the training loss's curve.")
    precision: Literal["auto", Precision] = Field(
        "auto", description="auto: bf16 at compute capability >= 8, fp16 at >= 7; else, and on a CPU, fp32."
    )
    seed: Seed = Field(7, description="Adapter initialization and dropout.")
    data_seed: Seed = Field(7, description="Order of samples and the validation split.")

    @property
    def effective_batch(self) -> int:
        """Samples per optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def recomputes(self, *, planned: bool) -> bool:
        """Whether activations are recomputed: as the trial says, else as planned for the device."""
        return planned if self.gradient_checkpointing == "auto" else self.gradient_checkpointing


class Search(Section):
    """Which trials run, and which are stopped."""

    space: Place | dict[str, object] = Field(
        "search_spaces/rank_alpha_lr.yaml", description="A file, or the space itself."
    )
    num_trials: PositiveInt = 12
    time_budget: Duration | None = Field(None, description="No trial begins after it, as 90m, 2h, 1d, or seconds.")
    gpu_hours: Annotated[float, Field(gt=0, le=MAX_GPU_HOURS)] | None = Field(
        None, description="Nor after so many hours of all devices together."
    )
    sampler: Annotated[str, OneOf(SAMPLERS)] = "tpe"
    recommended_first: bool = Field(
        True, description="Try the recommended setting of the base first, then learning rates beside it."
    )
    num_startup_trials: PositiveInt = Field(5, description="Random trials before tpe, cma-es and gp model anything.")
    scheduler: Annotated[str, OneOf(SCHEDULERS)] = "asha"
    num_reports: Annotated[int, Field(gt=0, le=MAX_REPORTS)] = Field(
        4, description="Reports per trial, at equal samples seen."
    )
    grace_reports: PositiveInt = Field(1, description="No trial is stopped before this many reports.")
    reduction_factor: Annotated[float, Field(ge=MIN_REDUCTION)] = 3.0
    objectives: dict[ObjectiveName, Literal["min", "max"]] = Field(
        {"eval_loss": "min"}, description="eval_loss, which decides the winner, and what else to search for."
    )
    seed: Seed = 7
    final_seeds: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="New seeds that each of the best evaluate.top_k trials is trained with before one wins; 0: none."
    )

    @model_validator(mode="after")
    def _objectives_fit_sampler(self) -> Search:
        if not 1 <= len(self.objectives) <= 2:
            raise ValueError("objectives must name one metric, or two")
        if len(self.objectives) > SAMPLERS[self.sampler].max_objectives:
            *most, last = (name for name, sampler in SAMPLERS.items() if sampler.max_objectives > 1)
            raise ValueError(f"two objectives need sampler {', '.join(most)} or {last}, got {self.sampler}")
        if len(self.objectives) == 2 and self.scheduler != "none":
            raise ValueError("two objectives need scheduler none: a stop would compare one of them only")
        if self.grace_reports > self.num_reports:
            raise ValueError(f"grace_reports must be <= num_reports, got {self.grace_reports} > {self.num_reports}")
        if next(iter(self.objectives)) != "eval_loss" or self.objectives["eval_loss"] != "min":
            raise ValueError("the first objective must be eval_loss: min, which decides the winner")
        return self


class Cluster(Section):
    """Where trials run, and how many share a device."""

    address: str | None = Field(None, description="A running Ray cluster (auto, host:port); null starts one here.")
    packing: Literal["auto", "packed", "single", "off"] = Field(
        "auto",
        description="packed: many trials on one base, in one process per device; single: several processes per device, "
        "with one trial each, as memory allows; off: one trial per device; auto: packed where the trials allow "
        "it, else single.",
    )
    slots_per_device: PositiveInt | None = Field(None, description="Overrides the planner's number.")
    max_slots: PositiveInt | None = Field(None, description="Trials at once over the whole cluster.")
    max_gpus: PositiveInt | None = Field(None, description="GPUs used over the whole cluster, the largest first.")
    gpu_classes: Annotated[list[ClassName], Field(min_length=1)] | None = Field(
        None, description="Only GPUs of these classes are used: T4, A100-40, ...; A100 is any A100."
    )
    prefer_gpu_classes: Annotated[list[ClassName], Field(min_length=1)] | None = Field(
        None, description="GPUs of these classes come first where max_gpus or max_slots leaves some out."
    )
    simulate: bool = Field(
        False, description="Nodes without GPUs that claim a GPU class (Ray's resources) are planned as if they had it."
    )
    simulated_limits_gib: dict[ClassName, PositiveFloat] = Field(
        {}, description="Memory that simulated devices of a class turn out to have, whatever was planned."
    )
    cpus_per_slot: PositiveInt | None = Field(None, description="CPU threads of one trial. Null: the planner's.")
    memory_safety_factor: Annotated[float, Field(ge=1, le=3)] = 1.1
    lease_timeout_s: Seconds = Field(60.0, description="A trial nobody asks for this long loses its slot.")
    heartbeat_timeout_s: Seconds = Field(
        60.0, description="An executor that answers nothing for this long is killed and replaced."
    )
    progress_timeout_s: Seconds = Field(
        1800.0, description="So is one that trains, starts or scores, and makes no progress for this long."
    )
    keep_trial_state: bool = Field(
        True, description="Write each trial's state at its reports, so that it can go on after a crash."
    )
    max_trial_retries: Annotated[int, Field(ge=0)] = 2
    scale_up: Annotated[dict[ResourceName, PositiveFloat], Field(min_length=1)] | None = Field(
        None,
        description="Ray's autoscaler is asked for devices while trials wait, and let go after; one device in Ray's "
        "words, as {GPU: 1}.",
    )
    drain_timeout_s: Seconds = Field(
        600.0, description="A node that drains without a deadline of its own ends its executors after this long."
    )
    ray_dashboard: bool = Field(False, description="A private Ray has its dashboard, and the link is printed.")
    idle_timeout_s: Seconds = Field(
        60.0, description="With scale_up: an executor that nobody has used for this long ends, so that its node can go."
    )

    @field_validator("scale_up")
    @classmethod
    def _scale_up_is_in_rays_words(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for name, amount in (value or {}).items():
            if name not in RAY_RESOURCES and name.lower() in _RAY_RESOURCES_BY_WORD:
                raise ValueError(f"must name resources as Ray does, {_RAY_RESOURCES_BY_WORD[name.lower()]}, got {name}")
            if amount > 1 and amount != int(amount):
                raise ValueError(f"must ask for whole numbers above 1, as Ray does, got {name}: {amount:g}")
        return value

    @field_validator("packing", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        # YAML 1.1 reads a bare `off` as false.
        return "off" if value is False else value


class Evaluate(Section):
    """How the winner is found among the best, and held against its base."""

    top_k: PositiveInt = Field(3, description="Best trials scored again on one device before one wins.")
    metrics: Literal["auto"] | list[Annotated[str, OneOf(METRICS)]] = "auto"
    database: Place | None = Field(None, description="SQLite file for sql_execution; `embedded` is the shipped one.")
    sql_dialect: str | None = Field(None, description="sqlglot's name of the dialect that sql_equivalent parses.")
    max_rows: PositiveInt | None = Field(
        100, description="Rows answered by generation, of validation or test; null: all."
    )
    max_new_tokens: Literal["auto"] | PositiveInt = Field(
        "auto", description="Tokens an answer may have; auto: as the longest reference, and a quarter more."
    )
    max_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Tokens of a prompt and its answer together; null: the model's positions."
    )
    batch_size: PositiveInt = 16
    shots: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, description="Worked examples before each question, drawn from train; one run per number."
    )
    shot_seed: Seed = Field(7, description="Which examples are drawn.")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0: greedy answers; above: sampled ones.")
    top_p: float = Field(1.0, gt=0, le=1, description="Share of probability that is sampled from.")
    sample_seed: Seed = Field(7, description="Draws of sampled answers, the same for every model.")

    @model_validator(mode="after")
    def _database_for_sql(self) -> Evaluate:
        needing = [name for name in self.metrics if METRICS[name].needs_database] if self.metrics != "auto" else []
        if needing and self.database is None:
            raise ValueError(f"{needing[0]} needs database, a SQLite file the queries run against")
        return self

    @model_validator(mode="after")
    def _top_p_for_samples(self) -> Evaluate:
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError("top_p needs a temperature above 0: at 0 answers are greedy, and nothing is drawn")
        return self


class SweepConfig(Section):
    """Everything a sweep is told."""

    model: Model = Model()
    data: Data = Data()
    lora: Lora = Lora()
    training: Training = Training()
    heads: dict[HeadName, Head] = Field({}, description="Auxiliary classifiers, by name.")
    search: Search = Search()
    cluster: Cluster = Cluster()
    evaluate: Evaluate = Evaluate()
    results: Results = Results()
    export: Export = Export()

    @model_validator(mode="after")
    def _paused_trials_keep_state(self) -> SweepConfig:
        if SCHEDULERS[self.search.scheduler].pauses and not self.cluster.keep_trial_state:
            raise ValueError(
                f"search.scheduler {self.search.scheduler} pauses trials: it needs cluster.keep_trial_state: true"
            )
        return self
