"""An evaluation's rows on disk, appended as they are finished: a killed evaluation goes on after the last one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.evaluation.target.target import MODEL_NAMES
from qlora_ray.runs import read_json, write_json, write_text
from qlora_ray.runs.artifacts import ARTIFACTS
from qlora_ray.runs.files import append_lines, read_lines, to_plain_json
from qlora_ray.runs.locks import locked_file

SETTINGS = "settings.json"
LOCK = ".lock"
# How runs.files begins the name of a settings.json that is not yet whole.
UNFINISHED = f".{SETTINGS}."
RESULTS = ("evaluation.json", "evaluation.md", "stats.json", "answers.html", "lengths.png", "refusals.png", ARTIFACTS)
TASKS = "lm_eval.json"
# Raise it when the same settings give other rows.
FORMAT = 1
# What a second run may add to: more models, more prompt sets.
GROWING = ("models", "prompts")
# Of a prompt set, what may become more: its first rows are there already.
MORE = ("num_answered",)
# What says where things are or how they were loaded, and not what comes of them.
UNCOMPARED = ("path", "kind", "loaded")


class AnswerLog:
    """The folder of one evaluation.

    Args:
        folder: Where it is, or will be.
        settings: All that changes answers or losses.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = {"format": FORMAT, **to_plain_json(settings)}

    def check_folder(self) -> dict[str, Any] | None:
        """Returns the settings of the evaluation that is there, if there is one.

        Raises:
            RunError: If the folder holds anything but an evaluation.
        """
        if not self.folder.exists():
            return None
        try:
            before = _read_settings(self.folder / SETTINGS)
            # A lock, and settings that were not written whole, are of an evaluation that never got to its first model.
            is_other = not self.folder.is_dir() or any(not _is_remnant(path) for path in self.folder.iterdir())
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be read: {error.strerror}. Choose another --to.") from None
        if before is None and is_other:
            raise RunError(f"{self.folder}: must be empty or an evaluation, got other files. Choose another --to.")
        return before

    def check(self) -> None:
        """Raises RunError if the folder holds anything but the beginning of this very evaluation."""
        before = self.check_folder()
        if before is None:
            return
        self.settings["loaded"] = {**before.get("loaded", {}), **self.settings.get("loaded", {})}
        difference = _first_difference(before, self.settings)
        if difference is None:
            for key in GROWING:
                self.settings[key] = {**before.get(key, {}), **self.settings[key]}
            return
        key, was, now = difference
        if key.startswith("target"):
            raise RunError(
                f"{self.folder}: belongs to another evaluation ({key} {was}), got one of {now}. "
                "Choose another --to, or start again with --fresh."
            )
        raise RunError(
            f"{self.folder / SETTINGS}: {key} must stay what the rows there were made with ({was}), got {now}. "
            "Go on with that, choose another --to, or start again with --fresh."
        )

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Makes the folder and holds it for this process; a folder that nothing was written to is taken away again.

        Raises:
            RunError: If it cannot be written, or another process has it.
        """
        made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        with ExitStack() as held:
            self._lock(held)
            try:
                yield
            finally:
                if made and self.folder.is_dir() and [path.name for path in self.folder.iterdir()] == [LOCK]:
                    # Windows does not remove what is open: there the folder stays.
                    with suppress(PermissionError):
                        (self.folder / LOCK).unlink()
                    for folder in made:
                        if any(folder.iterdir()):
                            break
                        folder.rmdir()

    def _lock(self, held: ExitStack) -> None:
        try:
            held.enter_context(locked_file(self.folder / LOCK))
        except BlockingIOError:
            raise RunError(f"{self.folder}: another evaluation runs there. Wait for it, or stop it.") from None
        except OSError as error:
            raise RunError(f"--to {self.folder}: cannot be written: {error.strerror}. Choose another folder.") from None

    def clear(self) -> None:
        """Removes the rows and results of the evaluation that is there, and nothing else; then it is this one's folder.

        The caller holds it.

        Raises:
            RunError: If the folder is not an evaluation's, or something cannot be removed.
        """
        if self.check_folder() is None:
            return
        try:
            for model in MODEL_NAMES:
                home = self.folder / model
                for path in (*home.glob("*.jsonl"), home / TASKS):
                    path.unlink(missing_ok=True)
                if home.is_dir() and not home.is_symlink() and not any(home.iterdir()):
                    home.rmdir()
        except OSError as error:
            raise RunError(f"{error.filename}: cannot be removed: {error.strerror}. Choose another --to.") from None
        # Last, and not taken away before: a folder with rows always has the settings of the last of them.
        self.write_settings()

    def write_settings(self) -> None:
        """Writes settings.json; the results of an earlier run, which may be of fewer models, are taken away."""
        for name in RESULTS:
            (self.folder / name).unlink(missing_ok=True)
        for left in self.folder.glob(f"{UNFINISHED}*"):
            left.unlink()
        write_json(self.folder / SETTINGS, self.settings)

    def note_loaded(self, model: str, how: str) -> None:
        """Keeps how a model was loaded, for results that are made without loading it again."""
        self.settings["loaded"] = {**self.settings.get("loaded", {}), model: how}
        write_json(self.folder / SETTINGS, self.settings)

    def read_answers(self, model: str, prompts: str) -> dict[int, dict[str, Any]]:
        """Returns the written answers by row, as JSON objects."""
        return {line["row"]: line for line in _read_rows(self._answers(model, prompts), "row", "answer")}

    def read_losses(self, model: str, prompts: str) -> dict[int, tuple[float, int]]:
        """Each finished row's summed NLL in nats, and its tokens."""
        lines = _read_rows(self._losses(model, prompts), "row", "nll", "tokens")
        return {line["row"]: (math.nan if line["nll"] is None else line["nll"], line["tokens"]) for line in lines}

    def read_heads(self, model: str, prompts: str) -> dict[str, dict[int, tuple[int, float]]]:
        """What each auxiliary head answered to each row: its class, and the loss of the right one."""
        found: dict[str, dict[int, tuple[int, float]]] = {}
        for line in _read_rows(self._losses(model, prompts), "row"):
            for head, (answer, loss) in line.get("heads", {}).items():
                found.setdefault(head, {})[line["row"]] = (answer, math.nan if loss is None else loss)
        return found

    def add_answers(self, model: str, prompts: str, lines: Sequence[dict[str, Any]]) -> None:
        """Appends a batch, flushed to disk before it returns.

        Args:
            model: The model that answered: base, adapter or merged.
            prompts: The prompt set's name.
            lines: A JSON object per answer, each with its `row`.
        """
        append_lines(self._answers(model, prompts), lines, is_synced=True)

    def add_losses(self, model: str, prompts: str, lines: Sequence[dict[str, Any]]) -> None:
        """Appends a batch, flushed to disk before it returns.

        Args:
            model: Whose losses they are.
            prompts: The prompt set's name.
            lines: A JSON object per row: `row`, `nll` (nats, summed over the row) and `tokens`; and `heads`, with the
                class that each auxiliary head found and the loss of the right one, where the row has a label.
        """
        append_lines(self._losses(model, prompts), lines, is_synced=True)

    def tidy(self, model: str, prompts: str) -> None:
        """Puts a finished set's lines in the order of its rows, each once, whole or not at all."""
        for path in (self._answers(model, prompts), self._losses(model, prompts)):
            if path.exists():
                lines = {line["row"]: line for line in _read_rows(path, "row")}
                ordered = "".join(json.dumps(lines[row], allow_nan=False) + "\n" for row in sorted(lines))
                if path.read_text(encoding="utf-8") != ordered:
                    write_text(path, ordered)

    def tasks_path(self, model: str) -> Path:
        """Where the results of lm-evaluation-harness tasks are kept."""
        return self.folder / model / TASKS

    def _answers(self, model: str, prompts: str) -> Path:
        return self.folder / model / f"{prompts}.jsonl"

    def _losses(self, model: str, prompts: str) -> Path:
        return self.folder / model / f"{prompts}.losses.jsonl"


