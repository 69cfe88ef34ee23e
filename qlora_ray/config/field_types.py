"""Types of config fields: bounds, and what names look like."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

# Of transformers' schedules (5.23, get_scheduler).
ScheduleOption = Literal[
    "num_cycles",
    "lr_end",
    "power",
    "timescale",
    "min_lr",
    "min_lr_rate",
    "num_decay_steps",
    "num_stable_steps",
    "min_lr_ratio",
    "warmup_type",
    "decay_type",
]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# Threads cannot wait for longer than some centuries; ten years are as good as never.
MAX_SECONDS = 10 * 365 * 86_400
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
# A GPU's class has a letter or a digit in its name.
ClassName = Annotated[str, Field(pattern=r"[A-Za-z0-9]")]
ResourceName = Annotated[str, Field(pattern=r"^\S+$")]
# numpy's generators take 32 bits.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
