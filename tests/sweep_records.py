"""Records of a sweep in which nothing was trained: what each trial ran with, and what its manifest and scores say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.exporting.merge.report import MeasuredModel, MergeReport
from qlora_ray.modeling.loading import hash_base
from qlora_ray.modeling.quantization import specify_quantization
from qlora_ray.runs.record_parts import (
    BaseRecord,
    DataRecord,
    DatasetRecord,
    GitState,
    PlacementRecord,
    PlanRecord,
    PrecisionRecord,
    Seeds,
    SweepFacts,
)
from qlora_ray.runs.records import Manifest
from qlora_ray.scoring.comparison import compare_rows
from qlora_ray.scoring.verdict import Verdict

GIB = 1024**3
DEVICE = "A CPU"
NUM_STEPS = 300
SAMPLES_PER_STEP = 8
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "bitsandbytes": "0.50.2"}
SOURCES = {"train": "embedded/train.jsonl", "validation": "embedded/validation.jsonl"}
NUM_ROWS = {"train": 1230, "validation": 104}
NUM_TRUNCATED = {"train": 7, "validation": 0}
OVERLAP = {"train/validation": 0}
DATA_FINGERPRINT = "fdf701332252ad5e8cac370ac22394efe4df7d337a579e6f71d259a2bbc16324"
TRAIN_SHA256 = "68d50b6a603efb79da8519afaa62eb6d592589661e0f555d849517ee0559e6d7"
EXECUTOR = {
    "engine": "packed",
    "slots": 2,
    "hostname": "node",
    "device": DEVICE,
    "cpu": DEVICE,
    "precision": "fp32",
    "precision_reason": "fp32: a CPU",
    "bf16": False,
    "fp16": False,
    "cuda_available": False,
    "estimated_memory_bytes": 2 * GIB,
    "versions": VERSIONS,
}


def make_facts(config: SweepConfig) -> SweepFacts:
    """What the manifest and every trial's record have in common."""
    model = config.model
    return SweepFacts(
        base=BaseRecord(name=model.name, revision=model.revision, hash=hash_base(model)),
        dataset=DatasetRecord(
            sources=SOURCES,
            num_rows=NUM_ROWS,
            num_truncated=NUM_TRUNCATED,
            overlap=OVERLAP,
            overlap_check="pass",
        ),
        seeds=Seeds(seed=7, data_seed=7, search_seed=7),
        versions=VERSIONS,
        git=GitState(commit="a5a89b58521a35e471cc59a2d9399168cbb8d548", dirty=False),
    )


def make_ran(config: SweepConfig, params: Mapping[str, Any], *, number: int) -> dict[str, Any]:
    """What a trial ran with, as an engine reports it."""
    rank = params.get("lora.r", 8)
    return {
        "engine": "packed",
        "training": {
            "learning_rate": params.get("training.learning_rate", 2e-4),
            "lr_scheduler_type": config.training.lr_scheduler_type,
            "per_device_train_batch_size": SAMPLES_PER_STEP,
            "gradient_accumulation_steps": 1,
            "optim": config.training.optim,
            "adam_beta1": 0.9,
            "weight_decay": 0.0,
            "seed": 7,
            "data_seed": 7,
            "max_steps": NUM_STEPS,
            "warmup_steps": 15,
            "bf16": False,
            "fp16": False,
        },
        "lora": {
            "r": rank,
            "lora_alpha": rank * params.get("lora.alpha_ratio", 2.0),
            "lora_dropout": 0.05,
            "target_modules": ["q_proj", "v_proj"],
            "bias": "none",
            "use_rslora": False,
            "use_dora": False,
        },
        "effective_batch": SAMPLES_PER_STEP,
        "num_samples": SAMPLES_PER_STEP * NUM_STEPS,
        "num_steps": NUM_STEPS,
        "precision": "fp32",
        "quantization": specify_quantization(config.model.quantization, compute_dtype="fp32").to_dict(),
        "trainable_parameters": 1000 * (number + 1),
        "executor": EXECUTOR,
    }


def make_manifest(config: SweepConfig, *, space: Mapping[str, Any], folder: str, facts: SweepFacts) -> Manifest:
    """A manifest in which every part of a report has something to tell."""
    placement = PlacementRecord(
        device_name=DEVICE,
        num_devices=2,
        slots_per_device=2,
        engine="packed",
        precision=PrecisionRecord(name="fp32", reason="a CPU"),
        micro_batch=SAMPLES_PER_STEP,
        gradient_accumulation_steps=1,
        needed_bytes=2 * GIB,
        available_bytes=16 * GIB,
        reason="packed: two trials fill the device",
    )
    data = DataRecord(
        format="columns",
        format_reason="two columns",
        template="chat",
        template_reason="auto",
        fingerprint=DATA_FINGERPRINT,
        sources={**SOURCES, "test": "embedded/test.jsonl"},
        digests={"train": TRAIN_SHA256},
        num_rows=NUM_ROWS,
        num_tokens={"train": 5678},
        num_completion_tokens={"train": 2345},
        num_truncated=NUM_TRUNCATED,
        num_dropped={"train": {"empty": 3}},
        overlap=OVERLAP,
        overlap_verdict="pass",
        lengths={"train": {"mean": 4.6, "p95": 9, "max": 12}},
        warnings=("7 rows were cut",),
    )
    return Manifest(
        qlora_ray="0.1.0",
        folder=folder,
        # A shell has to quote both.
        command=("sweep.py", "--set", "results.name=it's a b"),
        config=config.model_dump(),
        space=space,
        plan=PlanRecord(placements=(placement,), skipped=("old GPU: too small",), total_slots=4),
        data=data,
        **vars(facts),
    )


