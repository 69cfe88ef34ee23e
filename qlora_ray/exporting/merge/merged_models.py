"""Merged models, loaded from what was written and measured one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from qlora_ray.config.schema import Model, Quantization
from qlora_ray.exporting.merge.candidate import Candidate
from qlora_ray.exporting.merge.measure import Reference, Runner, measure_model
from qlora_ray.exporting.merge.plan import MergePlan
from qlora_ray.exporting.merge.report import MeasuredModel
from qlora_ray.hardware.probe import read_ram
from qlora_ray.modeling.answering import few_threads, hold_dequantized, with_adapter
from qlora_ray.modeling.loading import LoadedBase, load_base
from qlora_ray.modeling.quantization import QuantizationSpec, specify_quantization

NF4_COPY = "nf4 copy"


@dataclass(frozen=True)
class MergedModels:
    """Loads merged models and holds them against the trained one.

    Attributes:
        model: The base's config section: how merged models are loaded too.
        quantization: What the base was trained in, and what a copy is quantized in where that is 4-bit.
        device: Where they are measured; one that does not fit is measured on the CPU.
        notes: Takes a sentence for each that did not fit.
    """

    model: Model
    quantization: QuantizationSpec
    reference: Reference
    plan: MergePlan
    device: str
    notes: list[str] = field(default_factory=list)

    def measure(self, candidate: Candidate) -> MeasuredModel:
        """A candidate's figures."""
        spec = specify_quantization(Quantization(method="none"), compute_dtype=self.plan.dtype)
        figures = self._measure(candidate.folder, spec, name=candidate.rule, dtype=self.plan.dtype)
        return replace(
            figures,
            changed_share=candidate.changed_share,
            largest_change=candidate.largest_change,
            num_bytes=self.plan.num_bytes,
            num_shards=candidate.num_shards,
        )

    def quantize_again(self, kept: Candidate, folder: Path, *, max_shard_bytes: int) -> MeasuredModel:
        """Writes a merged model in 4 bits, and gives its figures.

        Args:
            kept: The merged model that is kept.
            folder: An empty folder for the quantized copy.
            max_shard_bytes: Bytes of weights in one file, at most.
        """
        # A base may be stored so; the merged model is not.
        spec = replace(self.quantization, is_stored=False)
        if spec.bits != 4:
            spec = specify_quantization(Quantization(), compute_dtype=spec.compute_dtype)

        def save(loaded: LoadedBase) -> None:
            # Loading for training turns the cache off in the config, which would be saved so.
            loaded.model.config.use_cache = True
            loaded.model.save_pretrained(str(folder), max_shard_size=max_shard_bytes)
            loaded.tokenizer.save_pretrained(str(folder))

        figures = self._measure(kept.folder, spec, name=NF4_COPY, dtype=spec.method, use=save)
        files = list(folder.glob("*.safetensors"))
        return replace(figures, num_bytes=sum(file.stat().st_size for file in files), num_shards=len(files))

    def _measure(
        self,
        folder: Path,
        spec: QuantizationSpec,
        *,
        name: str,
        dtype: str,
        use: Callable[[LoadedBase], None] | None = None,
    ) -> MeasuredModel:
        """A folder's figures, from the device or, where that has no room, from the CPU."""
        model = self.model.model_copy(update={"name": str(folder), "revision": None})

        def run(device: str) -> MeasuredModel:
            loaded = load_base(model, quantization=spec, device=device)
            if use is not None:
                use(loaded)
            wrapped = hold_dequantized(loaded, None, free_bytes=read_ram()[1])
            with few_threads(loaded), with_adapter(loaded, None, wrapped) as answering:
                runner = Runner(answering, loaded.tokenizer, loaded.precision)
                return measure_model(runner, self.reference, name=name, dtype=dtype)

        free_memory()
        try:
            return run(self.device)
        except torch.OutOfMemoryError:
            if self.device == "cpu":
                raise
        # Outside the handler: there the traceback would still hold the model that did not fit.
        free_memory()
        self.notes.append(f"{name}: measured on the CPU, for it does not fit {self.device}.")
        return run("cpu")


def free_memory() -> None:
    """Gives the memory of a model that is gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
