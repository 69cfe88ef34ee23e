"""From our config to TRL's: the one place where SFTConfig is filled in.

SFTConfig changes many TrainingArguments defaults, and they move between releases, so every value that matters
is set here; tests/unit/test_sft_arguments.py freezes the mapping.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.training.budget import warmup_steps
from qlora_ray.training.engine import TrialSpec
from qlora_ray.training.schedules import schedule_options, scheduler_name

if TYPE_CHECKING:
    from trl import SFTConfig


def sft_arguments(
    spec: TrialSpec,
    *,
    micro_batch: int,
    precision: str,
    device: str,
    output_dir: Path,
    num_steps: int,
    gradient_checkpointing: bool = False,
) -> dict[str, Any]:
    """SFTConfig's arguments for one trial.

    Args:
        spec: The trial's config and budget.
        micro_batch: Rows per forward; accumulation follows from the trial's effective batch.
        precision: What the device computes in: bf16, fp16 or fp32.
        device: Where the base is: `cpu` or `cuda:0`.
        output_dir: A scratch folder; nothing is saved there by the trainer.
        num_steps: Optimizer steps this trainer runs: all, or what is left after a state.
        gradient_checkpointing: Whether activations are recomputed where the trial leaves it open.
    """
    training = spec.training
    recomputes = training.recomputes(planned=gradient_checkpointing)
    return {
        "output_dir": str(output_dir),
        # What is trained, and for how long.
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": training.effective_batch // micro_batch,
        "max_steps": num_steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": scheduler_name(training),
        "lr_scheduler_kwargs": schedule_options(training),
        "warmup_steps": warmup_steps(training, spec.budget.num_steps),
        "optim": training.optim,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
        "data_seed": training.data_seed,
        # The rows come ordered and tokenized: the same tokens for every engine.
        "train_sampling_strategy": "sequential",
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "packing": False,
        "padding_free": False,
        "pad_to_multiple_of": None,
        "completion_only_loss": False,
        "assistant_only_loss": False,
        "loss_type": "nll",
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "dataloader_drop_last": False,
        # Where and in what.
        "use_cpu": device == "cpu",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "tf32": None,
        "gradient_checkpointing": recomputes,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if recomputes else None,
        "activation_offloading": False,
        "use_liger_kernel": False,
        # Reports, states and evaluation are ours; the trainer keeps quiet and writes nothing.
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        # Not used by the trainer, whose losses `report_metrics.thin_losses` takes; recorded with the other arguments.
        "logging_steps": training.logging_steps,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "push_to_hub": False,
        "average_tokens_across_devices": False,
    }


def make_sft_config(arguments: dict[str, Any]) -> SFTConfig:
    """TRL's config from our arguments.

    transformers 5.23 renames `gradient_checkpointing` to `activation_checkpointing` and TRL turns the latter on
    by default, so that the old name set to False would be ignored: the name goes by what the release has.
    """
    from trl import SFTConfig

    names = {field.name for field in dataclasses.fields(SFTConfig)}
    if "activation_checkpointing" in names:
        arguments = {
            key.replace("gradient_checkpointing", "activation_checkpointing"): value for key, value in arguments.items()
        }
    return SFTConfig(**arguments)
