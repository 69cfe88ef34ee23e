"""The machine in sections: what was planned, who held which slot when, and memory against its estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_ray.formats import format_bytes, format_share, format_value, plural
from qlora_ray.pages.blocks import Block, Bullets, Drawing, Section, Table, Words
from qlora_ray.reporting.figures_machine import draw_memory, draw_timeline
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.trials import as_list, as_mapping, as_number

# Room that a lane's label takes, and the chart beside it.
TIMELINE_PX = 560


def tell_slots(story: Story) -> Section:
    """The timeline of slots."""
    timeline = story.timeline
    figure = draw_timeline(story)
    if timeline is None or figure is None:
        return Section("Slots over time", [Words("No trial had a slot, or no file says when.", "muted")])
    idle = timeline.idle_share
    sentences = [f"{plural(len(timeline.lanes), 'slot')}, {plural(len(timeline.spans), 'lease')}"]
    if idle is not None:
        share = format_share(idle, digits=0)
        end = "last event" if any(span.is_open for span in timeline.spans) else "last release"
        sentences.append(f"{share} of the slots' time from first lease to {end} held no trial (hatched)")
    if story.outcome.device_wait_share is not None:
        share = format_share(story.outcome.device_wait_share)
        sentences.append(f"the devices themselves waited {share} of the search (one works while a slot of it is free)")
    if timeline.source == "records":
        sentences.append("times are from the trials' records, because this sweep's events hold no leases")
    sentences += _name_devices(story)
    if any(span.is_open for span in timeline.spans):
        sentences.append("… marks trials without an end")
    return Section("Slots over time", [Drawing("timeline", figure, "; ".join(sentences) + ".", TIMELINE_PX)])


def _name_devices(story: Story) -> list[str]:
    """Which executors were on which device."""
    devices = {trial.id: trial.device for trial in story.trials}
    executors: dict[str, dict[str, None]] = {}
    for span in story.timeline.spans if story.timeline else ():
        device = devices.get(span.trial)
        if device is not None:
            executors.setdefault(device, {})[span.executor] = None
    return [f"{device}: {', '.join(names)}" for device, names in executors.items()]


def tell_memory(story: Story) -> Section:
    """Estimate against measured peak."""
    figure = draw_memory(story)
    if figure is None:
        return Section("Memory", [Words("No trial's record holds memory, measured or estimated.", "muted")])
    shares = [
        trial.peak_bytes / trial.estimated_bytes for trial in story.trials if trial.peak_bytes and trial.estimated_bytes
    ]
    words = "Peak memory (dots) beside its estimate (dashes)"
    if shares:
        least, most = (format_share(end(shares), digits=0) for end in (min, max))
        words += f": measured peaks are {least if least == most else f'{least} to {most}'} of the estimates"
        over = sum(share > 1 for share in shares)
        words += f"; {plural(over, 'trial')} took more than estimated" if over else ", and none was above its own"
    if any(trial.is_gpu is False for trial in story.trials):
        words += ". On a CPU both are of the executor's whole process, libraries included, which its trials share"
    elif any(trial.is_gpu for trial in story.trials):
        words += ". Both are of the executor's process on its GPU; trials that share one base share its peak"
    return Section("Memory", [Drawing("memory", figure, words + ".")])


def tell_plan(story: Story) -> Section:
    """The plan as it was made, with its reasons."""
    plan = as_mapping(story.manifest.get("plan"))
    placements = [as_mapping(one) for one in as_list(plan.get("placements"))]
    if not placements:
        return Section("Plan", [Words("manifest.json holds no plan.", "muted")])
    header = ("device", "count", "slots each", "engine", "precision", "micro-batch x accumulation", "needs", "free")
    table = Table(header, tuple(_placement_row(one) for one in placements), numeric=frozenset({1, 2, 6, 7}))
    reasons = [f"{format_value(one.get('device_name'))}: {one.get('reason')}" for one in placements]
    reasons += [f"skipped: {text}" for text in as_list(plan.get("skipped"))]
    reasons += [f"note: {text}" for text in as_list(plan.get("notes"))]
    slots = plan.get("total_slots")
    at_once: list[Block] = [Words(f"{plural(slots, 'trial')} at once.")] if isinstance(slots, int) else []
    return Section("Plan", [*at_once, table, Bullets(tuple(reasons))])


def _placement_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        format_value(one.get("device_name")),
        format_value(one.get("num_devices")),
        format_value(one.get("slots_per_device")),
        format_value(one.get("engine")),
        format_value(as_mapping(one.get("precision")).get("name")),
        f"{format_value(one.get('micro_batch'))} x {format_value(one.get('gradient_accumulation_steps'))}",
        format_bytes(as_number(one.get("needed_bytes"))),
        format_bytes(as_number(one.get("available_bytes"))),
    )
