"""Which metrics score the answers. Each gives a score per row, so that models can be paired."""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.config.choices import METRICS
from qlora_ray.config.schema import Evaluate, SweepConfig
from qlora_ray.data.columns import TextRows
from qlora_ray.errors import ConfigError, DataError
from qlora_ray.modeling.loading import EMBEDDED
from qlora_ray.scoring.metrics.boxed import find_box, find_expected
from qlora_ray.scoring.metrics.eq_bench import holds_ratings
from qlora_ray.scoring.metrics.metric import Accompanied, Metric, measure
from qlora_ray.scoring.metrics.numeric import find_number, marks_number
from qlora_ray.scoring.metrics.sql import is_database

if TYPE_CHECKING:
    from qlora_ray.data import PreparedData
    from qlora_ray.scoring.split import EvaluationSplit

# With the libraries that some metrics need.
EXTRA = "metrics"
# Formats whose rows come with a measure of their own.
FORMAT_METRICS = {"squad": "token_f1"}
# What is measured besides metrics.
RESERVED_NAMES = frozenset(("loss", "perplexity"))


def resolve_data_metrics(
    config: SweepConfig, data: PreparedData, *, custom: Sequence[Metric] = ()
) -> tuple[list[Metric], str]:
    """Returns the metrics of a config's own rows, the deciding one first, and why it is these.

    The same for every split of the data: `auto` looks at the answers of validation and test together. Rows of SQuAD are
    scored by its own measures.

    Args:
        config: Names metrics, or says `auto`.
        data: The tokenized splits; their references decide which metrics fit.
        custom: Metrics of the user's own, which stand last.

    Raises:
        ConfigError: the config names metrics that these rows cannot be scored with.
    """
    splits = [data.validation, *([data.test] if data.test is not None else [])]
    references = TextRows.joined([split.references for split in splits])
    return resolve_metrics(
        config.evaluate,
        trains_on_embedded=config.data.train == EMBEDDED,
        has_references=any(references),
        references=references,
        custom=custom,
        row_format=data.report.format,
    )


def check_references(split: EvaluationSplit, metrics: Sequence[Metric], *, num_rows: int | None) -> None:
    """Scores the references of the first rows by themselves: what cannot be scored is known before it is answered.

    Args:
        split: The rows that are to be answered.
        metrics: The metrics that will score the answers.
        num_rows: Rows that will be answered; None: all.

    Raises:
        DataError: a reference cannot be scored: it has no number, or is a query that does not run.
    """
    references = list(split.references[:num_rows])
    alternatives = list(split.alternatives[:num_rows])
    for metric in metrics:
        try:
            measure(metric, references, references, alternatives)
        except DataError as error:
            raise DataError(f"{split.name}: {error}") from None


def resolve_metrics(
    evaluate: Evaluate,
    *,
    trains_on_embedded: bool,
    has_references: bool,
    database: Path | None = None,
    references: Sequence[str] = (),
    custom: Sequence[Metric] = (),
    row_format: str = "",
) -> tuple[list[Metric], str]:
    """Returns the metrics to score answers with, the deciding one first, and why it is these.

    `auto` is the measure of the rows' format where that has one (SQuAD's), else eq_bench where each reference is four
    ratings and nothing else; else numeric where most references mark their number, as GSM8K does or in a box, and all
    have one; else boxed_match where most have a box, and none is empty or has a box that is cut; else sql_execution and
    exact_match where there is a database, exact_match where there is none, and nothing for plain text, which has no
    answers. Some bring others along, which stand last: sql_execution sql_valid, and token_f1 normalized_match, SQuAD's
    other measure.

    Args:
        trains_on_embedded: The data is the shipped task, whose database is known.
        has_references: Rows have an answer to compare with; text format has none.
        database: An SQLite file that goes before `evaluate.database`.
        references: The answers to compare with, for `auto` to look at.
        custom: Metrics of the user's own, after the others: they decide only where `evaluate.metrics` is empty.
        row_format: Of the rows, for `auto`; empty where that is not known.

    Raises:
        ConfigError: the database is missing or is not SQLite, metrics are named for data without answers, or two
            metrics have one name.
    """
    if not has_references:
        named = [*([] if evaluate.metrics == "auto" else evaluate.metrics), *(metric.name for metric in custom)]
        if named:
            raise ConfigError(
                f"evaluate.metrics must be auto for data without answers, got {named}. "
                "Use data with prompts and answers, or leave evaluate.metrics out."
            )
        return [], "no metrics: the data is text without answers, so only its loss is measured"
    if evaluate.metrics == "auto":
        metrics, reason = _choose(evaluate, trains_on_embedded, database, references, row_format)
    else:
        names = list(dict.fromkeys(evaluate.metrics))
        path = None
        if any(METRICS[name].needs_database for name in names):
            path, _ = _find_database(evaluate, trains_on_embedded=trains_on_embedded, database=database)
        metrics = _build(names, path, evaluate)
        reason = f"{' and '.join(names) or 'no metrics'}: as evaluate.metrics says"
    if not custom:
        return metrics, reason
    _check_names([*metrics, *custom])
    return [*metrics, *custom], f"{reason}; {' and '.join(metric.name for metric in custom)}: your own"


