"""How each model of an evaluation is loaded: in which quantization, dtype and precision, on which device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Model, Precision
from qlora_ray.errors import ModelError
from qlora_ray.evaluation.target.folders import read_merge_report, read_model_config
from qlora_ray.evaluation.target.target import ModelName, Target
from qlora_ray.hardware import DeviceProfile, PrecisionChoice, choose_precision
from qlora_ray.hardware.stored import read_stored
from qlora_ray.modeling.identity import check_base, hash_adapter, hash_file, read_adapter
from qlora_ray.modeling.loading import cannot_load, hash_base, resolve_model_name, specify_base
from qlora_ray.modeling.quantization import QuantizationSpec
from qlora_ray.modeling.stored_base import specify_stored
from qlora_ray.runs.paths import HEADS_WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Names of torch's dtypes in config.json, and what this project calls them.
DTYPES: dict[str, Precision] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class LoadPlan:
    """What will be loaded, and how; nothing is loaded yet.

    Attributes:
        precision: The data type that the models compute in.
        specs: The quantization of each model, or the dtype of its weights.
        notes: Sentences for the user: what could not be verified.
        tokenizer: The one that rows go through, where it is not the base's.
    """

    target: Target
    device: DeviceProfile
    precision: PrecisionChoice
    specs: dict[str, QuantizationSpec]
    notes: Sequence[str] = ()
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def torch_device(self) -> str:
        """`cpu` or `cuda:0`."""
        return "cpu" if self.device.kind == "cpu" else f"cuda:{self.device.index}"

    def to_dict(self, names: Sequence[ModelName]) -> dict[str, Any]:
        """What decides the models' numbers, for settings.json."""
        return {name: self._facts(name) for name in names}

    def _facts(self, name: ModelName) -> dict[str, Any]:
        facts: dict[str, Any] = {"quantization": self.specs[name].to_dict()}
        if name == "merged":
            model = self.merged_model
            return {**facts, "path": model.name, "hash": hash_base(model)}
        assert self.target.base is not None
        facts["base"] = hash_base(self.target.base)
        if name == "adapter":
            assert self.target.adapter is not None
            facts["sha256"] = hash_adapter(self.target.adapter)
            # Alpha is there: the same weights may be another adapter.
            facts["config"] = read_adapter(self.target.adapter).config
            if (self.target.adapter / HEADS_WEIGHTS).is_file():
                facts["heads"] = hash_file(self.target.adapter / HEADS_WEIGHTS)
        return facts

    @property
    def merged_model(self) -> Model:
        """The merged model's folder as a config section."""
        return self.target.config.model.model_copy(update={"name": str(self.target.merged), "revision": None})


def make_load_plan(target: Target, names: Sequence[ModelName], *, device: DeviceProfile) -> LoadPlan:
    """Decides how each model is loaded, and checks that the adapter's base is the one it was trained on.

    Args:
        target: The sweep, adapter, bundle or model that is evaluated.
        names: The models that will be loaded.
        device: Where they will be loaded.

    Raises:
        ModelError: If the base is another one.
        PlacementError: If `training.precision` asks for what the device lacks.
    """
    precision = choose_precision(device, requested=target.config.training.precision)
    specs: dict[str, QuantizationSpec] = {}
    unverified: str | None = None
    if target.base is not None:
        if target.adapter is not None and target.base_hash is not None:
            unverified = check_base(target.base, expected_hash=target.base_hash, where=str(target.adapter))
        if target.quantization is not None:
            held = target.base.model_copy(update={"quantization": target.quantization})
            specs["base"] = specify_base(held, compute_dtype=precision.name)
        else:
            specs["base"] = _own_spec(target.base, device)
        specs["adapter"] = specs["base"]
    if "merged" in names and target.merged is not None:
        _check_merged(target, target.merged)
        model = target.config.model.model_copy(update={"name": str(target.merged), "revision": None})
        specs["merged"] = _own_spec(model, device)
    return LoadPlan(target, device, precision, specs, notes=[unverified] if unverified else [])


def _check_merged(target: Target, merged: Path) -> None:
    """Raises ModelError if the merged model's report says that it was made from another adapter."""
    report = read_merge_report(merged)
    if target.adapter is None or report is None:
        return
    made_from = (report.get("adapter") or {}).get("sha256")
    own = hash_adapter(target.adapter)
    if made_from not in (None, own):
        raise ModelError(
            f"{merged}: must be merged from {target.adapter} ({own[:12]}), got a merge of another adapter "
            f"({str(made_from)[:12]}). Merge this one, or leave --merged out."
        )


def _own_spec(model: Model, device: DeviceProfile) -> QuantizationSpec:
    """A model in the dtype of its own config.json; a quantization that is written there applies as it stands.

    A CPU computes in the dtype that weights have, so there they are loaded in fp32, which changes none of them.
    """
    folder = Path(resolve_model_name(model.name))
    written = read_model_config(folder) if folder.is_dir() else _hub_config(model)
    stored = read_stored(written)
    own = DTYPES.get(str(written.get("dtype") or written.get("torch_dtype")), "fp32")
    dtype: Precision = "fp32" if device.kind == "cpu" else own
    if stored is not None and stored.backend is not None:
        return specify_stored(stored, compute_dtype=dtype, where=model.name)
    return QuantizationSpec("none", 32 if dtype == "fp32" else 16, "torch", None, False, dtype)


def _hub_config(model: Model) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model.name, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:
        raise cannot_load("target", model.name, error) from None
    return dict(config.to_dict())
