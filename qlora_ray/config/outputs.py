"""What leaves a sweep: its folder, runs of trackers, and adapters pushed to the hub while it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qlora_ray.config.choices import TRACKERS, OneOf
from qlora_ray.config.field_types import Place
from qlora_ray.config.section import Section

# Of a folder's name, which gets words behind it, such as `-winner`; file systems take 255 letters.
MAX_NAME = 200


class Results(Section):
    """Where a sweep is written."""

    dir: Place = "results"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)] | None = Field(
        None, description="Folder under dir; null: the config's name and the time."
    )
    report_to: list[Annotated[str, OneOf(TRACKERS)]] = Field(
        [], description="Trackers that each trial is a run of, beside the sweep's own files."
    )


class Export(Section):
    """Which adapters go to the Hugging Face hub while the sweep runs; a bundle of the winner is `export`'s."""

    push_every: Literal["never", "best", "trial", "save"] = Field(
        "never",
        description="best: each new best adapter, to the main branch of one private repository; trial: also each "
        "complete trial's, to a branch of its own; save: that one at each report of the trial, too.",
    )
    push_to: (
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=MAX_NAME)] | None
    ) = Field(
        None,
        description="USER or USER/REPO; null: the token's user. Without REPO the repository has the sweep's name.",
    )
