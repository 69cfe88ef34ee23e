"""The bundle: the folder that one trial is exported to, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.data.end_tokens import find_end_ids
from qlora_ray.data.templates import choose_template
from qlora_ray.errors import ModelError, QloraRayError, RunError
from qlora_ray.exporting.bundle_evaluation import take_evaluation
from qlora_ray.exporting.card.card import CardFacts, make_card
from qlora_ray.exporting.inventory import INVENTORY, Bundle, check_target, take_inventory
from qlora_ray.exporting.merge.options import MergeOptions
from qlora_ray.exporting.merge.report import MergeReport
from qlora_ray.exporting.merge.run import merge_adapter
from qlora_ray.exporting.naming import BundleName, name_bundle
from qlora_ray.exporting.reproduction import (
    SWEEP_FILE,
    TRIAL_FILE,
    local_paths,
    render_sweep_config,
    render_trial_config,
)
from qlora_ray.exporting.run_record import render_run_record
from qlora_ray.exporting.selection import Selection
from qlora_ray.exporting.serving.modelfile import MODELFILE, make_modelfile
from qlora_ray.modeling.auxiliary_heads import load_heads
from qlora_ray.modeling.identity import read_adapter_origin, write_adapter_origin
from qlora_ray.modeling.loading import EMBEDDED, load_tokenizer, resolve_model_name
from qlora_ray.runs import write_json, write_text
from qlora_ray.runs.inventory import list_files
from qlora_ray.runs.paths import ADAPTER_CONFIG, MERGE_REPORT
from qlora_ray.runs.records import write_record
from qlora_ray.runs.typed_json import to_json
from qlora_ray.runs.whole import whole_folder
from qlora_ray.runs.winner import SCORES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_bundle(
    selection: Selection,
    *,
    to: Path,
    merge: MergeOptions | None,
    device: str,
    tell: Callable[[str], None],
) -> Bundle:
    """Writes the bundle of one trial.

    Args:
        selection: The trial, as `select_trial` returned it.
        to: The bundle's folder; an earlier bundle there is replaced.
        merge: How to merge; None leaves the merged model out.
        device: Where merging computes: `cpu` or `cuda:0`.
        tell: Takes lines for the user.

    Raises:
        RunError: If `to` holds anything else, cannot be written, another export is writing there, or the disk is full.
        ModelError: If adapter and base cannot be merged.
        DataError: If the held-out rows that a merge is measured on cannot be read.
    """
    check_target(to, sweep=selection.paths.root)
    taken = f"--to {to}: another export is writing there. Wait for it, or choose another folder."
    with _writable(to), whole_folder(to, taken=taken) as folder, _named(folder, to):
        merge, unmerged = _mergeable(selection, merge)
        notes = [*selection.notes, *unmerged, *_write_adapter(selection, folder / "adapter")]
        notes += _notes_on_paths(selection)
        report = None
        if merge is not None:
            report = _merge(selection, folder, merge, device=device, tell=tell)
        name = _name(selection, head_dtype=report.head_dtype if report else selection.quantization.compute_dtype)
        evaluation = take_evaluation(selection, folder, to=to, notes=notes)
        _write_records(selection, folder, name=str(name))
        tokenizer = _load_own_tokenizer(selection, folder / "adapter")
        ends = _find_ends(tokenizer)
        if merge is not None and tokenizer is not None:
            notes += _write_modelfile(selection, folder, tokenizer, ends=ends)
        facts = CardFacts(str(name), selection, report, evaluation, ends)
        write_text(folder / "README.md", str(make_card(facts)))
        inventory = take_inventory(selection, folder, name=str(name), merge=report)
        write_json(folder / INVENTORY, inventory)
    return Bundle(to, inventory, report, tuple(notes))


def expected_name(selection: Selection, *, merge: MergeOptions | None) -> BundleName | None:
    """The name that the bundle will have, as far as it is known before the merge; None if the base's files decide."""
    compute_dtype = selection.quantization.compute_dtype
    merge, _ = _mergeable(selection, merge)
    head = merge.expected_head_dtype(compute_dtype=compute_dtype) if merge else compute_dtype
    return _name(selection, head_dtype=head) if head else None


def _mergeable(selection: Selection, merge: MergeOptions | None) -> tuple[MergeOptions | None, list[str]]:
    """How to merge, as it was asked; None with a note where the base's files are of a format that takes no change.

    Raises:
        ModelError: If a merge was asked for by more than the default.
    """
    quantization = selection.quantization
    if merge is None or not quantization.is_stored or quantization.backend == "bitsandbytes":
        return merge, []
    if merge != MergeOptions():
        raise ModelError(
            f"--merge: must be auto or none, without options of the merged model, on a base that is stored in "
            f"{quantization.describe()}, got more. Leave it out: the adapter is exported alone."
        )
    return None, [f"the base is stored in {quantization.describe()}, which takes no merge: the adapter is alone"]


def _name(selection: Selection, *, head_dtype: str) -> BundleName:
    """The bundle's name; the head's dtype is the merged model's, or, without one, what the trial computed in."""
    return name_bundle(
        base=selection.base_name,
        dataset=selection.manifest.setting("data", "train"),
        lora=selection.lora,
        quantization=selection.quantization,
        head_dtype=head_dtype,
    )


