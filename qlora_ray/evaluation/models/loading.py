"""The models of an evaluation, loaded as they were trained, one in memory at a time."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Precision
from qlora_ray.errors import ModelError
from qlora_ray.evaluation.models.load_plan import LoadPlan
from qlora_ray.evaluation.models.tokenizers import grow_vocabulary
from qlora_ray.evaluation.target.target import ModelName
from qlora_ray.hardware import PrecisionChoice
from qlora_ray.hardware.stored import read_stored
from qlora_ray.modeling.adapters import saved_adapter
from qlora_ray.modeling.answering import changes_base, few_threads, hold_dequantized, with_adapter
from qlora_ray.modeling.device_memory import is_out_of_memory
from qlora_ray.modeling.loading import LoadedBase, load_base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def _open_base(load_plan: LoadPlan, names: Sequence[ModelName], adapter: Path | None) -> Generator[LoadedModel]:
    loaded, grown = _load_base(load_plan)
    if adapter is not None:
        with _fitting_adapter(loaded, adapter):
            pass
    wrapped = hold_dequantized(loaded, adapter, free_bytes=load_plan.device.free_memory_bytes)
    way = "its 4-bit weights held dequantized" if wrapped is not None else "as transformers and PEFT load it"
    how = _how(load_plan, loaded, way) + grown
    with few_threads(loaded):
        for name in names:
            if name != "merged":
                with with_adapter(loaded, adapter if name == "adapter" else None, wrapped) as model:
                    yield LoadedModel(name, model, loaded.tokenizer, load_plan.precision.name, how)


def _open_changed(load_plan: LoadPlan, adapter: Path) -> Generator[LoadedModel]:
    """An adapter that changes its base, put on once: a second time it would change what it has changed."""
    loaded, grown = _load_base(load_plan)
    how = _how(load_plan, loaded, "as transformers and PEFT load it, on a base of its own, which it changes") + grown
    with few_threads(loaded), _fitting_adapter(loaded, adapter) as model:
        yield LoadedModel("adapter", model, loaded.tokenizer, load_plan.precision.name, how)


def _load_base(load_plan: LoadPlan) -> tuple[LoadedBase, str]:
    """The base, with the vocabulary that its adapter was trained with, and the words for that."""
    assert load_plan.target.base is not None
    loaded = load_base(load_plan.target.base, quantization=load_plan.specs["base"], device=load_plan.torch_device)
    tokenizer = load_plan.tokenizer or loaded.tokenizer
    grown = grow_vocabulary(loaded.model, load_plan.target.adapter, tokenizer)
    return replace(loaded, tokenizer=tokenizer), f"; {grown}" if grown else ""


def _how(load_plan: LoadPlan, loaded: LoadedBase, way: str) -> str:
    described = _describe(loaded, load_plan.precision)
    reason = "as it is stored" if loaded.quantization.is_stored else load_plan.target.quantization_reason
    return f"{described}, {reason}, on {load_plan.device.name}; {way}"


def _open_merged(load_plan: LoadPlan) -> Generator[LoadedModel]:
    spec = load_plan.specs["merged"]
    loaded = load_base(load_plan.merged_model, quantization=spec, device=load_plan.torch_device)
    how = f"{_describe(loaded, load_plan.precision)}, on {load_plan.device.name}"
    with few_threads(loaded):
        yield LoadedModel("merged", loaded.model, loaded.tokenizer, load_plan.precision.name, how)


def free_memory() -> None:
    """Gives back what a model that is no longer referenced held, on the device too."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def _fitting_adapter(loaded: LoadedBase, adapter: Path) -> Iterator[Any]:
    """The adapter on the base; what PEFT raises or only warns of when it does not fit becomes one line."""
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = stack.enter_context(saved_adapter(loaded, adapter))
        except ModelError:
            raise
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


def _describe(loaded: LoadedBase, precision: PrecisionChoice) -> str:
    """`nf4 with double quantization, computed in bf16`; for a quantization of the folder's own, as it is written."""
    spec = loaded.quantization
    written = getattr(loaded.model.config, "quantization_config", None)
    if spec.method == "none" and written is not None:
        stored = read_stored({"quantization_config": written if isinstance(written, dict) else written.to_dict()})
        kind = stored.describe() if stored is not None else "quantized"
    else:
        kind = spec.describe()
    return f"{kind}, computed in {precision.name}"
