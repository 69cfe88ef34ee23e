"""A finished sweep's folder, as the driver leaves one, with adapters that hold few numbers; nothing was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from qlora_ray import embedded
from qlora_ray.config.schema import SweepConfig
from qlora_ray.exporting.bundle import write_bundle
from qlora_ray.exporting.inventory import Bundle
from qlora_ray.exporting.selection import select_trial
from qlora_ray.modeling.loading import hash_base
from qlora_ray.scoring.comparison import compare_rows
from qlora_ray.scoring.verdict import Verdict
from qlora_ray.search.space import apply_values

PARAMS = {"lora.r": 4, "lora.alpha_ratio": 2.0, "training.learning_rate": 0.0098}
SPACE = {
    "lora.r": {"choices": [4, 16]},
    "lora.alpha_ratio": {"choices": [1.0, 2.0]},
    "training.learning_rate": {"low": 1e-5, "high": 2e-2, "log": True},
}
SECTIONS: dict[str, Any] = {
    "data": {"max_length": 128, "max_validation_rows": 8},
    "training": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_samples": 2400,
        "optim": "adamw_torch",
    },
    "search": {"space": "search_spaces/rank_alpha_lr.yaml", "num_trials": 3},
}
NF4 = {
    "method": "nf4",
    "bits": 4,
    "backend": "bitsandbytes",
    "block_size": 64,
    "double_quantization": True,
    "compute_dtype": "fp32",
}
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "bitsandbytes": "0.50.2"}
TRAIN_SHA = "68d50b6a603efb79da8519afaa62eb6d592589661e0f555d849517ee0559e6d7"
DATA_FINGERPRINT = "fdf701332252ad5e8cac370ac22394efe4df7d337a579e6f71d259a2bbc16324"
OF_DATA = {
    "sources": {"train": "embedded/train.jsonl", "validation": "embedded/validation.jsonl"},
    "num_rows": {"train": 1230, "validation": 104},
    "num_truncated": {"train": 0, "validation": 0},
    "overlap": {"train/validation": 0},
    "overlap_check": "pass",
}
ON_CPU = {
    "engine": "packed",
    "device": "A CPU",
    "compute_capability": None,
    "precision_reason": "fp32: A CPU is a CPU",
    "cuda_available": False,
    "cuda": None,
    "driver": None,
    "cpu": "A CPU",
    "versions": VERSIONS,
}


def make_config(**sections: dict[str, Any]) -> SweepConfig:
    """The sweep's config, with sections merged in."""
    names = {**SECTIONS, **sections}
    return SweepConfig.model_validate({name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in names})


