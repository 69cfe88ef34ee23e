"""A sweep's gauges: what each is set to, and a Grafana board that asks for these and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.orchestration.gauges import DESCRIPTIONS, STATES, GaugeName, SweepGauges
from qlora_ray.runs.live import LiveFigures, LiveTrial, LiveTrialState

ROOT = Path(__file__).resolve().parents[2]
# What Ray puts before every name.
PREFIX = "ray_"


class FakeGauge:
    """Keeps the last value of each set of tags, as Ray's does."""

    made: dict[str, FakeGauge]

    def __init__(self, name: str, description: str, tags: tuple[str, ...]) -> None:
        self.tags = set(tags)
        self.values: dict[tuple[str, ...], float] = {}
        self.made[name] = self

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self.tags
        self.values[tuple(tags.values())] = value


@pytest.fixture
def made() -> Iterator[dict[str, FakeGauge]]:
    FakeGauge.made = {}
    yield FakeGauge.made


FIGURES = LiveFigures(
    gpu_hours=1.5,
    slots=4,
    slots_used=2,
    waiting=1,
    trials={
        "0003": LiveTrial(state=LiveTrialState.TRAINING, tokens_per_s=100.0),
        "0004": LiveTrial(state=LiveTrialState.EVALUATING, tokens_per_s=None),
        "0005": LiveTrial(state=LiveTrialState.WAITING),
    },
)


def test_every_gauge_has_the_figure_of_its_name(made: dict[str, FakeGauge]) -> None:
    SweepGauges("s", make=FakeGauge).publish(FIGURES, counts={"complete": 2, "pruned": 1, "running": 3}, best=0.25)
    single = {name: made[name].values[("s",)] for name in GaugeName if name is not GaugeName.TRIALS}
    assert single == {
        GaugeName.SLOTS_USED: 2,
        GaugeName.WAITING_TRIALS: 1,
        GaugeName.TOKENS_PER_S: 100,
        GaugeName.BEST_VALUE: 0.25,
        GaugeName.GPU_HOURS: 1.5,
    }
    states = {state: value for (_, state), value in made[GaugeName.TRIALS].values.items()}
    assert {state: value for state, value in states.items() if value} == {
        "complete": 2,
        "pruned": 1,
        "training": 1,
        "evaluating": 1,
        "waiting": 1,
    }
    assert set(states) == {str(state) for state in STATES}


def test_a_state_that_no_trial_is_in_any_more_goes_back_to_zero(made: dict[str, FakeGauge]) -> None:
    gauges = SweepGauges("s", make=FakeGauge)
    gauges.publish(FIGURES, counts={}, best=None)
    gauges.publish(LiveFigures(), counts={"complete": 3}, best=0.5)
    values = made[GaugeName.TRIALS].values
    assert (values["s", "training"], values["s", "complete"]) == (0, 3)


def test_before_a_trial_is_complete_there_is_no_best_value(made: dict[str, FakeGauge]) -> None:
    SweepGauges("s", make=FakeGauge).publish(LiveFigures(), counts={}, best=None)
    assert made[GaugeName.BEST_VALUE].values == {}


def test_rays_gauge_takes_every_name_and_tag() -> None:
    from ray.util.metrics import Gauge

    for name in GaugeName:
        gauge = Gauge(name.value, DESCRIPTIONS[name], tag_keys=("sweep", "state"))
        assert gauge.info["name"] == name


def list_queries(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (node[key] for key in ("expr", "query") if isinstance(node.get(key), str))
        for value in node.values():
            yield from list_queries(value)
    elif isinstance(node, list):
        for value in node:
            yield from list_queries(value)


def test_the_board_asks_for_all_gauges_and_for_no_others() -> None:
    board = json.loads((ROOT / "cluster" / "grafana.json").read_text(encoding="utf-8"))
    named = {name for query in list_queries(board) for name in re.findall(r"\bray_\w+", query)}
    assert named == {PREFIX + name for name in GaugeName}
    tags = {tag for query in list_queries(board) for tag in re.findall(r"by \(([^)]*)\)", query)}
    assert tags == {"sweep", "sweep, state"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) == len(GaugeName)


def test_the_docs_name_every_gauge() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    assert [name for name in GaugeName if f"`{PREFIX}{name}`" not in text] == []
