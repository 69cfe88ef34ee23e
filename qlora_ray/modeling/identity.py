"""What a saved adapter is, and whether a base is the one it was trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.modeling.hub import is_commit
from qlora_ray.modeling.loading import check_files, hash_base
from qlora_ray.regular_files import check_regular, load_json
from qlora_ray.runs.inventory import hash_file
from qlora_ray.runs.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qlora_ray.runs.record_parts import BaseRecord, QuantizationRecord
from qlora_ray.runs.typed_json import parse_record

# Beside PEFT's files in an adapter's folder: how it was trained. PEFT passes it over.
ADAPTER_ORIGIN = "qlora_ray.json"


@dataclass(frozen=True)
class AdapterFacts:
    """What PEFT's adapter_config.json says.

    Attributes:
        folder: Where the adapter is.
        base: The base's folder or hub id as it was written there; None if nothing was.
        config: The whole file.
    """

    folder: Path
    base: str | None
    config: dict[str, Any]

    @property
    def r(self) -> int:
        """The rank."""
        return int(self.config["r"])


@dataclass(frozen=True, kw_only=True)
class AdapterOrigin:
    """qlora_ray.json: how an adapter was trained."""

    trial: str | None = None
    base: BaseRecord = field(default_factory=BaseRecord)
    quantization: QuantizationRecord = field(default_factory=QuantizationRecord)


def read_adapter(folder: Path) -> AdapterFacts:
    """Reads what an adapter is, without loading it.

    Raises:
        ModelError: If the folder holds no whole LoRA adapter in PEFT's format.
    """
    check_files(folder)
    path = folder / ADAPTER_CONFIG
    try:
        config = load_json(path)
    except FileNotFoundError:
        raise ModelError(f"{folder}: an adapter must have {ADAPTER_CONFIG}, got none. Give PEFT's folder.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}. Save the adapter again.") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA" or not isinstance(config.get("r"), int):
        raise ModelError(f"{path}: must describe a LoRA adapter, got peft_type {kind!r}. Give a LoRA adapter.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        # A .bin file is a pickle, which can run code when it is read.
        raise ModelError(f"{folder}: an adapter must have {ADAPTER_WEIGHTS}, got none. Save it as safetensors.")
    check_weights(folder / ADAPTER_WEIGHTS)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise ModelError(f"{path}: base_model_name_or_path must be a text, got {base!r}. Correct it.")
    return AdapterFacts(folder, base or None, config)


def list_unknown_keys(adapter: AdapterFacts) -> list[str]:
    """Keys of the adapter's config that ask for something and that PEFT, as it is here, passes over.

    A newer PEFT has more of them, and an older one had others.
    """
    import dataclasses

    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig)}
    return sorted(key for key, value in adapter.config.items() if key not in known and value)


def check_weights(weights: Path) -> None:
    """Raises ModelError unless a safetensors file's header is one, and its tensors fill it; reads no weights."""
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(weights)
        with safe_open(weights, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        size = weights.stat().st_size
        raise ModelError(
            f"{weights}: must be a whole safetensors file, got {size:,} bytes that are none ({error}). Restore it."
        ) from None


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each of an adapter's tensors, by its name in the file; reads no weights."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as weights:
        return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118


def hash_adapter(folder: Path) -> str:
    """sha256 of an adapter's weights."""
    return hash_file(folder / ADAPTER_WEIGHTS)


def write_adapter_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Writes how an adapter was trained into its own folder, which may be copied without its record."""
    (folder / ADAPTER_ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def read_adapter_origin(folder: Path) -> AdapterOrigin | None:
    """How an adapter was trained, as its own folder says; None where it does not.

    Raises:
        ModelError: If the file is there, and is not what this package writes.
    """
    path = folder / ADAPTER_ORIGIN
    try:
        written = load_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}. Restore it, or delete it.") from None
    parts = [written.get(key) for key in ("base", "quantization")] if isinstance(written, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise ModelError(f"{path}: must say base and quantization, got something else. Restore it, or delete it.")
    return parse_record(AdapterOrigin, written)


def compare_bases(expected: str, found: str) -> Literal["same", "other", "unknown"]:
    """Whether two fingerprints of `hash_base` are of one base; unknown where they say too little.

    A fingerprint of an older release names a hub id's branch, which may have moved; one of a folder's bytes and one
    of a hub's commit have nothing in common.
    """
    if expected == found and all(map(_is_exact, (expected, found))):
        return "same"
    kinds = {fingerprint.split(":", 1)[0] for fingerprint in (expected, found)}
    if len(kinds) > 1:
        return "unknown"
    is_of_one_name = expected.rpartition("@")[0] == found.rpartition("@")[0]
    if "hub" in kinds and is_of_one_name and not all(map(_is_exact, (expected, found))):
        return "unknown"
    return "other"


def check_base(model: Model, *, expected_hash: str, where: str) -> str | None:
    """Holds a base against the fingerprint that an adapter's record has of its own.

    Args:
        model: The base that is used now, as its config section names it.
        expected_hash: `hash_base` of the base the adapter was trained on.
        where: The adapter's folder, which error messages begin with.

    Returns:
        None if it is the same base, else a note that it could not be verified.

    Raises:
        ModelError: If the two differ, or the base is neither a folder nor on the hub.
    """
    found = hash_base(model)
    verdict = compare_bases(expected_hash, found)
    if verdict == "same":
        return None
    if verdict == "other":
        name, _, commit = expected_hash.removeprefix("hub:").rpartition("@")
        is_moved = name == model.name and is_commit(commit)
        advice = f"--set model.revision={commit}" if is_moved else "--set model.name="
        raise ModelError(
            f"{where}: must be used on the base it was trained on ({shorten_hash(expected_hash)}), got "
            f"{shorten_hash(found)} from {model.name}. Restore that base, or name it with {advice}."
        )
    return (
        f"the base could not be verified: the adapter was trained on {shorten_hash(expected_hash)}, and "
        f"{model.name} is {shorten_hash(found)}, which cannot be compared"
    )


def _is_exact(fingerprint: str) -> bool:
    """Whether a fingerprint is of bytes, or of a commit: not of a branch."""
    is_of_hub = fingerprint.startswith("hub:")
    return not is_of_hub or is_commit(fingerprint.rpartition("@")[2])


def shorten_hash(fingerprint: str) -> str:
    """A fingerprint of bytes for a message, cut; one of the hub whole, whose commit comes last."""
    return fingerprint[:19] if fingerprint.startswith("sha256:") else fingerprint
