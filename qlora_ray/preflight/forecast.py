"""What a sweep will take: trials, steps, tokens, disk, time and GPU-hours. A range, with the rules it comes from."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from qlora_ray.config.schema import Search
from qlora_ray.formats import format_bytes, format_count, format_duration, plural
from qlora_ray.hardware import Plan
from qlora_ray.hardware.memory_counts import ADAPTER_WEIGHT_BYTES
from qlora_ray.hardware.plan import TABLE_COLUMNS
from qlora_ray.hardware.speed import Speed, count_passes, estimate_speed
from qlora_ray.preflight.measured_speed import find_speed
from qlora_ray.preflight.planning import PlanFacts
from qlora_ray.training.budget import make_budget

# record.json, metrics.jsonl and the trial's lines in the other files; measured on the quickstart's sweep.
RECORD_BYTES = 40_000
# A state holds the adapter and two moments, all in fp32 at most.
STATE_TENSORS = 3
SECONDS_PER_HOUR = 3600
SMALLEST_HOURS = 0.01


@dataclass(frozen=True)
class ClassForecast:
    """One class of the plan. Tokens per second are of all its devices together."""

    device_name: str
    num_devices: int
    least_tokens_per_s: float
    most_tokens_per_s: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """What a sweep will take.

    Attributes:
        num_trials: Of the search, at most; a grid may have fewer.
        num_seed_trials: That `search.final_seeds` adds: of each of the best, and never stopped.
        least_steps: Optimizer steps of a trial with the largest batch of the space; `most_steps`, with the smallest.
        num_samples: Samples that each trial sees if it is not stopped.
        least_tokens: Trained in all, if the scheduler stops as many trials as it can; `most_tokens`, if it stops none.
        evaluation_tokens: Of the validation rows at all reports of all trials, if none is stopped.
        disk_bytes: Adapters of all trials, states of those that run, the winner's copy, and records.
        least_s: Shortest time of training and evaluation; None where the speed of no class is known.
        gpu_hours: `most_s` on all GPUs of the plan, and `least_s`; None without a GPU.
        budget_s: Until `search.time_budget` or `search.gpu_hours` is spent, on all devices; None without either.
    """

    num_trials: int
    num_seed_trials: int
    least_steps: int
    most_steps: int
    num_samples: int
    least_tokens: int
    most_tokens: int
    evaluation_tokens: int
    disk_bytes: int
    least_s: float | None
    most_s: float | None
    least_gpu_hours: float | None
    most_gpu_hours: float | None
    classes: tuple[ClassForecast, ...]
    unknown: tuple[str, ...]
    budget_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self) -> str:
        """Lines for the terminal, at most as wide as the plan's table."""
        steps = _say_range(format_count(self.least_steps), format_count(self.most_steps))
        tokens = _say_range(format_count(self.least_tokens), format_count(self.most_tokens))
        trials = plural(self.num_trials, "trial")
        if self.num_seed_trials:
            trials += f", and up to {format_count(self.num_seed_trials)} of the best with new seeds,"
        lines = [
            f"{trials} of {steps} optimizer steps ({format_count(self.num_samples)} samples)",
            f"{tokens} tokens trained, up to {format_count(self.evaluation_tokens)} evaluated",
            f"up to {format_bytes(self.disk_bytes)} on disk",
        ]
        if self.least_s is not None and self.most_s is not None:
            time = _say_range(format_duration(max(1, self.least_s)), format_duration(max(1, self.most_s)))
            hours = ""
            if self.least_gpu_hours is not None and self.most_gpu_hours is not None:
                span = _say_range(_say_hours(self.least_gpu_hours), _say_hours(self.most_gpu_hours))
                hours = f", {span} GPU-hours"
            lines.append(f"{time} of training and evaluation{hours}; loading and the winner's answers come on top")
        if self.budget_s is not None:
            lines.append(f"the search's budget lasts {format_duration(self.budget_s)}: {self._say_trials()}")
        for item in self.classes:
            speed = _say_range(format_count(item.least_tokens_per_s), format_count(item.most_tokens_per_s))
            devices = plural(item.num_devices, "device")
            lines.append(f"{item.device_name}: {speed} tokens/s on {devices}, {item.source}")
        lines += [f"{name}: its speed is not known" for name in self.unknown]
        wrapped = [textwrap.wrap(line, TABLE_COLUMNS, initial_indent="- ", subsequent_indent="  ") for line in lines]
        return "\n".join(["expected", *(line for group in wrapped for line in group)])

    def _say_trials(self) -> str:
        """How many trials of the search the budget lets begin."""
        assert self.budget_s is not None
        if not self.least_s or not self.most_s:
            return "how many trials that is, is not known"
        # One goes to its end in any case.
        fewest, most = (
            min(self.num_trials, max(1, int(self.num_trials * self.budget_s / seconds)))
            for seconds in (self.most_s, self.least_s)
        )
        if fewest == self.num_trials:
            return "enough for all trials"
        return f"{_say_range(format_count(fewest), format_count(most))} of {plural(self.num_trials, 'trial')}"


