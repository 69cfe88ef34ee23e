"""What is measured: cases of K trials at so many tokens per trial and step, their rows, and their trials.

Every arm gets the same TokenizedSplit and the same TrialSpecs, so trials, effective batches, rows and their order are
equal. All trials of a case see the rows in one order, as the trials of a sweep do (they share `training.data_seed`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from qlora_ray.config.schema import Lora, Training
from qlora_ray.data import TokenizedSplit
from qlora_ray.errors import ConfigError
from qlora_ray.training.budget import Budget, sample_order
from qlora_ray.training.engine import TrialSpec

# Steps before the clock starts: allocators, caches and optimizer state are made in the first one.
NUM_WARMUP_STEPS = 1
# Tokens that one arm of one repetition trains on a CPU, in all its trials: seconds on 2 cores. A choice.
CPU_TOKENS_PER_REPETITION = 2048
FEWEST_STEPS, MOST_STEPS = 2, 16
# Timed steps where the model is random and large, or the device a GPU.
DEFAULT_STEPS = 10
# Orders of the rows that are looked through for one whose few timed steps have about as many tokens as wanted.
NUM_ORDERS = 32
# Rows of a length this near to the tokens wanted stand for it.
LENGTH_TOLERANCE = 0.25
# Random rows: tokens of a row where a trial's step has more, how many rows there are, and the part that is trained.
LONGEST_RANDOM_ROW = 256
NUM_RANDOM_ROWS = 64
TRAINED_SHARE = 0.5
# What trials of a sweep differ in: the middle of search_spaces/rank_alpha_lr.yaml.
RANKS = (8, 16)
ALPHA_RATIOS = (1.0, 2.0)
DROPOUTS = (0.0, 0.05, 0.1)
LEARNING_RATES = (1e-4, 5e-3)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        tokens: Non-padding tokens per trial and optimizer step, about.
        equal: Whether all trials have the same settings; else they differ as those of a sweep do.
        steps: Timed optimizer steps of every trial.
    """

    trials: int
    tokens: int
    steps: int
    equal: bool = False

    @property
    def name(self) -> str:
        """`k8-t32`, and `-equal` where all trials are alike."""
        return f"k{self.trials}-t{self.tokens}" + ("-equal" if self.equal else "")


