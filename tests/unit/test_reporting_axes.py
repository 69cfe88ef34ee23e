"""Where values lie on their axes, and how they are written."""

from __future__ import annotations

import pytest

from qlora_ray.reporting.axes import Axis, axis_of_values, log_values, read_axes


def test_a_log_range_is_even_in_powers_of_ten() -> None:
    axis = Axis("training.learning_rate", "log", low=1e-5, high=1e-1)
    assert [axis.place(10.0**power) for power in (-5, -4, -3, -2, -1)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert axis.place(0.0) is None and axis.place("fast") is None
    assert [text for _, text in axis.ticks()] == ["1e-5", "0.0001", "0.001", "0.01", "0.1"]


def test_choices_are_spread_evenly_whatever_they_are() -> None:
    axis = Axis("lora.target_modules", "choice", choices=("all-linear", ["q_proj", "v_proj"], None))
    assert [axis.place(choice) for choice in axis.choices] == [0.0, 0.5, 1.0]
    assert axis.place(["q_proj"]) is None
    assert [text for _, text in axis.ticks()] == ["all-linear", "q_proj, v_proj", "none"]


def test_a_whole_float_is_the_same_choice_as_its_integer() -> None:
    axis = Axis("lora.r", "choice", choices=(4, 8.0))
    assert axis.place(8) == 1.0 and axis.place(4.0) == 0.0
    # True is no number here.
    assert axis.place(True) is None


def test_one_value_lies_in_the_middle() -> None:
    assert Axis("lora.r", "choice", choices=(8,)).place(8) == 0.5
    assert axis_of_values("loss", [0.3, 0.3]).place(0.3) == 0.5
    assert axis_of_values("loss", [0.3, 0.3]).ticks() == [(0.5, "0.3")]


def test_a_parameter_that_the_space_does_not_name_gets_an_axis_of_its_values() -> None:
    space = {"lora.r": {"choices": [4, 8]}, "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}
    params = [
        {"lora.r": 4, "lora.bias": "none"},
        {"lora.r": 8, "training.weight_decay": 0.1},
        {"training.weight_decay": 0.3},
    ]
    axes = {axis.path: axis for axis in read_axes(space, params)}
    assert [axis.kind for axis in axes.values()] == ["choice", "log", "choice", "linear"]
    assert (axes["training.weight_decay"].low, axes["training.weight_decay"].high) == (0.1, 0.3)


def test_log_values_are_ones_twos_and_fives_while_they_are_few() -> None:
    assert log_values(0.06, 1.1) == pytest.approx([0.1, 0.2, 0.5, 1.0])
    assert log_values(1e-5, 1e-2) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
