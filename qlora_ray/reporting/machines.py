"""The machine in sections: what was planned, who held which slot when, and memory against its estimate."""

from __future__ import annotations

from qlora_ray.formats import format_bytes, format_share, format_value, plural
from qlora_ray.pages.blocks import Block, Bullets, Drawing, Section, Table, Words
from qlora_ray.reporting.figures_machine import draw_memory, draw_timeline
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.thinning import MAX_BARS, describe_drawn
from qlora_ray.runs.record_parts import PlacementRecord

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
    if len(timeline.spans) > MAX_BARS:
        sentences.append("short trials of a slot that follow each other are drawn as one bar")
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
    return Section("Memory", [Drawing("memory", figure, f"{words}.{describe_drawn(story)}")])


def tell_plan(story: Story) -> Section:
    """The plan as it was made, with its reasons."""
    plan = story.manifest.plan
    if not plan.placements:
        return Section("Plan", [Words("manifest.json holds no plan.", "muted")])
    header = ("device", "count", "slots each", "engine", "precision", "micro-batch x accumulation", "needs", "free")
    table = Table(
        header, tuple(_placement_row(placement) for placement in plan.placements), numeric=frozenset({1, 2, 6, 7})
    )
    reasons = [f"{format_value(placement.device_name)}: {placement.reason}" for placement in plan.placements]
    reasons += [f"skipped: {text}" for text in plan.skipped]
    reasons += [f"note: {text}" for text in plan.notes]
    slots = plan.total_slots
    at_once: list[Block] = [Words(f"{plural(slots, 'trial')} at once.")] if slots is not None else []
    return Section("Plan", [*at_once, table, Bullets(tuple(reasons))])


def _placement_row(placement: PlacementRecord) -> tuple[str, ...]:
    return (
        format_value(placement.device_name),
        format_value(placement.num_devices),
        format_value(placement.slots_per_device),
        format_value(placement.engine),
        format_value(placement.precision.name),
        f"{format_value(placement.micro_batch)} x {format_value(placement.gradient_accumulation_steps)}",
        format_bytes(placement.needed_bytes),
        format_bytes(placement.available_bytes),
    )