def _load_own_tokenizer(selection: Selection, adapter: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the adapter; None where it cannot be loaded."""
    try:
        return load_tokenizer(selection.config.model.model_copy(update={"name": str(adapter), "revision": None}))
    except ModelError:
        # An adapter may lie beside a part of a tokenizer. Its weights are whole all the same.
        return None


def _find_ends(tokenizer: PreTrainedTokenizerBase | None) -> dict[int, str]:
    """The tokens that end an answer; none without a tokenizer."""
    if tokenizer is None:
        return {}
    return {token: str(tokenizer.convert_ids_to_tokens(token)) for token in find_end_ids(tokenizer)}


def _write_modelfile(
    selection: Selection, folder: Path, tokenizer: PreTrainedTokenizerBase, *, ends: dict[int, str]
) -> list[str]:
    """Ollama's Modelfile of the merged model; returns what to know of it."""
    template = choose_template(selection.config.data.template, tokenizer)
    text, note = make_modelfile(template, tokenizer, ends=list(ends.values()))
    write_text(folder / MODELFILE, text)
    return [note] if note else []


def _write_adapter(selection: Selection, folder: Path) -> list[str]:
    """The adapter with the tokenizer, in PEFT's format; returns what to know about its base."""
    # PEFT's own README.md would be a second, empty model card.
    shutil.copytree(selection.adapter.folder, folder, ignore=shutil.ignore_patterns("README.md"))
    # What is damaged stops the export before it merges.
    load_heads(folder)
    if not (folder / "tokenizer_config.json").is_file():
        load_tokenizer(selection.config.model).save_pretrained(str(folder))
    name = selection.base_name
    # What from_pretrained takes: the hub id for all, else the base's folder on this machine.
    base = name if selection.base_is_on_hub else resolve_model_name(selection.config.model.name)
    config = dict(selection.adapter.config) | {
        "base_model_name_or_path": base,
        "revision": selection.record.base.revision,
    }
    write_text(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    if read_adapter_origin(folder) is None:
        # Of a sweep of before adapters had it.
        base_facts, quantization = to_json(selection.record.base), selection.quantization.to_dict()
        write_adapter_origin(folder, {"trial": selection.trial, "base": base_facts, "quantization": quantization})
    if selection.base_is_on_hub:
        return []
    what = "the embedded base" if name == EMBEDDED else "a local folder"
    return [f"adapter/{ADAPTER_CONFIG} names {what}, {base}: elsewhere, load the base as README.md shows"]


def _notes_on_paths(selection: Selection) -> list[str]:
    found = local_paths(selection)
    return [f"{SWEEP_FILE} and {TRIAL_FILE} name paths of this machine: {', '.join(found)}"] if found else []


def _merge(
    selection: Selection, folder: Path, options: MergeOptions, *, device: str, tell: Callable[[str], None]
) -> MergeReport:
    from qlora_ray.data import prepare_data

    config = selection.config
    tokenizer = load_tokenizer(config.model)
    # With the labels of heads, so that it is the sweep's own data, which the cache has.
    prepared = prepare_data(config.data, tokenizer=tokenizer, data_seed=config.training.data_seed, heads=config.heads)
    before = selection.data.digests
    changed = [split for split, digest in prepared.report.digests.items() if before.get(split, digest) != digest]
    if changed:
        tell(f"the rows of {', '.join(changed)} have changed since the sweep: the merge is measured on the new ones")
    report = merge_adapter(
        selection.adapter.folder,
        model=config.model,
        quantization=selection.quantization,
        # Not the test rows: a rule chosen on them would flatter the merged model's scores.
        held_out=prepared.validation,
        to=folder / "merged",
        options=options,
        device=device,
        tell=tell,
    )
    if selection.notes:
        report = replace(report, notes=[*selection.notes, *report.notes])
        for part in filter(None, ("merged", report.nf4_copy)):
            write_json(folder / part / MERGE_REPORT, report.to_dict())
    return report


def _write_records(selection: Selection, folder: Path, *, name: str) -> None:
    # The adapter is in this bundle now.
    write_record(folder / "record.json", replace(selection.record, adapter="adapter"))
    scores = selection.paths.best / SCORES
    if selection.is_winner and scores.is_file():
        shutil.copyfile(scores, folder / SCORES)
    report = selection.paths.root / "report.html"
    if report.is_file():
        shutil.copyfile(report, folder / "report.html")
    outputs = [path for path in list_files(folder) if path.startswith(("evaluation/", "scores.json"))]
    write_text(folder / "RUN_RECORD.md", render_run_record(selection, name=name, evaluation_files=outputs))
    write_text(folder / SWEEP_FILE, render_sweep_config(selection))
    write_text(folder / TRIAL_FILE, render_trial_config(selection))


@contextmanager
def _writable(to: Path) -> Iterator[None]:
    """Turns what the disk says into one message, and takes parent folders that were made for nothing away again."""
    new = [parent for parent in to.parents if not parent.exists()]
    try:
        yield
    except BaseException as error:
        for parent in new:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        reason = _reason(error)
        if reason is None:
            raise
        raise RunError(f"--to {to}: cannot be written: {reason}. Free some space, or choose another folder.") from None


@contextmanager
def _named(folder: Path, to: Path) -> Iterator[None]:
    """Names the user's folder in every message, not the temporary one that becomes it."""
    try:
        yield
    except QloraRayError as error:
        if str(folder) not in str(error):
            raise
        raise type(error)(str(error).replace(str(folder), str(to))) from None


def _reason(error: BaseException | None) -> str | None:
    """Why the disk refused, in its own words; None if it is another error."""
    if isinstance(error, RunError):
        # runs.files names the file that could not be written, which is gone with its folder by now.
        return _reason(error.__context__) if "cannot be written" in str(error) else None
    if not isinstance(error, OSError):
        # Tokenizers and safetensors have errors of their own.
        full = os.strerror(errno.ENOSPC)
        return full if full in str(error) else None
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        # copytree gathers (from, to, words) of every file; one full disk is the reason of all.
        number = re.match(r"\[Errno (\d+)\]", str(error.args[0][0][-1]))
        return os.strerror(int(number[1])) if number else "a file cannot be copied"
    return error.strerror or str(error)
