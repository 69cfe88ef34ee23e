"""What a merge did and how close each way of it came: merge_report.json, and a table to read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from qlora_ray.formats import format_share, format_table

Verdict = Literal["w16", "dequant"]
_NEVER_NONE = ("loss", "loss_difference", "kl", "token_agreement")


@dataclass(frozen=True)
class MeasuredModel:
    """One model beside the one that was trained, on the same rows.

    Attributes:
        name: What it is: `nf4 + adapter` (what was trained, always first), `nf4 base`, `w16`, `dequant`, ...
        loss: Mean negative log-likelihood of the rows' answers, nats per token.
        loss_difference: Its loss less the trained model's.
        kl: KL(trained || this) of next-token distributions, mean over answer positions, nats.
        token_agreement: Share of answer positions at which both rate the same token highest, 0 to 1.
        answer_agreement: Share of prompts with the same whole greedy answer; None if none was asked.
        dtype: What its weights are in.
        changed_share: Share of the merged layers' weights that the adapter changed in that dtype; None if not merged.
        largest_change: The largest change of a weight in float32; None if not merged.
        num_bytes: Bytes of its weights on disk; None if not written.
        num_shards: Files of weights; None if not written.
    """

    name: str
    loss: float
    loss_difference: float
    kl: float
    token_agreement: float
    answer_agreement: float | None
    dtype: str
    changed_share: float | None = None
    largest_change: float | None = None
    num_bytes: int | None = None
    num_shards: int | None = None


@dataclass(frozen=True)
class MergeReport:
    """A merge, in full.

    Attributes:
        rule: The rule of the model that was kept: w16 (the checkpoint's weights + the adapter) or dequant (the
            quantized base's weights, dequantized, + the adapter).
        reason: Why that one, in words.
        options: What was asked for, as it was resolved.
        dtype: bf16, fp16 or fp32: what config.json says.
        head_dtype: What the head is written in.
        tying: Whether embedding and head are one tensor: tied, untied by the merge, separate.
        adapter: Its kind (LoRA, rsLoRA, DoRA), rank, sha256, and the numbers of layers and of whole parameters
            it changes.
        base: Name, revision and hash.
        quantization: How the base was stored in training.
        rows: What was measured on: the split, its rows, answer positions, and prompts answered.
        models: Every model measured, the trained one first.
        notes: What a reader should know, in words.
        nf4_copy: The folder's name of the requantized copy; None if none was asked for.
        seconds: What the merge took, measuring included.
        peak_memory_bytes: Of this process so far: reserved on the GPU, or resident on a CPU.
        versions: Of the libraries.
    """

    rule: Verdict
    reason: str
    options: dict[str, Any]
    dtype: str
    head_dtype: str
    tying: str
    adapter: dict[str, Any]
    base: dict[str, Any]
    quantization: dict[str, Any]
    rows: dict[str, Any]
    models: list[MeasuredModel]
    notes: list[str]
    nf4_copy: str | None
    seconds: float
    peak_memory_bytes: int
    versions: dict[str, str | None]

    @property
    def kept(self) -> MeasuredModel:
        """The figures of the model that was kept."""
        return next(model for model in self.models if model.name == self.rule)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MergeReport:
        """The report that `to_dict` was made of; keys of a later version are left out."""
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        known["models"] = [_read_model(model) for model in data["models"]]
        return cls(**known)

    def lines(self) -> list[str]:
        """A table of all models, the choice and the notes, a line each."""
        header = ["model", "weights", "loss", "against trained", "KL", "same token", "same answer", "changed"]
        rows = [header, *(_row(model, kept=model.name == self.rule) for model in self.models)]
        table = format_table(rows, right=(2, 3, 4, 5, 6, 7)).splitlines()
        measured = (
            f"Measured on {self.rows['num_rows']} rows of {self.rows['split']} ({self.rows['num_positions']} answer "
            f"tokens, {self.rows['num_answers']} greedy answers); KL in nats per token, from the trained model."
        )
        return [*table, "", f"Kept: {self.rule}. {self.reason}", measured, *self.notes]


def _read_model(data: dict[str, Any]) -> MeasuredModel:
    known = {field.name: data[field.name] for field in fields(MeasuredModel) if field.name in data}
    # JSON has no NaN: it is written as null.
    return MeasuredModel(**known | {name: math.nan for name in _NEVER_NONE if known.get(name) is None})


def _row(model: MeasuredModel, *, kept: bool) -> list[str]:
    return [
        f"{model.name} *" if kept else model.name,
        model.dtype,
        f"{model.loss:.4f}",
        f"{model.loss_difference:+.4f}",
        f"{model.kl:.2e}",
        _percent(model.token_agreement),
        _percent(model.answer_agreement),
        _percent(model.changed_share),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else format_share(share)
