"""A trial's work is fixed before it starts, and is the same for every batch size."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from qlora_ray.config.schema import Training
from qlora_ray.errors import ConfigError
from qlora_ray.training.budget import make_budget, sample_order, warmup_steps


def budget(batch=1, *, rows=1000, reports=4, **training):
    settings = Training(per_device_train_batch_size=batch, gradient_accumulation_steps=1, **training)
    return make_budget(settings, num_train_rows=rows, num_reports=reports)


@pytest.mark.parametrize(
    ("training", "num_samples"),
    [
        ({"num_train_epochs": 3.0}, 3000),
        ({"num_train_epochs": 0.5}, 500),
        ({"num_train_epochs": 0.0125}, 12),
        ({"max_samples": 40}, 40),
        ({"max_samples": 5000, "num_train_epochs": 1.0}, 5000),
    ],
)
def test_samples_are_epochs_of_rows_or_as_given(training, num_samples):
    assert budget(**training).num_samples == num_samples


@pytest.mark.parametrize(
    ("batch", "num_samples", "report_steps"),
    [(8, 1600, (50, 100, 150, 200)), (64, 3, (1,))],
    ids=["the quickstart", "shorter than a batch"],
)
def test_a_trial_has_the_steps_of_its_samples_and_at_least_one(batch, num_samples, report_steps):
    found = budget(batch, max_samples=num_samples, reports=len(report_steps))
    assert (found.num_steps, found.report_steps) == (report_steps[-1], report_steps)
    assert [found.samples_seen(step) for step in report_steps] == [batch * step for step in report_steps]


@pytest.mark.parametrize("batch", range(1, 26))
def test_steps_and_reports_are_the_nearest_there_are_to_equal_samples(batch):
    for num_samples in range(batch * 4, 160):
        for num_reports in (1, 2, 3, 4):
            found = budget(batch, max_samples=num_samples, reports=num_reports)
            assert abs(found.samples_seen(found.num_steps) - num_samples) <= batch / 2
            for index, step in enumerate(found.report_steps, start=1):
                wanted = index * num_samples / num_reports
                missed = {at: abs(found.samples_seen(at) - wanted) for at in range(1, found.num_steps + 1)}
                assert missed[step] == pytest.approx(min(missed.values()))


def test_reports_are_distinct_rising_and_end_with_the_last_step():
    for num_samples, batch, num_reports in itertools.product(range(1, 400), (1, 3, 8, 24), range(1, 9)):
        if max(1, round(num_samples / batch)) < num_reports:
            continue
        found = budget(batch, max_samples=num_samples, reports=num_reports)
        assert len(found.report_steps) == num_reports
        assert sorted(set(found.report_steps)) == list(found.report_steps)
        assert found.report_steps[0] >= 1 and found.report_steps[-1] == found.num_steps


def test_accumulated_and_plain_batches_of_one_size_have_one_budget():
    accumulated = Training(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_samples=100)
    assert make_budget(accumulated, num_train_rows=9, num_reports=3) == budget(8, max_samples=100, reports=3)


def test_fewer_steps_than_reports_is_an_error_with_the_numbers():
    with pytest.raises(ConfigError, match=r"3 steps \(50 samples in batches of 16\) for 4 reports"):
        budget(16, max_samples=50)


def test_warmup_steps_are_those_of_training_arguments():
    from transformers import TrainingArguments

    for ratio in (0.0, 0.01, 0.03, 0.05, 0.07, 0.1, 0.29):
        # A fraction as warmup_steps is transformers 5's spelling of warmup_ratio.
        upstream = TrainingArguments(output_dir="unused", warmup_steps=ratio, use_cpu=True)
        for num_steps in (1, 7, 99, 100, 101, 1000):
            assert warmup_steps(Training(warmup_ratio=ratio), num_steps) == upstream.get_warmup_steps(num_steps)


def test_every_epoch_is_a_permutation_of_its_own_and_a_shorter_order_the_beginning_of_a_longer_one():
    order = sample_order(num_rows=50, num_samples=150, data_seed=7)
    epochs = [order[start : start + 50] for start in (0, 50, 100)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(50))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    for num_samples in (1, 49, 50, 51, 149):
        assert sample_order(num_rows=50, num_samples=num_samples, data_seed=7) == order[:num_samples]


def test_the_order_depends_on_the_data_seed_alone_and_is_frozen():
    # A change here changes every user's results: say so in the changelog.
    frozen = [0, 6, 7, 2, 4, 5, 1, 3, 6, 3, 1, 0]
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        assert sample_order(num_rows=8, num_samples=12, data_seed=7) == frozen
    assert sample_order(num_rows=8, num_samples=12, data_seed=8) != frozen
