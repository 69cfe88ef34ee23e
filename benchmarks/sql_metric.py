"""What running SQL in a process of its own costs: the test rows of the embedded task, scored both ways by turns.

    python -m benchmarks.sql_metric

Answers are the references themselves, the next row's query, and the beginning of the right one: right, wrong, and
broken. The first way opens the database in this process for each query, as the metric once did.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import closing

from qlora_ray import embedded
from qlora_ray.scoring.metrics.execution import SqlExecution
from qlora_ray.scoring.metrics.sql import TIMEOUT_S, has_top_level_order
from qlora_ray.scoring.metrics.sql_judge import QueryRunner, judge

Pair = tuple[str, str]


def score_here(pairs: list[Pair]) -> list[float]:
    """Returns the score of each answer, run in this process."""
    uri = embedded.database_path().absolute().as_uri()
    scores = []
    for predicted, reference in pairs:
        with closing(QueryRunner(uri, timeout_s=TIMEOUT_S)) as runner:
            expected = runner.run(reference)
        with closing(QueryRunner(uri, timeout_s=TIMEOUT_S)) as runner:
            scores.append(float(judge(runner, predicted, expected, ordered=has_top_level_order(reference))["correct"]))
    return scores


def score_apart(pairs: list[Pair]) -> list[float]:
    """Returns the same by the metric, whose process starts and ends with each call."""
    predicted, references = zip(*pairs, strict=True)
    return SqlExecution(embedded.database_path()).score(predicted, references)


def main() -> None:
    """Prints the median seconds of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="times that each is measured, by turns; default 15")
    rounds = parser.parse_args().rounds
    right = [json.loads(line)["sql"] for line in embedded.test_path().read_text(encoding="utf-8").splitlines()]
    cases = {
        "references": list(zip(right, right, strict=True)),
        "another row's query": list(zip([*right[1:], right[0]], right, strict=True)),
        "cut answers": [(query[: len(query) // 2], query) for query in right],
    }
    ways: tuple[Callable[[list[Pair]], list[float]], ...] = (score_here, score_apart)
    for name, pairs in cases.items():
        seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}
        for _ in range(rounds):
            scores = []
            for way in ways:
                start = time.perf_counter()
                scores.append(way(pairs))
                seconds[way.__name__].append(time.perf_counter() - start)
            assert scores[0] == scores[1], "both ways score alike"
        medians = ", ".join(f"{way} {statistics.median(values) * 1000:.0f} ms" for way, values in seconds.items())
        print(f"{name}, {len(pairs)} rows: {medians}")  # noqa: T201


if __name__ == "__main__":
    main()
