"""One merged model on disk: the base's checkpoint, or its dequantized weights, with the adapter added."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qlora_ray.data.end_tokens import find_end_ids
from qlora_ray.errors import ModelError
from qlora_ray.exporting.merge.checkpoint import Checkpoint, write_shards
from qlora_ray.exporting.merge.deltas import AdapterChanges
from qlora_ray.exporting.merge.plan import MergePlan
from qlora_ray.modeling.quantization import torch_dtype
from qlora_ray.regular_files import load_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Rule = Literal["w16", "dequant"]
GENERATION_CONFIG = "generation_config.json"
# What config.json calls them.
DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Candidate:
    """A merged model's folder, and what the cast to its dtype left of the adapter.

    Attributes:
        changed_share: Share of the merged layers' weights that differ, in the file's dtype, from what the same rule
            writes without the adapter; 0 to 1.
        largest_change: The largest change of a weight, before the cast.
    """

    rule: Rule
    folder: Path
    num_shards: int
    changed_share: float
    largest_change: float


def write_candidate(
    folder: Path,
    *,
    rule: Rule,
    plan: MergePlan,
    checkpoint: Checkpoint,
    changes: AdapterChanges,
    device: str,
    max_shard_bytes: int,
    tell: Callable[[str], None],
) -> Candidate:
    """Writes the merged weights of one rule, with at most one shard in memory.

    Args:
        folder: A folder that is not there yet.
        rule: Whether the change is added to the original weights (`w16`) or the dequantized ones (`dequant`).
        plan: The tensors of the merged model and their dtypes.
        checkpoint: The base's weights.
        changes: What the adapter changes.
        device: Where the products are computed: `cpu` or `cuda:0`.
        max_shard_bytes: Bytes of weights in one file, at most.
        tell: Takes lines for the user.

    Raises:
        ModelError: If a merged weight is not finite in its dtype.
    """
    num_weights, num_changed, largest = 0, 0, 0.0

    def make(name: str) -> Tensor:
        nonlocal num_weights, num_changed, largest
        planned = plan.tensors[name]
        stored = checkpoint.read(planned.stored)
        if planned.dtype is None:
            return stored
        dtype = torch_dtype(planned.dtype)
        parameter = planned.parameter or ""
        dequantizes = rule == "dequant" and parameter in changes.quantized
        if parameter not in changes.changed and not dequantizes:
            return _cast(stored, dtype, name=name)
        where = device if parameter in changes.lora else "cpu"
        before = changes.dequantized(parameter) if dequantizes else stored.to(where).float()
        after = changes.apply(parameter, before) if parameter in changes.changed else before
        result = _cast(after, dtype, name=name)
        if parameter in changes.changed:
            num_weights += result.numel()
            num_changed += int((result != before.to(dtype)).sum())
            largest = max(largest, float((after - before).abs().max()))
        return result.cpu()

    folder.mkdir()
    sizes = {name: tensor.num_bytes for name, tensor in plan.tensors.items()}
    num_shards = write_shards(folder, sizes, make, max_shard_bytes=max_shard_bytes, tell=tell)
    return Candidate(rule, folder, num_shards, num_changed / max(1, num_weights), largest)


def write_side_files(
    folder: Path,
    *,
    checkpoint: Checkpoint,
    plan: MergePlan,
    tokenizer: PreTrainedTokenizerBase,
    end: int | None = None,
) -> None:
    """Writes config.json, generation_config.json and the tokenizer with its chat template beside the weights.

    Args:
        folder: The merged model's folder.
        checkpoint: The base; its generation_config.json and its own code are copied.
        plan: The dtype and whether embedding and head are tied, for config.json.
        tokenizer: The base's tokenizer.
        end: The token that answers were trained to end with. It becomes the merged model's tokenizer's end token, and
            is in its generation_config.json: readers go by one or the other. None: the tokenizer's own stays.
    """
    config = _merged_config(checkpoint, plan)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_generation_config(folder, checkpoint=checkpoint, tokenizer=tokenizer, end=end)
    if isinstance(config.get("auto_map"), dict):
        for source in _find_code(checkpoint, config["auto_map"]):
            (folder / source.name).write_bytes(source.read_bytes())
    own = tokenizer.eos_token
    try:
        if end is not None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        tokenizer.save_pretrained(str(folder))
    finally:
        tokenizer.eos_token = own


def _write_generation_config(
    folder: Path, *, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, end: int | None
) -> None:
    """The base's, with every token that ends an answer; as it is where it has them all."""
    file = checkpoint.find_file(GENERATION_CONFIG)
    written = {} if file is None else load_json(file)
    found = written.get("eos_token_id")
    own = found if isinstance(found, list) else [] if found is None else [found]
    ends = find_end_ids(tokenizer, [*own, end])
    if file is not None and set(ends) == set(own):
        (folder / GENERATION_CONFIG).write_bytes(file.read_bytes())
    elif ends:
        written["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        (folder / GENERATION_CONFIG).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _merged_config(checkpoint: Checkpoint, plan: MergePlan) -> dict[str, Any]:
    config = json.loads(json.dumps(checkpoint.config))
    sections = [config, *([config["text_config"]] if isinstance(config.get("text_config"), dict) else [])]
    for section in sections:
        # Older bases say torch_dtype, and their readers look for it.
        keys = [key for key in ("dtype", "torch_dtype") if key in section] or ["dtype"]
        section.update(dict.fromkeys(keys, DTYPE_NAMES[plan.dtype]))
        if plan.tying == "untied by the merge":
            section["tie_word_embeddings"] = False
    if isinstance(config.get("auto_map"), dict):
        # Beside the weights lies the code of the base's own commit: its name would stand for what main has today.
        own = f"{checkpoint.name}--"
        config["auto_map"] = {
            key: [_without(own, item) for item in value] if isinstance(value, list) else _without(own, value)
            for key, value in config["auto_map"].items()
        }
    return dict(config)


def _without(prefix: str, reference: Any) -> Any:
    return reference.removeprefix(prefix) if isinstance(reference, str) else reference


def _find_code(checkpoint: Checkpoint, auto_map: dict[str, Any]) -> list[Path]:
    """The base's own modules: all of its folder; of the hub those that its config names, and what these import."""
    base = Path(checkpoint.name)
    if base.is_dir():
        return list(base.glob("*.py"))
    from transformers.dynamic_module_utils import get_relative_imports

    found: dict[str, Path] = {}
    # A tokenizer's are two: the slow one's class and the fast one's.
    references = [
        reference for value in auto_map.values() for reference in (value if isinstance(value, list) else [value])
    ]
    # `org/code--module.Class` is another repository's, and stays there.
    waiting = [
        reference.split(".")[0] for reference in references if isinstance(reference, str) and "--" not in reference
    ]
    while waiting:
        module = waiting.pop()
        file = None if module in found else checkpoint.find_file(f"{module}.py")
        if file is not None:
            found[module] = file
            waiting += get_relative_imports(file)
    return list(found.values())


def _cast(weight: Tensor, dtype: torch.dtype, *, name: str) -> Tensor:
    """The weight in the file's dtype.

    Raises:
        ModelError: If a number is lost to infinity, or is none to begin with.
    """
    import torch

    result = weight.to(dtype)
    if torch.isfinite(result).all():
        return result
    if torch.isfinite(weight).all():
        largest, limit = float(weight.abs().max()), torch.finfo(dtype).max
        raise ModelError(
            f"merge: {name} must fit {dtype} (at most {limit:g}), got {largest:g}. Choose the dtype bf16 or fp32."
        )
    raise ModelError(f"merge: {name} must be finite, got NaN or infinity. The base or the adapter is broken.")
