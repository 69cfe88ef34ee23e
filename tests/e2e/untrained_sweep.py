"""What a sweep of one trial leaves, for tests that evaluate it: nobody trains here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qlora_ray.config import SweepConfig
from qlora_ray.config.schema import Lora
from qlora_ray.data import prepare_data
from qlora_ray.modeling.adapters import attach_adapter, save_adapter
from qlora_ray.modeling.loading import hash_base, load_base
from qlora_ray.modeling.quantization import specify_quantization

NUM_ROWS = 8
FAST = ("--rows", str(NUM_ROWS), "--set", "evaluate.max_new_tokens=40", "--set", "evaluate.batch_size=4")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a sweep of one trial leaves, with an adapter that no one trained: it makes the base worse."""
    root = tmp_path_factory.mktemp("results") / "x"
    config = SweepConfig()
    config.data.max_length = 256
    base = load_base(
        config.model, quantization=specify_quantization(config.model.quantization, compute_dtype="fp32"), device="cpu"
    )
    model = attach_adapter(base, Lora(r=4), seed=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    (root / "best").mkdir(parents=True)
    (root / "trials").mkdir()
    save_adapter(model, root / "best" / "adapter")
    data = prepare_data(config.data, tokenizer=base.tokenizer, data_seed=config.training.data_seed)
    manifest = {"config": config.model_dump(), "folder": str(root), "data": data.report.to_dict()}
    record = {
        "trial": "0000",
        "state": "complete",
        "base": {"name": "embedded", "revision": None, "hash": hash_base(config.model)},
        "ran": {"quantization": base.quantization.to_dict()},
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    (root / "summary.json").write_text(json.dumps({"status": "complete", "winner": "0000"}))
    (root / "best" / "record.json").write_text(json.dumps(record))
    return root
