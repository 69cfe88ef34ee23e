"""What an adapter or a merged model was made on: its base, and how that was stored, by what came with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from qlora_ray.config.reuse import distrust, drop_foreign_revision, is_overridden, read_bundle_config, read_intent
from qlora_ray.config.schema import Model, Quantization, SweepConfig
from qlora_ray.errors import ModelError
from qlora_ray.evaluation.target.folders import MODEL_CONFIG, read_merge_report
from qlora_ray.evaluation.target.target import Request, Target
from qlora_ray.formats import list_first
from qlora_ray.hardware.stored import read_stored
from qlora_ray.modeling.identity import (
    ADAPTER_ORIGIN,
    AdapterFacts,
    AdapterOrigin,
    check_base,
    list_unknown_keys,
    read_adapter,
    read_adapter_origin,
)
from qlora_ray.modeling.loading import looks_like_path, pin_revision, read_config, resolve_model_name
from qlora_ray.runs.paths import ADAPTER_CONFIG, MERGE_REPORT
from qlora_ray.runs.record_parts import BaseRecord, QuantizationRecord
from qlora_ray.runs.records import Manifest, TrialRecord
from qlora_ray.runs.typed_json import parse_record


@dataclass(frozen=True)
class Origin:
    """What came with an adapter: its trial's record, and its sweep's config as a manifest or a YAML."""

    record: TrialRecord | None = None
    manifest: Manifest | None = None
    config: Path | None = None

    def read_config(self, request: Request) -> tuple[SweepConfig, list[str]]:
        """The config to go by, without a right to run code that only came with the target, and a note if it had it."""
        if request.config is None and self.manifest is None and self.config is not None:
            config = read_bundle_config(self.config, overrides=request.overrides)
        else:
            config = read_intent(self.manifest, config=request.config, overrides=request.overrides)
        if request.config is not None:
            return config, []
        return distrust(config, request.overrides, manifest=self.manifest)


def target_of_adapter(adapter: Path, origin: Origin, request: Request, *, path: str, to: Path) -> Target:
    """A target of kind adapter: its base by name, stored as it was in training.

    Args:
        adapter: The adapter's folder, in PEFT's format.
        origin: Config, record and manifest that were found with it.
        request: What the command line says.
        path: What the user named, as results call it.
        to: Where the evaluation goes by default.

    Raises:
        ModelError: If the adapter is not whole, or names no base, or one that is missing.
        ConfigError: If the config is wrong.
    """
    facts = read_adapter(adapter)
    own = read_adapter_origin(adapter) or AdapterOrigin()
    record = origin.record or TrialRecord()
    written = own.base if record.base == BaseRecord() else record.base
    config, notes = origin.read_config(request)
    base = _pin_base(_name_base(config, origin, request, facts=facts, written=written), adapter)
    quantization, reason = _quantization_of(config, origin, request, own=own)
    stored = None if reason else read_stored(read_config(base))
    if stored is not None:
        reason = "as it is stored"
    elif not reason:
        reason = "nf4 with double quantization, QLoRA's own: no record says how it was trained"
        notes.append(f"{adapter}: loaded on {reason}; --set model.quantization.method= says otherwise")
    unknown = list_unknown_keys(facts)
    if unknown:
        notes.append(
            f"{adapter}: {ADAPTER_CONFIG} has {list_first(unknown)}, which this PEFT does not know: what was asked for "
            "by it in training is not done"
        )
    is_asked = request.config is not None and "quantization" in config.model.model_fields_set
    if is_asked and config.model.quantization.method != quantization.method:
        notes.append(
            f"the base is loaded in {quantization.method}, {reason}; --config has {config.model.quantization.method}, "
            "which only --set model.quantization.method= can ask for"
        )
    return Target(
        "adapter",
        path,
        config,
        base,
        quantization,
        reason,
        to,
        adapter=adapter,
        trial=record.trial or own.trial,
        base_hash=written.hash,
        manifest=origin.manifest,
        record=origin.record,
        notes=notes,
    )


def target_of_merged(folder: Path, origin: Origin, request: Request, *, to: Path) -> Target:
    """A merged model beside the base that its report names, which is left out, with a note, where it is not to be had.

    Args:
        folder: The merged model's folder.
        origin: Config, record and manifest that were found with it.
        request: What the command line says.
        to: Where the evaluation goes by default.

    Raises:
        ModelError: If the base that the command line names is missing or another one.
        ConfigError: If the config is wrong.
    """
    config, notes = origin.read_config(request)
    report = read_merge_report(folder) or {}
    written = parse_record(BaseRecord, report.get("base") or {})
    is_named = is_overridden(request.overrides, "model.name")
    base: Model | None = None
    if is_named or written.name:
        config = drop_foreign_revision(config, request.overrides, own_name=written.name)
        revision = config.model.revision if is_named else written.revision
        name = config.model.name if is_named else str(written.name)
        try:
            base = _find_base_of_merged(config.model, name, revision, written=written, where=str(folder), notes=notes)
        except ModelError as error:
            if is_named:
                raise
            notes.append(f"the merged model is scored alone, its base cannot be had: {error}")
    quantization, reason = None, "as its own config.json says"
    if base is not None and report.get("quantization"):
        stored = parse_record(QuantizationRecord, report["quantization"])
        quantization = _read_quantization(stored, where=str(folder / MERGE_REPORT))
        reason = f"as {MERGE_REPORT} says"
    return Target(
        "model",
        str(folder),
        config,
        base,
        quantization,
        reason,
        to,
        merged=folder,
        manifest=origin.manifest,
        record=origin.record,
        notes=notes,
    )


def _pin_base(base: Model, adapter: Path) -> Model:
    check_there(base, where=str(adapter))
    try:
        return pin_revision(base)
    except ModelError as error:
        raise ModelError(
            f"{adapter}: its base must be there, got {base.name}, which cannot be had. "
            f"Name a folder of that base with --set model.name=FOLDER ({str(error).rstrip('.')})."
        ) from None


def check_there(base: Model, *, where: str) -> None:
    """Raises ModelError if the base is named by a path, and there is no model."""
    name = resolve_model_name(base.name)
    if looks_like_path(name) and not (Path(name) / MODEL_CONFIG).is_file():
        found = "a folder without config.json" if Path(name).is_dir() else "no such folder"
        raise ModelError(
            f"{where}: its base must be there, got {name} ({found}). Name it with --set model.name=FOLDER."
        )


def _name_base(
    config: SweepConfig, origin: Origin, request: Request, *, facts: AdapterFacts, written: BaseRecord
) -> Model:
    """The base by the command line or config, by the adapter's record, or by PEFT's own file."""
    own_name = written.name or facts.base
    if request.config is None:
        config = drop_foreign_revision(config, request.overrides, own_name=own_name)
    has_config = origin.manifest is not None or (request.config or origin.config) is not None
    is_chosen = is_overridden(request.overrides, "model.name") or (
        "name" in config.model.model_fields_set and has_config
    )
    if is_chosen:
        name, revision = config.model.name, config.model.revision
    elif written.name:
        name, revision = written.name, written.revision
    elif facts.base is not None:
        name, revision = facts.base, facts.config.get("revision")
    else:
        raise ModelError(f"{facts.folder}: must name its base, got none. Name it with --set model.name=FOLDER.")
    if is_overridden(request.overrides, "model.revision"):
        revision = config.model.revision
    return config.model.model_copy(update={"name": name, "revision": revision})


def _quantization_of(
    config: SweepConfig, origin: Origin, request: Request, *, own: AdapterOrigin
) -> tuple[Quantization, str]:
    """The base's storage in training: by the command line, the record, the adapter's folder, the sweep, or nothing."""
    if is_overridden(request.overrides, "model.quantization"):
        return config.model.quantization, "as --set says"
    ran = origin.record.ran.quantization if origin.record is not None else None
    if ran is not None:
        return _read_quantization(ran, where="record.json"), "as its record says"
    if own.quantization != QuantizationRecord():
        return _read_quantization(own.quantization, where=ADAPTER_ORIGIN), f"as its {ADAPTER_ORIGIN} says"
    if origin.manifest is not None or "quantization" in config.model.model_fields_set:
        return config.model.quantization, "as the config says"
    return Quantization(), ""


def _read_quantization(written: QuantizationRecord, *, where: str) -> Quantization:
    # What the base's own files are in goes before this: nf4 stands for a method that nothing is quantized to here.
    method = "nf4" if written.is_stored and written.method in ("gptq", "awq") else written.method
    try:
        return Quantization.model_validate(
            {"method": method, "double_quantization": written.double_quantization is not False}
        )
    except ValidationError:
        raise ModelError(
            f"{where}: must name a quantization that is known, got {written.method!r}. "
            "Say it with --set model.quantization.method=."
        ) from None


def _find_base_of_merged(
    model: Model, name: str, revision: str | None, *, written: BaseRecord, where: str, notes: list[str]
) -> Model:
    base = model.model_copy(update={"name": name, "revision": revision})
    check_there(base, where=where)
    base = pin_revision(base)
    note = check_base(base, expected_hash=written.hash, where=where) if written.hash else None
    if note:
        notes.append(note)
    return base
