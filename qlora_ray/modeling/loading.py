"""Loading the base, its tokenizer and its shape, from the package, a folder or the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray import embedded
from qlora_ray.config.schema import Model, Precision
from qlora_ray.errors import ModelError
from qlora_ray.hardware import ModelShape
from qlora_ray.hardware.stored import read_stored
from qlora_ray.modeling.device_memory import is_out_of_memory
from qlora_ray.modeling.hub import find_commit, first_line, reach_repository
from qlora_ray.modeling.quantization import (
    QuantizationSpec,
    make_bitsandbytes_config,
    specify_quantization,
    torch_dtype,
)
from qlora_ray.modeling.stored_base import compute_in, read_stored_config, specify_stored
from qlora_ray.regular_files import find_irregular, load_json, open_regular

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base on one device, with what the engines need to know of it.

    Attributes:
        revision: The hub's commit that was loaded; None for a folder.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    quantization: QuantizationSpec
    device: str
    revision: str | None = None

    @property
    def precision(self) -> Precision:
        """bf16, fp16 or fp32: what trials compute in."""
        return self.quantization.compute_dtype


def resolve_model_name(name: str) -> str:
    """The folder or hub id behind a config's model.name."""
    if name == EMBEDDED:
        return str(embedded.base_path())
    return str(Path(name).expanduser()) if name.startswith("~") else name


def pin_revision(model: Model) -> Model:
    """The config section with the commit that the hub's revision stands for now; that of a folder as it is.

    A branch moves: what is loaded, recorded and loaded again by another process must be one commit.

    Raises:
        ModelError: If there is no such folder, and no such model on the hub or in its cache.
    """
    name = resolve_model_name(model.name)
    if Path(name).is_dir():
        check_files(Path(name))
        return model
    _check_folder(name)
    return model.model_copy(update={"revision": find_commit(name, revision=model.revision)})


def check_files(folder: Path) -> None:
    """Looks at what libraries do not tell of the files of a base, or of an adapter.

    Raises:
        ModelError: If there is a pipe or a device, which would be waited for for ever, or a generation_config.json that
            is none: transformers passes over it, and over the end tokens in it.
    """
    irregular = find_irregular(folder)
    if irregular is not None:
        raise ModelError(f"{folder}: must hold regular files only, got {irregular}. Take it away.")
    path = folder / "generation_config.json"
    try:
        written = load_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}. Restore it, or take it away.") from None
    if not isinstance(written, dict):
        raise ModelError(f"{path}: must be a JSON object, got {type(written).__name__}. Restore it, or take it away.")


def find_source(model: Model) -> dict[str, Any]:
    """from_pretrained's arguments that say which files are loaded, from where, and whether their code may run.

    A hub's model is pinned and asked for, also where its commit is known: the cache may lack files of it.

    Raises:
        ModelError: If there is no such folder, and no such model on the hub or in its cache.
    """
    name = resolve_model_name(model.name)
    model = pin_revision(model)
    is_there = Path(name).is_dir() or reach_repository(name, revision=model.revision, where="model.name")
    return {
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "local_files_only": not is_there,
    }


def read_shape(model: Model) -> ModelShape:
    """The base's shape from its config.json alone; no weights are read.

    Raises:
        ModelError: If there is no config, or it is of no known layout.
    """
    return ModelShape.from_hf_config(read_config(model))


def read_config(model: Model) -> dict[str, Any]:
    """The base's config.json, of a folder as it is written.

    Raises:
        ModelError: If there is none, or it cannot be read.
    """
    name = resolve_model_name(model.name)
    folder = Path(name)
    if folder.is_dir():
        try:
            written = load_json(folder / "config.json")
        except FileNotFoundError:
            raise ModelError(
                f"model.name: {name} has no config.json. Give a folder saved by save_pretrained, or a hub id."
            ) from None
        except (OSError, ValueError) as error:
            raise ModelError(f"model.name: {name}/config.json cannot be read: {error}.") from None
        if not isinstance(written, dict):
            raise ModelError(f"model.name: {name}/config.json must be a JSON object, got {type(written).__name__}.")
        return written
    source = find_source(model)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, **source)
    except Exception as error:
        raise cannot_load("model.name", name, error) from None
    return dict(config.to_dict())