@dataclass(frozen=True)
class Workload:
    """What every arm of a case trains.

    Attributes:
        rows: Training rows.
        validation: One row: an engine evaluates at each report, and that time is taken off.
        tokens_per_trial: Non-padding tokens per trial and step, as they are on average in the timed steps.
        batch_padding_share: Padding where each trial's rows are a batch of their own.
    """

    case: Case
    rows: TokenizedSplit
    validation: TokenizedSplit
    specs: list[TrialSpec]
    tokens_per_trial: float
    batch_padding_share: float

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row."""
        return int(self.rows.input_ids.lengths.max())

    @property
    def num_tokens(self) -> int:
        """Non-padding tokens of all timed steps of all trials."""
        return round(self.tokens_per_trial * self.case.steps * self.case.trials)


def choose_steps(*, trials: int, tokens: int, on_cpu: bool) -> int:
    """Timed steps of a case that say something and do not take long."""
    if not on_cpu:
        return DEFAULT_STEPS
    return min(MOST_STEPS, max(FEWEST_STEPS, round(CPU_TOKENS_PER_REPETITION / (trials * tokens))))


def make_workload(case: Case, rows: TokenizedSplit) -> Workload:
    """Rows, effective batch and trials of a case.

    Raises:
        ConfigError: If the rows cannot make so many tokens per step.
    """
    chosen, batch = fit_rows(rows, tokens=case.tokens)
    orders = [_timed_batches(chosen, case, batch, data_seed=seed) for seed in range(NUM_ORDERS)]
    misses = [abs(sum(map(sum, batches)) - case.tokens * case.steps) for batches in orders]
    data_seed = misses.index(min(misses))
    batches = orders[data_seed]
    num_tokens = sum(map(sum, batches))
    num_padded = sum(max(batch) * len(batch) for batch in batches)
    return Workload(
        case=case,
        rows=chosen,
        validation=chosen.take([0]),
        specs=make_specs(case, effective_batch=batch, data_seed=data_seed),
        tokens_per_trial=num_tokens / case.steps,
        batch_padding_share=1 - num_tokens / num_padded,
    )


def fit_rows(rows: TokenizedSplit, *, tokens: int) -> tuple[TokenizedSplit, int]:
    """Rows, and how many of them make about so many tokens: all rows if a few do, else those of that length.

    Raises:
        ConfigError: If none is of that length.
    """
    mean = rows.num_tokens / len(rows)
    batch = round(tokens / mean)
    if batch >= 1 and abs(batch * mean - tokens) <= LENGTH_TOLERANCE * tokens:
        return rows, batch
    near = [at for at, num in enumerate(rows.input_ids.lengths) if abs(num - tokens) <= LENGTH_TOLERANCE * tokens]
    if not near:
        raise ConfigError(
            f"--tokens: rows must make about {tokens} tokens, got rows of {mean:.0f} tokens on average, and none near "
            "that length. Ask for a multiple of their mean."
        )
    return rows.take(near), 1


def make_specs(case: Case, *, effective_batch: int, data_seed: int) -> list[TrialSpec]:
    """The trials of a case: they report once after the warm-up and once at the end."""
    num_steps = NUM_WARMUP_STEPS + case.steps
    budget = Budget(num_steps * effective_batch, effective_batch, num_steps, (NUM_WARMUP_STEPS, num_steps))
    specs = []
    for number in range(case.trials):
        kind = 0 if case.equal else number
        spread = 0.5 if case.equal or case.trials == 1 else number / (case.trials - 1)
        low, high = LEARNING_RATES
        # The rank changes fastest, then alpha, so that eight trials have every pair of both.
        lora = Lora(
            r=RANKS[kind % len(RANKS)],
            alpha_ratio=ALPHA_RATIOS[kind // len(RANKS) % len(ALPHA_RATIOS)],
            lora_dropout=DROPOUTS[(kind + 1) % len(DROPOUTS)],
        )
        training = Training(
            learning_rate=low * (high / low) ** spread,
            per_device_train_batch_size=effective_batch,
            gradient_accumulation_steps=1,
            max_samples=budget.num_samples,
            optim="adamw_torch",
            data_seed=data_seed,
        )
        specs.append(TrialSpec(f"{number:04d}", lora, training, budget))
    return specs


def make_random_rows(*, tokens: int, vocab_size: int, seed: int = 7) -> TokenizedSplit:
    """Rows of random ids, for a base with random weights: their lengths vary as those of real rows do."""
    generator = random.Random(seed)
    mean = min(tokens, LONGEST_RANDOM_ROW)
    lengths = [
        round(mean * generator.uniform(1 - LENGTH_TOLERANCE, 1 + LENGTH_TOLERANCE)) for _ in range(NUM_RANDOM_ROWS)
    ]
    ids = [[generator.randrange(vocab_size) for _ in range(length)] for length in lengths]
    prompts = [round(length * (1 - TRAINED_SHARE)) for length in lengths]
    masks = [[0] * prompt + [1] * (length - prompt) for prompt, length in zip(prompts, lengths, strict=True)]
    starts = [row[:prompt] for row, prompt in zip(ids, prompts, strict=True)]
    return TokenizedSplit.of("random", ids, masks, starts, [""] * NUM_RANDOM_ROWS)


def _timed_batches(rows: TokenizedSplit, case: Case, batch: int, *, data_seed: int) -> list[list[int]]:
    """Row lengths of each timed step, where rows come in the order of this seed."""
    num_steps = NUM_WARMUP_STEPS + case.steps
    order = sample_order(num_rows=len(rows), num_samples=num_steps * batch, data_seed=data_seed)
    lengths = rows.input_ids.lengths[order].tolist()
    return [lengths[step * batch : (step + 1) * batch] for step in range(NUM_WARMUP_STEPS, num_steps)]
