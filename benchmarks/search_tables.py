"""Tables of finished LoRA runs by learning rate and rank, in which a search is replayed.

data/lora_sweeps.csv: LoRA on 21 public models, tulu3, batch 128, 780 steps, losses in nats per token. Figures of
thinking-machines-lab/tinker-cookbook (Apache-2.0), results of its recipe chat_sl at 9dfcc3a2. Runs that diverged are
not in it.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ray.config import load_config
from qlora_ray.config.schema import SweepConfig
from qlora_ray.search.parsing import load_space
from qlora_ray.search.space import SearchSpace

PUBLIC_TABLES = Path(__file__).parent / "data" / "lora_sweeps.csv"
RATE, RANK = "training.learning_rate", "lora.r"
# The first number of billions in a model's name: all of its parameters, those of all experts too.
SIZE = re.compile(r"(\d+(?:\.\d+)?)B", re.IGNORECASE)


@dataclass(frozen=True)
class LossTable:
    """What one model's runs came to.

    Attributes:
        model: Its name.
        losses: Test loss in nats per token, by learning rate and rank. A point of the grid that is missing diverged.
    """

    model: str
    losses: dict[tuple[float, int], float]

    @property
    def rates(self) -> list[float]:
        """The grid's learning rates."""
        return sorted({rate for rate, _ in self.losses})

    @property
    def ranks(self) -> list[int]:
        """The grid's ranks."""
        return sorted({rank for _, rank in self.losses})

    @property
    def num_parameters(self) -> float | None:
        """By the model's name; None where it does not say."""
        found = SIZE.search(self.model)
        return None if found is None else float(found[1]) * 1e9

    def look_up(self, rate: float, rank: int) -> float | None:
        """The loss at the point of the grid that is nearest by ratio; None: that run diverged."""
        nearest_rate = min(self.rates, key=lambda known: abs(math.log(known / rate)))
        nearest_rank = min(self.ranks, key=lambda known: abs(math.log(known / rank)))
        return self.losses.get((nearest_rate, nearest_rank))

    def regret(self, loss: float) -> float:
        """By how much a loss is above the best of the table, as a share of it."""
        best = min(self.losses.values())
        return loss / best - 1

    def make_space(self, sampler: str) -> tuple[SearchSpace, SweepConfig]:
        """The grid's extent as a search space, and a config that searches it."""
        low, high = self.rates[0], self.rates[-1]
        rates = {"low": low, "high": high, "log": True} if low < high else {"choices": [low]}
        words: dict[str, Any] = {RATE: rates, RANK: {"choices": self.ranks}}
        # Alpha 32 at every rank, as they were trained.
        config = load_config(None, overrides=[f"search.sampler={sampler}", "lora.lora_alpha=32"])
        config = config.model_copy(update={"search": config.search.model_copy(update={"space": words})})
        return load_space(config), config


def read_tables(path: Path = PUBLIC_TABLES) -> list[LossTable]:
    """The tables of a CSV file with the columns model, learning_rate, lora_rank and test_nll.

    Raises:
        ValueError: A column is missing, or a value is no number.
    """
    losses: dict[str, dict[tuple[float, int], float]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = {"model", "learning_rate", "lora_rank", "test_nll"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: columns are missing: {', '.join(sorted(missing))}")
        for row in reader:
            loss = float(row["test_nll"])
            if math.isfinite(loss):
                losses.setdefault(row["model"], {})[float(row["learning_rate"]), int(row["lora_rank"])] = loss
    return [LossTable(model, found) for model, found in losses.items()]


def best_rate(table: LossTable) -> float:
    """The rate of the table's best run."""
    (rate, _) = min(table.losses, key=lambda point: table.losses[point])
    return rate
