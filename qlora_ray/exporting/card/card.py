"""The model card: what the model is, whether it is better than its base, how it was made, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qlora_ray.exporting.card.figures import (
    CardFacts,
    describe_rows,
    detail_tables,
    is_worse,
    rows_are_the_sweeps,
    score_rows,
    verdict_sentences,
)
from qlora_ray.exporting.card.heads import describe_heads
from qlora_ray.exporting.card.loading import guide_loading
from qlora_ray.exporting.card.metadata import hub_dataset, make_card_data
from qlora_ray.exporting.naming import shorten_datasets, shorten_source
from qlora_ray.exporting.reproduction import (
    SWEEP_FILE,
    TRIAL_FILE,
    describe_clone,
    local_paths,
    sweep_command,
    trial_command,
)
from qlora_ray.exporting.run_record import value
from qlora_ray.exporting.selection import Selection
from qlora_ray.exporting.serving.guide import guide_serving
from qlora_ray.formats import format_gib
from qlora_ray.modeling.loading import EMBEDDED
from qlora_ray.modeling.quantization import QuantizationSpec
from qlora_ray.pages.markdown import write_table
from qlora_ray.scoring.details import describe_details

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


def make_card(facts: CardFacts) -> ModelCard:
    """The bundle's README.md, with the metadata that the hub reads."""
    from huggingface_hub import ModelCard

    sections = [
        f"# {facts.name}",
        _about(facts),
        "## Against its base\n\n" + _verdict(facts),
        _scores(facts),
        describe_heads(facts),
        _merge(facts),
        "## How to load it\n\n"
        + guide_loading(facts.selection, has_merged=facts.merge is not None, end_ids=list(facts.ends)),
        "## How to serve it\n\n"
        + guide_serving(facts.selection, name=facts.name, has_merged=facts.merge is not None, ends=facts.ends),
        "## How it was made\n\n" + _settings(facts),
        "## Make it again\n\n" + _reproduction(facts),
        "## Limits\n\n" + _limits(facts),
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{make_card_data(facts).to_yaml()}\n---\n\n{text}\n")


def _about(facts: CardFacts) -> str:
    selection = facts.selection
    lora, quantization = selection.lora, selection.quantization
    kind = "DoRA" if lora.use_dora else "LoRA"
    held = "not quantized" if quantization.method == "none" else f"held in {quantization.method.upper()}"
    merged = ", and the two merged into one model" if facts.merge else ""
    rank = "the winner" if selection.is_winner else f"trial {selection.trial}, which is not the winner,"
    return (
        f"A {kind} adapter of rank {lora.r} on {_base_label(selection)} ({held} while it trained){merged}. "
        f"Trained on {_num_train_rows(selection)} rows of `{_dataset_label(selection)}`. "
        f"It is {rank} of a sweep of {selection.manifest.setting('search', 'num_trials')} trials."
    )


def _verdict(facts: CardFacts) -> str:
    sentences = verdict_sentences(facts)
    if sentences:
        return _list(sentences)
    return "It was not compared with its base row by row. `python -m qlora_ray.evaluate` does so."


def _scores(facts: CardFacts) -> str:
    rows = score_rows(facts)
    if not rows:
        return ""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    header = ["model", "prompts", "loss", "rows", *metrics]
    body = [
        [
            str(row.model),
            str(row.prompts),
            _number(row.loss),
            value(row.num_rows),
            *(_number(row.metrics.get(name)) for name in metrics),
        ]
        for row in rows
    ]
    note = "Loss: nats per answer token, over all rows. The metrics are over the rows that were answered."
    details = detail_tables(facts)
    tables = [
        write_table([header, *body]),
        note,
        *map(write_table, details),
        *describe_details(details),
    ]
    return "\n\n".join(["## Scores", _list(describe_rows(facts)), *tables])


def _merge(facts: CardFacts) -> str:
    if facts.merge is None:
        return ""
    return "## The merged model\n\n```text\n" + "\n".join(facts.merge.lines()) + "\n```"


def _settings(facts: CardFacts) -> str:
    selection = facts.selection
    record, ran, lora = selection.record, selection.record.ran, selection.lora
    training, memory = ran.training, record.memory
    rows = [
        ["setting", "value"],
        ["rank, alpha, dropout", f"{lora.r}, {value(lora.lora_alpha)}, {lora.lora_dropout or 0.0:.4g}"],
        ["target modules", ", ".join(lora.target_modules)],
        ["learning rate", f"{training['learning_rate']:.4g}, {training['lr_scheduler_type']}"],
        ["effective batch", f"{value(ran.effective_batch)} samples"],
        ["steps", f"{value(ran.num_steps)} ({value(ran.num_samples)} samples)"],
        ["optimizer", training["optim"]],
        ["precision", value(ran.precision).strip('"')],
        ["quantization", _quantization(selection.quantization)],
        ["prompts", f"{selection.data.template or 'not recorded'} template"],
        ["an answer ends with", ", ".join(f"`{token}`" for token in facts.ends.values()) or "not known"],
        ["device", record.executor.device or "not recorded"],
        ["trainable parameters", f"{value(ran.trainable_parameters)}"],
        ["training", f"{record.times.train_s:.0f} s"],
        ["peak memory", _gib(memory.peak_bytes) + f", estimated {_gib(memory.estimated_bytes)}"],
    ]
    return write_table(rows) + "\n\nEvery value: [RUN_RECORD.md](RUN_RECORD.md) and [record.json](record.json)."


def _reproduction(facts: CardFacts) -> str:
    lines = [
        "With qlora_ray installed, in this folder:",
        "",
        "```bash",
        f"{trial_command()}  # this adapter alone, with its values",
        f"{sweep_command()}  # the search that found it",
        "```",
        "",
        "Rows, order, seeds and values are the same. Beside other trials or on another device sums are taken in "
        "another order, so the figures come close and need not be equal, the less so the higher the learning rate.",
    ]
    origin = describe_clone(facts.selection)
    if origin is not None:
        lines += ["", f"`{TRIAL_FILE}` trains the adapter's last values from the start: {origin}"]
    local = local_paths(facts.selection)
    if local:
        names = ", ".join(f"`{shorten_source(path)}`" for path in local)
        lines += [
            "",
            f"They need {names}, which are not in this folder: say where in `{TRIAL_FILE}` and `{SWEEP_FILE}`.",
        ]
    return "\n".join(lines)


def _limits(facts: CardFacts) -> str:
    selection = facts.selection
    data = selection.record.dataset
    lines = [
        f"Trained with one seed ({selection.record.seeds.seed}) on {_num_train_rows(selection)} rows; another "
        "seed gives other figures.",
        _limit_of_rows(facts),
        "The licenses of base and data were not recorded; they hold for this model too.",
    ]
    if not verdict_sentences(facts):
        lines.insert(0, "Whether it is better than its base is not known.")
    elif is_worse(facts):
        lines.insert(0, "**It is worse than its base on at least one measure above.**")
    if selection.is_winner:
        num_rows = data.num_rows.get("validation")
        lines.append(f"It was chosen by its loss on {num_rows} validation rows, which flatters figures on these.")
    if data.overlap_check == "fail":
        lines.append("Some evaluation rows have prompts that are in train too: scores on them measure memory.")
    return _list(line for line in lines if line)


def _limit_of_rows(facts: CardFacts) -> str:
    if not score_rows(facts):
        return "What it does on rows other than the sweep's was not measured."
    if rows_are_the_sweeps(facts):
        return "Scored on rows like those it was trained on. What it does on others was not measured."
    return "Scored on rows that are not the sweep's: whether they are like those it was trained on is not known here."


def _quantization(quantization: QuantizationSpec) -> str:
    if quantization.method == "none":
        return f"none, {quantization.compute_dtype}"
    stored = ", as the base is stored" if quantization.is_stored else ""
    return f"{quantization.describe()}{stored}, computed in {quantization.compute_dtype}"


def _base_label(selection: Selection) -> str:
    name = selection.base_name
    if name == EMBEDDED:
        return "the embedded base of qlora_ray"
    return f"`{name if selection.base_is_on_hub else shorten_source(name)}`"


def _dataset_label(selection: Selection) -> str:
    return hub_dataset(selection) or shorten_datasets(selection.manifest.setting("data", "train"))


def _num_train_rows(selection: Selection) -> int | str:
    return selection.record.dataset.num_rows.get("train", "an unknown number of")


def _gib(num_bytes: float | None) -> str:
    return format_gib(num_bytes) if num_bytes else "not recorded"


def _number(found: float | None) -> str:
    return "" if found is None else f"{found:.4g}"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
