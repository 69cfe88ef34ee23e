"""The PNGs hold what the pages draw: read back as images, and as the data of their axes."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qlora_ray.evaluation.answers.files import AnswerRow
from qlora_ray.evaluation.answers.page import export_answers
from qlora_ray.evaluation.answers.plots import plot_lengths, plot_refusals
from qlora_ray.evaluation.answers.statistics import summarize
from qlora_ray.pages.html import COLOURS
from qlora_ray.pages.plots import render_png
from qlora_ray.reporting.loss_plot import plot_losses
from qlora_ray.reporting.story import Story, read_story
from qlora_ray.reporting.writing import write_reports
from qlora_ray.runs import append_line
from tests.sweep_folder import Sketch, write_sweep

REFUSAL = "I can't help with that."


def answer(key: str, text: str, num_tokens: int | None = 3) -> AnswerRow:
    return AnswerRow(key, f"ask {key}", text, None, num_tokens, is_cut=False)


def has_colour(image: Image.Image, name: str) -> bool:
    wanted = tuple(int(COLOURS[name][0][at : at + 2], 16) for at in (1, 3, 5))
    return bool((np.asarray(image.convert("RGB")) == wanted).all(axis=2).any())


def test_the_winners_losses_are_a_png_beside_the_report(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", [Sketch([3.0, 2.0]), Sketch([2.0, 1.5, 1.25, 1.0])], winner=1)
    written = write_reports(paths)
    assert written.losses == paths.root / "loss_curves.png"
    image = Image.open(written.losses)
    assert (image.format, image.size) == ("PNG", (1280, 600))
    assert has_colour(image, "accent") and has_colour(image, "muted") and not has_colour(image, "second")
    before = written.losses.read_bytes()
    write_reports(paths)
    assert written.losses.read_bytes() == before


def test_the_lines_are_the_training_and_validation_losses_by_samples(usual: Story) -> None:
    trial = usual.trials[3]
    figure = plot_losses(trial)
    assert figure is not None
    [panel] = figure.axes
    lines = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in panel.lines}
    assert lines["validation"] == [[600, 0.9], [1200, 0.4], [1800, 0.2], [2400, 0.1]]
    assert lines["training"] == [list(point) for point in trial.train_losses] and len(lines["training"]) == 12
    assert panel.get_yscale() == "log" and panel.get_xlim()[0] == 0
    assert "0003" in panel.get_title(loc="left")
    assert "samples" in panel.get_xlabel()


def test_a_single_training_loss_can_be_seen(usual: Story) -> None:
    trial = usual.trials[3]
    figure = plot_losses(replace(trial, train_losses=trial.train_losses[:1]))
    assert figure is not None
    [training] = [line for line in figure.axes[0].lines if line.get_label() == "training"]
    assert training.get_marker() == "o"


def test_a_trial_or_sweep_without_losses_has_no_plot(usual: Story, tmp_path: Path) -> None:
    assert plot_losses(usual.trials[5]) is None
    paths = write_sweep(tmp_path / "s", [Sketch([], state="failed", cause="diverged")])
    assert write_reports(paths).losses is None
    assert not (paths.root / "loss_curves.png").exists()


def test_losses_close_together_are_on_a_linear_axis(tmp_path: Path) -> None:
    figure = plot_losses(read_story(write_sweep(tmp_path / "s", [Sketch([1.0, 0.9])])).trials[0])
    assert figure is not None and figure.axes[0].get_yscale() == "linear"


def test_lengths_have_a_box_for_each_model_and_set_and_none_is_cut() -> None:
    short = {"base": [answer("a", "x", 1), answer("b", "x", 5)], "adapter": [answer("a", "x", 2), answer("b", "x", 4)]}
    long = {"base": [answer("a", "x", 100), answer("b", "x", 900)]}
    figure = plot_lengths([summarize("one", short), summarize("two $x$", long)])
    one, two = figure.axes
    # Of a box's lines, those that lie along x.
    reach = [sorted(float(x) for line in panel.lines for x in np.atleast_1d(line.get_xdata())) for panel in (one, two)]
    assert [(ends[0], ends[-1]) for ends in reach] == [(1, 5), (100, 900)]
    assert [label.get_text() for label in one.get_yticklabels()] == ["base", "adapter"]
    assert one.get_xlim() == two.get_xlim() and one.get_xlim()[0] == 0 and one.get_xlim()[1] >= 900
    assert two.get_title(loc="left") == "two $x$" and "tokens" in two.get_xlabel()
    image = Image.open(io.BytesIO(render_png(figure)))
    assert image.width == 1280 and has_colour(image, "rest") and has_colour(image, "accent")


def test_refusals_are_bars_of_their_share_with_the_counts() -> None:
    rows = {"base": [answer("a", REFUSAL), answer("b", "Yes.")], "adapter": [answer("a", "Yes."), answer("b", "No.")]}
    [panel] = plot_refusals([summarize("red_team", rows)]).axes
    assert [bar.get_width() for bar in panel.patches] == [50, 0]
    assert [text.get_text() for text in panel.texts] == ["1 of 2", "0 of 2"]


@pytest.mark.parametrize("answered", [True, False])
def test_an_evaluation_exports_both_plots_even_without_an_answer(tmp_path: Path, answered: bool) -> None:
    if answered:
        line = {"id": "a", "prompt": "p", "answer": REFUSAL, "reference": None, "num_tokens": 3, "finish": "stop"}
        append_line(tmp_path / "base" / "red_team.jsonl", line)
    stats = export_answers(tmp_path, prompt_sets=["red_team"], models=["base"])
    assert stats["files"] == ["stats.json", "answers.html", "lengths.png", "refusals.png"]
    for name in stats["files"][2:]:
        assert Image.open(tmp_path / name).format == "PNG"


def test_matplotlib_is_imported_when_something_is_drawn_and_not_before() -> None:
    script = (
        "import sys, qlora_ray.sweep, qlora_ray.plan, qlora_ray.evaluate, qlora_ray.report, qlora_ray.reporting\n"
        "import qlora_ray.reporting.writing, qlora_ray.evaluation.answers.page\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
