"""What an adapter does to each weight of its base: PEFT's own deltas, in float32, one layer at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.errors import ModelError
from qlora_ray.modeling.identity import read_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# PEFT's name for an adapter that is loaded without one.
ADAPTER = "default"
# Options of PEFT 0.21's LoraConfig that change more than W + delta, and have no place in a merged weight here.
UNMERGEABLE = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)

# PEFT has these classes only where bitsandbytes is.
BITSANDBYTES_LAYERS = ("Linear4bit", "Linear8bitLt")


class BaseNames:
    """Names of a base's parameters, which of them are one tensor, and how a checkpoint spells them.

    Args:
        model: The base before an adapter is put on it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        by_tensor: dict[int, list[str]] = defaultdict(list)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            by_tensor[id(parameter)].append(name)
        self.parameters = frozenset(name for names in by_tensor.values() for name in names)
        self.tied = [frozenset(names) for names in by_tensor.values() if len(names) > 1]
        head = model.get_output_embeddings()
        self.head = next((f"{name}.weight" for name, module in model.named_modules() if module is head), None)
        self._rename = _checkpoint_renaming(model)

    def find_parameter(self, stored: str) -> str | None:
        """The parameter that a checkpoint's tensor is loaded into as it is.

        None if it is of no parameter, or if transformers changes it on the way: cuts it, or permutes its rows.
        """
        name = self._rename(stored)
        return name if name in self.parameters else None

    def same_tensor(self, parameter: str) -> frozenset[str]:
        """All names of a parameter's tensor, its own among them."""
        return next((group for group in self.tied if parameter in group), frozenset([parameter]))


class AdapterChanges:
    """The weights that an adapter changes, and how; with what the quantized base holds in place of each.

    Args:
        model: The base as trained, with the adapter on it by PEFT.
        folder: The adapter's folder.

    Attributes:
        lora: PEFT's layer by the name of the weight it changes.
        saved: Trained copies of modules_to_save by parameter.
        quantized: bitsandbytes' module by the name of its weight, whether the adapter changes it or not.
        kind: LoRA, rsLoRA or DoRA.

    Raises:
        ModelError: If the adapter holds more than a merged weight can.
    """

    def __init__(self, model: PeftModel, *, folder: Path) -> None:
        self._folder = folder
        config = read_adapter(folder).config
        _check_mergeable(config, folder)
        self.kind = "DoRA" if config.get("use_dora") else "rsLoRA" if config.get("use_rslora") else "LoRA"
        self.lora: dict[str, Any] = {}
        self.saved: dict[str, Tensor] = {}
        self.quantized: dict[str, nn.Module] = {}
        self._collect(model.get_base_model())

    @property
    def changed(self) -> set[str]:
        """Names of all parameters that the adapter changes."""
        return {*self.lora, *self.saved}

    def dequantized(self, name: str) -> Tensor:
        """The weight that the quantized base computes with, in float32 and laid out as the checkpoint has it."""
        from peft.utils.integrations import dequantize_module_weight

        module = self.quantized[name]
        weight = dequantize_module_weight(module).detach().float()
        return weight.T if _is_transposed(module) else weight

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """A weight with the adapter's change, in float32.

        Args:
            name: A parameter that the adapter changes: one of `changed`.
            weight: The base's weight in float32, laid out as the checkpoint has it.

        Raises:
            ModelError: If the adapter's shape is another.
        """
        if name in self.saved:
            saved = self.saved[name].detach().to(weight.device).float()
            self._check_shape(name, saved, weight)
            return saved
        layer = self.lora[name]
        transposed = _is_transposed(layer.get_base_layer())
        base = weight.T if transposed else weight
        delta = layer.get_delta_weight(ADAPTER).detach().to(weight.device).float()
        self._check_shape(name, delta, base)
        merged = base + delta
        if ADAPTER in layer.lora_magnitude_vector:
            magnitude = layer.lora_magnitude_vector[ADAPTER]
            merged = _scale_to(magnitude, base, delta, fan_in_fan_out=getattr(layer, "fan_in_fan_out", False))
        return merged.T if transposed else merged

    def _collect(self, base: nn.Module) -> None:
        import bitsandbytes
        from peft.tuners.lora import LoraLayer
        from peft.utils import ModulesToSaveWrapper

        wrappers: list[str] = []
        for name, module in base.named_modules():
            if any(name.startswith(f"{wrapper}.") for wrapper in wrappers):
                continue
            if isinstance(module, ModulesToSaveWrapper):
                wrappers.append(name)
                trained = module.modules_to_save[ADAPTER].named_parameters()
                self.saved |= {f"{name}.{key}": parameter for key, parameter in trained}
            elif isinstance(module, LoraLayer):
                self._check_layer(name, module)
                self.lora[f"{name}.weight"] = module
            elif isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
                self.quantized[f"{name.removesuffix('.base_layer')}.weight"] = module

    def _check_layer(self, name: str, layer: Any) -> None:
        from peft.tuners import lora
        from peft.tuners.lora.variants import DoraLinearVariant

        plain = [lora.Linear, lora.Embedding, *(getattr(lora, kind, lora.Linear) for kind in BITSANDBYTES_LAYERS)]
        variant = layer.lora_variant.get(ADAPTER)
        if isinstance(layer, tuple(plain)) and (variant is None or type(variant) is DoraLinearVariant):
            return
        kind = type(layer if variant is None else variant).__name__
        raise ModelError(
            f"{self._folder}: only linear and embedding layers can be merged, got {kind} at {name}. "
            "Export without merging."
        )

    def _check_shape(self, name: str, change: Tensor, weight: Tensor) -> None:
        if change.shape != weight.shape:
            raise ModelError(
                f"{self._folder}: the change of {name} must have the checkpoint's shape {list(weight.shape)}, got "
                f"{list(change.shape)}. Use the base that the adapter was trained on."
            )


def _checkpoint_renaming(model: PreTrainedModel) -> Callable[[str], str | None]:
    """transformers' own way from a checkpoint's names to a model's, as from_pretrained goes it.

    Gemma 3's checkpoints spell the language model's path another way; GPT-2's lack the body's prefix.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    state = dict(model.named_parameters(remove_duplicate=False))

    def rename(stored: str) -> str | None:
        name, converted = rename_source_key(stored, renamings, converters, model.base_model_prefix, state)
        return None if converted else str(name)

    return rename


def _check_mergeable(config: dict[str, Any], folder: Path) -> None:
    used = [option for option in UNMERGEABLE if config.get(option)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise ModelError(
            f"{folder}: {used[0]} must be unset to merge, got {config[used[0]]!r}. Export without merging."
        )


def _is_transposed(module: nn.Module) -> bool:
    """Whether transformers turned a Conv1D of the checkpoint, [in, out], into a quantized Linear, [out, in]."""
    from transformers.pytorch_utils import Conv1D

    source = getattr(module, "source_cls", None)
    return isinstance(source, type) and issubclass(source, Conv1D)


def _scale_to(magnitude: Any, base: Tensor, delta: Tensor, *, fan_in_fan_out: bool) -> Tensor:
    """DoRA's merged weight, m (W + delta) / ||W + delta||, with PEFT's norm (arXiv 2402.09353, equation 5)."""
    from peft.utils.other import transpose

    # The delta has its scale already.
    norm = magnitude.get_weight_norm(base, transpose(delta, fan_in_fan_out), scaling=1)
    factor = magnitude.weight.detach().to(base.device).float() / norm.detach()
    merged: Tensor = transpose(factor.view(-1, 1), fan_in_fan_out) * (base + delta)
    return merged
