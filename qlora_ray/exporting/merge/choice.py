"""Which merged model is kept, and what a reader of the report should know of it."""

from __future__ import annotations

import math
from pathlib import Path

from qlora_ray.errors import ModelError
from qlora_ray.exporting.merge.candidate import Candidate
from qlora_ray.exporting.merge.plan import MergePlan
from qlora_ray.exporting.merge.report import MeasuredModel

# Ours: below it, most of what was trained is lost to rounding, and the report says so.
SMALL_CHANGED_SHARE = 0.01
# Ours: so many times its base's bytes a merged model may take before the report says what would halve it.
LARGE_SHARE = 1.5


def check_changed(candidates: list[Candidate], *, adapter: Path, dtype: str) -> None:
    """Fails on a merge that changes nothing.

    Args:
        candidates: The merged models that were written.
        adapter: The adapter's folder, for the message.
        dtype: What the merged weights are stored in, for the message.

    Raises:
        ModelError: If every delta is 0, or no weight differs once it is cast.
    """
    if any(candidate.changed_share > 0 for candidate in candidates):
        return
    largest = max(candidate.largest_change for candidate in candidates)
    if largest == 0:
        raise ModelError(
            f"{adapter}: the adapter must change its base, got changes of 0 everywhere. "
            "It was not trained: choose another trial."
        )
    raise ModelError(
        f"{adapter}: the merge must change a weight in {dtype}, got none: the largest change, {largest:.2g}, is lost "
        "to rounding. Choose the dtype fp32, or export without merging."
    )


def choose_candidate(
    candidates: list[Candidate], measured: list[MeasuredModel], *, is_quantized: bool
) -> tuple[Candidate, str]:
    """Returns the candidate with the least KL divergence from the trained model (the first of equals), and why.

    One that changes nothing is not chosen where another does, and one whose outputs are no numbers never is.

    Args:
        candidates: The merged models that were written.
        measured: The figures of each, in the same order.
        is_quantized: Whether the base was trained in 8 or 4 bits.

    Raises:
        ModelError: If none can be chosen.
    """
    changing = [
        (candidate, model) for candidate, model in zip(candidates, measured, strict=True) if candidate.changed_share > 0
    ]
    pairs = [(candidate, model) for candidate, model in changing if not is_nan(model)]
    if not pairs:
        dtype, rules = changing[0][1].dtype, " and ".join(candidate.rule for candidate, _ in changing)
        wider = "fp32" if dtype == "bf16" else "bf16 or fp32"
        raise ModelError(
            f"merge: a merged model must give numbers, got NaN from {rules} in {dtype}: values overflow in it. "
            f"Choose --dtype {wider}, or export without merging."
        )
    best, closest = min(pairs, key=lambda pair: pair[1].kl)
    if not is_quantized:
        return best, "The base was trained unquantized: w16 and dequant are the same weights."
    if len(candidates) == 1:
        return best, "It was asked for."
    if len(pairs) < len(changing):
        return best, "The other rule's outputs are no numbers (NaN)."
    if len(pairs) == 1:
        return best, "The other rule's weights lose the whole adapter to rounding."
    other = next(model for candidate, model in pairs if candidate is not best)
    words = "is lower" if closest.kl < other.kl else "is the same"
    return best, (
        f"Its KL from the trained model {words}: {closest.kl:.3g} against {other.kl:.3g} nats per token for "
        f"{other.name}."
    )


def is_nan(model: MeasuredModel) -> bool:
    """Whether a model's outputs are no numbers."""
    return math.isnan(model.kl) or math.isnan(model.loss)


def explain_nan(measured: list[MeasuredModel]) -> list[str]:
    """A sentence for each measured model whose outputs are no numbers."""
    return [
        f"{model.name}: its outputs in {model.dtype} are no numbers (NaN): values overflow in it. It is of no use."
        for model in measured
        if is_nan(model)
    ]


def explain_merge(candidates: list[Candidate], plan: MergePlan, *, asked_head: str | None) -> list[str]:
    """Returns notes on a merge, a sentence each: rounding that lost most of the change, and tied weights.

    Args:
        candidates: The merged models that were written.
        plan: The dtypes of the merged model, and whether embedding and head are one tensor.
        asked_head: The dtype that the user asked of the head; None if none was.
    """
    notes = [
        f"{candidate.rule}: only {100 * candidate.changed_share:.2g} % of the merged layers' weights changed in "
        f"{plan.dtype}; the rest of the adapter is lost to rounding. The dtype fp32 keeps it."
        for candidate in candidates
        if candidate.changed_share < SMALL_CHANGED_SHARE
    ]
    if plan.tying == "untied by the merge":
        notes.append(
            "Embedding and head are one tensor in the base and two in the merged model (tie_word_embeddings is false): "
            "the adapter changes one of them."
        )
    if asked_head and plan.tying == "tied":
        notes.append(f"Embedding and head are one tensor: both are in {plan.head_dtype}.")
    if plan.num_bytes >= LARGE_SHARE * plan.stored_bytes:
        notes.append(
            f"The merged model takes {plan.num_bytes / plan.stored_bytes:.1f} times its base's bytes: it is "
            f"{plan.dtype}, as the adapter was trained, and the base is {plan.stored_dtype}. "
            f"--dtype checkpoint writes it in {plan.stored_dtype}, and measures that."
        )
    if plan.head_dtype != plan.dtype:
        notes.append(
            f"The head is {plan.head_dtype} in the file and config.json says {plan.dtype}: from_pretrained casts it "
            f"to {plan.dtype} unless it is given another dtype, and so it was measured."
        )
    return notes
