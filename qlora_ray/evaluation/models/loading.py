"""The models of an evaluation, loaded as they were trained, one in memory at a time."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Lora, Precision
from qlora_ray.errors import ModelError
from qlora_ray.evaluation.models.load_plan import LoadPlan
from qlora_ray.evaluation.target.target import ModelName
from qlora_ray.hardware import DeviceProfile, PrecisionChoice
from qlora_ray.hardware.packing import NARROW_WIDTH
from qlora_ray.modeling.adapters import saved_adapter
from qlora_ray.modeling.device_memory import is_out_of_memory
from qlora_ray.modeling.identity import read_adapter
from qlora_ray.modeling.loading import LoadedBase, load_base
from qlora_ray.modeling.packing import find_packing_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ours: of free memory, what the dequantized copy of a 4-bit base may take, so that caches and logits find room too.
DENSE_SHARE = 0.5
# What PEFT's own layers do and packed layers do not, beside what cannot be trained in a pack (adapter_config.json, peft
# 0.21).
PEFT_ONLY = (
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "fan_in_fan_out",
    "target_parameters",
    "use_qalora",
)
# Values of init_lora_weights that leave the base as it is; the others take a part of its weights into A and B when PEFT
# loads the adapter (peft 0.21, tuners/lora/layer.py).
KEEPING_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers.

    Attributes:
        how: How its weights are stored and computed, and on what device, as a phrase for results.
    """

    name: ModelName
    model: Any
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    how: str


def open_models(load_plan: LoadPlan, names: Sequence[ModelName]) -> Generator[LoadedModel]:
    """Yields the models in turn; each is gone before the next is loaded, but base and adapter share one base.

    The adapter is tried on the base before the base is handed out: what does not fit is known before any work. An
    adapter that changes the base's own weights gets a base of its own, loaded anew.

    Raises:
        ModelError: If a model cannot be loaded, or the adapter does not fit the base.
    """
    adapter = load_plan.target.adapter if "adapter" in names else None
    if adapter is not None and changes_base(adapter):
        if "base" in names:
            yield from _open_base(load_plan, ["base"], None)
            free_memory()
        yield from _open_changed(load_plan, adapter)
        free_memory()
    elif "base" in names or adapter is not None:
        yield from _open_base(load_plan, names, adapter)
        free_memory()
    if "merged" in names:
        yield from _open_merged(load_plan)
        free_memory()


def changes_base(adapter: Path) -> bool:
    """Whether loading this adapter changes the base's own weights or layers, so that taking it off leaves another base.

    Biases and tokens are trained in place, and some ways of initializing take a part out of the base's weights.
    """
    config = read_adapter(adapter).config
    keeps_weights = config.get("init_lora_weights", True) in KEEPING_INITS and config.get("bias", "none") == "none"
    return not keeps_weights or bool(config.get("trainable_token_indices") or config.get("layer_replication"))


def _open_base(load_plan: LoadPlan, names: Sequence[ModelName], adapter: Path | None) -> Generator[LoadedModel]:
    loaded = _load_base(load_plan)
    if adapter is not None:
        with _fitting_adapter(loaded, adapter):
            pass
    wrapped = _hold_dequantized(loaded, adapter, load_plan.device)
    way = "its 4-bit weights held dequantized" if wrapped is not None else "as transformers and PEFT load it"
    how = _how(load_plan, loaded, way)
    with _few_threads(loaded):
        for name in names:
            if name != "merged":
                with _attached(loaded, adapter if name == "adapter" else None, wrapped) as model:
                    yield LoadedModel(name, model, loaded.tokenizer, load_plan.precision.name, how)


def _open_changed(load_plan: LoadPlan, adapter: Path) -> Generator[LoadedModel]:
    """An adapter that changes its base, put on once: a second time it would change what it has changed."""
    loaded = _load_base(load_plan)
    how = _how(load_plan, loaded, "as transformers and PEFT load it, on a base of its own, which it changes")
    with _few_threads(loaded), _fitting_adapter(loaded, adapter) as model:
        yield LoadedModel("adapter", model, loaded.tokenizer, load_plan.precision.name, how)


def _load_base(load_plan: LoadPlan) -> LoadedBase:
    assert load_plan.target.base is not None
    return load_base(load_plan.target.base, quantization=load_plan.specs["base"], device=load_plan.torch_device)


def _how(load_plan: LoadPlan, loaded: LoadedBase, way: str) -> str:
    described = _describe(loaded, load_plan.precision)
    return f"{described}, {load_plan.target.quantization_reason}, on {load_plan.device.name}; {way}"


