"""Our config to TRL's SFTConfig: no field of it is left to chance, and none of ours is lost on the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from trl import SFTConfig

from qlora_ray.config.schema import Lora, Training
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import TrialSpec
from qlora_ray.training.single.sft_arguments import make_sft_config, sft_arguments

NUM_ROWS = 80

# What we leave to trl 1.16.0 and transformers 5.23.0, and which default of theirs we rely on there.
RELIED_ON = {
    # max_steps goes before it.
    "num_train_epochs": 3.0,
    # Schedule, optimizer and loss as they are without these.
    "optim_args": None,
    "optim_target_modules": None,
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "router_aux_loss_coef": None,
    "use_cache": False,
    # No code is compiled, and no batch is made smaller behind the planner's back.
    "torch_compile": False,
    "torch_compile_backend": None,
    "torch_compile_mode": None,
    "torch_empty_cache_steps": None,
    "auto_find_batch_size": False,
    "liger_kernel_config": None,
    "full_determinism": False,
    # Model, tokenizer and rows are passed as objects, and the rows are tokenized.
    "model_init_kwargs": None,
    "trust_remote_code": False,
    "chat_template_path": None,
    "dataset_text_field": "text",
    "dataset_num_proc": None,
    "eos_token": None,
    "pad_token": None,
    "truncation_mode": "keep_start",
    "shuffle_dataset": False,
    "packing_strategy": "bfd",
    "eval_packing": None,
    "label_names": None,
    "length_column_name": "length",
    "dataloader_persistent_workers": False,
    "dataloader_prefetch_factor": None,
    "dataloader_multiprocessing_context": None,
    "dataloader_in_order": True,
    # Evaluation is ours: eval_strategy is `no`.
    "do_train": False,
    "do_eval": False,
    "do_predict": False,
    "eval_steps": None,
    "eval_delay": 0,
    "per_device_eval_batch_size": 8,
    "prediction_loss_only": False,
    "eval_on_start": False,
    "eval_do_concat_batches": True,
    "eval_use_gather_object": False,
    "eval_accumulation_steps": None,
    "include_for_metrics": [],
    "batch_eval_metrics": False,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
    # So is saving: save_strategy is `no`, and push_to_hub is off.
    "save_only_model": False,
    "save_steps": 500,
    "save_on_each_node": False,
    "save_total_limit": None,
    "enable_jit_checkpoint": False,
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "greater_is_better": None,
    "resume_from_checkpoint": None,
    "ignore_data_skip": False,
    "restore_callback_states_from_checkpoint": False,
    "hub_token": None,
    "hub_private_repo": None,
    "hub_model_id": None,
    "hub_strategy": "every_save",
    "hub_always_push": False,
    "hub_revision": None,
    # And logging: logging_strategy is `no`, and report_to is empty.
    "logging_first_step": False,
    "log_on_each_node": True,
    "log_level": "passive",
    "log_level_replica": "warning",
    "include_num_input_tokens_seen": "no",
    "skip_memory_metrics": True,
    "debug": "",
    "run_name": None,
    "project": "huggingface",
    "trackio_space_id": None,
    "trackio_bucket_id": None,
    "trackio_static_space_id": None,
    # One process, one device.
    "local_rank": -1,
    "accelerator_config": None,
    "parallelism_config": None,
    "ddp_find_unused_parameters": None,
    "ddp_bucket_cap_mb": None,
    "ddp_broadcast_buffers": None,
    "ddp_static_graph": None,
    "ddp_backend": None,
    "ddp_timeout": 1800,
    "fsdp": None,
    "fsdp_config": None,
    "deepspeed": None,
}
# transformers 5.23 has both names of checkpointing; `make_sft_config` uses the new ones.
RENAMED = {"gradient_checkpointing", "gradient_checkpointing_kwargs"}
# A value of each key of `training` that is not its default, and SFTConfig's fields that it must reach.
REACHES = {
    "learning_rate": (1e-3, {"learning_rate"}),
    "lr_scheduler_type": ("constant", {"lr_scheduler_type"}),
    "lr_scheduler_kwargs": ({"num_cycles": 2}, set()),
    "warmup_ratio": (0.5, {"warmup_steps"}),
    "warmup_steps": (7, {"warmup_steps"}),
    "per_device_train_batch_size": (2, {"gradient_accumulation_steps"}),
    "gradient_accumulation_steps": (4, {"gradient_accumulation_steps"}),
    # The budget makes steps of them, which `num_steps` says.
    "num_train_epochs": (1.0, set()),
    "max_samples": (16, set()),
    # Evaluation is ours.
    "per_device_eval_batch_size": (2, set()),
    "optim": ("adamw_torch", {"optim"}),
    "adam_beta1": (0.8, {"adam_beta1"}),
    "adam_beta2": (0.95, {"adam_beta2"}),
    "adam_epsilon": (1e-6, {"adam_epsilon"}),
    "weight_decay": (0.1, {"weight_decay"}),
    "max_grad_norm": (0.3, {"max_grad_norm"}),
    "gradient_checkpointing": (True, {"gradient_checkpointing", "gradient_checkpointing_kwargs"}),
    "logging_steps": (3, {"logging_steps"}),
    # The device has a word in it: it comes as the argument `precision`.
    "precision": ("fp16", set()),
    "seed": (11, {"seed"}),
    "data_seed": (12, {"data_seed"}),
}


def make_arguments(training=None, *, precision="fp32", device="cpu"):
    """The arguments of a trial of 30 steps, whose schedule has the same length whatever the config says."""
    training = training or Training()
    budget = make_budget(Training(), num_train_rows=NUM_ROWS, num_reports=2)
    return sft_arguments(
        TrialSpec("t0001", Lora(), training, budget),
        micro_batch=1,
        precision=precision,
        device=device,
        output_dir=Path("scratch"),
        num_steps=30,
    )


def sft_fields():
    return {field.name: field for field in dataclasses.fields(SFTConfig) if field.init}


def default_of(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@pytest.fixture(scope="module")
def passed():
    """Field name -> value, of what SFTConfig is really made with."""
    made = {}

    class Recorder(SFTConfig):
        def __init__(self, **arguments):
            made.update(arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl.SFTConfig", Recorder)
        make_sft_config(make_arguments())
    return made


def test_every_field_of_sft_config_is_set_by_us_or_left_alone_knowingly(passed):
    known = {*passed, *RELIED_ON, *RENAMED}
    assert sorted(set(sft_fields()) - known) == [], "new in trl or transformers: set it in sft_arguments, or rely on it"
    assert sorted(known - set(sft_fields())) == [], "gone from trl or transformers"
    assert sorted(set(passed) & set(RELIED_ON)) == []


@pytest.mark.parametrize("name", RELIED_ON)
def test_a_default_that_we_rely_on_is_still_the_same(name):
    assert default_of(sft_fields()[name]) == RELIED_ON[name]


@pytest.mark.parametrize("is_checkpointing", [False, True])
def test_sft_config_keeps_what_it_is_given(is_checkpointing):
    arguments = make_arguments(Training(gradient_checkpointing=is_checkpointing))
    config = make_sft_config(arguments)
    assert (config.activation_checkpointing or False) is is_checkpointing
    kept = {name: getattr(config, name) for name in arguments if name not in RENAMED}
    assert kept == {name: value for name, value in arguments.items() if name not in RENAMED}


@pytest.mark.parametrize("key", Training.model_fields)
def test_a_key_of_training_reaches_the_fields_that_it_is_about(key):
    value, reached = REACHES[key]
    before, after = make_arguments(), make_arguments(Training.model_validate({key: value}))
    assert {name for name in after if after[name] != before[name]} == reached
    if key in reached and key != "lr_scheduler_type" and "batch" not in key and "accumulation" not in key:
        assert after[key] == value


@pytest.mark.parametrize(
    ("precision", "device", "bf16", "fp16", "use_cpu"),
    [
        ("fp32", "cpu", False, False, True),
        ("bf16", "cpu", True, False, True),
        ("bf16", "cuda:0", True, False, False),
        ("fp16", "cuda:0", False, True, False),
    ],
)
def test_precision_and_device_are_the_devices_own(precision, device, bf16, fp16, use_cpu):
    arguments = make_arguments(precision=precision, device=device)
    assert (arguments["bf16"], arguments["fp16"], arguments["use_cpu"]) == (bf16, fp16, use_cpu)


def test_the_schedules_are_transformers_own_with_a_warm_up():
    from transformers import SchedulerType

    choices = {name: make_arguments(Training(lr_scheduler_type=name)) for name in ("linear", "cosine", "constant")}
    used = {name: SchedulerType(arguments["lr_scheduler_type"]) for name, arguments in choices.items()}
    assert used == {
        "linear": SchedulerType.LINEAR,
        "cosine": SchedulerType.COSINE,
        # Its plain CONSTANT has no warm-up.
        "constant": SchedulerType.CONSTANT_WITH_WARMUP,
    }
