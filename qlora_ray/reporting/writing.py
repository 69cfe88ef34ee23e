"""Writes report.html and report.md into a sweep's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qlora_ray.runs import SweepPaths, write_text

PAGE_NAME = "report.html"
MARKDOWN_NAME = "report.md"


@dataclass(frozen=True)
class Written:
    """The two files, the verdict in a line, and what could not be read."""

    page: Path
    markdown: Path
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
    from qlora_ray.pages.markdown import write_markdown
    from qlora_ray.pages.page import write_page
    from qlora_ray.reporting.document import compose
    from qlora_ray.reporting.story import read_story
    from qlora_ray.reporting.verdicts import summary_line

    story = read_story(paths)
    document = compose(story)
    # Both are made before either is written.
    page, markdown = write_page(document), write_markdown(document)
    written = Written(paths.root / PAGE_NAME, paths.root / MARKDOWN_NAME, summary_line(story), tuple(story.problems))
    # The large one first: where the disk is full, neither is new.
    write_text(written.page, page)
    write_text(written.markdown, markdown)
    return written
