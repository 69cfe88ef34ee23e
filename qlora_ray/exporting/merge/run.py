"""Merging an adapter into its base, measured: both ways are made, held against the trained model, the closer kept.

An adapter was trained on the quantized base. Added to the checkpoint's weights (w16), it meets weights it has not
seen; added to the dequantized ones (dequant), it is what was trained, but the base's quantization error stays in.
Neither is always closer to the trained model once rounded to 16 bits.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Model
from qlora_ray.data.end_tokens import find_trained_end
from qlora_ray.errors import ModelError, RunError
from qlora_ray.exporting.merge.candidate import Candidate, Rule, write_candidate, write_side_files
from qlora_ray.exporting.merge.checkpoint import (
    Checkpoint,
    check_space,
    full_disk_as_run_error,
    new_folder,
    open_checkpoint,
)
from qlora_ray.exporting.merge.choice import check_changed, choose_candidate, explain_merge, explain_nan
from qlora_ray.exporting.merge.deltas import AdapterChanges, BaseNames
from qlora_ray.exporting.merge.options import MergeOptions
from qlora_ray.exporting.merge.plan import MergePlan, PlannedDtype, plan_merge
from qlora_ray.exporting.merge.report import MeasuredModel, MergeReport
from qlora_ray.hardware.probe import find_versions, read_ram
from qlora_ray.modeling.adapters import saved_adapter
from qlora_ray.modeling.answering import few_threads, hold_dequantized, with_adapter
from qlora_ray.modeling.device_memory import is_out_of_memory
from qlora_ray.modeling.identity import hash_adapter, read_adapter
from qlora_ray.modeling.loading import LoadedBase, hash_base, load_base
from qlora_ray.modeling.quantization import QuantizationSpec
from qlora_ray.runs.files import write_json
from qlora_ray.runs.paths import MERGE_REPORT, NF4_SUFFIX
from qlora_ray.scoring.split import EvaluationSplit

if TYPE_CHECKING:
    from qlora_ray.exporting.merge.measure import MeasuredRows, Reference


def merge_adapter(
    adapter: Path,
    *,
    model: Model,
    quantization: QuantizationSpec,
    held_out: EvaluationSplit,
    to: Path,
    options: MergeOptions,
    device: str,
    tell: Callable[[str], None],
) -> MergeReport:
    """Writes the merged model into a folder that from_pretrained loads, whole or not at all.

    Args:
        adapter: The adapter in PEFT's format.
        model: The base it was trained on.
        quantization: What the base was stored and computed in.
        held_out: Rows to measure on; the first 64 with an answer are used.
        to: The merged model's folder; one that is there is replaced.
        options: Which rule, the dtypes of weights and head, and the size of a shard.
        device: `cpu` or `cuda:0`; a merged model that does not fit the GPU is measured on the CPU.
        tell: Takes lines for the user.

    Raises:
        ModelError: If the adapter or the base cannot be merged, the merge changes nothing, or its outputs are NaN.
        DataError: If no row has an answer.
        RunError: If the disk is or becomes full.
    """
    return _Merge(adapter, model, quantization, held_out, to, options, device, tell).run()


@dataclass(frozen=True)
class _Trained:
    """What is known once the trained model has been measured and unloaded."""

    reference: Reference
    base: MeasuredModel
    checkpoint: Checkpoint
    plan: MergePlan
    candidates: list[Candidate]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Merge:
    """One merge: the arguments of `merge_adapter`."""

    adapter: Path
    model: Model
    quantization: QuantizationSpec
    held_out: EvaluationSplit
    to: Path
    options: MergeOptions
    device: str
    tell: Callable[[str], None]

    def run(self) -> MergeReport:
        """The merge on the device; where it does not fit, on the CPU from the start."""
        from qlora_ray.exporting.merge.merged_models import free_memory

        try:
            return self._run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.device == "cpu":
                raise RunError(
                    f"{self.adapter}: merging must fit the memory of this machine, got too little. "
                    "Free some, use a larger machine, or export with --merge none."
                ) from None
        # Outside the handler: there the traceback would still hold the model that did not fit.
        free_memory()
        self.tell(f"merge: it does not fit {self.device}: merging on the CPU")
        return replace(self, device="cpu").run()

    def _run(self) -> MergeReport:
        from qlora_ray.exporting.merge.merged_models import MergedModels

        started = time.monotonic()
        copy_path = self.to.with_name(self.to.name + NF4_SUFFIX)
        with full_disk_as_run_error(self.to), ExitStack() as stack:
            folder = stack.enter_context(new_folder(self.to))
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".measure.", dir=folder)))
            copy = stack.enter_context(new_folder(copy_path)) if self.options.nf4_copy else None
            trained = self._make_candidates(folder, scratch)
            notes = explain_merge(trained.candidates, trained.plan, asked_head=self.options.head_dtype)
            models = MergedModels(self.model, self.quantization, trained.reference, trained.plan, self.device)
            measured = []
            for candidate in trained.candidates:
                self.tell(f"merge: measuring {candidate.rule}")
                measured.append(models.measure(candidate))
            kept, reason = choose_candidate(
                trained.candidates, measured, is_quantized=self.quantization.method != "none"
            )
            if self.quantization.is_stored:
                reason = "The base is stored quantized: there are no original weights that w16 could be added to."
            if copy is not None:
                self.tell("merge: quantizing the merged model again")
                measured.append(models.quantize_again(kept, copy, max_shard_bytes=self.options.max_shard_bytes))
            notes.extend([*models.notes, *explain_nan(measured)])
            report = self._report(kept, reason, trained, measured, notes, seconds=time.monotonic() - started)
            # In the copy too: it may be moved, and `evaluate` asks of each what it was made of.
            for made in filter(None, (kept.folder, copy)):
                write_json(made / MERGE_REPORT, report.to_dict())
            _keep_only(kept, trained.candidates, folder)
        return report

    def _make_candidates(self, folder: Path, scratch: Path) -> _Trained:
        """All that needs the trained model: its figures, its log-probabilities, and the merged weights."""
        from qlora_ray.exporting.merge.measure import choose_rows

        checkpoint = open_checkpoint(self.model)
        base = load_base(self.model, quantization=self.quantization, device=self.device)
        names = BaseNames(base.model)
        rows = choose_rows(self.held_out, vocab_size=base.model.get_output_embeddings().weight.shape[0])
        method = self.quantization.method
        dtype = base.precision if method == "none" else method
        rules = self._rules()
        with saved_adapter(base, self.adapter) as tuned:
            # What it holds of the layers stays when the adapter is taken off.
            changes = AdapterChanges(tuned, folder=self.adapter)
        if self.quantization.is_stored:
            checkpoint = checkpoint.as_dequantized(_packed_shapes(checkpoint, names, changes))
        plan = plan_merge(checkpoint, names, changes, dtype=self._dtype, head_dtype=self.options.head_dtype)
        check_space(folder, (len(rules) + self.options.nf4_copy) * plan.num_bytes + rows.reference_bytes)
        self.tell(f"merge: measuring {method} + adapter on {len(rows.positions)} rows of {rows.name}")
        reference, yardstick = self._measure_trained(base, rows, name=method, dtype=dtype, folder=scratch)
        candidates = [
            write_candidate(
                folder / rule,
                rule=rule,
                plan=plan,
                checkpoint=checkpoint,
                changes=changes,
                device=self.device,
                max_shard_bytes=self.options.max_shard_bytes,
                tell=self.tell,
            )
            for rule in rules
        ]
        check_changed(candidates, adapter=self.adapter, dtype=plan.dtype)
        facts = _adapter_facts(self.adapter, changes)
        end = find_trained_end(self.held_out.input_ids, self.held_out.completion_mask, base.tokenizer)
        for candidate in candidates:
            write_side_files(candidate.folder, checkpoint=checkpoint, plan=plan, tokenizer=base.tokenizer, end=end)
        return _Trained(reference, yardstick, checkpoint, plan, candidates, facts)

    def _measure_trained(
        self, base: LoadedBase, rows: MeasuredRows, *, name: str, dtype: str, folder: Path
    ) -> tuple[Reference, MeasuredModel]:
        """The base with its adapter, which others are held against, and bare."""
        from qlora_ray.exporting.merge.measure import Runner, measure_model, measure_reference

        wrapped = hold_dequantized(base, self.adapter, free_bytes=read_ram()[1])
        with few_threads(base):
            with with_adapter(base, self.adapter, wrapped) as tuned:
                runner = Runner(tuned, base.tokenizer, base.precision)
                reference = measure_reference(runner, rows, name=f"{name} + adapter", dtype=dtype, folder=folder)
                if wrapped is None:
                    # An adapter that has changed its base can be switched off, and not taken off.
                    with tuned.disable_adapter():
                        return reference, measure_model(runner, reference, name=f"{name} base", dtype=dtype)
            with with_adapter(base, None, wrapped) as bare:
                runner = Runner(bare, base.tokenizer, base.precision)
                return reference, measure_model(runner, reference, name=f"{name} base", dtype=dtype)

    @property
    def _dtype(self) -> PlannedDtype:
        return self.quantization.compute_dtype if self.options.dtype == "auto" else self.options.dtype

    def _rules(self) -> list[Rule]:
        if self.quantization.method == "none":
            return ["w16"]
        if self.quantization.is_stored:
            if self.options.rule == "w16":
                raise ModelError(
                    f"--merge w16 must have the base's original weights, got a base that is stored in "
                    f"{self.quantization.describe()}. Choose auto or dequant."
                )
            return ["dequant"]
        return ["w16", "dequant"] if self.options.rule == "auto" else [self.options.rule]

    def _report(
        self,
        kept: Candidate,
        reason: str,
        trained: _Trained,
        measured: list[MeasuredModel],
        notes: list[str],
        *,
        seconds: float,
    ) -> MergeReport:
        from qlora_ray.modeling.device_memory import peak_memory_bytes

        rows = trained.reference.rows
        return MergeReport(
            rule=kept.rule,
            reason=reason,
            options=asdict(self.options),
            dtype=trained.plan.dtype,
            head_dtype=trained.plan.head_dtype,
            tying=trained.plan.tying,
            adapter=trained.facts,
            base={"name": self.model.name, "revision": self.model.revision, "hash": hash_base(self.model)},
            quantization=self.quantization.to_dict(),
            rows={
                "split": rows.name,
                "num_rows": len(rows.positions),
                "num_positions": rows.num_positions,
                "num_answers": rows.num_answers,
            },
            models=[trained.reference.model, trained.base, *measured],
            notes=notes,
            nf4_copy=self.to.name + NF4_SUFFIX if self.options.nf4_copy else None,
            seconds=round(seconds, 1),
            peak_memory_bytes=peak_memory_bytes(self.device),
            versions=find_versions() | {"python": platform.python_version()},
        )


def _packed_shapes(checkpoint: Checkpoint, names: BaseNames, changes: AdapterChanges) -> dict[str, tuple[int, ...]]:
    """The shapes that quantized weights have, by their names in the checkpoint."""
    parameters = {stored: names.find_parameter(stored) for stored in checkpoint.tensors}
    return {
        stored: tuple(changes.dequantized(parameter).shape)
        for stored, parameter in parameters.items()
        if parameter in changes.quantized
    }


def _keep_only(kept: Candidate, candidates: list[Candidate], folder: Path) -> None:
    """Moves the kept model up into the folder, and deletes the others."""
    for candidate in candidates:
        if candidate is not kept:
            shutil.rmtree(candidate.folder)
    for path in kept.folder.iterdir():
        path.replace(folder / path.name)
    kept.folder.rmdir()


def _adapter_facts(folder: Path, changes: AdapterChanges) -> dict[str, Any]:
    """What the report says of the adapter."""
    return {
        "kind": changes.kind,
        "r": read_adapter(folder).r,
        "sha256": hash_adapter(folder),
        "num_layers": len(changes.lora),
        "num_saved_parameters": len(changes.saved),
    }
