"""Keys that people know from other tools, and what does the same here: HF's trainers, TRL, axolotl, LLaMA-Factory, W&B.

Names and meanings are those of these tools' documentation (transformers 5 TrainingArguments, TRL 1 SFTConfig, axolotl
0.12, LLaMA-Factory 0.9, W&B sweeps, Ray Tune, Optuna).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """What answers a key from elsewhere.

    Attributes:
        key: The key that does it here; None where none does.
        words: What to know besides, or what to do instead.
    """

    key: str | None
    words: str = ""

    def __str__(self) -> str:
        if self.key is None:
            return f"It is not here: {self.words}."
        return f"Here it is {self.key}{f': {self.words}' if self.words else ''}."


# By our key, those of others that mean the same.
_SAME = {
    "model.name": "base_model model_name model_name_or_path model_id pretrained_model_name_or_path base_model_name",
    "model.revision": "model_revision revision_of_model base_model_revision",
    "model.attn_implementation": "flash_attention flash_attn sdp_attention use_flash_attention_2",
    "model.quantization.double_quantization": "bnb_4bit_use_double_quant double_quant use_double_quant",
    "lora.r": "lora_r lora_rank rank peft_lora_r",
    "lora.lora_dropout": "dropout peft_lora_dropout",
    "lora.target_modules": "lora_target lora_target_modules lora_target_linear target_module",
    "lora.modules_to_save": "lora_modules_to_save additional_target",
    "lora.use_dora": "peft_use_dora dora",
    "lora.use_rslora": "peft_use_rslora rslora",
    "training.learning_rate": "lr base_lr init_lr learning_rate_init",
    "training.num_train_epochs": "epochs num_epochs n_epochs max_epochs nb_epochs",
    "training.per_device_train_batch_size": "batch_size micro_batch_size train_batch_size per_gpu_train_batch_size",
    "training.per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size micro_eval_batch_size",
    "training.gradient_accumulation_steps": "grad_accum gradient_accumulation accumulate_grad_batches",
    "training.optim": "optimizer optimizer_name optimizer_type",
    "training.lr_scheduler_type": "lr_scheduler scheduler_type lr_schedule",
    "training.adam_beta1": "beta1",
    "training.adam_beta2": "beta2",
    "training.adam_epsilon": "adam_eps eps",
    "training.weight_decay": "wd",
    "training.max_grad_norm": "grad_clip gradient_clip_val gradient_clipping max_norm",
    "training.logging_steps": "log_every log_interval log_every_n_steps",
    "training.seed": "random_state random_seed",
    "data.train": "dataset datasets dataset_name dataset_path train_file train_data train_dataset data_path",
    "data.test": "test_file test_data test_datasets test_dataset",
    "data.columns": "dataset_text_field prompt_field response_field prompt_column response_column",
    "data.template": "chat_template prompt_template prompt_format",
    "data.system_prompt": "default_system system_message",
    "data.max_length": "sequence_len cutoff_len max_seq_length max_seq_len seq_len sequence_length block_size",
    "data.max_train_rows": "max_train_samples",
    "data.max_validation_rows": "max_eval_samples max_val_samples",
    "search.time_budget": "time_budget_s timeout max_time time_limit",
    "search.num_trials": "n_trials num_samples run_cap max_trials trials",
    "search.space": "param_space hp_space search_space config_space",
    "search.sampler": "search_alg search_algorithm algorithm",
    "search.scheduler": "early_terminate pruner trial_scheduler",
    "search.objectives": "metric goal direction directions greater_is_better metric_for_best_model",
    "evaluate.max_new_tokens": "generation_max_length max_gen_toks",
    "results.dir": "output_dir save_dir local_dir storage_path",
    "results.name": "run_name experiment_name",
    "cluster.address": "ray_address head_address",
}
# By our key, those that mean nearly the same, with what differs.
_NEAR = {
    "model.quantization.method": {
        "nf4": "load_in_4bit",
        "int8": "load_in_8bit",
        "nf4, fp4, int8 or none": "quantization_bit bnb_4bit_quant_type",
    },
    "lora.lora_alpha": {"or lora.alpha_ratio, which is alpha / r": "alpha peft_lora_alpha"},
    "training.max_samples": {
        "steps x effective batch, so that trials of any batch size see equal samples": "max_steps num_steps "
        "total_steps max_train_steps"
    },
    "training.warmup_steps": {"or training.warmup_ratio, a share of the trial's steps": "num_warmup_steps warmup"},
    "training.precision": {
        "asked on each node with auto": "fp16 bf16 tf32 mixed_precision torch_dtype dtype half bnb_4bit_compute_dtype"
    },
    "data.validation": {
        "a file, a split or a fraction": "val_set_size validation_split eval_dataset val_file validation_file "
        "eval_file test_size val_size split_ratio eval_datasets",
    },
    "data.loss": {
        "all for whole rows, completion for the answers alone": "train_on_inputs train_on_prompt train_on_source "
        "completion_only_loss assistant_only_loss",
    },
    "search.num_reports": {
        "a trial is evaluated, and its state kept, at each report": "save_steps eval_steps save_strategy eval_strategy "
        "evaluation_strategy evals_per_epoch saves_per_epoch",
    },
    "export.push_every": {"never, best, trial or save": "push_to_hub hub_strategy"},
    "export.push_to": {"USER or USER/REPO, always private": "hub_model_id push_to_hub_model_id hub_private_repo"},
    "results.report_to": {"each trial is a run, and the sweep a group": "report_to use_wandb"},
}
# What no key does, and what does it.
_NOT_HERE = {
    "rows of like length share a micro-batch, and the packed engine pads next to nothing": "packing sample_packing "
    "pad_to_sequence_len group_by_length eval_sample_packing",
    "go on with `sweep --resume DIR`": "resume_from_checkpoint auto_resume_from_checkpoints overwrite_output_dir",
    "set HF_TOKEN, in the environment or in .env": "hub_token hf_token use_auth_token token",
    "set the tracker's own variable, as WANDB_PROJECT, and results.report_to": "wandb_project wandb_entity "
    "wandb_run_id project mlflow_tracking_uri",
    "memory is planned per device; see `qlora_ray.plan`": "deepspeed fsdp fsdp_config device_map ddp_backend "
    "auto_find_batch_size",
    "rows are tokenized before training, and need no loader": "dataloader_num_workers num_workers "
    "dataset_num_proc preprocessing_num_workers",
    "adapters are LoRA on a frozen base": "adapter finetuning_type peft_type use_lora stage task_type",
    "as many trials run at once as fit; cluster.max_gpus limits them": "max_concurrent_trials max_concurrent n_jobs",
    "noise on embeddings is not built": "neftune_noise_alpha",
    "the sweep's own stopping is search.scheduler": "early_stopping_patience early_stopping load_best_model_at_end",
    "a parameter's values stand in search.space, as lora.r: {choices: [8, 16]}": "parameters hyperparameters",
}


def _collect() -> dict[str, Alias]:
    found = {name: Alias(key) for key, names in _SAME.items() for name in names.split()}
    for key, meanings in _NEAR.items():
        found |= {name: Alias(key, words) for words, names in meanings.items() for name in names.split()}
    found |= {name: Alias(None, words) for words, names in _NOT_HERE.items() for name in names.split()}
    return found


# By the last part of a key, since other tools have no sections, or others.
ALIASES = _collect()