def find_budget_s(search: Search, plan: Plan) -> float | None:
    """Returns the seconds after which no trial begins, where all devices of the plan are used; None without a budget.

    Args:
        search: Has the budgets, in time and in hours of all devices together.
        plan: Has the devices; without a GPU, CPU nodes count as such.
    """
    num_devices = sum(item.num_devices for item in plan.placements if item.device_kind == "cuda")
    num_devices = num_devices or sum(item.num_devices for item in plan.placements)
    hours_s = None if search.gpu_hours is None else search.gpu_hours * SECONDS_PER_HOUR / max(1, num_devices)
    return min((seconds for seconds in (search.time_budget, hours_s) if seconds is not None), default=None)


def forecast_sweep(facts: PlanFacts, plan: Plan) -> Forecast:
    """Counts what a sweep takes, and estimates how long.

    Args:
        facts: Config, space, base and rows.
        plan: Where its trials run.
    """
    config, report = facts.config, facts.report
    search = config.search
    budgets = [
        make_budget(corner.training, num_train_rows=facts.num_train_rows, num_reports=search.num_reports)
        for corner in facts.extremes
    ]
    tokens_per_sample = min(config.data.max_length, report.lengths["train"].mean)
    num_seed_trials = search.final_seeds * min(config.evaluate.top_k, search.num_trials)
    num_trials = search.num_trials + num_seed_trials
    most_tokens = int(num_trials * budgets[0].num_samples * tokens_per_sample)
    validation_tokens = report.num_tokens.get("validation", 0)
    evaluation_tokens = num_trials * search.num_reports * validation_tokens
    # No trial with a new seed is stopped, and where there is a winner at least one trial gets new seeds.
    share = (search.num_trials * least_share(search) + search.final_seeds) / num_trials
    speeds: dict[str, Speed] = {}
    unknown = []
    for placement in plan.placements:
        speed = find_speed(config, placement) or estimate_speed(facts.shape, placement)
        if speed is None:
            unknown.append(placement.device_name)
        else:
            speeds[placement.device_class] = speed.times(placement.num_devices)
    least_s = most_s = None
    if speeds:
        # Evaluation goes forward only.
        passes = max(count_passes(placement) for placement in plan.placements)
        work = most_tokens + evaluation_tokens / passes
        # One trial after its start cannot be divided: it takes as long as on the fastest device alone.
        alone = work / num_trials / max(speed.most for speed in speeds.values())
        least_s = max(share * work / sum(speed.most for speed in speeds.values()), alone)
        most_s = max(work / sum(speed.least for speed in speeds.values()), least_s)
    num_gpus = sum(item.num_devices for item in plan.placements if item.device_kind == "cuda")
    return Forecast(
        num_trials=search.num_trials,
        num_seed_trials=num_seed_trials,
        least_steps=min(budget.num_steps for budget in budgets),
        most_steps=max(budget.num_steps for budget in budgets),
        num_samples=budgets[0].num_samples,
        least_tokens=int(share * most_tokens),
        most_tokens=most_tokens,
        evaluation_tokens=evaluation_tokens,
        disk_bytes=_count_disk_bytes(facts, plan, num_trials=num_trials),
        least_s=least_s,
        most_s=most_s,
        least_gpu_hours=None if least_s is None or not num_gpus else least_s * num_gpus / SECONDS_PER_HOUR,
        most_gpu_hours=None if most_s is None or not num_gpus else most_s * num_gpus / SECONDS_PER_HOUR,
        classes=tuple(
            ClassForecast(item.device_name, item.num_devices, speed.least, speed.most, speed.source)
            for item in plan.placements
            if (speed := speeds.get(item.device_class)) is not None
        ),
        unknown=tuple(unknown),
        budget_s=find_budget_s(search, plan),
    )


def least_share(search: Search) -> float:
    """Share of the samples of all trials that is trained if the scheduler stops as many as it can.

    Successive halving (asha, hyperband; arXiv 1810.05934) lets one of `reduction_factor` go on at each rung; the median
    rule stops half at the first report that counts. Two objectives, or scheduler none, stop nobody.
    """
    reports, grace = search.num_reports, min(search.grace_reports, search.num_reports)
    if search.scheduler == "none":
        return 1.0
    if search.scheduler == "median":
        return (grace + (reports - grace) / 2) / reports
    trained, alive, rung = 0.0, 1.0, 0.0
    following = float(grace if search.scheduler == "asha" else 1)
    while rung < reports:
        trained += alive * (min(following, reports) - rung)
        rung, following, alive = following, following * search.reduction_factor, alive / search.reduction_factor
    return trained / reports


def _count_disk_bytes(facts: PlanFacts, plan: Plan, *, num_trials: int) -> int:
    parameters = max(
        facts.shape.num_adapter_parameters(corner.lora.target_modules, corner.lora.r)
        + len(corner.lora.modules_to_save or ()) * facts.shape.vocab_size * facts.shape.hidden_size
        for corner in facts.extremes
    )
    adapter_bytes = ADAPTER_WEIGHT_BYTES * (parameters + facts.num_head_parameters)
    states = plan.total_slots if facts.config.cluster.keep_trial_state else 0
    return (num_trials + 1 + states * STATE_TENSORS) * adapter_bytes + num_trials * RECORD_BYTES


def _say_hours(hours: float) -> str:
    return f"{hours:.2g}" if hours >= SMALLEST_HOURS else f"below {SMALLEST_HOURS}"


def _say_range(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"
