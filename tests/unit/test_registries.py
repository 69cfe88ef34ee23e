"""The tables of names: every entry leads to code, and one line adds a sampler, scheduler, metric, format or engine."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import optuna
import pytest
from ray.tune.schedulers import FIFOScheduler

from qlora_ray.config.choices import (
    FORMATS,
    METRICS,
    SAMPLERS,
    SCHEDULER_KEYS,
    SCHEDULERS,
    MetricEntry,
    SamplerEntry,
    SchedulerEntry,
)
from qlora_ray.config.documents import Document
from qlora_ray.config.loading import validate_document
from qlora_ray.config.schema import Data, Evaluate, Search, SweepConfig
from qlora_ray.data.examples import Row, Turn
from qlora_ray.data.formats import Conversion
from qlora_ray.data.row_formats import RowFormat
from qlora_ray.errors import ConfigError
from qlora_ray.hardware.workload import EngineName
from qlora_ray.orchestration.schedulers import make_scheduler
from qlora_ray.scoring import measure, resolve_metrics
from qlora_ray.search.parsing import parse_space
from qlora_ray.search.study import open_study
from qlora_ray.training.engines import ENGINES, make_engine
from tests.fake_engine import FakeEngine
from tests.unit.hardware_fixtures import cpu_node, plan

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

TARGETS = {
    **{name: entry.make for table in (SAMPLERS, SCHEDULERS, METRICS) for name, entry in table.items()},
    **FORMATS,
    **ENGINES,
}


class AnswerLength:
    """A metric: shorter answers are better."""

    name = "answer_length"
    higher_is_better = False

    def score(self, predictions, references):
        return [float(len(prediction)) for prediction in predictions]


def make_halton(search, space, seed):
    return optuna.samplers.QMCSampler(qmc_type="halton", seed=seed)


class StopAtOnce(FIFOScheduler):
    """A scheduler that lets no trial go beyond its first report."""


def make_stop_at_once(search):
    return StopAtOnce()


TRANSLATION = RowFormat(
    ("en", "de"), lambda row, columns, counts: (Turn("user", row.values["en"]), Turn("assistant", row.values["de"]))
)


def make_fake_engine(placement, base, data, **settings):
    return FakeEngine(placement.slots_per_executor)


@pytest.mark.parametrize("name", TARGETS)
def test_every_entry_names_code_that_is_there(name):
    assert pkgutil.resolve_name(TARGETS[name]) is not None


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("search.sampler", "tpee", SAMPLERS),
        ("search.scheduler", "pbt", SCHEDULERS),
        ("data.format", "csv", FORMATS),
        ("evaluate.metrics", ["bleu"], METRICS),
    ],
)
def test_a_name_that_is_in_no_table_fails_with_those_that_are(key, value, names):
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=rf"{section}\.{name}.* must be ") as caught:
        validate_document(Document("a.yaml", {section: {name: value}}))
    assert [known for known in names if f"'{known}'" not in str(caught.value)] == []


class Reading:
    """A config section that remembers which of its keys were read."""

    def __init__(self, section):
        self._section, self.read = section, set()

    def __getattr__(self, key):
        self.read.add(key)
        return getattr(self._section, key)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedulers_entry_says_which_keys_it_reads(name):
    search = Reading(Search(scheduler=name))
    pkgutil.resolve_name(SCHEDULERS[name].make)(search)
    assert search.read & set(SCHEDULER_KEYS) == set(SCHEDULERS[name].reads)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_samplers_entry_says_whether_it_reads_the_startup_trials(name):
    search = Reading(Search(sampler=name))
    space = parse_space(Document("space", {"lora.r": {"choices": [4, 8]}}), SweepConfig())
    pkgutil.resolve_name(SAMPLERS[name].make)(search, space, 7)
    assert ("num_startup_trials" in search.read) is SAMPLERS[name].uses_startup_trials


def test_a_sampler_is_added_by_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(SAMPLERS, "halton", SamplerEntry(f"{__name__}:make_halton"))
    config = validate_document(Document("a.yaml", {"search": {"sampler": "halton"}}))
    space = parse_space(Document("space", {"training.learning_rate": {"low": 1e-5, "high": 1e-3}}), config)
    study = open_study(tmp_path / "study.journal", name="s", search=config.search, space=space)
    assert isinstance(study.sampler.sampler.inner, optuna.samplers.QMCSampler)
    assert 1e-5 <= study.ask(space.distributions()).params["training.learning_rate"] <= 1e-3


def test_a_scheduler_is_added_by_one_line(monkeypatch):
    monkeypatch.setitem(SCHEDULERS, "once", SchedulerEntry(f"{__name__}:make_stop_at_once"))
    assert isinstance(make_scheduler(Search(scheduler="once")), StopAtOnce)


def test_a_metric_is_added_by_one_line(monkeypatch):
    monkeypatch.setitem(METRICS, "answer_length", MetricEntry(f"{__name__}:AnswerLength"))
    metrics, reason = resolve_metrics(
        Evaluate(metrics=["answer_length", "exact_match"]), trains_on_embedded=False, has_references=True
    )
    assert [metric.name for metric in metrics] == ["answer_length", "exact_match"]
    assert reason == "answer_length and exact_match: as evaluate.metrics says"
    assert measure(metrics[0], ["abc", "a"], ["", ""]).value == 2


@pytest.mark.parametrize("chosen", ["auto", "translation"])
def test_a_format_is_added_by_one_line(chosen, monkeypatch):
    monkeypatch.setitem(FORMATS, "translation", f"{__name__}:TRANSLATION")
    rows = [Row("a.jsonl:1", {"en": "cat", "de": "Katze"})]
    conversion = Conversion("a.jsonl", Data(format=chosen))
    [example] = conversion.convert(rows)
    assert conversion.format.name == "translation"
    assert [turn.content for turn in example.turns] == ["cat", "Katze"]


def test_an_engine_is_added_by_one_line(monkeypatch):
    monkeypatch.setitem(ENGINES, "fake", f"{__name__}:make_fake_engine")
    placement = replace(plan(cpu_node()).placements[0], engine="fake")
    engine = make_engine(
        placement, SimpleNamespace(), SimpleNamespace(), memory_limit_bytes=None, evaluate=Evaluate(), metrics=[]
    )
    assert isinstance(engine, FakeEngine) and engine.slots == placement.slots_per_executor


def test_the_planner_places_the_engines_that_there_are():
    assert set(get_args(EngineName)) == set(ENGINES)