def make_record(config: SweepConfig, trial: str, *, state: str = "complete") -> dict[str, Any]:
    """A trial's record, resolved from the config as the engines do."""
    trained = apply_values(config, PARAMS)
    training = trained.training
    ran_training = {
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "optim": training.optim,
        "adam_beta1": 0.9,
        "weight_decay": 0.0,
        "seed": 7,
        "data_seed": 7,
        "max_steps": 300,
        "warmup_steps": 15,
        "bf16": False,
        "fp16": False,
    }
    lora = {
        "r": trained.lora.r,
        "lora_alpha": trained.lora.resolved_alpha,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    return {
        "trial": trial,
        "state": state,
        "cause": None if state == "complete" else "stopped by asha at report 1",
        "params": PARAMS,
        "objective": {"eval_loss": 0.0682},
        "ran": {
            "engine": "packed",
            "training": ran_training,
            "lora": lora,
            "effective_batch": 8,
            "num_samples": 2400,
            "num_steps": 300,
            "precision": "fp32",
            "quantization": NF4,
            "trainable_parameters": 58368,
        },
        "bf16": False,
        "fp16": False,
        "executor": ON_CPU,
        "tokens_per_s": 1806.2,
        "memory": {"peak_bytes": 754704384, "estimated_bytes": 1527523725},
        "times": {"opened": 1795267307.0, "closed": 1795267400.0, "train_s": 84.426},
        "adapter": f"/somewhere/trials/{trial}/adapter",
        "base": {"name": config.model.name, "revision": config.model.revision, "hash": hash_base(config.model)},
        "dataset": OF_DATA,
        "seeds": {"seed": 7, "data_seed": 7, "search_seed": 7},
        "versions": VERSIONS,
        "git": {"commit": "a5a89b58521a35e471cc59a2d9399168cbb8d548", "dirty": False},
    }


def make_verdict(word: str) -> dict[str, Any]:
    """A verdict on 40 rows: the adapter answers 20 more of them, 20 fewer, or as many."""
    rows = [0.0] * 30 + [1.0] * 10
    tuned = {"better": [1.0] * 30 + [0.0] * 10, "worse": [0.0] * 40, "no different": rows[::-1][:10] + rows[:30]}[word]
    deciding = compare_rows("exact_match", rows, tuned, higher_is_better=True)
    loss = compare_rows("loss", [1.0] * 40, [0.5] * 20 + [1.5] * 20, higher_is_better=False)
    return Verdict("test", deciding, [loss]).to_dict()


def write_adapter(folder: Path, *, base: str, with_tokenizer: bool = False) -> None:
    """An adapter in PEFT's format that says nothing of weight."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": base, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"x.lora_A.weight": np.ones((4, 8), np.float32)}, folder / "adapter_model.safetensors")
    (folder / "README.md").write_text("PEFT's own")
    if with_tokenizer:
        (folder / "tokenizer_config.json").write_text("{}")


def write_sweep(root: Path, *, winner: bool = True, verdict: str = "better", **sections: dict[str, Any]) -> Path:
    """A sweep of three trials: 0001 complete and the winner, 0002 complete, 0003 pruned."""
    config = make_config(**sections)
    base = str(embedded.base_path()) if config.model.name == "embedded" else config.model.name
    for trial, state in (("0001", "complete"), ("0002", "complete"), ("0003", "pruned")):
        folder = root / "trials" / trial
        folder.mkdir(parents=True)
        write_json(folder / "record.json", make_record(config, trial, state=state))
        if state == "complete":
            write_adapter(folder / "adapter", base=base)
    write_json(
        root / "manifest.json",
        {
            "qlora_ray": "0.1.0",
            "folder": str(root.parent),
            "command": ["sweep.py", "--set", "results.name=it's"],
            "config": config.model_dump(),
            "space": SPACE,
            "data": {
                "template": "chat",
                "digests": {"train": TRAIN_SHA},
                "fingerprint": DATA_FINGERPRINT,
                "sources": {**OF_DATA["sources"], "test": "embedded/test.jsonl"},
            },
        },
    )
    if winner:
        write_adapter(root / "best" / "adapter", base=base, with_tokenizer=True)
        write_json(root / "best" / "record.json", make_record(config, "0001"))
        scores = {"loss": 0.07, "num_rows": 104, "metrics": {"exact_match": 0.75}}
        base_scores = {"loss": 1.09, "num_rows": 104, "metrics": {"exact_match": 0.25}}
        write_json(
            root / "best" / "scores.json",
            {"trial": "0001", "verdict": make_verdict(verdict), "winner": scores, "base": base_scores, "rescored": {}},
        )
    return root


def write_json(path: Path, data: Any) -> None:
    """Plain JSON."""
    path.write_text(json.dumps(data))


def write_alone(sweep: Path, to: Path, *, trial: str = "best") -> Bundle:
    """A trial's bundle without a merged model."""
    return write_bundle(select_trial(sweep, trial=trial), to=to, merge=None, device="cpu", tell=print)


def files_of(folder: Path) -> set[str]:
    """Paths of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its path."""
    return {name: (folder / name).read_bytes() for name in files_of(folder)}
