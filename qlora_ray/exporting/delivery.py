"""One export from end to end: its place checked before the work, the bundle written and told of, the sweep notified."""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from qlora_ray.config.reuse import explain_distrust
from qlora_ray.console import noise_to
from qlora_ray.errors import ModelError, QloraRayError, RunError, first_line
from qlora_ray.exporting.archive import check_archive_target
from qlora_ray.exporting.inventory import Bundle, check_target
from qlora_ray.exporting.merge.options import MergeOptions
from qlora_ray.exporting.selection import Selection, own_rights, select_trial
from qlora_ray.formats import format_bytes
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.files import append_line
from qlora_ray.runs.winner import BEST

WORSE = "worse"


def check_place(to: Path, *, sweep: Path, has_zip: bool = False, option: str = "--to") -> None:
    """Raises RunError unless a bundle can be written there; writes nothing.

    Args:
        to: The bundle's folder.
        sweep: The sweep's folder, which need not be there yet.
        has_zip: Whether the bundle's zip goes beside it.
        option: What the user gave it by.
    """
    check_target(to, sweep=sweep, option=option)
    # A link that leads nowhere is there too, and no folder can be made in its place.
    existing = next(parent for parent in to.absolute().parents if os.path.lexists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "no folder" if not existing.is_dir() else "a folder that this user cannot write to"
        raise RunError(f"{option} {to}: must be in a folder that can be written, {existing} is {what}. Choose another.")
    if has_zip:
        check_archive_target(to)


def pick_trial(sweep: Path, *, trial: str, overrides: Sequence[str], tell: Callable[[str], None]) -> Selection:
    """Returns the trial to export, and tells the user which it is; raises as `select_trial`.

    Args:
        sweep: The sweep's folder.
        trial: A trial's number, or `best` for the winner.
        overrides: The user's `--set` values, as `section.key=value`.
        tell: Takes lines for the user.
    """
    selection = select_trial(sweep, trial=trial, overrides=overrides)
    winner = "the winner" if selection.is_winner else "not the winner"
    tell(f"trial {selection.trial} of {selection.paths.name}, {winner}")
    return selection


def deliver(
    selection: Selection, *, to: Path, merge: MergeOptions | None, tell: Callable[[str], None], log: Path | None = None
) -> Bundle:
    """Writes a trial's bundle, on the first GPU if there is one, tells of it, and notes it in the sweep's folder.

    Args:
        selection: The trial, as `pick_trial` returned it.
        to: The bundle's folder; an earlier bundle there is replaced.
        merge: How to merge; None leaves the merged model out.
        tell: Takes lines for the user.
        log: Takes what libraries print; None drops it.

    Raises:
        QloraRayError: As `write_bundle`.
    """
    from qlora_ray.exporting.bundle import write_bundle

    device = "cpu" if merge is None else _find_device()
    # What transformers and bitsandbytes print while they load is of no use to the user.
    try:
        with noise_to(log or Path(os.devnull)) as console:
            bundle = write_bundle(selection, to=to, merge=merge, device=device, tell=console.line)
    except ModelError as error:
        raise ModelError(explain_distrust(error, selection.notes)) from None
    for line in describe_bundle(bundle):
        tell(line)
    if selection.verdict is not None and selection.verdict.word == WORSE:
        tell("note: this model is WORSE than its base, and its card says so: do not ship it")
    _note_export(selection, bundle, tell=tell)
    return bundle


def deliver_winner(paths: SweepPaths, *, to: Path, tell: Callable[[str], None]) -> Bundle:
    """Exports the winner of a sweep that has just ended, as `python -m qlora_ray.export` does by default.

    Args:
        paths: The sweep's folder.
        to: The bundle's folder; an earlier bundle there is replaced.
        tell: Takes lines for the user.

    Raises:
        QloraRayError: As `select_trial` and `write_bundle`; the message says how to go on.
    """
    log = paths.logs / "driver.log"
    again = f"The sweep is whole; go on with: {export_command(paths, to=to)}"
    try:
        selection = pick_trial(paths.root, trial=BEST, overrides=own_rights(paths), tell=tell)
        bundle = deliver(selection, to=to, merge=MergeOptions(), tell=tell, log=log)
    except QloraRayError as error:
        raise type(error)(f"{error} {again}") from None
    except KeyboardInterrupt:
        tell(f"stopped while exporting. {again}")
        raise
    except Exception as error:
        # Nobody's bad input: where the sweep's own tracebacks are.
        with log.open("a", encoding="utf-8") as stream:
            traceback.print_exc(file=stream)
        cause = first_line(error).rstrip(".")
        raise RunError(
            f"--export {to}: the export broke: {type(error).__name__}: {cause}. The traceback is in {log}. {again}"
        ) from None
    for line in next_commands(bundle, is_pushed=False):
        tell(line)
    return bundle


def export_command(paths: SweepPaths, *, to: Path) -> str:
    """The command that exports a sweep's winner with what its own config allowed."""
    rights = [word for right in own_rights(paths) for word in ("--set", right)]
    return shlex.join(["python", "-m", "qlora_ray.export", str(paths.root), "--to", str(to), *rights])


def _find_device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _note_export(selection: Selection, bundle: Bundle, *, tell: Callable[[str], None]) -> None:
    """Tells the sweep's folder where a bundle of it went, and how its merge came out: its report shows that."""
    line = {
        "time": bundle.inventory["created"],
        "trial": selection.trial,
        "to": str(bundle.folder.resolve()),
        "name": bundle.name,
        "merge": bundle.merge.to_dict() if bundle.merge else None,
    }
    try:
        append_line(selection.paths.exports, line)
    except RunError as error:
        # A sweep may lie where only others write: the bundle is whole without it.
        tell(f"note: the sweep's report will not show this export: {error}")


def describe_bundle(bundle: Bundle) -> list[str]:
    """The bundle's folders and files with their sizes, the merge's figures, and the notes, a line each."""
    sizes: dict[str, int] = {}
    for file in bundle.inventory["files"]:
        top, slash, _ = file["path"].partition("/")
        sizes[top + slash] = sizes.get(top + slash, 0) + file["bytes"]
    lines = [f"bundle  {bundle.folder} ({format_bytes(bundle.num_bytes)}): {bundle.name}"]
    lines += [f"  {name:<16} {format_bytes(size):>12}" for name, size in sizes.items()]
    if bundle.merge is not None:
        lines += ["", *bundle.merge.lines(), ""]
    return lines + [f"note: {note}" for note in bundle.notes]


def next_commands(bundle: Bundle, *, is_pushed: bool) -> list[str]:
    """Commands that make sense now, a line each."""
    folder = shlex.quote(str(bundle.folder))
    lines = []
    if not any(file["path"].startswith("evaluation/") for file in bundle.inventory["files"]):
        lines += [
            f"evaluate it:  python -m qlora_ray.evaluate {folder}",
            "              then export again: its figures go on the card",
        ]
    if not is_pushed:
        lines.append(f"push it:      python -m qlora_ray.export {folder} --push USER/{bundle.name}")
    return lines
