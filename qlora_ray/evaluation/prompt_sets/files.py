"""Reads prompts to be answered for reading rather than for scoring: qualitative, red-team, EQ-Bench-style files.

A row has a prompt (`prompt`, `question`, or `instruction` with `input`; or `messages` / `conversations` that end with
the user or with what a tool returned, and `tools`), an id (`id`, `question_id`, `prompt_id`; else its place, from 0)
and perhaps a `reference`. Other columns are the user's own. EQ-Bench's file, one object with the rows under their ids,
is read as it is: the ratings of its `reference_answer_fullscale` are the reference, as the lines `Relieved: 6` that the
metric eq_bench scores. Its `reference_answer` is of version 1, whose ratings add up to 10, and is not used.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ray.data.conversations import read_text, read_turns
from qlora_ray.data.examples import Example, Row, RowProblem, ToolCall, Turn
from qlora_ray.data.reading import read_rows
from qlora_ray.data.row_formats import find_tools
from qlora_ray.data.tool_calls import read_tools
from qlora_ray.errors import DataError
from qlora_ray.regular_files import parse_json, read_bytes
from qlora_ray.scoring.metrics.eq_bench import NUM_EMOTIONS, holds_ratings

ID_COLUMNS = ("id", "question_id", "prompt_id")
TURN_COLUMNS = ("messages", "conversations")
TEXT_COLUMNS = ("prompt", "question", "instruction")
REFERENCE_COLUMN = "reference"
# Of EQ-Bench's rows: `emotion1` to `emotion4`, and `emotion1_score` to `emotion4_score`.
RATINGS_COLUMN = "reference_answer_fullscale"
SHIPPED_FOLDER = Path(__file__).parent / "prompts"
# A prompt set is called like its file, and the files of its rows like the set: answers lie in `<set>.jsonl`, losses in
# `<set>.losses.jsonl`.
OWN_SET = re.compile(r"\d+-shot")
LOSSES_SUFFIX = ".losses"
# Not everywhere in the names of files, or not in one line.
UNFIT_CHARACTERS = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]')
# What a message names; further ones are counted.
MAX_PROBLEMS_SHOWN = 3


@dataclass(frozen=True)
class PromptRow:
    """One prompt.

    Attributes:
        id: What pairs the answers of two models; unique in its file.
        turns: The conversation so far; the last turn is the user's, or a tool's.
        reference: The expected answer as text, if there is one; of one that calls tools, what is said beside the calls.
        where: `file:line`, for messages.
        calls: The tool calls of the expected answer.
        tools: The functions that may be called.
        is_partial: Whether the answer that is asked for has more than the reference: EQ-Bench asks for a critique too.
    """

    id: str
    turns: tuple[Turn, ...]
    reference: str | None
    where: str
    calls: tuple[ToolCall, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    is_partial: bool = False

    @property
    def prompt(self) -> str:
        """The last question as text, for people to read."""
        return self.turns[-1].full_content

    @property
    def example(self) -> Example:
        """The row as data templates take it: the turns and an answer, which is empty without a reference."""
        answer = Turn("assistant", self.reference or "", tool_calls=self.calls)
        return Example((*self.turns, answer), self.where, self.tools)


def shipped_prompt_sets() -> list[str]:
    """Returns the names of the prompt files that come with the package."""
    return sorted(path.stem for path in SHIPPED_FOLDER.glob("*.jsonl"))


def find_prompt_file(name: str | Path) -> Path:
    """Returns the file that is meant: one of the user's, or a shipped set by its bare name.

    Raises:
        DataError: If there is no such file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_prompt_sets()
    for stem in shipped:
        # As people write them: redteam, red-team, eq_bench.
        if _plain(stem) == _plain(str(name)):
            return SHIPPED_FOLDER / f"{stem}.jsonl"
    near = difflib.get_close_matches(str(name), shipped, n=1)
    remedy = f"Did you mean {near[0]}?" if near else "Check the path."
    if "," in str(name):
        remedy = "Give --prompts once for each set."
    raise DataError(
        f"prompts: must be a file or one of {', '.join(shipped)}, got {str(name)!r}, which is neither. {remedy}"
    )


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


def read_prompts(name: str | Path) -> list[PromptRow]:
    """Reads a prompt file: jsonl, json, csv, parquet, or txt with one prompt per line.

    Args:
        name: A path, or the name of a shipped set.

    Raises:
        DataError: If the file is missing or cannot be read, if it is called like a file of the evaluation's own
            (`0-shot`, `mine.losses`), or if a row has no prompt, a broken conversation, or an id that another row has.
    """
    path = find_prompt_file(name)
    _check_name(path)
    try:
        content = read_bytes(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check its permissions.") from None
    rows = _read_file(str(path), content)
    prompts: list[PromptRow] = []
    problems: list[str] = []
    first_where: dict[str, str] = {}
    for number, row in enumerate(rows):
        try:
            prompt = _convert(row, number)
        except RowProblem as problem:
            problems.append(f"{row.where}: {problem}")
            continue
        if prompt.id in first_where:
            problems.append(f"{row.where}: an id must be there once, got {prompt.id!r} as in {first_where[prompt.id]}")
        first_where.setdefault(prompt.id, row.where)
        prompts.append(prompt)
    if problems:
        more = len(problems) - MAX_PROBLEMS_SHOWN
        rest = f"\n... and {more} more." if more > 0 else ""
        shown = "\n".join(problems[:MAX_PROBLEMS_SHOWN])
        raise DataError(f"{shown}{rest}\nCorrect {'that row' if len(problems) == 1 else 'those rows'} of {path.name}.")
    return prompts


def _read_file(name: str, content: bytes) -> list[Row]:
    if name.lower().endswith(".txt"):
        return _read_lines(name, content)
    if name.lower().endswith(".json"):
        rows = _read_object_by_id(name, content)
        if rows:
            return rows
    return read_rows(name, content)


def _read_lines(name: str, content: bytes) -> list[Row]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: text must be UTF-8, got byte 0x{content[error.start]:02x}. Save it as UTF-8."
        ) from None
    lines = enumerate(text.split("\n"), start=1)
    rows = [Row(f"{name}:{number}", {"prompt": line.strip()}) for number, line in lines if line.strip()]
    if not rows:
        raise DataError(
            f"{name}: a prompt file must hold at least one prompt, got none. Check that it is the right file."
        )
    return rows


