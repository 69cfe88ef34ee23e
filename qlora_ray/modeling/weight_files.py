"""A base's safetensors by their headers: which tensors they hold, and whether the base can be made of them.

No weights are read, so that damage is found in seconds and not when an executor loads the base.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.formats import list_first, plural
from qlora_ray.hardware import ModelShape
from qlora_ray.modeling.hub import first_line
from qlora_ray.modeling.loading import cannot_load, resolve_model_name
from qlora_ray.regular_files import check_regular, load_json

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Of the tensors of another shape, or those that are missing, in a message.
NUM_NAMED = 2


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor of a checkpoint is, read from the file's header.

    Attributes:
        dtype: safetensors' name of it: BF16, F16, F32, I64, ...
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many numbers it has."""
        num = 1
        for size in self.shape:
            num *= size
        return num


def find_weights(name: str, revision: str | None, *, where: str) -> list[Path]:
    """The base's safetensors: one file, or the shards of its index.

    Raises:
        ModelError: If there are none, the index is none, or a shard of it is missing.
    """
    single = find_file(name, revision, WEIGHTS)
    if single is not None:
        return [single]
    index = find_file(name, revision, WEIGHTS_INDEX)
    if index is not None:
        files = {shard: find_file(name, revision, shard) for shard in _read_shards(index)}
        missing = [shard for shard, file in files.items() if file is None]
        if missing:
            raise ModelError(f"{where} must have every shard of its index, got no {missing[0]}. Fetch the base again.")
        return [file for file in files.values() if file is not None]
    if any(find_file(name, revision, pickle) for pickle in PICKLES):
        # A pickle can run code when it is read.
        raise ModelError(
            f"{where} must have its weights as safetensors, got .bin files only. "
            "Save it again by save_pretrained, and name that folder with --set model.name=."
        )
    raise ModelError(f"{where} must have {WEIGHTS} or {WEIGHTS_INDEX}, got neither. Give the base's whole folder.")


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file; raises ModelError unless it is a whole one, which they fill."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        check_regular(file)
        with safe_open(file, framework="numpy") as stream:
            for name in stream.keys():  # noqa: SIM118 - safe_open is no dict and cannot be iterated
                piece = stream.get_slice(name)
                tensors[name] = StoredTensor(file, piece.get_dtype(), tuple(piece.get_shape()))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: must be a whole safetensors file, got: {error}. Fetch the base again.") from None
    return tensors


def find_file(name: str, revision: str | None, filename: str) -> Path | None:
    """A file of a base, fetched from the hub if need be; None if the base has none of that name."""
    folder = Path(name)
    if folder.is_dir():
        return folder / filename if (folder / filename).is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(
            name,
            filename,
            revision=revision or "main",
            _raise_exceptions_for_missing_entries=False,
        )
    # Also what the HTTP client raises where a token cannot be sent, which is none of the library's own errors.
    except Exception as error:
        raise ModelError(
            f"merge: {filename} of {name} must be in the cache or on the hub, got: {first_line(error)}. "
            "Check the network, or give a local folder."
        ) from None
    return Path(found) if found else None


def _has_headers(name: str) -> bool:
    """Whether a base's weights can be looked at without loading them: of a folder, and not in .bin files alone."""
    folder = Path(name)
    is_pickled = any((folder / pickle).is_file() for pickle in PICKLES)
    return folder.is_dir() and (not is_pickled or any((folder / file).is_file() for file in (WEIGHTS, WEIGHTS_INDEX)))


def check_headers(model: Model, shape: ModelShape) -> None:
    """Holds the headers of a base in a folder against its config's number of layers.

    Before the base is built without weights, which takes as long as there are layers. One of the hub is read when it
    has been downloaded.

    Raises:
        ModelError: If a file is missing or damaged, or the layers are more than the tensors.
    """
    name = resolve_model_name(model.name)
    if not _has_headers(name):
        return
    where = f"model.name: {name}"
    num_tensors = sum(len(read_header(file)) for file in find_weights(name, None, where=where))
    if shape.num_layers > num_tensors:
        raise ModelError(
            f"{where} must have weights for the {shape.num_layers:,} layers of its config.json, got "
            f"{plural(num_tensors, 'tensor')} in all. Give a folder that save_pretrained wrote whole."
        )


def check_weights_fit(model: Model, shape: ModelShape) -> None:
    """Has transformers load a base in a folder without reading its weights, to see whether its config is of these.

    What it would fill with noise, tensors that are missing or of another shape, is an error here. A base that is stored
    quantized has packed tensors, which only its own layers can tell.

    Raises:
        ModelError: If the base lacks tensors, or they are of other shapes.
    """
    name = resolve_model_name(model.name)
    if not _has_headers(name) or shape.stored is not None:
        return
    from transformers import AutoModelForCausalLM

    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                trust_remote_code=model.trust_remote_code,
                # Whatever its config asks for: nothing is computed here.
                attn_implementation="eager",
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:
        raise cannot_load("model.name", name, error) from None
    problem = _describe_lack(loaded[1])
    if problem is not None:
        raise ModelError(
            f"model.name: {name} must have the weights that its config.json describes, got {problem}. "
            "Give a folder that save_pretrained wrote whole: config, weights and tokenizer."
        )


def _describe_lack(found: Mapping[str, Any]) -> str | None:
    # transformers 5.23: (name, shape in the file, shape in the model).
    other = [
        f"{key} as {tuple(stored)} for {tuple(wanted)}" for key, stored, wanted in sorted(found["mismatched_keys"])
    ]
    if other:
        return f"{plural(len(other), 'tensor')} of other shapes: {list_first(other, limit=NUM_NAMED)}"
    missing = sorted(found["missing_keys"])
    return f"none of {plural(len(missing), 'tensor')}: {list_first(missing, limit=NUM_NAMED)}" if missing else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of what does not fit, which is told in one line, and its progress bar."""
    from transformers.utils import logging as own_logging

    had_bar, level = own_logging.is_progress_bar_enabled(), own_logging.get_verbosity()
    own_logging.disable_progress_bar()
    own_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        own_logging.set_verbosity(level)
        if had_bar:
            own_logging.enable_progress_bar()


def _read_shards(index: Path) -> list[str]:
    """The files that an index names, which lie beside it."""
    try:
        written = load_json(index)
        shards = sorted(set(written["weight_map"].values()))
        if not all(isinstance(shard, str) and Path(shard).name == shard for shard in shards):
            raise ValueError(f"a shard named {shards[0]!r}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index}: must say of each tensor in which file beside it it lies, got: {first_line(error)}. "
            "Fetch the base again."
        ) from None
    return shards
