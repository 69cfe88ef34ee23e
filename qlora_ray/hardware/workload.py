"""What one training process does, as far as memory goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

EngineName = Literal["single", "packed"]
Loss = Literal["stock", "chunked", "tiled", "labels"]


@dataclass(frozen=True)
class Workload:
    """What one process trains.

    Args:
        method: As in config model.quantization: nf4, fp4, int8 or none; gptq or awq of a base that is stored so.
        weight_bits: Bits of a weight in gptq and awq.
        group_size: Weights that share a scale there; None where one output has one.
        targets: A preset of config lora.target_modules, or module names.
        precision: bf16, fp16 or fp32, the compute dtype.
        micro_batch: Rows through the device at once.
        loss: `stock` makes all logits at once, `chunked` an eighth of them (torchtune), `tiled` one tile (TRL 1.16),
            `labels` a chunk of those at label positions (the packed engine).
        fp32_parameters: Which unquantized parameters are kept in fp32: `none` here, `norms`, or `all` as PEFT's
            prepare_model_for_kbit_training does. With any of them the residual stream is fp32 too, for bitsandbytes
            returns its input's dtype. `all` is counted without autocast, as in the rows it is tested on.
        attention: Which kernel attention gets, see memory.SCORE_BYTES.
        context_bytes: What a process holds besides tensors; None for the usual of the device kind.
        engine: `single` is TRL and PEFT; `packed` keeps inputs once and small dropout masks, and pads ranks.
        num_trials: Adapters in the process.
        micro_batch_tokens: Padded tokens through the device at once, where they are not micro_batch rows of seq_length.
        num_head_parameters: Of one trial's auxiliary heads.
        hold_dequantized: Whether all linears are also kept in the compute dtype.
    """

    method: str = "nf4"
    double_quantization: bool = True
    weight_bits: int = 4
    group_size: int | None = None
    targets: str | Sequence[str] = "all-linear"
    r: int = 16
    modules_to_save: tuple[str, ...] = ()
    num_head_parameters: int = 0
    optim: str = "paged_adamw_8bit"
    precision: str = "bf16"
    micro_batch: int = 1
    seq_length: int = 512
    gradient_checkpointing: bool = False
    loss: Loss = "stock"
    device_kind: Literal["cuda", "cpu"] = "cuda"
    fp32_parameters: Literal["all", "norms", "none"] = "none"
    lora_dropout: float = 0.0
    attention: Literal["fused", "math", "eager"] = "fused"
    context_bytes: int | None = None
    engine: EngineName = "single"
    num_trials: int = 1
    micro_batch_tokens: int | None = None
    hold_dequantized: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Workload:
        """From `dataclasses.asdict`, also read back from JSON."""
        targets = values["targets"]
        return cls(
            **{
                **values,
                "targets": targets if isinstance(targets, str) else tuple(targets),
                "modules_to_save": tuple(values["modules_to_save"]),
            }
        )

    @property
    def num_tokens(self) -> int:
        """Padded tokens through the device at once."""
        return self.micro_batch * self.seq_length if self.micro_batch_tokens is None else self.micro_batch_tokens

    @property
    def compute_bytes(self) -> int:
        """Bytes per element of the compute dtype."""
        return 4 if self.precision == "fp32" else 2

    @property
    def residual_bytes(self) -> int:
        """Bytes per element of the residual stream and of what the layers keep."""
        return self.compute_bytes if self.fp32_parameters == "none" else 4
