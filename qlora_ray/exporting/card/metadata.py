"""The model card's metadata: what the hub reads of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_ray.exporting.card.figures import CardFacts, find_source, rows_source, rows_split, score_rows
from qlora_ray.exporting.selection import Selection

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData


def make_card_data(facts: CardFacts) -> ModelCardData:
    """The card's metadata. A license is not set: that of base and data is not known here."""
    from huggingface_hub import ModelCardData

    selection = facts.selection
    quantization = selection.quantization
    tags = ["lora", "sft", "text-generation", "qlora_ray"]
    if quantization.method != "none":
        tags += ["qlora"] if quantization.backend == "bitsandbytes" else []
        tags += [quantization.method, quantization.backend]
    if selection.lora.use_dora:
        tags.append("dora")
    # The hub takes nothing but names of its own here.
    base = selection.base_name if selection.base_is_on_hub else None
    dataset = hub_dataset(selection)
    results = _results(facts)
    return ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        tags=tags,
        datasets=[dataset] if dataset else None,
        model_name=facts.name if results else None,
        eval_results=results or None,
        base_model=base,
        base_model_relation="adapter" if base else None,
    )


def hub_dataset(selection: Selection) -> str | None:
    """The hub id of train, if it is one: its rows have a fingerprint there and no file."""
    source = find_source(selection, "train")
    return source.dataset if source and "/" in source.dataset else None


def _results(facts: CardFacts) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    source = rows_source(facts)
    # Without a name on record, two sets of rows must not look the same.
    fingerprint = (facts.evaluation.rows.fingerprint if facts.evaluation is not None else None) or ""
    other = f"rows {fingerprint[:12]}".strip()
    tuned = [row for row in score_rows(facts) if row.model != "base"]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=source.dataset if source else other.replace(" ", "-"),
            dataset_name=f"{source.name if source else other} ({row.prompts}, {row.model})",
            dataset_split=rows_split(facts),
            metric_type=name,
            metric_value=found,
        )
        for row in tuned
        for name, found in {"loss": row.loss, **row.metrics}.items()
        if found is not None
    ]
