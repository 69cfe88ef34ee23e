"""Settings by the size of the base, from what others measured and published; each value with its source.

docs/configuration.md, "Recommended settings", has what they would have lost on a study of 21 models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_ray.errors import ConfigError
from qlora_ray.formats import format_setting, format_table
from qlora_ray.search.space import SearchSpace

# The rule of tinker-cookbook (hyperparam_utils.py, get_lr, at 9dfcc3a2): ten times full fine-tuning's 5e-5 at a width
# of 2000, and less with width, by the exponent of its Llama fits. "LoRA Without Regret" has the factor of ten.
RULE_RATE = 5e-4
RULE_WIDTH = 2000
RULE_EXPONENT = 0.781
# "LoRA Without Regret": 15 times full fine-tuning's rate in short runs, 10 times it in longer ones. Where one ends and
# the other begins it does not say to the step: at about 100.
SHORT_RUN_STEPS = 100
SHORT_RUN_FACTOR = 1.5
BILLION = 10**9

# How reasons call their sources, and what these are.
QLORA, REGRET, COOKBOOK, RULE = "QLoRA", "LoRA Without Regret", "the sweeps", "the rule"
SOURCES: Mapping[str, str] = {
    QLORA: "arXiv 2305.14314, table 9 and appendix B.2; scripts of artidoro/qlora",
    REGRET: "Schulman and Thinking Machines Lab, 2025",
    COOKBOOK: "LoRA on 21 models, tulu3, batch 128, 780 steps, 16 bits: thinking-machines-lab/tinker-cookbook, "
    "sft_sweep.md at 9dfcc3a2",
    RULE: "5e-4 x (2000 / width)^0.781: tinker-cookbook, hyperparam_utils.py",
}


@dataclass(frozen=True)
class PublishedSetting:
    """A setting that others trained with. None: the source leaves it open.

    Attributes:
        source: Who published it.
        base: The base, as the source has it.
        effective_batch: Samples per optimizer step.
    """

    source: str
    base: str
    r: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float | None = None
    learning_rate: float | None = None
    effective_batch: int | None = None

    def cells(self) -> list[str]:
        """What the table of `plan --recommend` has of it."""
        values = (self.r, self.lora_alpha, self.lora_dropout, self.learning_rate, self.effective_batch)
        return [self.source, self.base, *("" if value is None else format_setting(value) for value in values)]


# By preset, where one has the setting as its first trial (configs/presets), else by a name of ours.
PUBLISHED: Mapping[str, PublishedSetting] = {
    "qlora-7b": PublishedSetting(QLORA, "LLaMA 7B and 13B", 64, 16, 0.1, 2e-4, 16),
    "qlora-33b": PublishedSetting(QLORA, "LLaMA 33B and 65B", 64, 16, 0.05, 1e-4, 16),
    "classicmodels": PublishedSetting("a text-to-SQL study", "Llama 3 8B Instruct", 32, 64, 0.05, 1e-4, 8),
    "qwen2.5-instruct": PublishedSetting("a training report", "Qwen2.5 1.5B Instruct", 16, 32, 0.05, 2e-4, 4),
    "qwen3": PublishedSetting("a pipeline's summary", "Qwen3 0.6B", 64, 16, 0.05),
}


@dataclass(frozen=True)
class Settings:
    """What is recommended, in the config's words."""

    r: int
    alpha_ratio: float
    lora_dropout: float
    learning_rate: float
    effective_batch: int
    target_modules: str = "all-linear"

    def values(self) -> dict[str, Any]:
        """Config path -> value. How many rows go through a device at once is the plan's."""
        return {
            "lora.r": self.r,
            "lora.alpha_ratio": self.alpha_ratio,
            "lora.lora_dropout": self.lora_dropout,
            "lora.target_modules": self.target_modules,
            "training.learning_rate": self.learning_rate,
            "training.per_device_train_batch_size": self.effective_batch,
            "training.gradient_accumulation_steps": 1,
        }


@dataclass(frozen=True)
class SizeClass:
    """Bases of up to so many parameters.

    Attributes:
        learning_rate: None: by the rule, from the base's width.
        rate_source: What the rate rests on.
        not_calibrated: What no source measured for bases of this size.
    """

    name: str
    most_parameters: float
    learning_rate: float | None
    lora_dropout: float
    rate_source: str
    not_calibrated: str


