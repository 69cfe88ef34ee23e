"""What a user would write today: Ray Tune around TRL's SFTTrainer, a process per trial. `python -m benchmarks.naive`.

Nothing of qlora_ray is used. It follows the libraries' own guides: a function trainable that loads the base in NF4,
gives SFTTrainer a LoraConfig, and reports each evaluation to Tune from a TrainerCallback. No checkpoints are written,
rows come tokenized, and the trials' CPUs fill the machine: what a careful user would do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NUM_CPUS_PER_TRIAL = 1


def train(config: dict[str, Any], job: dict[str, Any]) -> None:
    """The function trainable: one trial, from nothing to its last report."""
    began = time.perf_counter()
    import bitsandbytes
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from ray import tune
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    trial = config["trial"]
    on_gpu = torch.cuda.is_available()
    bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.float32 if not on_gpu else torch.bfloat16 if bf16 else torch.float16
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    model = AutoModelForCausalLM.from_pretrained(
        job["base"],
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # bitsandbytes 0.50: on a CPU with AVX512-BF16 the first evaluation would repack the weights, and training
            # on them gives no gradients. A user would not know; a benchmark must train.
            module.support_avx512bf16_for_cpu = False
    rows = load_dataset("json", data_files={"train": job["train"], "validation": job["validation"]})

    class ReportCallback(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tune.report(
                {
                    "eval_loss": kwargs["metrics"]["eval_loss"],
                    "step": state.global_step,
                    "setup_s": self.began - began,
                    "train_s": time.perf_counter() - self.began,
                    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                }
            )

    # transformers 5.23 renames it; TRL 1.16 turns it on by either name, which costs a second forward.
    names = {field.name for field in dataclasses.fields(SFTConfig)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    no_checkpointing: dict[str, Any] = {name: False}
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        peft_config=LoraConfig(task_type="CAUSAL_LM", **trial["lora"]),
        callbacks=[ReportCallback()],
        args=SFTConfig(
            output_dir="output",
            per_device_train_batch_size=job["batch"],
            per_device_eval_batch_size=job["eval_batch"],
            max_steps=job["num_steps"],
            eval_strategy="steps",
            eval_steps=job["eval_steps"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            completion_only_loss=True,
            bf16=bf16,
            fp16=on_gpu and not bf16,
            use_cpu=not on_gpu,
            optim="adamw_torch",
            **no_checkpointing,
            **trial["training"],
        ),
    )
    trainer.train()


def main(argv: list[str] | None = None) -> int:
    """Runs all trials of a job file and writes what came of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive", description=__doc__)
    parser.add_argument("job", type=Path, help="JSON that benchmarks.packing writes")
    parser.add_argument("result", type=Path, help="JSON to write")
    parser.add_argument("--asha", action="store_true", help="let ASHA stop trials, not the job file")
    arguments = parser.parse_args(argv)
    job = json.loads(arguments.job.read_text())

    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    ray.init(address="local", num_gpus=job["num_gpus"], include_dashboard=False)
    resources: dict[str, float] = {"cpu": NUM_CPUS_PER_TRIAL, "gpu": 1 if job["num_gpus"] else 0}
    scheduler = ASHAScheduler(max_t=job["num_reports"], grace_period=1, reduction_factor=job["reduction_factor"])

    def stop(_: str, result: Mapping[str, Any]) -> bool:
        return bool(result["training_iteration"] >= result["config"]["trial"]["num_reports"])

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, job=job), resources),
        param_space={"trial": tune.grid_search(job["trials"])},
        tune_config=tune.TuneConfig(metric="eval_loss", mode="min", scheduler=scheduler if arguments.asha else None),
        run_config=tune.RunConfig(storage_path=str(arguments.result.parent), stop=None if arguments.asha else stop),
    )
    results = tuner.fit()
    trials = [
        {
            "trial": result.config["trial"]["id"],
            "num_reports": result.metrics["training_iteration"],
            **{name: result.metrics[name] for name in ("eval_loss", "step", "setup_s", "train_s", "peak_bytes")},
        }
        for result in (results[number] for number in range(len(results)))
        if result.config and result.metrics and "step" in result.metrics
    ]
    best = results.get_best_result()
    arguments.result.write_text(
        json.dumps(
            {
                "trials": trials,
                "winner": best.config["trial"]["id"] if best.config else None,
                "errors": [str(error) for error in results.errors],
                "concurrency": job["num_gpus"] or int(ray.cluster_resources()["CPU"] // NUM_CPUS_PER_TRIAL),
            }
        )
    )
    return 1 if results.errors else 0


if __name__ == "__main__":
    sys.exit(main())
