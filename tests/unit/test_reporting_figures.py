"""What figures draw, as data: every trial where it belongs, and nothing that an SVG cannot draw."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_ray.reporting.figures_machine import draw_memory, draw_timeline
from qlora_ray.reporting.figures_parameters import draw_importance, draw_slice
from qlora_ray.reporting.figures_scores import draw_differences
from qlora_ray.reporting.figures_search import draw_learning_curves, draw_parallel_coordinates, parallel_width_px
from qlora_ray.reporting.story import Story, read_story
from qlora_ray.scoring.comparison import compare_rows
from tests.sweep_folder import GIB, Sketch, traces, write_sweep

# Needs WebGL, which not every browser has; headless ones among them.
WEBGL = {"scattergl", "parcoords", "heatmapgl", "splom", "scatter3d"}


def test_curves_mark_how_each_trial_ended(usual: Story) -> None:
    drawn = traces(draw_learning_curves(usual))
    stops = drawn["pruned, last report"]
    assert stops["marker"]["symbol"] == "x-thin"
    assert list(zip(stops["x"], stops["y"], strict=True)) == [(600, 1.2), (1200, 0.8)]
    failed = drawn["failed, last report"]
    assert failed["marker"]["symbol"] == "triangle-down" and failed["y"] == [3.0]
    assert drawn["winner 0003"]["y"] == [0.9, 0.4, 0.2, 0.1]
    assert drawn["complete trials"]["y"] == [1.0, 0.5, 0.3, 0.2, None]


def test_curves_leave_a_gap_where_a_loss_is_not_finite(tmp_path: Path) -> None:
    sketches = [Sketch([1.0, float("nan")], state="failed", cause="diverged"), Sketch([float("nan")], state="failed")]
    drawn = traces(draw_learning_curves(read_story(write_sweep(tmp_path / "s", sketches))))
    assert drawn["failed trials"]["y"] == [1.0, None, None]
    # It ended at its last report, and is marked at the last that can be drawn.
    assert drawn["failed, last report"]["y"] == [1.0]


def test_losses_far_apart_are_drawn_on_a_log_axis(usual: Story, tmp_path: Path) -> None:
    assert draw_learning_curves(usual).layout.yaxis.type == "log"
    near = read_story(write_sweep(tmp_path / "s", [Sketch([1.0, 0.5])]))
    assert draw_learning_curves(near).layout.yaxis.type is None


def test_five_hundred_trials_are_few_traces(usual: Story) -> None:
    stopped = usual.trials[1]
    many = [replace(stopped, id=f"{number:04d}", number=number) for number in range(10, 510)]
    story = replace(usual, trials=(*usual.trials, *many))
    for figure in (draw_learning_curves(story), draw_parallel_coordinates(story), draw_memory(story)):
        assert figure is not None and len(figure.data) <= 6
    # Of 506 trials 400 are drawn. A point and a gap for each stopped trial but the one that got further.
    lines = traces(draw_learning_curves(story))["pruned trials"]["x"]
    assert lines.count(None) == 400 - 3 and len(lines) == 2 * lines.count(None) + 1


def test_parallel_coordinates_go_through_every_axis_to_the_loss(usual: Story) -> None:
    drawn = traces(draw_parallel_coordinates(usual))
    winner = drawn["winner"]
    # r 16 is the last of three choices; 2e-3 of 1e-5 to 1e-2 on a log scale; the lowest loss.
    assert winner["x"] == [0, 1, 2, None]
    assert winner["y"] == pytest.approx([1.0, 2.30103 / 3, 0.0, None], abs=1e-5)
    # 4 is the first choice; a trial without a loss ends at the axis before it.
    assert drawn["failed trials"]["y"][4:] == [0.0, pytest.approx(0.98475, abs=1e-5), None, None]
    assert parallel_width_px(usual) > 3 * 100


def test_lists_and_names_can_be_drawn(tmp_path: Path) -> None:
    space = {"lora.target_modules": {"choices": [["q_proj", "v_proj"], "all-linear"]}}
    sketches = [
        Sketch([1.0, 0.5], {"lora.target_modules": ["q_proj", "v_proj"]}),
        Sketch([1.0, 0.4], {"lora.target_modules": "all-linear"}),
    ]
    story = read_story(write_sweep(tmp_path / "s", sketches, space=space, winner=1))
    (axis,) = story.axes
    drawn = traces(draw_slice(story, axis))
    assert drawn["complete trials"]["x"] == [0.0] and drawn["winner"]["x"] == [1.0]
    assert draw_slice(story, axis).layout.xaxis.ticktext == ("q_proj, v_proj", "all-linear")
    assert draw_parallel_coordinates(story) is not None


def test_markup_in_a_choice_is_written_and_not_read(tmp_path: Path) -> None:
    space = {"training.lr_scheduler_type": {"choices": ["<b>x</b>", "linear"]}}
    sketches = [Sketch([1.0, 0.5], {"training.lr_scheduler_type": choice}) for choice in ("<b>x</b>", "linear")]
    paths = write_sweep(tmp_path / "s", sketches, space=space, winner=0, has_journal=False)
    story = read_story(paths)
    for figure in (draw_parallel_coordinates(story), draw_slice(story, story.axes[0]), draw_learning_curves(story)):
        texts = figure.to_json()
        assert "\\u003cb\\u003e" not in texts and "<b>" not in texts
        assert "&lt;b&gt;x" in texts.replace("\\u0026", "&")


def test_slices_mark_the_winner(usual: Story) -> None:
    rate = usual.axes[1]
    drawn = traces(draw_slice(usual, rate))
    assert drawn["winner"]["y"] == [0.1]
    assert draw_slice(usual, rate).layout.annotations[0].text == "learning_rate, log: winner 0.002"
    assert drawn["pruned trials"]["x"] == pytest.approx([0.0, 1 / 3])
    # A trial that failed before any report has no loss to be drawn at.
    assert len(drawn["failed trials"]["x"]) == 1


def test_the_timeline_has_a_lane_per_slot_and_hatched_ground(usual: Story) -> None:
    figure = draw_timeline(usual)
    drawn = traces(figure)
    assert usual.timeline is not None and figure.layout.yaxis.ticktext == usual.timeline.lanes
    assert drawn["idle"]["marker"]["pattern"]["shape"] == "/"
    assert len(drawn["idle"]["y"]) == 4
    assert drawn["winner"]["text"] == ["0003"] and drawn["failed"]["text"] == ["0004", "0005"]
    assert len(drawn["trials"]["y"]) == 3


def test_memory_is_drawn_in_gib_beside_its_estimate(tmp_path: Path) -> None:
    sketches = [Sketch([1.0], peak_bytes=GIB), Sketch([0.5], peak_bytes=3 * GIB // 2), Sketch([], state="failed")]
    drawn = traces(draw_memory(read_story(write_sweep(tmp_path / "s", sketches, winner=1))))
    assert drawn["estimated"]["y"] == [2.0, 2.0, 2.0]
    assert drawn["measured"]["y"] == [1.0] and drawn["winner"]["y"] == [1.5]


@pytest.mark.parametrize(("gib", "is_apart"), [(1.0, False), (1.9, True)])
def test_labels_of_memory_do_not_cover_each_other(tmp_path: Path, gib: float, is_apart: bool) -> None:
    # The estimate is 2 GiB.
    story = read_story(write_sweep(tmp_path / "s", [Sketch([1.0], peak_bytes=int(gib * GIB))]))
    figure = draw_memory(story)
    labels = {note.text.split()[0]: note.yshift for note in figure.layout.annotations if note.x == 1}
    assert (labels["measured"] < labels["estimated"]) == is_apart
    assert figure.layout.xaxis.dtick == 1


def test_differences_point_to_the_right_when_they_are_better() -> None:
    loss = compare_rows("loss", [1.0, 1.3, 1.1, 0.9] * 5, [0.5, 0.4, 0.7, 0.6] * 5, higher_is_better=False)
    accuracy = compare_rows("accuracy", [1.0] * 20, [0.0] * 20, higher_is_better=True)
    drawn = traces(draw_differences([loss, accuracy]))
    assert loss.verdict == "better" and drawn["loss"]["x"][0] > 0
    assert drawn["loss interval"]["x"][1] == 1.0
    assert accuracy.verdict == "worse" and drawn["accuracy"]["x"] == [-1.0]
    assert drawn["loss"]["text"] == ["−0.525"] and drawn["accuracy"]["marker"]["color"] == "var(--bad)"


def test_a_difference_without_an_interval_is_not_drawn() -> None:
    assert draw_differences([compare_rows("loss", [1.0], [0.5], higher_is_better=False)]) is None
    assert draw_differences([]) is None


def test_nothing_to_draw_is_none(tmp_path: Path) -> None:
    empty = read_story(write_sweep(tmp_path / "s", []))
    assert draw_learning_curves(empty) is None
    assert draw_parallel_coordinates(empty) is None
    assert draw_importance(empty) is None
    assert draw_slice(empty, empty.axes[0]) is None
    assert draw_timeline(empty) is None
    assert draw_memory(empty) is None


def test_no_figure_needs_webgl(usual: Story) -> None:
    figures = [
        draw_learning_curves(usual),
        draw_parallel_coordinates(usual),
        draw_timeline(usual),
        draw_memory(usual),
        draw_differences([usual.outcome.verdict.deciding] if usual.outcome.verdict else []),
        *(draw_slice(usual, axis) for axis in usual.axes),
    ]
    kinds = {trace["type"] for figure in figures for trace in json.loads(figure.to_json())["data"]}
    assert kinds and not kinds & WEBGL