def make_verdict(word: str) -> Verdict:
    """A verdict on 40 rows: the adapter answers 20 more of them, 20 fewer, or as many."""
    rows = [0.0] * 30 + [1.0] * 10
    tuned = {"better": [1.0] * 30 + [0.0] * 10, "worse": [0.0] * 40, "no different": rows[::-1][:10] + rows[:30]}[word]
    deciding = compare_rows("exact_match", rows, tuned, higher_is_better=True)
    loss = compare_rows("loss", [1.0] * 40, [0.5] * 20 + [1.5] * 20, higher_is_better=False)
    return Verdict("test", deciding, [loss])


def make_scores(word: str, *, winner: str, rescored: Sequence[str] = ()) -> dict[str, Any]:
    """best/scores.json with the verdict `word`, and the trials that were scored again for it."""
    scores = {"loss": 0.07, "num_rows": 104, "num_answers": 40, "metrics": {"exact_match": 0.75}}
    return {
        "trial": winner,
        "verdict": make_verdict(word).to_dict(),
        "winner": scores,
        "base": {**scores, "loss": 1.09, "metrics": {"exact_match": 0.25}},
        "rescored": dict.fromkeys((winner, *rescored), scores),
    }


def make_comparison(word: str, *, base: str = "base", tuned: str = "merged", prompts: str = "0-shot") -> dict[str, Any]:
    """A comparison as evaluation.json has it, on twenty rows that one model answers and the other does not."""
    right, wrong = [1.0] * 20, [0.0] * 20
    pair = (wrong, right) if word == "better" else (right, wrong)
    figures = compare_rows("exact_match", *pair, higher_is_better=True).to_dict()
    return {"prompts": prompts, "base_model": base, "tuned_model": tuned, **figures}


def make_evaluation(
    word: str = "better", *, models: Sequence[str] = ("base", "merged"), kind: str = "bundle", **changes: Any
) -> dict[str, Any]:
    """evaluation.json of trial 0001 with three examples in each prompt: every other model against the first.

    Args:
        word: better or worse, of each comparison.
        models: By their names in the file.
        kind: Of what was evaluated.
        changes: Whole parts of the file.
    """
    first, *others = models
    measured = {"prompts": "3-shot", "num_rows": 20}
    return {
        "target": {"kind": kind, "trial": "0001", "adapter": None},
        "rows": {"split": "test", "reason": "test: held out", "num_rows": 20, "fingerprint": DATA_FINGERPRINT},
        "models": {name: f"{name} as it was trained" for name in models},
        "scores": [
            {"model": first, "loss": 1.0, "metrics": {"exact_match": 0.0}, **measured},
            *({"model": name, "loss": 0.5, "metrics": {"exact_match": 1.0}, **measured} for name in others),
        ],
        "comparisons": [make_comparison(word, base=first, tuned=name, prompts="3-shot") for name in others],
        "notes": [],
        **changes,
    }


# A merge of which "dequant" was kept.
MERGE_REPORT = MergeReport(
    rule="dequant",
    reason="Its KL from the trained model is lower: 0.001 against 0.02 nats per token for w16.",
    options={"rule": "auto"},
    dtype="bf16",
    head_dtype="bf16",
    tying="tied",
    adapter={"kind": "LoRA", "r": 4},
    base={"name": "embedded"},
    quantization={"method": "nf4"},
    rows={"split": "validation", "num_rows": 64, "num_positions": 2261, "num_answers": 16},
    models=[
        MeasuredModel("nf4 + adapter", 0.08, 0.0, 0.0, 1.0, 1.0, "nf4"),
        MeasuredModel("w16", 0.1, 0.02, 0.02, 0.99, 0.8125, "bf16", 0.991, 0.5, 100, 1),
        MeasuredModel("dequant", 0.0801, 0.0001, 0.001, 1.0, None, "bf16", 0.991, 0.5, 100, 1),
    ],
    notes=["A note."],
    nf4_copy=None,
    seconds=8.3,
    peak_memory_bytes=1000,
    versions={"torch": "2.13.0"},
)