def _open_merged(load_plan: LoadPlan) -> Generator[LoadedModel]:
    spec = load_plan.specs["merged"]
    loaded = load_base(load_plan.merged_model, quantization=spec, device=load_plan.torch_device)
    how = f"{_describe(loaded, load_plan.precision)}, on {load_plan.device.name}"
    with _few_threads(loaded):
        yield LoadedModel("merged", loaded.model, loaded.tokenizer, load_plan.precision.name, how)


def free_memory() -> None:
    """Gives back what a model that is no longer referenced held, on the device too."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def _few_threads(loaded: LoadedBase) -> Iterator[None]:
    """One thread for a narrow model on a CPU: it gains little from more, and waits long for one that others hold up."""
    import torch

    before = torch.get_num_threads()
    is_narrow = getattr(loaded.model.config.get_text_config(), "hidden_size", NARROW_WIDTH) < NARROW_WIDTH
    if loaded.device == "cpu" and is_narrow:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _attached(loaded: LoadedBase, adapter: Path | None, wrapped: Any) -> Iterator[Any]:
    if wrapped is not None:
        from qlora_ray.modeling.multi_lora.adapters import answering

        with answering(wrapped, [adapter]) as route, route([0]):
            yield loaded.model
    elif adapter is not None:
        with saved_adapter(loaded, adapter) as model:
            yield model
    else:
        yield loaded.model


@contextmanager
def _fitting_adapter(loaded: LoadedBase, adapter: Path) -> Iterator[Any]:
    """The adapter on the base; what PEFT raises or only warns of when it does not fit becomes one line."""
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = stack.enter_context(saved_adapter(loaded, adapter))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # PEFT has no class of its own for a file that it cannot use: ValueError, TypeError, ImportError and others.
            raise _does_not_fit(adapter, loaded, str(error) or type(error).__name__) from None
        missing = [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]
        if missing:
            raise _does_not_fit(adapter, loaded, missing[0])
        yield model


def _does_not_fit(adapter: Path, loaded: LoadedBase, cause: str) -> ModelError:
    lines = [line.strip() for line in cause.strip().splitlines() if line.strip()]
    # torch's first line names the class only; what differs is in the second.
    line = next((line for line in lines if "size mismatch" in line), lines[0] if lines else "no cause given")
    name = loaded.model.config.name_or_path
    return ModelError(
        f"{adapter}: must be an adapter of this base ({name}), got one that does not fit it: {line.rstrip('.')[:200]}. "
        "Name its own base with --set model.name=."
    )


def _hold_dequantized(loaded: LoadedBase, adapter: Path | None, device: DeviceProfile) -> Any:
    """The base with layers that hold 4-bit weights dequantized, where that is the same and faster; else None.

    On a CPU bitsandbytes dequantizes every weight for every token that is generated: measured five times slower.
    """
    import bitsandbytes

    if device.kind != "cpu" or loaded.quantization.method not in ("nf4", "fp4"):
        return None
    if find_packing_problem(loaded.model, _lora_of(adapter)) is not None:
        return None
    if adapter is not None and not _is_packable(adapter):
        return None
    quantized = [layer for layer in loaded.model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    num_bytes = sum(4 * layer.in_features * layer.out_features for layer in quantized)
    if num_bytes > DENSE_SHARE * device.free_memory_bytes:
        return None
    from qlora_ray.modeling.multi_lora.wrapped_base import WrappedBase

    return WrappedBase(loaded, hold_dequantized=True)


def _is_packable(adapter: Path) -> bool:
    from qlora_ray.modeling.multi_lora.adapters import UNPACKABLE

    config = read_adapter(adapter).config
    return isinstance(config.get("target_modules"), list) and not any(
        config.get(key) for key in (*UNPACKABLE, *PEFT_ONLY)
    )


def _lora_of(adapter: Path | None) -> list[Lora]:
    if adapter is None or not _is_packable(adapter):
        return []
    facts = read_adapter(adapter)
    return [Lora(r=facts.r, target_modules=sorted(facts.config["target_modules"]))]


def _describe(loaded: LoadedBase, precision: PrecisionChoice) -> str:
    """`nf4 with double quantization, computed in bf16`; for a quantization of the folder's own, as it is written."""
    spec = loaded.quantization
    written = getattr(loaded.model.config, "quantization_config", None)
    if spec.method != "none":
        kind = spec.method + (" with double quantization" if spec.double_quantization else "")
    elif written is not None:
        values = written if isinstance(written, dict) else written.to_dict()
        is_four_bit = values.get("load_in_4bit") or values.get("_load_in_4bit")
        kind = str(values.get("bnb_4bit_quant_type") if is_four_bit else values.get("quant_method"))
    else:
        kind = f"{spec.compute_dtype} weights"
    return f"{kind}, computed in {precision.name}"