SIZE_CLASSES = (
    SizeClass(
        "up to 1 B",
        1 * BILLION,
        None,
        0.1,
        f"{RULE}, at this base's width",
        "The rule was fitted to bases from 1 B on. No table of ours has a smaller one.",
    ),
    SizeClass(
        "1 to 5 B",
        5 * BILLION,
        5e-4,
        0.1,
        f"{COOKBOOK}: 1e-3 is best for Llama 3.2 3B, 3e-4 for Qwen3.5 4B; {RULE} has 4.9e-4 at a width of 2048",
        "The sweeps were in 16 bits, at a batch of 128.",
    ),
    SizeClass(
        "5 to 16 B",
        16 * BILLION,
        3e-4,
        0.1,
        f"{COOKBOOK}: best for Llama 3.1 8B and both Qwen3.5 9B; {QLORA} has 2e-4",
        "The sweeps were in 16 bits, at a batch of 128.",
    ),
    SizeClass(
        "16 to 40 B",
        40 * BILLION,
        3e-4,
        0.05,
        f"{COOKBOOK}: best for Qwen3.6 27B; {QLORA} has 1e-4 for 33B",
        "One dense base of this size was swept, in 16 bits, at a batch of 128. If training is unsteady, try 1e-4.",
    ),
    SizeClass(
        "above 40 B",
        float("inf"),
        2e-4,
        0.05,
        f"{RULE} has 1.7e-4 at a width of 8192; {QLORA} has 1e-4 for 65B, and {COOKBOOK} 3e-4 for Llama 70B",
        "Two dense bases of 70 B were swept, at ranks of 1 to 4 alone, and diverged at 1e-3.",
    ),
)
# The same in all classes. Alpha 32 is that of the sweeps at every rank, and their rates go with it.
RANK = 64
ALPHA = 32
EFFECTIVE_BATCH = 16
NO_QLORA_TABLE = (
    "No sweep over rates on a 4-bit base was published by size, and your rows are not these: search around the values."
)
REASONS: Mapping[str, str] = {
    "lora.r": f"{QLORA}; in {COOKBOOK} at 3e-4, 16 loses 0.001 to 0.003 nats and 128 gains 0.0005 at most",
    "lora.alpha_ratio": f"alpha {ALPHA}, that of {COOKBOOK}, whose rates go with it; {QLORA} has 16",
    "lora.target_modules": f"{QLORA} and {REGRET}: adapters on attention alone learn less",
    "training.per_device_train_batch_size": f"{QLORA}; {REGRET}: large batches cost LoRA more than full fine-tuning",
    "training.gradient_accumulation_steps": "the plan cuts the batch as memory asks for, which changes no result",
}


@dataclass(frozen=True)
class Recommendation:
    """Settings for one base.

    Attributes:
        size_class: The class of its size.
        reasons: Config path -> why, one for each of `settings.values()`.
    """

    size_class: SizeClass
    settings: Settings
    reasons: Mapping[str, str]

    def overrides(self) -> list[str]:
        """`key=value` texts for `--set`."""
        return [f"{path}={format_setting(value)}" for path, value in self.settings.values().items()]

    def render(self, base: str, space: SearchSpace, first_points: Sequence[Mapping[str, Any]]) -> list[str]:
        """Lines for people: a value and its reason each, what is not known, and what to paste.

        Args:
            base: Its name.
            space: The sweep's, whose parameters win over what is set.
            first_points: What a sweep of this space tries first.
        """
        published = [["others trained", "base", "r", "alpha", "dropout", "rate", "batch"]]
        published += [setting.cells() for setting in PUBLISHED.values()]
        searched = [known.path for known in space.parameters if known.path in self.reasons]
        rows = [["setting", "value", "why"]]
        rows += [[path, format_setting(value), self.reasons[path]] for path, value in self.settings.values().items()]
        lines = [f"{base}: size class {self.size_class.name}", "", *format_table(rows).splitlines(), ""]
        lines += [*format_table(published, right=(2, 3, 4, 5, 6)).splitlines(), ""]
        lines += [*(f"{name}: {meaning}" for name, meaning in SOURCES.items()), ""]
        lines += [f"not calibrated  {self.size_class.not_calibrated} {NO_QLORA_TABLE}", ""]
        lines += [" ".join(f"--set {text}" for text in self.overrides())]
        if searched:
            lines += ["", f"{space.source} searches {', '.join(searched)}: what it tries wins over --set."]
            lines += [
                "With search.recommended_first it begins with the nearest that the space has, at "
                f"{SHORT_RUN_FACTOR:g} times the rates where a trial has fewer than {SHORT_RUN_STEPS} steps:"
            ]
            for point in first_points:
                lines += ["  " + ", ".join(f"{path}: {format_setting(value)}" for path, value in point.items())]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "size_class": self.size_class.name,
            "values": self.settings.values(),
            "reasons": dict(self.reasons),
            "not_calibrated": f"{self.size_class.not_calibrated} {NO_QLORA_TABLE}",
        }


def recommend(*, num_parameters: int, hidden_size: int, num_steps: int | None = None) -> Recommendation:
    """Settings for a base of this size: where a search may begin, and no substitute for one.

    The effective batch changes no rate: 2e-4 at 16 rows (QLoRA) and 3e-4 at 128 (the sweeps) are nearer to each other
    than the square root of the batch would have them, and both lie within a factor of 3 of what is recommended.

    Args:
        num_parameters: All of the base's, head and embeddings included.
        hidden_size: The width of its residual stream.
        num_steps: Optimizer steps of a trial; None: not known, taken for many.

    Raises:
        ConfigError: A size is not above 0.
    """
    if num_parameters <= 0 or hidden_size <= 0:
        raise ConfigError(
            f"recommend: parameters and width must be above 0, got {num_parameters} and {hidden_size}. Name a base."
        )
    size_class = next(known for known in SIZE_CLASSES if num_parameters <= known.most_parameters)
    rate = size_class.learning_rate or rule_rate(hidden_size)
    rate_source = size_class.rate_source
    if num_steps is not None and num_steps < SHORT_RUN_STEPS:
        rate = float(f"{rate * SHORT_RUN_FACTOR:.1e}")
        rate_source += f"; {SHORT_RUN_FACTOR:g} times it for fewer than {SHORT_RUN_STEPS} steps ({REGRET})"
    reasons = {
        **REASONS,
        "lora.lora_dropout": f"{QLORA}: 0.1 up to 13B, 0.05 above",
        "training.learning_rate": rate_source,
    }
    settings = Settings(RANK, ALPHA / RANK, size_class.lora_dropout, rate, EFFECTIVE_BATCH)
    return Recommendation(size_class, settings, reasons)


def rule_rate(hidden_size: int) -> float:
    """The rule's learning rate at a width, to two digits."""
    return float(f"{RULE_RATE * (RULE_WIDTH / hidden_size) ** RULE_EXPONENT:.1e}")
