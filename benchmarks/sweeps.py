"""A whole sweep, from command to winner: ours, and then a naive one of the same trials with the same stopping."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ray.config.documents import Document
from qlora_ray.config.loading import validate_document
from qlora_ray.config.schema import SweepConfig
from qlora_ray.data import TokenizedSplit, prepare_data
from qlora_ray.errors import RunError
from qlora_ray.modeling.loading import load_tokenizer, resolve_model_name
from qlora_ray.runs import SweepPaths, read_events, read_json
from qlora_ray.runs.records import Manifest, Summary, TrialRecord, read_record
from qlora_ray.runs.typed_json import to_json

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/quickstart.yaml"
# The naive sweep trains what ours trained and nothing else: the settings of SFTConfig that both have by one name.
TRAINING_KEYS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "seed",
)
LORA_KEYS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")
LAST_LINES = 15


@dataclass(frozen=True)
class Trial:
    """A trial of our sweep, as the naive one repeats it.

    Attributes:
        num_reports: After so many it is stopped.
        num_steps: So many it trained.
    """

    id: str
    num_reports: int
    num_steps: int
    lora: dict[str, Any]
    training: dict[str, Any]

    @classmethod
    def of_record(cls, record: TrialRecord) -> Trial:
        """The trial behind a record.json."""
        lora = to_json(record.ran.lora)
        return cls(
            id=record.trial,
            num_reports=len(record.reports),
            num_steps=int(record.metrics["step"] or 0),
            lora={key: lora[key] for key in LORA_KEYS},
            training={key: record.ran.training[key] for key in TRAINING_KEYS},
        )


@dataclass(frozen=True)
class OurSweep:
    """What came of our sweep.

    Attributes:
        config: As it ran.
        startup_s: From the command to the first optimizer step.
        search_s: From there to the last report.
        training_s: Of that, in which the device trained or evaluated.
        scoring_s: From there to the winner, scored by generation beside its base.
        num_steps: Optimizer steps of a trial that is not stopped.
        untrained: Trials that failed before their first report; the naive sweep leaves them out.
        placement: The planner's, of the manifest.
    """

    config: SweepConfig
    trials: list[Trial]
    num_steps: int
    wall_s: float
    startup_s: float
    search_s: float
    training_s: float
    scoring_s: float
    device_wait_share: float | None
    peak_bytes: int
    winner: str | None
    untrained: int
    placement: dict[str, Any]


def run_ours(folder: Path, *, settings: list[str]) -> OurSweep:
    """The sweep of the quickstart, started as a user starts it, with an empty data cache.

    Raises:
        RunError: It found no winner.
    """
    paths = SweepPaths(folder / "ours")
    options = [f"results.dir={folder}", f"results.name={paths.name}", *settings]
    command = [sys.executable, "-m", "qlora_ray.sweep", "--config", CONFIG]
    began, wall_s = run_logged([*command, *(f"--set={option}" for option in options)], folder=folder, log="ours.log")
    return read_ours(paths, began=began, wall_s=wall_s)


def read_ours(paths: SweepPaths, *, began: float, wall_s: float) -> OurSweep:
    """Reads a sweep's folder.

    Args:
        began: When its command was started, seconds since 1970.
        wall_s: How long it took.
    """
    records = [read_record(path, TrialRecord) for path in sorted(paths.trials.glob("*/record.json"))]
    trained = [record for record in records if record.reports]
    reported = [event for event in read_events(paths.events) if event["event"] == "trial_reported"]
    summary, manifest = read_record(paths.summary, Summary), read_record(paths.manifest, Manifest)
    if not reported:
        raise RunError(f"{paths.root}: a sweep must have trained to be measured, got no report. See {paths.logs}.")
    first = paths.trial(reported[0]["trial"]).metrics.read_text().splitlines()[0]
    metrics = json.loads(first)
    first_step = reported[0]["time"] - metrics["train_s"] - metrics["eval_s"]
    search_s = reported[-1]["time"] - first_step
    return OurSweep(
        config=validate_document(Document(str(paths.manifest), dict(manifest.config))),
        trials=[Trial.of_record(record) for record in trained],
        num_steps=max(record.ran.num_steps or 0 for record in trained),
        wall_s=wall_s,
        startup_s=first_step - began,
        search_s=search_s,
        training_s=search_s * (1 - (summary.device_wait_share or 0.0)),
        scoring_s=began + wall_s - reported[-1]["time"],
        device_wait_share=summary.device_wait_share,
        peak_bytes=max(record.memory.peak_bytes or 0 for record in trained),
        winner=summary.winner,
        untrained=len(records) - len(trained),
        placement=to_json(manifest.plan.placements[0]),
    )


def run_naive(folder: Path, ours: OurSweep, *, num_gpus: int, asha: bool = False) -> dict[str, Any]:
    """The naive sweep of the same trials on the same rows; its result with `wall_s`.

    Raises:
        RunError: One of its trials failed.
    """
    job, result = folder / "job.json", folder / "naive.json"
    job.write_text(json.dumps(describe_job(folder, ours, num_gpus=num_gpus)))
    command = [sys.executable, "-m", "benchmarks.naive", str(job), str(result)]
    _, wall_s = run_logged([*command, *(["--asha"] if asha else [])], folder=folder, log="naive.log")
    return {**read_json(result), "wall_s": wall_s}


def describe_job(folder: Path, ours: OurSweep, *, num_gpus: int) -> dict[str, Any]:
    """What benchmarks.naive is told. Writes the rows: those that ours trained and validated on."""
    config = ours.config
    data = prepare_data(config.data, tokenizer=load_tokenizer(config.model), data_seed=config.training.data_seed)
    files = {}
    for name, split in (("train", data.train), ("validation", data.validation)):
        files[name] = str(folder / f"{name}.jsonl")
        write_rows(Path(files[name]), split)
    return {
        "base": resolve_model_name(config.model.name),
        **files,
        "batch": config.training.effective_batch,
        "eval_batch": config.training.per_device_eval_batch_size,
        "num_steps": ours.num_steps,
        "num_reports": config.search.num_reports,
        "eval_steps": ours.num_steps // config.search.num_reports,
        "reduction_factor": config.search.reduction_factor,
        "num_gpus": num_gpus,
        "trials": [
            {"id": trial.id, "num_reports": trial.num_reports, "lora": trial.lora, "training": trial.training}
            for trial in ours.trials
        ],
    }


def write_rows(path: Path, split: TokenizedSplit) -> None:
    """Rows as SFTTrainer takes tokenized ones: input_ids and completion_mask."""
    lines = (
        json.dumps({"input_ids": ids, "completion_mask": mask})
        for ids, mask in zip(split.input_ids, split.completion_mask, strict=True)
    )
    path.write_text("\n".join(lines) + "\n")


def run_logged(command: list[str], *, folder: Path, log: str) -> tuple[float, float]:
    """Runs a command from the repository's root; returns when it began (since 1970), and its seconds.

    Raises:
        RunError: It failed; with the end of what it printed.
    """
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "QLORA_RAY_CACHE": str(folder / "cache"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    environment.pop("RAY_ADDRESS", None)
    path = folder / log
    began, started = time.time(), time.perf_counter()
    with path.open("w") as stream:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT).returncode
    elapsed = time.perf_counter() - started
    if code != 0:
        last = "\n".join(path.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise RunError(f"benchmark: {' '.join(command[1:3])} must succeed, got exit code {code}:\n{last}")
    return began, elapsed
