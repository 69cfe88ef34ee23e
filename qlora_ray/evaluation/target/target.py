"""What an evaluation is of: the models that were given, and all that loading them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qlora_ray.config.schema import Model, Quantization, SweepConfig
from qlora_ray.runs.records import Manifest, TrialRecord

ModelName = Literal["base", "adapter", "merged"]
MODEL_NAMES: tuple[ModelName, ...] = ("base", "adapter", "merged")


@dataclass(frozen=True)
class Request:
    """What the command line says of the target.

    Attributes:
        trial: A trial of a sweep instead of its winner.
        merged: A merged model to hold against base and adapter.
        config: A YAML whose data, evaluate and model sections are used in place of the sweep's.
        overrides: `a.b=value` texts.
    """

    trial: str | None = None
    merged: Path | None = None
    config: Path | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Target:
    """What is evaluated, and all that loading it needs.

    Attributes:
        kind: What the target was found to be.
        base: The base that is scored, alone and under the adapter; None for a merged model whose base is not to be had.
        quantization: How `base` is stored; None: as its own folder says, else unquantized in its own dtype.
        quantization_reason: What decided that, for results: `as its record says`.
        base_hash: The base's fingerprint as the adapter's record has it.
        manifest: The manifest of the sweep it came from.
        record: The record of the trial that made the adapter.
        to: Where its evaluation is written unless the user says otherwise.
        notes: Sentences for the user: what could not be verified, or is not as asked.
    """

    kind: Literal["sweep", "adapter", "bundle", "model"]
    path: str
    config: SweepConfig
    base: Model | None
    quantization: Quantization | None
    quantization_reason: str
    to: Path
    adapter: Path | None = None
    merged: Path | None = None
    trial: str | None = None
    base_hash: str | None = None
    manifest: Manifest | None = None
    record: TrialRecord | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def available(self) -> tuple[ModelName, ...]:
        """The models that can be scored, in the order of `MODEL_NAMES`."""
        there = {"base": self.base, "adapter": self.adapter, "merged": self.merged}
        return tuple(name for name in MODEL_NAMES if there[name] is not None)
