"""Which trial of a sweep is exported, and everything that its folder says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from qlora_ray.config.loading import parse_override
from qlora_ray.config.reuse import TRUST, distrust, drop_foreign_revision, read_intent
from qlora_ray.config.schema import Model, Precision, SweepConfig
from qlora_ray.errors import ConfigError, ModelError, RunError
from qlora_ray.exporting.damage import check_types
from qlora_ray.exporting.source import check_is_sweep
from qlora_ray.modeling.identity import AdapterFacts, check_base, read_adapter
from qlora_ray.modeling.loading import pin_revision, resolve_model_name
from qlora_ray.modeling.quantization import QuantizationSpec
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.links import check_links
from qlora_ray.runs.record_parts import DataRecord, LoraRecord, QuantizationRecord
from qlora_ray.runs.records import Manifest, TrialRecord, from_dict, read_record
from qlora_ray.runs.score_records import BestScores
from qlora_ray.runs.typed_json import parse_number, parse_record
from qlora_ray.runs.winner import BEST, SCORES, find_trial
from qlora_ray.scoring.comparison import UNREADABLE
from qlora_ray.scoring.verdict import Verdict
from qlora_ray.search.space import apply_values

# What may be named anew when a sweep is exported elsewhere than where it ran: where the base and the rows are. And
# whether the base's own code may run, which only this user can say.
RELOCATABLE = ("model.name", "model.revision", TRUST, "data.train", "data.validation", "data.test")
# The parts of record.json and of manifest.json that a bundle tells or repeats.
_OF_RECORD = ("base", "dataset", "params", "ran", "seeds", "times")
_OF_MANIFEST = ("command", "data", "space")


@dataclass(frozen=True)
class Selection:
    """One complete trial of a sweep.

    Attributes:
        paths: The sweep.
        trial: The trial's id.
        config: The sweep's config, with paths that are found from here, and the model's code run only by --set.
        manifest: The sweep's manifest.
        record: The trial's record.
        scores: best/scores.json, if the trial is the winner; empty if there is no such file.
        adapter: What the adapter's own config says.
        verdict: The verdict in `scores`; None for another trial, and for sweeps of before there were verdicts.
        notes: What the user should know, in words.
    """

    paths: SweepPaths
    trial: str
    config: SweepConfig
    manifest: Manifest
    record: TrialRecord
    scores: BestScores | None
    adapter: AdapterFacts
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()

    @property
    def trial_config(self) -> SweepConfig:
        """The config with the trial's own values in it."""
        return apply_values(self.config, dict(self.record.params))

    @property
    def evaluation(self) -> Path:
        """Where the trial's own evaluation is, if there is one."""
        return (self.paths.root if self.is_winner else self.paths.trial(self.trial).root) / "evaluation"

    @property
    def is_winner(self) -> bool:
        """Whether it is the sweep's winner."""
        return self.scores is not None

    @property
    def base_name(self) -> str:
        """The base as the sweep's config named it: `embedded`, a folder, or a hub id."""
        return str(self.record.base.name)

    @property
    def base_is_on_hub(self) -> bool:
        """Whether others can fetch the base by its name."""
        return str(self.record.base.hash).startswith("hub:")

    @property
    def needs_code(self) -> bool:
        """Whether the sweep let the base's own code run, without which others cannot load it either."""
        return bool(self.manifest.setting("model", "trust_remote_code"))

    @property
    def quantization(self) -> QuantizationSpec:
        """How the base was held while the trial trained."""
        written = self.record.ran.quantization
        return QuantizationSpec(**{field.name: getattr(written, field.name) for field in fields(QuantizationSpec)})

    @property
    def data(self) -> DataRecord:
        """The sweep's rows, as its manifest has them."""
        return self.manifest.data or DataRecord()

    @property
    def lora(self) -> LoraRecord:
        """The adapter as it ran."""
        assert self.record.ran.lora is not None
        return self.record.ran.lora


def select_trial(sweep: Path, *, trial: str = BEST, overrides: Sequence[str] = ()) -> Selection:
    """Finds a complete trial of a sweep, and checks that its base is the one it was trained on.

    Args:
        sweep: The sweep's folder.
        trial: A trial's id, or `best` for the winner.
        overrides: `key=value` texts for the keys of RELOCATABLE.

    Raises:
        RunError: If the folder is no sweep, has no winner, the trial is not complete, or a file that the bundle needs
            is damaged.
        ConfigError: If an override is not one of those allowed.
        ModelError: If the adapter is not whole, or its base is missing or another one.
    """
    check_is_sweep(sweep)
    check_links(sweep)
    paths = SweepPaths(sweep)
    manifest = _read_manifest(paths.manifest)
    config, notes = _read_config(manifest, overrides)
    trial_id, is_winner = find_trial(paths, trial)
    own = paths.trial(trial_id).record
    record_path = own if own.is_file() or not is_winner else paths.best / "record.json"
    scores = _read_scores(paths.best / SCORES) if is_winner else None
    selection = Selection(
        paths=paths,
        trial=trial_id,
        config=config,
        manifest=manifest,
        record=_read_record(record_path),
        scores=scores,
        verdict=_read_verdict(scores, where=paths.best / SCORES) if scores else None,
        # Only the winner's copy has the tokenizer beside it.
        adapter=read_adapter(paths.best / "adapter" if is_winner else paths.trial(trial_id).adapter),
    )
    _check_params(selection, where=record_path)
    model, note = _check_base(selection)
    # What is merged is the commit that was checked.
    config = config.model_copy(update={"model": model})
    return replace(selection, config=config, notes=(*notes, *([note] if note else [])))


