"""A base's checkpoint on disk, read tensor by tensor, and new shards written one at a time."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError, RunError
from qlora_ray.formats import format_bytes
from qlora_ray.hardware.stored import read_stored
from qlora_ray.modeling.hub import is_commit, reach_repository
from qlora_ray.modeling.loading import resolve_model_name
from qlora_ray.modeling.weight_files import WEIGHTS_INDEX, StoredTensor, find_file, find_weights, read_header
from qlora_ray.regular_files import load_json
from qlora_ray.runs.whole import whole_folder

if TYPE_CHECKING:
    from torch import Tensor

# Hugging Face's names for the shards of a model (huggingface_hub 2.4, split_torch_state_dict_into_shards).
SHARD_PATTERN = "model{suffix}.safetensors"
# safetensors' names of the dtypes of weights that are not quantized.
FLOATS = ("BF16", "F16", "F32")
# Ours: room for what lies beside the weights (config, tokenizer, index, report), far above what was seen.
SIDE_FILES_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A base's safetensors and config.json, in its folder or in the hub's cache.

    Attributes:
        name: The folder or hub id.
        revision: The hub's revision; None means main.
        tensors: By their names in the files, in the files' order.
        config: config.json as it is written.
    """

    name: str
    revision: str | None
    tensors: dict[str, StoredTensor]
    config: dict[str, Any]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        from safetensors import safe_open

        with safe_open(self.tensors[name].file, framework="pt", device="cpu") as stream:
            tensor: Tensor = stream.get_tensor(name)
        return tensor

    def as_dequantized(self, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
        """The checkpoint with packed tensors in the shapes of their weights, and in the dtype of the others.

        Args:
            shapes: The weight's shape, by the name of each packed tensor.
        """
        floats = Counter(tensor.dtype for name, tensor in self.tensors.items() if name not in shapes)
        dtype = max((word for word in floats if word in FLOATS), key=lambda word: floats[word], default="BF16")
        packed = {name: StoredTensor(self.tensors[name].file, dtype, shape) for name, shape in shapes.items()}
        return replace(self, tensors={**self.tensors, **packed})

    def find_file(self, name: str) -> Path | None:
        """Another file of the base, fetched from the hub if need be; None if the base has none of that name."""
        return find_file(self.name, self.revision, name)


def open_checkpoint(model: Model) -> Checkpoint:
    """Reads which tensors a base's safetensors hold; no weights are read.

    Raises:
        ModelError: If the base has no safetensors or no config.json, or is stored in GPTQ or the like.
    """
    name = resolve_model_name(model.name)
    where = f"merge: {name}"
    if model.revision is not None and is_commit(model.revision) and not Path(name).is_dir():
        # Of a known commit nobody has asked yet, and the cache may lack files.
        reach_repository(name, revision=model.revision, where=where)
    config_file = find_file(name, model.revision, "config.json")
    if config_file is None:
        raise ModelError(f"{where} must have config.json, got none. Give the base's whole folder, or its hub id.")
    try:
        config = load_json(config_file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{config_file}: cannot be read: {error}. Fetch the base again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{config_file}: must be a JSON object, got {type(config).__name__}. Fetch the base again.")
    stored = read_stored(config)
    if stored is not None and not stored.is_bitsandbytes:
        raise ModelError(
            f"{where} must be stored in 16 or 32 bits, or by bitsandbytes, to merge into, got {stored.describe()}. "
            "Name the original base with --set model.name=, or export without merging."
        )
    tensors: dict[str, StoredTensor] = {}
    for file in find_weights(name, model.revision, where=where):
        tensors |= read_header(file)
    if stored is not None:
        tensors = _without_scales(tensors)
        for section in (config, config.get("text_config") or {}):
            section.pop("quantization_config", None)
    return Checkpoint(name, model.revision, tensors, config)


def _without_scales(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a base that bitsandbytes quantized, without those that say how a weight is packed.

    bitsandbytes 0.50 puts them beside `<module>.weight`: `<module>.weight.absmax` and the like for 4 bits,
    `<module>.SCB` and `<module>.weight_format` for 8.
    """
    modules = {name.removesuffix(".weight") for name in tensors if name.endswith(".weight")}
    scales = {f"{module}.{name}" for module in modules for name in ("SCB", "weight_format")}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in scales and name.partition(".weight.")[0] not in modules
    }


def write_shards(
    folder: Path,
    sizes: dict[str, int],
    make: Callable[[str], Tensor],
    *,
    max_shard_bytes: int,
    tell: Callable[[str], None],
) -> int:
    """Writes tensors as safetensors shards with their index, holding one shard in memory.

    Args:
        sizes: Bytes of each tensor by name, in the order to write.
        make: Gives a tensor by its name, on the CPU.
        max_shard_bytes: A shard holds no more, unless one tensor alone does.
        tell: Takes one line per shard.

    Returns:
        The number of shards.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.torch import save_file

    split = split_state_dict_into_shards_factory(
        sizes, get_storage_size=lambda size: size, filename_pattern=SHARD_PATTERN, max_shard_size=max_shard_bytes
    )
    for number, (filename, names) in enumerate(split.filename_to_tensors.items(), start=1):
        # transformers refuses files without this word (from_pretrained, 5.23).
        path = folder / filename
        save_file({name: make(name).contiguous() for name in names}, path, metadata={"format": "pt"})
        tell(f"merge: {folder.name}: shard {number} of {len(split.filename_to_tensors)} is written")
    if split.is_sharded:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": split.tensor_to_filename}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return len(split.filename_to_tensors)


def check_space(folder: Path, num_bytes: int) -> None:
    """Holds what is to be written against what is free.

    Raises:
        RunError: If fewer than `num_bytes` bytes are free on the folder's disk.
    """
    free = shutil.disk_usage(folder).free
    needed = num_bytes + SIDE_FILES_BYTES
    if free < needed:
        raise RunError(
            f"{folder}: merging must have {format_bytes(needed)} free, got {format_bytes(free)}. "
            "Free some, or choose another folder."
        )


@contextmanager
def full_disk_as_run_error(folder: Path) -> Iterator[None]:
    """Turns a disk that fills up inside the block into one RunError; safetensors and tokenizers have errors of their
    own for it."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left on device" not in str(error):
            raise
        raise RunError(
            f"{folder}: the merged model must fit the disk, got a full one halfway. Nothing was left behind. "
            "Free some, or choose another folder."
        ) from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """`whole_folder`, where a place that cannot be written is our own error.

    Raises:
        RunError: If the folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stack = ExitStack()
        folder = stack.enter_context(whole_folder(path))
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}. Choose another folder.") from None
    with stack:
        yield folder
