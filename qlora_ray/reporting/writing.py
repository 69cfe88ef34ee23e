"""Writes report.html, report.md and loss_curves.png into a sweep's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qlora_ray.pages.blocks import Document, Section
from qlora_ray.pages.markdown import write_markdown
from qlora_ray.pages.page import write_page
from qlora_ray.pages.plots import render_png
from qlora_ray.reporting.evaluations import tell_evaluation, tell_merges
from qlora_ray.reporting.loss_plot import plot_losses
from qlora_ray.reporting.machines import tell_memory, tell_plan, tell_slots
from qlora_ray.reporting.origins import tell_data, tell_origin, tell_record
from qlora_ray.reporting.searches import find_shown, tell_failures, tell_leaderboard, tell_parameters, tell_search
from qlora_ray.reporting.story import Story, read_story
from qlora_ray.reporting.verdicts import facts_of, headline_of, lead_of, summary_line, tell_verdict
from qlora_ray.runs import SweepPaths, write_text
from qlora_ray.runs.artifacts import renew_sweep_artifacts
from qlora_ray.runs.files import write_bytes

PAGE_NAME = "report.html"
MARKDOWN_NAME = "report.md"
LOSSES_NAME = "loss_curves.png"


@dataclass(frozen=True)
class Written:
    """The files, the verdict in a line, and what could not be read.

    Attributes:
        losses: The loss curves of the winner, or of the best trial so far; None where no trial has a loss.
    """

    page: Path
    markdown: Path
    losses: Path | None
    verdict: str
    problems: tuple[str, ...] = ()


def write_report(paths: SweepPaths) -> Path:
    """Writes both reports of a sweep, finished or not; returns the page's path.

    Raises:
        RunError: If the folder is no sweep's, or cannot be written.
    """
    return write_reports(paths).page


def write_reports(paths: SweepPaths) -> Written:
    """Like `write_report`, and tells what it wrote.

    Raises:
        RunError: If the folder is no sweep's, or cannot be written.
    """
    story = read_story(paths)
    document = compose(story)
    # All are made before one is written.
    page, markdown = write_page(document), write_markdown(document)
    shown = find_shown(story)
    figure = plot_losses(shown) if shown is not None else None
    losses = paths.root / LOSSES_NAME
    written = Written(
        paths.root / PAGE_NAME,
        paths.root / MARKDOWN_NAME,
        losses if figure is not None else None,
        summary_line(story),
        tuple(story.problems),
    )
    # The large one first: where the disk is full, neither is new.
    write_text(written.page, page)
    write_text(written.markdown, markdown)
    if figure is not None:
        write_bytes(losses, render_png(figure))
    renew_sweep_artifacts(paths.root)
    return written


def compose(story: Story) -> Document:
    """The report as sections, before it is written as HTML or Markdown."""
    headline, tone = headline_of(story.outcome)
    sections: list[Section | None] = [
        tell_verdict(story),
        tell_evaluation(story),
        tell_merges(story),
        tell_leaderboard(story),
        tell_failures(story),
        tell_search(story),
        tell_parameters(story),
        tell_slots(story),
        tell_memory(story),
        tell_plan(story),
        tell_data(story),
        tell_record(story),
        tell_origin(story),
    ]
    return Document(
        title=f"Sweep {story.name}",
        headline=headline,
        tone=tone,
        lead=lead_of(story),
        facts=facts_of(story),
        sections=tuple(section for section in sections if section is not None and section.blocks),
    )