def own_rights(paths: SweepPaths) -> tuple[str, ...]:
    """The overrides that an export which is a part of the user's own sweep goes by: what its config allowed."""
    is_trusted = read_record(paths.manifest, Manifest).setting("model", "trust_remote_code")
    return (f"{TRUST}=true",) if is_trusted else ()


def _read_manifest(path: Path) -> Manifest:
    """The sweep's manifest; raises RunError if it is damaged."""
    written = read_json(path)
    manifest = from_dict(written, Manifest, where=path)
    check_types(written, Manifest, where=path, keys=_OF_MANIFEST)
    return manifest


def _read_record(path: Path) -> TrialRecord:
    """The record of a complete trial; raises RunError if it is damaged, or does not say how that ran."""
    written = read_json(path)
    record = from_dict(written, TrialRecord, where=path)
    check_types(written, TrialRecord, where=path, keys=_OF_RECORD)
    missing = [key for key, found in _needed_values(record).items() if found is None]
    if missing:
        raise RunError(f"{path}: must say how the trial ran, got no valid {', '.join(missing)}. Restore it.")
    if record.executor.simulated:
        raise RunError(
            f"{path}: a trial of a real device can be exported, got one of {record.executor.device}, which a CPU stood "
            "for (cluster.simulate). Run the sweep on real devices."
        )
    if not _is_time(record.times.closed):
        raise RunError(f"{path}: times.closed must be seconds since 1970, got {record.times.closed}. Restore it.")
    return record


def _is_time(seconds: float | None) -> bool:
    """Whether a clock can show it; None is no damage."""
    try:
        datetime.fromtimestamp(seconds or 0.0, UTC)
    except (OSError, OverflowError, ValueError):
        return False
    return True


def _needed_values(record: TrialRecord) -> dict[str, object]:
    """What a bundle says of every trial, by key; None where the record has no such value."""
    ran = record.ran
    quantization = ran.quantization or QuantizationRecord()
    texts = {key: ran.training.get(key) for key in ("lr_scheduler_type", "optim")}
    return {
        "base.name": record.base.name,
        "base.hash": record.base.hash,
        "dataset.num_rows.train": max(record.dataset.num_rows.get("train", 0), 0) or None,
        "ran.lora.r": ran.lora.r if ran.lora else None,
        "ran.training.learning_rate": parse_number(ran.training.get("learning_rate")),
        **{f"ran.training.{key}": text if isinstance(text, str) else None for key, text in texts.items()},
        "ran.quantization.method": quantization.method,
        "ran.quantization.bits": quantization.bits,
        "ran.quantization.backend": quantization.backend,
        "ran.quantization.double_quantization": quantization.double_quantization,
        "ran.quantization.compute_dtype": (
            quantization.compute_dtype if quantization.compute_dtype in get_args(Precision) else None
        ),
    }


def _check_params(selection: Selection, *, where: Path) -> None:
    """Raises RunError if the values that the trial's record has are none of the sweep's search space."""
    params = selection.record.params
    if selection.manifest.searched and not params:
        raise RunError(f"{where}: must have the trial's values of the search space, got no params. Restore it.")
    try:
        _ = selection.trial_config
    except ConfigError as error:
        reason = str(error).rstrip(".")
    except (KeyError, ValueError):
        reason = f"{', '.join(params)}, not all of which are paths of it"
    else:
        return
    raise RunError(f"{where}: its params must fit the sweep's config, got {reason}. Restore it.")


def _read_scores(path: Path) -> BestScores:
    """best/scores.json; empty for a winner of before there was one. Raises RunError if it is damaged."""
    if not path.is_file():
        return BestScores()
    written = read_json(path)
    check_types(written, BestScores, where=path)
    return parse_record(BestScores, written)


def _read_verdict(scores: BestScores, *, where: Path) -> Verdict | None:
    """The verdict in best/scores.json; raises RunError if it cannot be read."""
    if not scores.verdict:
        return None
    try:
        return Verdict.from_dict(dict(scores.verdict))
    except UNREADABLE as error:
        raise RunError(f"{where}: its verdict cannot be read: {type(error).__name__}: {error}. Restore it.") from None


def _read_config(manifest: Manifest, overrides: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """The sweep's config, without a right to run code that only came with it, and a note if it had it."""
    for text in overrides:
        key, _ = parse_override(text)
        if key not in RELOCATABLE:
            raise ConfigError(f"--set {key}: an export can set only {', '.join(RELOCATABLE)}. Drop it.")
    config = read_intent(manifest, config=None, overrides=overrides)
    config = drop_foreign_revision(config, overrides, own_name=manifest.setting("model", "name"))
    return distrust(config, overrides, manifest=manifest)


def _check_base(selection: Selection) -> tuple[Model, str | None]:
    """The base as it will be loaded, and a note if it could not be verified."""
    model = selection.config.model
    expected = str(selection.record.base.hash)
    folder = selection.adapter.folder
    name = resolve_model_name(model.name)
    if expected.startswith("sha256:") and not Path(name).is_dir():
        raise ModelError(
            f"{folder}: must be exported beside its base, got no folder {name}. "
            "Restore that base, or name it with --set model.name=."
        )
    try:
        model = pin_revision(model)
    except ModelError as error:
        # An adapter alone is exported without its base; a merge says the same again.
        return model, f"the base could not be verified: {error}"
    return model, check_base(model, expected_hash=expected, where=str(folder))
