"""A running trial's adapter, taken out of its newest state and written as PEFT writes one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_ray.modeling.auxiliary_heads import HeadSpec, TrainedHead, save_heads
from qlora_ray.modeling.identity import write_adapter_origin
from qlora_ray.runs.paths import ADAPTER_WEIGHTS
from qlora_ray.runs.record_parts import BaseRecord
from qlora_ray.runs.typed_json import to_json
from qlora_ray.training.checkpoint import TrialState, copy_state

# PEFT has an adapter's name in its parameters' names, and not in its files.
IN_A_MODEL, IN_A_FILE = ".default.weight", ".weight"


def write_checkpoint_adapter(state: Path, to: Path, *, base: BaseRecord) -> int | None:
    """Writes the adapter of a trial's state, also while the trial's executor replaces that.

    Args:
        state: The trial's state.
        to: An empty folder.
        base: What the adapter is on.

    Returns:
        The optimizer step that it is of; None, and nothing is written, where PEFT's file holds more than A and B (DoRA,
        modules_to_save).

    Raises:
        RunError: If there is no state, or it cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "state"
        copy_state(state, copy)
        read = TrialState.load(copy)
    lora: dict[str, Any] = read.facts.get("lora") or {}
    if not lora or lora.get("use_dora") or lora.get("modules_to_save"):
        return None
    from peft import LoraConfig
    from safetensors.torch import save_file

    alpha = float(lora["lora_alpha"])
    config = LoraConfig(
        r=lora["r"],
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
        lora_dropout=lora["lora_dropout"],
        target_modules=list(lora["target_modules"]),
        bias=lora["bias"],
        use_rslora=lora["use_rslora"],
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.name,
        revision=base.revision,
        inference_mode=True,
    )
    config.save_pretrained(str(to))
    save_heads([_take_head(read, name, facts) for name, facts in (read.facts.get("heads") or {}).items()], to)
    tensors = {name.replace(IN_A_MODEL, IN_A_FILE): tensor.contiguous() for name, tensor in read.adapter.items()}
    save_file(tensors, to / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    origin = {"trial": read.trial_id, "base": to_json(base), "quantization": read.facts.get("quantization") or {}}
    write_adapter_origin(to, origin)
    return read.step


def _take_head(state: TrialState, name: str, facts: Mapping[str, Any]) -> TrainedHead:
    """An auxiliary head, which lies among the adapter's parameters in a state and beside it in a folder."""
    spec = HeadSpec(name, facts["column"], tuple(facts["classes"]), facts["pooling"], facts["weight"])
    return TrainedHead(spec, state.adapter.pop(spec.parameter_name))
