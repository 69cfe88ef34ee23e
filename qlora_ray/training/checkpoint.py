"""A trial's state at a report: safetensors and JSON, never pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.errors import RunError
from qlora_ray.platforms import open_folder, open_in
from qlora_ray.regular_files import check_regular, load_json
from qlora_ray.runs.files import write_text
from qlora_ray.runs.whole import restore_folder, whole_folder

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 2
TENSORS_FILE = "state.safetensors"
FACTS_FILE = "state.json"
# How often a copy begins anew where the state is replaced meanwhile, which happens once per report.
COPY_TRIES = 100


@dataclass
class TrialState:
    """Everything a trial needs to go on as if nothing had happened, on any device.

    Attributes:
        trial_id: Whose state it is.
        step: Optimizer steps done; the data cursor and the schedule's position follow from it, and so do the
            dropout masks, which are drawn from (seed, step).
        report_index: Reports made.
        adapter: Trainable parameters by name, fp32, on the CPU.
        optimizer: Moments by `<parameter name>/<value>`, on the CPU.
        optimizer_facts: The optimizer's numbers that are not tensors, under the same keys.
        loss_scale: GradScaler's scale and growth tracker under fp16, else empty.
        schedule_step: The schedule's position: `step`, less the steps that a loss scale skipped.
        metrics: What the trial reported there: a driver killed before it heard of it is told again.
        facts: The report's facts.
        interval_losses: Each step's loss since that report, where the state is of a later step.
        train_losses: The report's points of the training loss; of the pending report, where there is one.
        pending_metrics: What training says of a report whose evaluation is still to come. Whoever goes on from the
            state evaluates first. Empty where no report is pending.
    """

    trial_id: str
    step: int
    report_index: int
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    optimizer_facts: dict[str, Any]
    loss_scale: dict[str, float]
    schedule_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    interval_losses: list[float] = field(default_factory=list)
    train_losses: list[tuple[int, float]] = field(default_factory=list)
    pending_metrics: dict[str, float] = field(default_factory=dict)

    @property
    def has_pending_report(self) -> bool:
        """Whether the trial has trained to a report that it has not made."""
        return bool(self.pending_metrics)

    def reported(self, report_index: int, *, metrics: dict[str, float]) -> TrialState:
        """The same state once its pending report is made."""
        return replace(self, report_index=report_index, metrics=metrics, pending_metrics={})

    def save(self, folder: Path) -> None:
        """Writes the state whole, replacing an older one."""
        from safetensors.torch import save_file

        tensors = {f"adapter.{name}": tensor for name, tensor in self.adapter.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.items()}
        with whole_folder(folder) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / TENSORS_FILE)
            (temporary / FACTS_FILE).write_text(self._dump_facts(), encoding="utf-8")

    def save_facts(self, folder: Path) -> None:
        """Brings a folder that holds this state's tensors already up to date."""
        write_text(folder / FACTS_FILE, self._dump_facts())

    def _dump_facts(self) -> str:
        facts = {
            "format_version": FORMAT_VERSION,
            "trial_id": self.trial_id,
            "step": self.step,
            "report_index": self.report_index,
            "optimizer_facts": self.optimizer_facts,
            "loss_scale": self.loss_scale,
            "schedule_step": self.schedule_step,
            "metrics": self.metrics,
            "facts": self.facts,
            "interval_losses": self.interval_losses,
            "train_losses": self.train_losses,
            "pending_metrics": self.pending_metrics,
        }
        return json.dumps(facts)

    @classmethod
    def load(cls, folder: Path) -> TrialState:
        """Reads a state.

        Raises:
            RunError: If the folder holds no state of this version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            facts = load_json(folder / FACTS_FILE)
            check_regular(folder / TENSORS_FILE)
            tensors = load_file(folder / TENSORS_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(f"{folder}: holds no readable trial state: {error}.") from None
        version = facts.get("format_version") if isinstance(facts, dict) else None
        if version != FORMAT_VERSION:
            raise RunError(f"{folder}: the state must have format version {FORMAT_VERSION}, got {version!r}.")
        try:
            return cls._of(facts, tensors)
        except (LookupError, TypeError, ValueError) as error:
            raise RunError(f"{folder}: holds no readable trial state: {error!r}.") from None

    @classmethod
    def _of(cls, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> TrialState:
        return cls(
            trial_id=facts["trial_id"],
            step=facts["step"],
            report_index=facts["report_index"],
            adapter=_strip(tensors, "adapter."),
            optimizer=_strip(tensors, "optimizer."),
            optimizer_facts=facts["optimizer_facts"],
            loss_scale=facts["loss_scale"],
            schedule_step=facts["schedule_step"],
            metrics=facts["metrics"],
            facts=facts["facts"],
            interval_losses=facts["interval_losses"],
            train_losses=[(step, loss) for step, loss in facts.get("train_losses", [])],
            # `unreported` in states of version 0.1.
            pending_metrics=facts.get("pending_metrics", facts.get("unreported", {})),
        )


def find_state(folder: Path) -> tuple[TrialState | None, str | None]:
    """The state in a folder, if there is one, also where its writer was killed; and why one cannot be read.

    What is said holds no paths: it goes into the trial's record, which is given to others.
    """
    restore_folder(folder)
    if not folder.exists():
        return None, None
    try:
        return TrialState.load(folder), None
    except RunError as error:
        return None, str(error).removeprefix(f"{folder}: ").replace(f"{folder}/", "")


@dataclass(frozen=True)
class StatePlace:
    """Where a trial is in its budget by a state of it; fields as those of TrialState."""

    step: int
    report_index: int
    has_pending_report: bool


def copy_state(source: Path, target: Path) -> StatePlace:
    """Copies a state whole, also while the trial's executor replaces it.

    Both files are opened in one folder, whatever has its name by then: an executor writes a new state into a new
    folder, and only a state's facts, in one rename, beside the tensors that they belong to.

    Args:
        source: The trial's state.
        target: Where the copy is put.

    Raises:
        RunError: If there is no state, or the copy cannot be read.
        OSError: If it cannot be written.
    """
    was_there = False
    for _ in range(COPY_TRIES):
        restore_folder(source)
        try:
            folder = open_folder(source)
        except FileNotFoundError:
            # There is none, or it lost its name to a newer one since the line before.
            continue
        was_there = True
        try:
            with whole_folder(target) as temporary:
                for name in (TENSORS_FILE, FACTS_FILE):
                    with (
                        os.fdopen(open_in(folder, source / name), "rb") as read,
                        (temporary / name).open("wb") as write,
                    ):
                        shutil.copyfileobj(read, write)
        except FileNotFoundError:
            # A newer one has taken its place, and this one was taken away.
            continue
        finally:
            if folder is not None:
                os.close(folder)
        return _place_of(target)
    if not was_there:
        raise RunError("there is no state of it")
    raise RunError(f"its state was replaced {COPY_TRIES} times while it was copied")


def _place_of(folder: Path) -> StatePlace:
    state = TrialState.load(folder)
    return StatePlace(state.step, state.report_index, state.has_pending_report)


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's per-parameter state as tensors on the CPU, and the numbers that are not tensors.

    Keys are `<parameter name>/<value>`, with more parts where values are nested: bitsandbytes nests the tensors of
    its 8-bit moments.

    Args:
        optimizer: AdamW of torch or bitsandbytes.
        names: Its parameters' names, in its own order.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {}

    def walk(entries: dict[Any, Any], path: tuple[str, ...]) -> None:
        for name, value in entries.items():
            here = (*path, str(name))
            if isinstance(value, dict):
                walk(value, here)
            elif isinstance(value, torch.Tensor):
                tensors["/".join(here)] = value.detach().cpu().clone()
            else:
                facts["/".join(here)] = value

    walk({names[index]: entries for index, entries in optimizer.state_dict()["state"].items()}, ())
    return tensors, facts


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], facts: dict[str, Any], names: Sequence[str]
) -> None:
    """Puts back what `flatten_optimizer` took; learning rates and groups stay as the optimizer has them.

    Args:
        optimizer: An optimizer of the same kind over the same parameters.
        tensors: The tensors that `flatten_optimizer` returned.
        facts: The numbers that `flatten_optimizer` returned beside them.
        names: The parameters' names, in the optimizer's own order.
    """
    import torch

    numbers = {name: number for number, name in enumerate(names)}
    state: dict[Any, Any] = {}
    for path, value in {**tensors, **facts}.items():
        name, *parts, last = path.split("/")
        entries = state.setdefault(numbers[name], {})
        for part in parts:
            entries = entries.setdefault(part, {})
        # torch takes tensors as they are and steps in them: a trial that is out of memory goes on from the same state.
        entries[last] = value.clone() if isinstance(value, torch.Tensor) else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _strip(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
