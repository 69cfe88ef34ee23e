"""The report of a sweep: its sections in the order in which one asks."""

from __future__ import annotations

from qlora_ray.pages.blocks import Document, Section
from qlora_ray.reporting.evaluations import tell_evaluation, tell_merges
from qlora_ray.reporting.machines import tell_memory, tell_plan, tell_slots
from qlora_ray.reporting.origins import tell_data, tell_origin, tell_record
from qlora_ray.reporting.searches import tell_failures, tell_leaderboard, tell_parameters, tell_search
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.verdicts import facts_of, headline_of, lead_of, tell_verdict


def compose(story: Story) -> Document:
    """The report as sections, before it is written as HTML or Markdown."""
    headline, tone = headline_of(story)
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