def _read_object_by_id(name: str, content: bytes) -> list[Row]:
    """Returns the rows of `{"1": {"prompt": ...}, ...}`, as EQ-Bench's files are; nothing for any other layout."""
    try:
        document = parse_json(content)
    except ValueError:
        return []  # read_rows says what is wrong
    if not isinstance(document, dict) or not document:
        return []
    known = {*TEXT_COLUMNS, *TURN_COLUMNS}
    if not all(isinstance(value, dict) and known & value.keys() for value in document.values()):
        return []
    return [Row(f"{name} row {key}", {"id": key, **value}) for key, value in document.items()]


def _check_name(path: Path) -> None:
    """Raises DataError unless the file's name without its ending can name a prompt set."""
    if OWN_SET.fullmatch(path.stem):
        raise DataError(f"{path}: {path.stem} is what the split's own rows are called. Rename the file.")
    if path.stem.lower().endswith(LOSSES_SUFFIX):
        raise DataError(
            f"{path}: a prompt file's name must not end in {LOSSES_SUFFIX}, as the files of losses do, "
            f"got {path.stem}. Rename the file."
        )
    unfit = UNFIT_CHARACTERS.search(path.stem)
    if unfit:
        raise DataError(
            f"{path.parent}: a prompt file's name must be one that results can be called by, got {path.stem!r} "
            f"with {unfit.group()!r}. Rename the file."
        )


def _convert(row: Row, number: int) -> PromptRow:
    if row.problem is not None:
        raise RowProblem(row.problem)
    turns, answer = _read_prompt(row)
    reference = None if answer is None else answer.content
    given = row.values.get(REFERENCE_COLUMN)
    if given is not None and given != "":
        if reference is not None:
            raise RowProblem("the reference must be in one place, got an answer as last turn and a 'reference'")
        reference = read_text(given, REFERENCE_COLUMN, Counter())
    is_partial = reference is None and RATINGS_COLUMN in row.values
    if is_partial:
        reference = _read_eq_bench(row.values[RATINGS_COLUMN])
    calls = () if answer is None else answer.tool_calls
    tools = read_tools(find_tools(row))
    return PromptRow(_read_id(row, number), turns, reference, row.where, calls, tools, is_partial)


def _read_eq_bench(ratings: Any) -> str:
    """Returns EQ-Bench's reference as the lines of an answer. Copies of it on the hub have a literal of Python."""
    if isinstance(ratings, str):
        try:
            ratings = ast.literal_eval(ratings)
        except (ValueError, SyntaxError):
            ratings = None
    pairs = [(f"emotion{number}", f"emotion{number}_score") for number in range(1, NUM_EMOTIONS + 1)]
    values = ratings if isinstance(ratings, dict) else {}
    text = "\n".join(f"{values.get(emotion)}: {values.get(rating)}" for emotion, rating in pairs)
    if not holds_ratings(text):
        raise RowProblem(f"{RATINGS_COLUMN!r} must have four emotions rated from 0 to 10, got {str(ratings)[:80]}")
    return text


def _read_id(row: Row, number: int) -> str:
    for column in ID_COLUMNS:
        value = row.values.get(column)
        if value is None or value == "":
            continue
        if not isinstance(value, str | int):
            raise RowProblem(f"{column!r} must be text or a whole number, got a {type(value).__name__}")
        return str(value)
    return str(number)


def _read_prompt(row: Row) -> tuple[tuple[Turn, ...], Turn | None]:
    """Returns the turns up to the last question, and the answer after it where the conversation has one."""
    readers: Sequence[tuple[Sequence[str], Callable[[Row, str], tuple[tuple[Turn, ...], Turn | None]]]] = (
        (TURN_COLUMNS, _read_conversation),
        (TEXT_COLUMNS, _read_question),
    )
    for columns, read in readers:
        for column in columns:
            if row.values.get(column) is not None:
                return read(row, column)
    known = ", ".join((*TEXT_COLUMNS, *TURN_COLUMNS))
    found = ", ".join(map(str, row.values)) or "nothing"
    raise RowProblem(f"a row must have one of {known}, got {found}")


def _read_question(row: Row, column: str) -> tuple[tuple[Turn, ...], None]:
    asked = read_text(row.values[column], column, Counter())
    given = row.values.get("input") if column == "instruction" else None
    return (Turn("user", asked, "" if given is None else str(given)),), None


def _read_conversation(row: Row, column: str) -> tuple[tuple[Turn, ...], Turn | None]:
    value = row.values[column]
    if not isinstance(value, list | tuple) or not value:
        return read_turns(value, column), None  # which says what is wrong
    # read_turns takes conversations that end with an answer, as training rows do.
    turns = read_turns([*value, {"role": "assistant", "content": "-"}], column)[:-1]
    for place in range(1, len(turns)):
        if turns[place].role == turns[place - 1].role == "assistant":
            raise RowProblem(
                f"a user turn must come between two answers, got turns {place} and {place + 1} by the model"
            )
    if turns[-1].role == "assistant":
        return turns[:-1], turns[-1]
    return turns, None
