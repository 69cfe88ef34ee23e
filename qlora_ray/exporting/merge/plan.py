"""Which tensors a merged model has, under which names and in which dtypes, before any is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qlora_ray.config.schema import Precision
from qlora_ray.errors import ModelError
from qlora_ray.exporting.merge.checkpoint import Checkpoint
from qlora_ray.exporting.merge.deltas import AdapterChanges, BaseNames
from qlora_ray.modeling.quantization import torch_dtype

PlannedDtype = Literal["checkpoint", Precision]
Tying = Literal["tied", "untied by the merge", "separate"]
# safetensors' names of the dtypes that weights are merged in.
STORED_DTYPES: dict[str, Precision] = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the merged model.

    Attributes:
        stored: The checkpoint's tensor it is made of.
        parameter: The parameter it is; None for one that no parameter has under its name.
        dtype: bf16, fp16 or fp32; None to keep what is stored (token counts, masks).
        num_bytes: Its size in the file.
    """

    stored: str
    parameter: str | None
    dtype: Precision | None
    num_bytes: int


@dataclass(frozen=True)
class MergePlan:
    """The merged model's tensors by name, whichever rule fills them.

    Attributes:
        dtype: What config.json says: bf16, fp16 or fp32.
        head_dtype: What the head is written in.
        tying: Whether embedding and head are one tensor.
        stored_dtype: What most of the base's weights are stored in.
        stored_bytes: Of the base's tensors.
    """

    tensors: dict[str, PlannedTensor]
    dtype: Precision
    head_dtype: Precision
    tying: Tying
    stored_dtype: Precision
    stored_bytes: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def plan_merge(
    checkpoint: Checkpoint,
    names: BaseNames,
    changes: AdapterChanges,
    *,
    dtype: PlannedDtype,
    head_dtype: Precision | None,
) -> MergePlan:
    """Which tensors the merged model has, in what dtype.

    Args:
        dtype: checkpoint (each tensor's own), bf16, fp16 or fp32.
        head_dtype: The same for the head; None means as the rest. A head tied to the embedding is that one tensor.

    Raises:
        ModelError: If the checkpoint has no tensor for a weight that the adapter changes, or that was quantized.
    """
    parameters = {stored: names.find_parameter(stored) for stored in checkpoint.tensors}
    stored_by_parameter = {parameter: stored for stored, parameter in parameters.items() if parameter}
    outputs: dict[str, tuple[str, str | None]] = {stored: (stored, name) for stored, name in parameters.items()}
    tying: Tying = "separate"
    for group in names.tied:
        kept = _stays_tied(group, changes)
        if names.head in group:
            tying = "tied" if kept else "untied by the merge"
        present = next((stored_by_parameter[name] for name in sorted(group) if name in stored_by_parameter), None)
        for name in group - stored_by_parameter.keys() if present else ():
            stored_by_parameter[name] = str(present)
            if not kept:
                outputs[name] = (str(present), name)
    _check_found(stored_by_parameter, changes, checkpoint.name)
    heads = set() if names.head is None else {names.head}
    if tying == "tied":
        heads |= names.same_tensor(str(names.head))
    tensors = {}
    for name, (stored, parameter) in outputs.items():
        wanted = head_dtype if head_dtype and parameter in heads else dtype
        tensors[name] = _plan_tensor(checkpoint, stored, parameter, wanted)
    own: Precision = STORED_DTYPES.get(_most_common_dtype(checkpoint), "fp32")
    resolved: Precision = own if dtype == "checkpoint" else dtype
    head = next((tensor.dtype for tensor in tensors.values() if tensor.parameter in heads and tensor.dtype), resolved)
    stored_bytes = sum(_plan_tensor(checkpoint, name, None, "checkpoint").num_bytes for name in checkpoint.tensors)
    return MergePlan(tensors, resolved, head, tying, own, stored_bytes)


def _stays_tied(group: frozenset[str], changes: AdapterChanges) -> bool:
    """Whether parameters that are one tensor in the base are one in the merged model too."""
    import torch

    changed = [name for name in sorted(group) if name in changes.changed]
    if not changed:
        return True
    # modules_to_save may hold the tied pair as equal copies; anything else parts them.
    copies = [changes.saved.get(name) for name in sorted(group)]
    first = copies[0]
    return first is not None and all(copy is not None and torch.equal(copy, first) for copy in copies)


def _check_found(stored_by_parameter: dict[str, str], changes: AdapterChanges, where: str) -> None:
    """Fails on a layer whose weight the checkpoint stores otherwise: in one with others, or under another name."""
    missing = sorted((changes.changed | changes.quantized.keys()) - stored_by_parameter.keys())
    if missing:
        raise ModelError(
            f"merge: {where} must store the weight of every linear layer under its own name, got none for "
            f"{missing[0]} ({len(missing)} in all). Load the base, save it by save_pretrained, and name that folder "
            "with --set model.name=."
        )


def _plan_tensor(checkpoint: Checkpoint, stored: str, parameter: str | None, wanted: PlannedDtype) -> PlannedTensor:
    facts = checkpoint.tensors[stored]
    own = STORED_DTYPES.get(facts.dtype)
    if own is None:
        # Whole numbers and masks are no weights, and keep their type.
        return PlannedTensor(stored, parameter, None, _stored_bytes(checkpoint, stored))
    dtype = own if wanted == "checkpoint" else wanted
    return PlannedTensor(stored, parameter, dtype, facts.num_elements * torch_dtype(dtype).itemsize)


def _stored_bytes(checkpoint: Checkpoint, stored: str) -> int:
    tensor = checkpoint.read(stored)
    return tensor.numel() * tensor.element_size()


def _most_common_dtype(checkpoint: Checkpoint) -> str:
    weights: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        weights[tensor.dtype] = weights.get(tensor.dtype, 0) + tensor.num_elements
    return max(weights, key=lambda dtype: weights[dtype])
