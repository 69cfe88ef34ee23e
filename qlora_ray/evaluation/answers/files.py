"""Reads the answers an evaluation wrote, a file per model and prompt set, and warns of what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_ray.formats import list_first, plural
from qlora_ray.regular_files import parse_json, read_bytes
from qlora_ray.scoring.token_budget import LIMITS

CUT = "length"


@dataclass(frozen=True)
class AnswerRow:
    """One answer of one model.

    Attributes:
        id: The prompt's id, which pairs models.
        num_tokens: Of the answer, as the model's tokenizer counts; None if the file does not say.
        is_cut: Whether the answer ended because it had as many tokens as it may have.
    """

    id: str
    prompt: str
    answer: str
    reference: str | None
    num_tokens: int | None
    is_cut: bool

    @property
    def is_empty(self) -> bool:
        """Whether there is no text at all."""
        return not self.answer.strip()


def answer_path(folder: Path, *, model: str, prompt_set: str) -> Path:
    """Returns where an evaluation keeps the answers of a model to a prompt set.

    Args:
        folder: The evaluation's folder.
        model: base, adapter or merged.
        prompt_set: The prompt set's name, as `0-shot` or `red_team`.
    """
    return folder / model / f"{prompt_set}.jsonl"


def read_answers(path: Path) -> tuple[list[AnswerRow], list[str]]:
    """Reads a file of answers.

    Returns:
        The rows in the file's order, and one warning per kind of problem: the file is missing or empty, lines are not
        JSON or lack a field, ids come twice (the first row counts), answers are empty or cut. Only lines that cannot be
        read and ids that come twice are left out of the rows.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        content = read_bytes(path)
    except OSError as error:
        return [], [f"{where}: cannot be read ({error.strerror}), so nothing is known of these answers"]
    rows: dict[str, AnswerRow] = {}
    broken: list[str] = []
    repeated: list[str] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        row, problem = _parse_line(line)
        if row is None:
            broken.append(f"line {number} {problem}")
        elif row.id in rows:
            repeated.append(row.id)
        else:
            rows[row.id] = row
    warnings = []
    if broken:
        warnings.append(f"{where}: {plural(len(broken), 'line')} left out that cannot be read: {list_first(broken)}")
    if repeated:
        ids = list_first(dict.fromkeys(repeated))
        warnings.append(f"{where}: {plural(len(repeated), 'row')} left out whose id came before: {ids}")
    if not rows:
        warnings.append(f"{where}: there is no answer in it")
    empty = [row.id for row in rows.values() if row.is_empty]
    if empty:
        warnings.append(f"{where}: {plural(len(empty), 'empty answer')} of {len(rows)}: {list_first(empty)}")
    cut = [row.id for row in rows.values() if row.is_cut]
    if cut:
        warnings.append(
            f"{where}: {plural(len(cut), 'answer')} of {len(rows)} cut at evaluate.max_new_tokens, {LIMITS}: "
            f"row {list_first(cut)}"
        )
    return list(rows.values()), warnings


def find_pairing_problems(prompt_set: str, answers: Mapping[str, Sequence[AnswerRow]]) -> list[str]:
    """Returns what keeps answers from being paired: ids that one model lacks, prompts that differ under one id."""
    by_id = {model: {row.id: row for row in rows} for model, rows in answers.items() if rows}
    every_id = dict.fromkeys(key for rows in by_id.values() for key in rows)
    problems = []
    for model, rows in by_id.items():
        lacking = [key for key in every_id if key not in rows]
        if lacking:
            others = " and ".join(other for other in by_id if other != model)
            ids = f"{plural(len(lacking), 'id')} that {others} answered: {list_first(lacking)}"
            problems.append(f"{model}/{prompt_set}.jsonl: lacks {ids}")
    differing = [key for key in every_id if len({rows[key].prompt for rows in by_id.values() if key in rows}) > 1]
    if differing:
        ids = f"{plural(len(differing), 'id')}: {list_first(differing)}"
        problems.append(f"{prompt_set}: models were asked different prompts under {ids}")
    return problems


def _parse_line(line: bytes) -> tuple[AnswerRow | None, str]:
    """Returns the row, or None and what is wrong with the line."""
    try:
        values = parse_json(line)
    except ValueError:
        return None, "(not JSON)"
    if not isinstance(values, dict):
        return None, "(not an object)"
    wrong = [key for key, kinds in _FIELDS.items() if not isinstance(values.get(key), kinds)]
    if wrong:
        return None, f"(no valid {', '.join(wrong)})"
    return AnswerRow(
        id=str(values["id"]),
        prompt=values["prompt"],
        answer=values["answer"],
        reference=values.get("reference"),
        num_tokens=values.get("num_tokens"),
        is_cut=values.get("finish") == CUT,
    ), ""


_FIELDS: dict[str, tuple[type, ...]] = {
    "id": (str, int),
    "prompt": (str,),
    "answer": (str,),
    "reference": (str, type(None)),
    "num_tokens": (int, type(None)),
    "finish": (str, type(None)),
}