def specify_base(model: Model, *, compute_dtype: Precision) -> QuantizationSpec:
    """How a base is held: as it is stored, where it is stored quantized, else as the config section says.

    Raises:
        ModelError: If there is no config, or nothing here can train what it says.
    """
    stored = read_stored(read_config(model))
    if stored is None:
        return specify_quantization(model.quantization, compute_dtype=compute_dtype)
    return specify_stored(stored, compute_dtype=compute_dtype, where=f"model.name: {model.name}")


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The base's tokenizer, padded on the right (training) with a pad token that is set.

    Raises:
        ModelError: If it cannot be loaded.
    """
    return _load_tokenizer(resolve_model_name(model.name), find_source(model))


def load_base(model: Model, *, quantization: QuantizationSpec, device: str) -> LoadedBase:
    """Loads the base frozen and quantized onto one device.

    Args:
        model: The config section `model`: name or folder, revision, attention implementation.
        quantization: The format that weights are stored in, and the dtype of the arithmetic.
        device: A torch device, as `cpu` or `cuda:0`; all weights go there.

    Raises:
        ModelError: If it cannot be loaded.
        RuntimeError, MemoryError: If the device has no room for it (`device_memory.is_out_of_memory`).
    """
    source = find_source(model)
    from transformers import AutoModelForCausalLM

    name = resolve_model_name(model.name)
    tokenizer = _load_tokenizer(name, source)
    options: dict[str, Any] = {}
    config = make_bitsandbytes_config(quantization)
    if config is not None:
        options["quantization_config"] = config
    try:
        if quantization.is_stored and quantization.backend == "bitsandbytes":
            options["config"] = read_stored_config(name, source, quantization)
        base = AutoModelForCausalLM.from_pretrained(
            name,
            **source,
            attn_implementation=model.attn_implementation,
            dtype=torch_dtype(quantization.compute_dtype),
            device_map={"": device},
            **options,
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise cannot_load("model.name", name, error) from None
    base.requires_grad_(False)
    base.config.use_cache = False
    _keep_weights_as_loaded(base)
    if quantization.is_stored:
        compute_in(base, torch_dtype(quantization.compute_dtype))
    return LoadedBase(base, tokenizer, quantization, device, None if Path(name).is_dir() else source["revision"])


def hash_base(model: Model) -> str:
    """A fingerprint of a local base's weights and config (sha256 of their bytes); the commit of a hub id.

    Raises:
        ModelError: If there is no such folder, and no such model on the hub or in its cache.
    """
    folder = Path(resolve_model_name(model.name))
    if not folder.is_dir():
        return f"hub:{model.name}@{pin_revision(model).revision}"
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.name.encode())
        with open_regular(path) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _load_tokenizer(name: str, source: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
    except Exception as error:
        raise cannot_load("model.name", f"the tokenizer of {name}", error) from None
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"model.name: the tokenizer of {name} has neither a pad nor an eos token. Set one.")
        # Padding is masked out of attention and loss, so that sharing the eos token costs nothing.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _keep_weights_as_loaded(base: PreTrainedModel) -> None:
    """Turns bitsandbytes' AVX512-BF16 inference path off.

    bitsandbytes 0.50: on such a CPU the first forward in eval mode repacks a Linear4bit's weight in place, with
    bf16 scales and without double quantization, and training on it afterwards gives no gradients, silently.
    """
    import bitsandbytes

    for module in base.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def looks_like_path(name: str) -> bool:
    """Whether a model's name is a path, also one of Windows, and no hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _check_folder(name: str) -> None:
    if looks_like_path(name) and not Path(name).is_dir():
        raise ModelError(f"model.name: {name} is not a folder. Give a folder with a saved model, or a hub id.")


def cannot_load(where: str, what: str, error: Exception) -> ModelError:
    """Returns a loading library's error as one line that says what to do.

    Args:
        where: The config key or file that the message begins with.
        what: What was loaded: a name, or `config of NAME`, `tokenizer of NAME`.
        error: What the library raised; its first line is quoted.
    """
    if Path(what.rsplit(" of ", 1)[-1]).expanduser().is_dir():
        advice = "Give a folder that save_pretrained wrote whole: config, weights and tokenizer."
    else:
        advice = "Check the name; for a gated or private model set HF_TOKEN; without a network, give a local folder."
    return ModelError(f"{where}: {what} cannot be loaded: {first_line(error)}. {advice}")
