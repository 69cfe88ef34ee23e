"""Types of config fields: bounds, and what names look like."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

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
# More rows, tokens, trials or threads than anything has; what is counted stays a number that floats hold exactly.
MAX_COUNT = 10**12
PositiveInt = Annotated[int, Field(gt=0, le=MAX_COUNT)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# Threads cannot wait for longer than some centuries; ten years are as good as never.
MAX_SECONDS = 10 * 365 * 86_400
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
# A module's path in a model, or the end of it; PEFT takes some such names for patterns.
ModuleName = Annotated[str, Field(pattern=r"^[\w-]+(\.[\w-]+)*$")]
# A GPU's class has a letter or a digit in its name.
ClassName = Annotated[str, Field(pattern=r"[A-Za-z0-9]")]
ResourceName = Annotated[str, Field(pattern=r"^\S+$")]
# numpy's generators take 32 bits.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Bytes of a path and of a part of it: most file systems take 255, and Linux 4,096, of which the files below need some.
MAX_PATH_BYTES, MAX_PART_BYTES = 3_000, 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _check_place(value: str) -> str:
    # A file system would raise another error for each, wherever it is asked first.
    if _CONTROL.search(value):
        raise ValueError("must be a name without control characters such as line ends")
    parts = [len(os.fsencode(part)) for part in re.split(r"[/\\]" if os.name == "nt" else "/", value)]
    if max(parts) > MAX_PART_BYTES:
        raise ValueError(f"must be a name of at most {MAX_PART_BYTES} bytes, got {max(parts):,}")
    if sum(parts) > MAX_PATH_BYTES:
        raise ValueError(f"must be a path of at most {MAX_PATH_BYTES:,} bytes, got {sum(parts):,}")
    if value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError:
            raise ValueError("must begin with ~, or ~ and the name of a user of this machine") from None
    return value


# A file, a folder, or a name on the hub.
Place = Annotated[str, AfterValidator(_check_place)]