def _read_rows(path: Path, *keys: str) -> list[dict[str, Any]]:
    """The lines that have these keys, the last one first; others are damaged, and their rows are answered again."""
    lines = (line for line in reversed(read_lines(path)) if all(key in line for key in keys))
    return [line for line in lines if isinstance(line["row"], int)]


def _is_remnant(path: Path) -> bool:
    """Whether a killed process may leave it in a folder that has no settings yet."""
    return path.name == LOCK or path.name.startswith(UNFINISHED)


def _read_settings(path: Path) -> dict[str, Any] | None:
    """An evaluation's settings; None where there are none: others have files of that name too."""
    try:
        written = read_json(path)
    except RunError:
        return None
    if not isinstance(written, dict) or "format" not in written or not isinstance(written.get("target"), dict):
        return None
    return written if all(isinstance(written.get(key, {}), dict) for key in (*GROWING, "loaded")) else None


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key that both have with different values, dotted; keys of GROWING may be in one of them only."""
    for key in [*now, *(key for key in before if key not in now)]:
        if key in UNCOMPARED:
            continue
        old, new = before.get(key), now.get(key)
        if key in GROWING:
            old, new = old or {}, new or {}
            shared = [name for name in new if name in old]
            old, new = {name: old[name] for name in shared}, {name: new[name] for name in shared}
        if old == new or (key in MORE and isinstance(old, int) and isinstance(new, int) and old < new):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            inner = _first_difference(old, new)
            if inner is not None:
                return f"{key}.{inner[0]}", inner[1], inner[2]
            continue
        return key, old, new
    return None
