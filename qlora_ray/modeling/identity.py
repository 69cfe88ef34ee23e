"""What a saved adapter is, and whether a base is the one it was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.modeling.loading import hash_base

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


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


def read_adapter(folder: Path) -> AdapterFacts:
    """Reads what an adapter is, without loading it.

    Raises:
        ModelError: If the folder holds no whole LoRA adapter in PEFT's format.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
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
    return AdapterFacts(folder, config.get("base_model_name_or_path") or None, config)


def check_weights(weights: Path) -> None:
    """Raises ModelError unless a safetensors file's header is one, and its tensors fill it; reads no weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        size = weights.stat().st_size
        raise ModelError(
            f"{weights}: must be a whole safetensors file, got {size:,} bytes that are none ({error}). Restore it."
        ) from None


def hash_adapter(folder: Path) -> str:
    """sha256 of an adapter's weights."""
    return hash_file(folder / ADAPTER_WEIGHTS)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_base(model: Model, *, expected_hash: str, where: str) -> str | None:
    """Holds a base against the fingerprint that an adapter's record has of its own.

    A hub id's fingerprint is its name and revision: one against a local folder cannot be compared.

    Args:
        model: The base at hand.
        expected_hash: `hash_base` of the base the adapter was trained on.
        where: What the message begins with: the adapter's folder.

    Returns:
        None if it is the same base, else a note that it could not be verified.

    Raises:
        ModelError: If the two differ.
    """
    found = hash_base(model)
    if found == expected_hash:
        return None
    kinds = {one.split(":", 1)[0] for one in (found, expected_hash)}
    if len(kinds) == 1:
        raise ModelError(
            f"{where}: must be used on the base it was trained on ({_short(expected_hash)}), got {_short(found)} from "
            f"{model.name}. Restore that base, or name it with --set model.name=."
        )

    return (
        f"the base could not be verified: the adapter was trained on {_short(expected_hash)}, and {model.name} is "
        f"{_short(found)}, which cannot be compared"
    )


def _short(fingerprint: str) -> str:
    return fingerprint[:19] if fingerprint.startswith("sha256:") else fingerprint