def _find_database(evaluate: Evaluate, *, trains_on_embedded: bool, database: Path | None) -> tuple[Path | None, str]:
    """Returns the checked path of the database, or None, and what to say of it."""
    if database is not None:
        path, source = database, f"SQL runs on {database.name}"
    elif evaluate.database == "embedded" or (evaluate.database is None and trains_on_embedded):
        from qlora_ray import embedded

        path, source = embedded.database_path(), "SQL runs on the embedded database"
    elif evaluate.database is not None:
        path, source = Path(evaluate.database).expanduser(), f"SQL runs on {evaluate.database}"
    else:
        return None, ""
    if not is_database(path):
        found = "not one" if path.exists() else "no such file"
        raise ConfigError(
            f"evaluate.database must be an SQLite file, got {path} ({found}). "
            "Correct the path, write embedded, or set evaluate.metrics to [exact_match]."
        )
    return path, source


def _choose(
    evaluate: Evaluate, trains_on_embedded: bool, database: Path | None, references: Sequence[str], row_format: str
) -> tuple[list[Metric], str]:
    """Returns what `auto` is for this data, and why."""
    if row_format in FORMAT_METRICS:
        name = FORMAT_METRICS[row_format]
        return _build([name], None, evaluate), f"{name}: the measure of rows of the format {row_format}"
    if references and all(holds_ratings(reference) for reference in references):
        return _build(["eq_bench"], None, evaluate), "eq_bench: each answer is four ratings from 0 to 10"
    num_marked = sum(marks_number(reference) for reference in references)
    if 2 * num_marked > len(references) and all(find_number(reference) is not None for reference in references):
        reason = (
            f"numeric: {num_marked} of {len(references)} answers mark a number, as in '#### 72' or 'price is $9.99'"
        )
        return _build(["numeric"], None, evaluate), reason
    num_boxed = sum(find_box(reference) is not None for reference in references)
    num_unusable = sum(find_expected(reference) is None for reference in references)
    is_boxed = 2 * num_boxed > len(references)
    if is_boxed and num_unusable == 0:
        reason = (
            rf"boxed_match: {num_boxed} of {len(references)} answers have a \boxed{{}}, not all with a number in it"
        )
        return _build(["boxed_match"], None, evaluate), reason
    path, source = _find_database(evaluate, trains_on_embedded=trains_on_embedded, database=database)
    not_boxed = f"; not boxed_match: {num_unusable} of {len(references)} are empty or have a box that is cut"
    rest = not_boxed if is_boxed else ""
    if path is None:
        reason = f"exact_match: evaluate.database names no database to run SQL on{rest}"
        return _build(["exact_match"], None, evaluate), reason
    reason = f"sql_execution and exact_match: {source}{rest}"
    return _build(["sql_execution", "exact_match"], path, evaluate), reason


def _build(names: Sequence[str], database: Path | None, evaluate: Evaluate) -> list[Metric]:
    """Returns the metrics of these names in their order, then those that they bring along."""
    metrics: list[Metric] = []
    for name in names:
        entry = METRICS[name]
        if entry.library and importlib.util.find_spec(entry.library) is None:
            raise ConfigError(
                f"evaluate.metrics: {name} needs {entry.library}, which is not installed. "
                f'Install the extra: pip install "qlora_ray[{EXTRA}]".'
            )
        make = pkgutil.resolve_name(entry.make)
        assert database is not None or not entry.needs_database, f"the config's own check: {name} needs a database"
        if entry.needs_database:
            metrics.append(make(database))
        else:
            metrics.append(make(getattr(evaluate, entry.option)) if entry.option else make())
    accompanied = [metric for metric in metrics if isinstance(metric, Accompanied)]
    return [*metrics, *(companion for metric in accompanied for companion in metric.companions())]


def _check_names(metrics: Sequence[Metric]) -> None:
    """Raises ConfigError for a name that records and comparisons could not tell from another's."""
    names = [metric.name for metric in metrics]
    taken = sorted({name for name in names if names.count(name) > 1 or name in RESERVED_NAMES})
    if taken:
        raise ConfigError(
            f"metrics: each must have a name of its own, got {', '.join(taken)}, which is taken. "
            "Rename the class's `name`, or leave the other out of evaluate.metrics."
        )
